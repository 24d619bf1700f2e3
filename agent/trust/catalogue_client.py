"""Verifies a catalogue by The Update Framework, with python-tuf: from the operator's pinned root to what may run here.

    load      what was believed last, from one file on disk, verified again; works without a network, also past expiry
    refresh   the newest from the repository; verified as a whole in a folder of its own, then put in place of the old

So a refresh that fails half way, for whatever reason, changes nothing, and neither does a power cut: the file is
written beside the old one, synced and renamed. Both block: use them on a thread.

Expiry is judged by the time that the caller gives, since the car's clock may be wrong (`agent.trust.time_floor`):
python-tuf 7 reads the wall clock once, when its set of trusted metadata is made, into an attribute that no caller can
give; it is set anew here, before anything is judged. `load` judges no expiry, for the old deny list counts for ever;
`Catalogue.expires_ms` says until when the rest does.

This module needs python-tuf (the extra `tuf`); import it only where a catalogue is configured. What it fetches goes
through the `Fetch` that it is given. Failures are `CatalogueError`, which says why in one word (`CatalogueFault`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import cast

from tuf.api import exceptions
from tuf.api.metadata import Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from agent.errors import FleetError
from agent.trust.catalogue import (
    DENY,
    DISPATCHERS,
    MAX_FILE_BYTES,
    Catalogue,
    CatalogueError,
    CatalogueFault,
    DenyList,
    Listed,
    NotThereError,
    TooLongError,
    Versions,
    read_deny_list,
    read_dispatchers,
    read_name,
)
from agent.trust.catalogue_store import CatalogueStore
from agent.trust.version_floors import version_key

Fetch = Callable[[str, int], bytes]
"""The body at a URL, of at most so many bytes. Raises NotThereError, TooLongError, FleetError."""

LIMITS = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=8,
    root_max_length=64 * 1024,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=64 * 1024,
    targets_max_length=2 * 1024 * 1024,
)
LONGEST_WINDOW_MS = 31 * 86_400_000
"""No operator may sign a timestamp for longer: so one without a `SIGNED_AT` was signed no earlier than this before it
expires."""
SIGNED_AT = "x-driveway-signed-at"
"""A field of the timestamp's signed part: when it was signed, as TUF writes times."""
PROBES = {
    "dispatchers": DISPATCHERS,
    "packages": "packages/-/0/manifest.json",
    "policies": "policies/-/0/policy.toml",
    "releases": "releases/-/0/-",
}
"""A name that only this delegated role may sign: asking for it loads the role, by python-tuf's public interface."""
LONG_AGO = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class CatalogueClient:
    """One catalogue: the operator's root (bytes of a root.json), where the repository is, and where it is kept here.

    `policy` is the name of the policy whose newest version is fetched, or "". One call at a time.
    """

    def __init__(self, root: bytes, url: str, store: CatalogueStore, *, policy: str = "") -> None:
        self._root, self._url, self._store, self._policy = root, f"{url.rstrip('/')}/", store, policy

    def load(self) -> Catalogue | None:
        """What was believed last, without the policy; None where nothing was yet.

        Raises CatalogueError where the file does not hold, or not under this root, StoreError where it cannot be read.
        """
        with self._store.opened() as folder:
            if folder is None:
                return None
            return self._verified(folder, _Fetcher(_only_here(folder)), LONG_AGO)

    def refresh(self, reference_ms: int, fetch: Fetch, accept: Callable[[Catalogue], None]) -> Catalogue:
        """The newest catalogue, verified at this time (wall milliseconds) and kept, unless `accept` raises.

        Raises CatalogueError, StoreError where it cannot be kept; what was believed before stands then.
        """
        with self._store.changing() as folder:
            reference = dt.datetime.fromtimestamp(reference_ms / 1000, dt.UTC)
            catalogue = self._verified(folder, _Fetcher(fetch), reference, self._policy)
            accept(catalogue)
            return catalogue

    def _verified(self, folder: Path, fetcher: _Fetcher, reference: dt.datetime, policy: str = "") -> Catalogue:
        try:
            updater = Updater(
                metadata_dir=str(folder),
                metadata_base_url=f"{self._url}metadata/",
                fetcher=fetcher,
                config=LIMITS,
                bootstrap=self._root,
            )
            judge_expiry_at(updater, reference)
            updater.refresh()
            for name in PROBES.values():
                updater.get_targetinfo(name)
            return _catalogue(updater, fetcher.ours, folder / "targets", f"{self._url}targets/", policy)
        except CatalogueError:
            raise
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise _judged(error, fetcher) from error
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise CatalogueError(CatalogueFault.MALFORMED, f"{fetcher.asked} is malformed: {error!a}") from error


def _catalogue(updater: Updater, fetch: Fetch, kept: Path, url: str, policy: str) -> Catalogue:
    """What all the metadata says together, with the content of the targets that have one for us."""
    roles = _roles(updater)
    root, timestamp = cast("Root", roles["root"]), cast("Timestamp", roles["timestamp"])
    listed = {role: _listed(role, signed) for role, signed in roles.items() if isinstance(signed, Targets)}
    files = _Files(updater, kept, url, fetch)
    deny, dispatchers = files.read(DENY), files.read(DISPATCHERS)
    policy_bytes = files.policy(policy, listed.get("policies", ()))
    files.sweep()
    return Catalogue(
        versions=Versions(root.version, timestamp.version, roles["snapshot"].version, roles["targets"].version),
        signed_ms=_signed_ms(timestamp),
        expires_ms=min(_milliseconds(signed.expires) for signed in roles.values()),
        packages=listed.get("packages", ()),
        policies=listed.get("policies", ()),
        releases=listed.get("releases", ()),
        dispatchers=None if dispatchers is None else read_dispatchers(dispatchers),
        denied=DenyList() if deny is None else read_deny_list(deny),
        policy_bytes=policy_bytes,
    )


def judge_expiry_at(updater: Updater, reference: dt.datetime) -> None:
    """Have python-tuf judge expiry by this time instead of the wall clock; raises CatalogueError where it cannot.

    python-tuf offers no such thing (7.0: `TrustedMetadataSet.reference_time`, set from the clock when it is made). The
    tests prove for each role that this attribute decides, and nothing else.
    """
    trusted = getattr(updater, "_trusted_set", None)
    if not isinstance(getattr(trusted, "reference_time", None), dt.datetime):
        what = "this version of python-tuf keeps no reference time"
        raise CatalogueError(CatalogueFault.MALFORMED, what, hint="install tuf 7.0")
    trusted.reference_time = reference  # type: ignore[union-attr]  # it was just looked at


def _roles(updater: Updater) -> dict[str, Signed]:
    """All metadata that was verified, by role; a role that nobody delegated is missing."""
    trusted = updater._trusted_set  # noqa: SLF001 - there is no public way to what was verified
    names = (Root.type, Timestamp.type, Snapshot.type, Targets.type, *PROBES)
    found = {name: trusted.get(name) for name in names}
    return {name: signed for name, signed in found.items() if signed is not None}


class _Fetcher(FetcherInterface):
    """python-tuf's way to the network, through ours; it also remembers what was asked for last, to be told of."""

    def __init__(self, fetch: Fetch) -> None:
        self.ours = fetch
        self.asked = "root.json"

    def _fetch(self, url: str) -> list[bytes]:  # type: ignore[override]  # a list can be iterated; nothing here asks
        return [self.download_bytes(url, LIMITS.targets_max_length)]

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """As python-tuf wants it."""
        self.asked = url.rpartition("/")[2]
        try:
            return self.ours(url, max_length)
        except NotThereError as error:
            raise exceptions.DownloadHTTPError(str(error), 404) from error
        except TooLongError as error:
            raise exceptions.DownloadLengthMismatchError(str(error)) from error
        except FleetError as error:
            raise exceptions.DownloadError(str(error)) from error


def _only_here(folder: Path) -> Fetch:
    """A repository that offers no more than is in the folder: no newer root, and the timestamp that is there."""

    def fetch(url: str, most_bytes: int) -> bytes:
        name = url.rpartition("/")[2]
        if name != "timestamp.json":
            raise NotThereError(f"{name} is not among what is kept")
        with (folder / name).open("rb") as file:
            return file.read(most_bytes)

    return fetch


class _Files:
    """The few targets whose content counts: those kept with the metadata, else fetched, and then kept."""

    def __init__(self, updater: Updater, kept: Path, url: str, fetch: Fetch) -> None:
        self._updater, self._kept, self._url, self._fetch = updater, kept, url, fetch
        kept.mkdir(exist_ok=True)
        self._before, self._used = {path.name for path in kept.iterdir()}, set[str]()

    def read(self, name: str) -> bytes | None:
        """The content of a target; None where the catalogue has none of this name."""
        target = self._updater.get_targetinfo(name)
        if target is None:
            return None
        sha256 = _sha256(target)
        body = (self._kept / sha256).read_bytes() if sha256 in self._before else self._fetched(name, target, sha256)
        try:
            target.verify_length_and_hashes(body)
        except exceptions.LengthOrHashMismatchError as error:
            raise CatalogueError(CatalogueFault.MISMATCH, f"{name} is not what was signed: {error}") from error
        (self._kept / sha256).write_bytes(body)
        self._used.add(sha256)
        return body

    def policy(self, name: str, listed: tuple[Listed, ...]) -> bytes | None:
        """The newest version of a policy; None where none is asked for, or listed."""
        newest = max(
            (one for one in listed if one.name == name), key=lambda one: version_key(one.version), default=None
        )
        return None if newest is None else self.read(f"policies/{name}/{newest.version}/policy.toml")

    def sweep(self) -> None:
        """Keep no more than what was read."""
        for sha256 in self._before - self._used:
            (self._kept / sha256).unlink()

    def _fetched(self, name: str, target: TargetFile, sha256: str) -> bytes:
        if target.length > MAX_FILE_BYTES:
            what = f"{name} is {target.length} bytes, more than the {MAX_FILE_BYTES} that are fetched"
            raise CatalogueError(CatalogueFault.TOO_LONG, what)
        folder, _, file = name.rpartition("/")
        try:
            return self._fetch(f"{self._url}{folder}{'/' if folder else ''}{sha256}.{file}", target.length)
        except TooLongError as error:
            raise CatalogueError(CatalogueFault.TOO_LONG, error.what) from error
        except (NotThereError, FleetError) as error:
            raise CatalogueError(CatalogueFault.UNREACHABLE, error.what, hint=error.hint) from error


def _listed(role: str, targets: Targets) -> tuple[Listed, ...]:
    """What a role lists, each name of the form that is its own; raises CatalogueError."""
    found = []
    for name, target in targets.targets.items():
        title, version = read_name(role, name)
        file = name.rpartition("/")[2] if role == "releases" else ""
        found.append(Listed(title, version, _sha256(target), target.length, file))
    return tuple(found)


def _sha256(target: TargetFile) -> str:
    """The target's SHA-256, which every one of ours has; raises CatalogueError."""
    sha256 = target.hashes.get("sha256", "")
    if len(sha256) != 64 or sha256.strip("0123456789abcdef"):
        raise CatalogueError(CatalogueFault.MALFORMED, f"the target {target.path[:200]!a} has no SHA-256")
    return sha256


def _signed_ms(timestamp: Timestamp) -> int:
    """A time by which the timestamp was certainly signed: what it says itself, or by how long one may be good."""
    expires_ms = _milliseconds(timestamp.expires)
    said = timestamp.unrecognized_fields.get(SIGNED_AT)
    try:
        said_ms = _milliseconds(dt.datetime.strptime(str(said), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC))
    except ValueError:
        return max(0, expires_ms - LONGEST_WINDOW_MS)
    return min(said_ms, expires_ms)


def _milliseconds(moment: dt.datetime) -> int:
    return int(moment.timestamp() * 1000)


def _judged(error: Exception, fetcher: _Fetcher) -> CatalogueError:
    """What python-tuf refused, in our words: which file, and why."""
    asked = fetcher.asked
    rolled_back = any(name in asked for name in ("timestamp", "snapshot"))
    match error:
        case exceptions.DownloadLengthMismatchError():
            fault = CatalogueFault.TOO_LONG
        case exceptions.DownloadError():
            fault = CatalogueFault.UNREACHABLE
        case exceptions.ExpiredMetadataError():
            fault = CatalogueFault.EXPIRED
        case exceptions.BadVersionNumberError():
            fault = CatalogueFault.ROLLBACK if rolled_back else CatalogueFault.MISMATCH
        case exceptions.LengthOrHashMismatchError():
            fault = CatalogueFault.MISMATCH
        case exceptions.UnsignedMetadataError():
            fault = CatalogueFault.UNSIGNED
        case _:
            fault = CatalogueFault.MALFORMED
    return CatalogueError(fault, f"{asked}: {str(error)[:300]!a}")
