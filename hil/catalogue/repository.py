"""A catalogue as its operator keeps it: a TUF repository that is made, changed and signed with python-tuf's metadata.

    FOLDER/repository/metadata/   N.root.json, timestamp.json, N.snapshot.json, N.targets.json, N.packages.json, …
    FOLDER/repository/targets/    every target, its SHA-256 before its name (consistent snapshots)
    FOLDER/keys/                  see `hil.catalogue.keyring`

`repository/` is what any web server may publish, all of it readable by anybody; nothing in it is secret. Every change
gives a new version to the roles that it touches and signs them with the keys that are here; `publish` makes it count,
by a new snapshot and a new timestamp, the timestamp last. Failures are TrustError.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from agent.errors import TrustError
from agent.trust.catalogue import FORMS
from agent.trust.catalogue_client import SIGNED_AT
from hil.catalogue.keyring import Keyring

TOP = ("root", "timestamp", "snapshot", "targets")
PATHS = {
    "dispatchers": ["dispatchers.json"],
    "packages": ["packages/*/*/manifest.json"],
    "policies": ["policies/*/*/policy.toml"],
    "releases": ["releases/*/*/*"],
}
"""What `targets` delegates, and to which role."""
LIFETIME_DAYS = {"root": 365, "targets": 90, "timestamp": 14, "snapshot": 14}
OTHER_LIFETIME_DAYS = 90
ROOT_KEYS, ROOT_THRESHOLD = 3, 2


def utc_now() -> dt.datetime:
    """The operator's clock, to the second, as TUF writes times."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


class Repository:
    """One catalogue. `now` is the operator's clock, `keys` where the keys are."""

    def __init__(self, folder: Path, keys: Path | None = None, now: Callable[[], dt.datetime] = utc_now) -> None:
        self.public = folder / "repository"
        self.metadata, self.files = self.public / "metadata", self.public / "targets"
        self._keyring, self._now = Keyring(keys or folder / "keys"), now
        self.lifetime_days = dict.fromkeys(PATHS, OTHER_LIFETIME_DAYS) | LIFETIME_DAYS

    @classmethod
    def create(cls, folder: Path, keys: Path | None = None, now: Callable[[], dt.datetime] = utc_now) -> Repository:
        """A new, empty catalogue with new keys, published; raises TrustError where there is one."""
        made = cls(folder, keys, now)
        if made.metadata.exists():
            raise TrustError(f"{folder} has a catalogue already", hint="give another folder")
        made.metadata.mkdir(parents=True)
        made.files.mkdir()
        root = Root(consistent_snapshot=True)
        for role in TOP:
            for _ in range(ROOT_KEYS if role == "root" else 1):
                root.add_key(made._keyring.make(role).public_key, role)
        root.roles["root"].threshold = ROOT_THRESHOLD
        made.save("root", Metadata(root))
        roles: dict[str, DelegatedRole] = {}
        known: dict[str, Key] = {}
        for name, paths in PATHS.items():
            key = made._keyring.make(name).public_key
            known[key.keyid] = key
            roles[name] = DelegatedRole(name, [key.keyid], 1, terminating=True, paths=paths)
        made.save("targets", Metadata(Targets(delegations=Delegations(known, roles))))
        for name in PATHS:
            made.save(name, Metadata(Targets()))
        made.publish()
        return made

    # --- targets ------------------------------------------------------------------------------------------------

    def put(self, name: str, body: bytes) -> None:
        """Add a target, or replace it; raises TrustError for a name that no role may list."""
        role = role_of(name)
        metadata = self.load(role)
        sha256 = hashlib.sha256(body).hexdigest()
        folder, _, file = name.rpartition("/")
        path = self.files / folder / f"{sha256}.{file}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        cast("Targets", metadata.signed).targets[name] = TargetFile(len(body), {"sha256": sha256}, name)
        self.save(role, metadata)

    def withdraw(self, name: str) -> None:
        """Take a target out; raises TrustError when it is not there."""
        role = role_of(name)
        metadata = self.load(role)
        if cast("Targets", metadata.signed).targets.pop(name, None) is None:
            raise TrustError(f"the catalogue has no {name}", hint="see `driveway-hil catalogue show`")
        self.save(role, metadata)

    def read(self, name: str) -> bytes | None:
        """A target as it is now; None where there is none."""
        target = self.targets(role_of(name)).get(name)
        if target is None:
            return None
        folder, _, file = name.rpartition("/")
        return (self.files / folder / f"{target.hashes['sha256']}.{file}").read_bytes()

    def targets(self, role: str) -> dict[str, TargetFile]:
        """What a role lists."""
        return cast("Targets", self.load(role).signed).targets

    # --- keys ---------------------------------------------------------------------------------------------------

    def rotate(self, role: str) -> tuple[str, str]:
        """Replace the oldest key of a role by a new one; the key ids of both. Nothing counts before `publish`.

        A new root is signed by enough of the old root's keys and by enough of its own.
        """
        fresh = self._keyring.make(role).public_key
        if role in TOP:
            metadata = self.load("root")
            root = cast("Root", metadata.signed)
            replaced = root.roles[role].keyids[0]
            before = Role(list(root.roles["root"].keyids), root.roles["root"].threshold)
            root.add_key(fresh, role)
            root.revoke_key(replaced, role)
            self.save("root", metadata, before)
            if role != "root":
                self.save(role, self.load(role))
        elif role in PATHS:
            metadata = self.load("targets")
            targets = cast("Targets", metadata.signed)
            assert targets.delegations is not None
            assert targets.delegations.roles is not None
            replaced = targets.delegations.roles[role].keyids[0]
            targets.add_key(fresh, role)
            targets.revoke_key(replaced, role)
            self.save("targets", metadata)
            self.save(role, self.load(role))
        else:
            raise TrustError(f"there is no role {role!r}", hint=f"known: {', '.join((*TOP, *PATHS))}")
        self._keyring.retire(replaced)
        return replaced, fresh.keyid

    # --- signing ------------------------------------------------------------------------------------------------

    def renew(self, role: str) -> None:
        """A new version of a role that says the same for longer."""
        self.save(role, self.load(role))

    def publish(self) -> None:
        """A new snapshot of all roles, and a new timestamp of it: from then on cars see what was changed."""
        metadata = self._load_or("snapshot", Snapshot())
        meta = cast("Snapshot", metadata.signed).meta
        for role in ("targets", *PATHS):
            meta[f"{role}.json"] = _meta_file(self._newest(role))
        self.save("snapshot", metadata)
        metadata = self._load_or("timestamp", Timestamp())
        timestamp = cast("Timestamp", metadata.signed)
        timestamp.snapshot_meta = _meta_file(self._newest("snapshot"))
        timestamp.unrecognized_fields[SIGNED_AT] = self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
        self.save("timestamp", metadata)

    def load(self, role: str) -> Metadata[Any]:
        """The newest version of a role; raises TrustError."""
        try:
            return Metadata.from_bytes(self._newest(role).read_bytes())
        except (OSError, RepositoryError) as error:
            raise TrustError(f"{self.metadata} has no usable {role}: {error}") from error

    def save(self, role: str, metadata: Metadata[Any], before: Role | None = None) -> None:
        """Write the next version of a role, signed by its keys (and those of the root `before`); raises TrustError."""
        signed = metadata.signed
        signed.version += bool(self._versions(role))
        signed.expires = self._now() + dt.timedelta(days=self.lifetime_days[role])
        available, delegation = self._keyring.available(), self._delegation(role, signed)
        metadata.signatures.clear()
        for one in filter(None, (delegation, before)):
            here = [available[keyid] for keyid in one.keyids if keyid in available]
            if len(here) < one.threshold:
                what = f"{role} needs {one.threshold} of its {len(one.keyids)} keys, and {len(here)} are here"
                raise TrustError(what, hint="bring the medium with the others, and name it with --keys")
            for signer in here:
                metadata.sign(signer, append=True)
        name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{role}.json"
        part = self.metadata / f".{name}.part"
        part.write_bytes(metadata.to_bytes())
        part.replace(self.metadata / name)

    def check(self) -> None:
        """Raise TrustError where a role is not signed by its own keys: they were rotated, and it was not renewed."""
        for role in ("targets", *PATHS, "snapshot", "timestamp"):
            delegator = self.load("targets") if role in PATHS else self.load("root")
            metadata = self.load(role)
            try:
                cast("Root", delegator.signed).verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            except UnsignedMetadataError as error:
                raise TrustError(f"{role}: {error}", hint=f"`driveway-hil catalogue sign DIR --role {role}`") from error

    def _delegation(self, role: str, signed: Signed) -> Role:
        """The keys of a role: those of the root that is being signed, where it is one."""
        if role in PATHS:
            targets = cast("Targets", self.load("targets").signed)
            assert targets.delegations is not None
            assert targets.delegations.roles is not None
            return targets.delegations.roles[role]
        return cast("Root", signed if role == "root" else self.load("root").signed).roles[role]

    def _load_or(self, role: str, first: Signed) -> Metadata[Any]:
        return self.load(role) if self._versions(role) else Metadata(first)

    def _newest(self, role: str) -> Path:
        versions = self._versions(role)
        if not versions:
            raise TrustError(
                f"{self.metadata} has no {role}", hint="make a catalogue with `driveway-hil catalogue init`"
            )
        return versions[max(versions)]

    def _versions(self, role: str) -> dict[int, Path]:
        """Where each version of a role is; of the timestamp there is one, whatever its version."""
        if role == "timestamp":
            path = self.metadata / "timestamp.json"
            return {0: path} if path.exists() else {}
        named = re.compile(rf"([0-9]+)\.{role}\.json")
        return {int(match[1]): path for path in self.metadata.iterdir() if (match := named.fullmatch(path.name))}


def role_of(name: str) -> str:
    """Which role may list a target of this name; raises TrustError."""
    for role, form in FORMS.items():
        if form.fullmatch(name):
            return role
    raise TrustError(f"{name!a} is no name of a target", hint="names look like packages/ocr/1.4.0/manifest.json")


def _meta_file(path: Path) -> MetaFile:
    """What is said of a metadata file elsewhere: version, length and hash."""
    body = path.read_bytes()
    version = Metadata.from_bytes(body).signed.version
    return MetaFile(version, len(body), {"sha256": hashlib.sha256(body).hexdigest()})
