"""The catalogue: what the operator allows to run here, and whose orders count; as values, once it has been verified.

Its signed form is a TUF repository (`agent.trust.catalogue_client` verifies it with python-tuf). Each kind of target is
signed by a role of its own, whose key signs nothing else, and has a name of one form:

    role         targets                                     what counts of it
    targets      deny.json                                   its content: `DenyList`
    dispatchers  dispatchers.json                            its content: `Dispatchers`
    packages     packages/NAME/VERSION/manifest.json         its SHA-256, which names a whole package
    policies     policies/NAME/VERSION/policy.toml           its SHA-256, and the content of the one that is configured
    releases     releases/NAME/VERSION/FILE                  which versions of the agent there are

A role that lists anything else is refused as a whole. Standard library only; failures are `CatalogueError`.
"""

from __future__ import annotations

import base64
import binascii
import enum
import functools
import re
from dataclasses import dataclass, field
from typing import Annotated

from agent.errors import TrustError
from agent.trust import records
from agent.trust.dsse import VerifyingKey
from agent.trust.keys import keyid, load_verifying_key
from agent.trust.records import Identifier, Sha256, Text
from agent.trust.version_floors import VERSION, version_key

DENY, DISPATCHERS = "deny.json", "dispatchers.json"
MAX_FILE_BYTES = 64 * 1024
"""Of a target that is fetched: a deny list, dispatcher keys, a policy."""
_DIGEST = re.compile("[0-9a-f]{64}")
_NAME = r"[A-Za-z0-9_-]{1,64}"
_FILE = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}"
FORMS = {
    "targets": re.compile(re.escape(DENY)),
    "dispatchers": re.compile(re.escape(DISPATCHERS)),
    "packages": re.compile(rf"packages/({_NAME})/({VERSION.pattern})/manifest\.json"),
    "policies": re.compile(rf"policies/({_NAME})/({VERSION.pattern})/policy\.toml"),
    "releases": re.compile(rf"releases/({_NAME})/({VERSION.pattern})/{_FILE}"),
}
"""What each role may list."""


class CatalogueFault(enum.Enum):
    """Why a catalogue is not believed."""

    UNREACHABLE = "unreachable"
    MALFORMED = "malformed"
    TOO_LONG = "too_long"
    """More bytes than its kind may have; reading stopped there."""
    UNSIGNED = "unsigned"
    """Too few of the role's keys have signed it; of a new root, too few of the old root's or of its own."""
    ROLLBACK = "rollback"
    """Older than what is known."""
    MISMATCH = "mismatch"
    """Not of the length, hash or version that was signed for it: changed, or of another time (mix and match)."""
    EXPIRED = "expired"
    TARGET_NAME = "target_name"
    """A role lists what is not its own to list, or a name that leads elsewhere."""


class CatalogueError(TrustError):
    """A catalogue, or a part of one, that is not believed."""

    def __init__(self, fault: CatalogueFault, what: str, *, hint: str = "") -> None:
        super().__init__(f"{what} [{fault.value}]", hint=hint)
        self.fault = fault


class NotThereError(TrustError):
    """The server has no such file; what fetches for a catalogue raises it."""


class TooLongError(TrustError):
    """The server sends more than was asked for; what fetches for a catalogue raises it."""


PublicKey = Annotated[str, re.compile(r"[A-Za-z0-9+/]{56,400}={0,2}")]


@dataclass(frozen=True)
class DispatcherKey:
    """One key whose orders count: its SubjectPublicKeyInfo in DER as base64, and which generation of keys it is of."""

    epoch: int
    name: Identifier
    public_key: PublicKey


@dataclass(frozen=True)
class Dispatchers:
    """The content of dispatchers.json. Keys of an epoch below `minimum_epoch` were replaced, and count no more."""

    minimum_epoch: int = 0
    keys: tuple[DispatcherKey, ...] = ()


@dataclass(frozen=True)
class Denied:
    """One digest, keyid or version that must not be believed any more, and why, for people."""

    what: Annotated[str, re.compile(r"[0-9A-Za-z._-]{1,64}")]
    why: Text = ""

    def is_version(self, version: str) -> bool:
        """Whether this denies the version, however it is spelled: 1.4 is 1.4.0."""
        try:
            return version_key(self.what) == version_key(version)
        except TrustError:
            return self.what == version


@dataclass(frozen=True)
class DenyList:
    """The content of deny.json: packages by digest, dispatchers by keyid, agents by version. `number` only rises."""

    number: int = 0
    agents: tuple[Denied, ...] = ()
    dispatchers: tuple[Denied, ...] = ()
    packages: tuple[Denied, ...] = ()


@dataclass(frozen=True)
class Listed:
    """A target with a name and a version of its own."""

    name: str
    version: str
    sha256: Sha256
    length: int
    file: str = ""
    """Of a release, which may have several."""


@dataclass(frozen=True)
class Versions:
    """The version of each of the four top-level metadata files."""

    root: int
    timestamp: int
    snapshot: int
    targets: int


@dataclass(frozen=True)
class Catalogue:
    """What the operator has signed. `signed_ms` is a time by which all of it was, `expires_ms` when it ends (wall)."""

    versions: Versions
    signed_ms: int
    expires_ms: int
    packages: tuple[Listed, ...] = ()
    policies: tuple[Listed, ...] = ()
    releases: tuple[Listed, ...] = ()
    dispatchers: Dispatchers | None = None
    """None where the catalogue says nothing of dispatchers."""
    denied: DenyList = field(default_factory=DenyList)
    policy_bytes: bytes | None = None
    """The newest version of the policy that was asked for."""

    def package(self, sha256: str) -> Listed | None:
        """The package of this digest, if it is listed."""
        return next((one for one in self.packages if one.sha256 == sha256), None)

    def denies_agent(self, version: str) -> Denied | None:
        """The entry of the deny list about this version of the agent, if there is one."""
        return next((one for one in self.denied.agents if one.is_version(version)), None)

    def denies(self, kind: tuple[Denied, ...], what: str) -> Denied | None:
        """The entry of the deny list, if there is one."""
        return next((one for one in kind if one.what == what), None)


def deniable(kind: str, what: str) -> str:
    """How the deny list spells this, so that cars find it; raises TrustError for what could match nothing."""
    if kind == "agents":
        version_key(what)
        return what
    if not _DIGEST.fullmatch(spelled := what.lower()):
        of = "package's manifest" if kind == "packages" else "key"
        raise TrustError(f"{what[:80]!a} is no SHA-256 of a {of}", hint="write its 64 hexadecimal digits")
    return spelled


def read_deny_list(body: bytes) -> DenyList:
    """The content of deny.json; raises CatalogueError."""
    return _read(DenyList, body, DENY)


def read_dispatchers(body: bytes) -> Dispatchers:
    """The content of dispatchers.json, its keys proven to be keys; raises CatalogueError."""
    found = _read(Dispatchers, body, DISPATCHERS)
    dispatcher_keys(found)
    return found


@functools.lru_cache(maxsize=4)
def dispatcher_keys(dispatchers: Dispatchers) -> dict[str, tuple[int, VerifyingKey]]:
    """Epoch and key of every dispatcher by keyid, replaced ones included; raises CatalogueError."""
    found = {}
    for one in dispatchers.keys:
        try:
            der = base64.b64decode(one.public_key, validate=True)
            pem = base64.encodebytes(der).decode("ascii")
            key = load_verifying_key(f"-----BEGIN PUBLIC KEY-----\n{pem}-----END PUBLIC KEY-----\n")
        except (binascii.Error, TrustError) as error:
            what = f"{DISPATCHERS}: the key of {one.name!r} is none: {error}"
            raise CatalogueError(CatalogueFault.MALFORMED, what) from error
        found[keyid(key)] = (one.epoch, key)
    return found


def read_name(role: str, name: str) -> tuple[str, str]:
    """Name and version in a target's name ("" and "" where it has none); raises CatalogueError for a foreign one."""
    matched = FORMS[role].fullmatch(name)
    if matched is None:
        what = f"the role {role!r} lists {name[:200]!a}, which is not its own to list"
        raise CatalogueError(CatalogueFault.TARGET_NAME, what)
    return (matched[1], matched[2]) if matched.groups() else ("", "")


def _read(kind: type[records.Record], body: bytes, name: str) -> records.Record:
    try:
        return records.read(kind, body, name)
    except TrustError as error:
        raise CatalogueError(CatalogueFault.MALFORMED, error.what) from error
