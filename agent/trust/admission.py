"""May this package, this agent, this dispatcher's key count now? One answer for the shelf and for grants.

What is judged against is a `Standing`: the catalogue that is believed (or none yet), the downgrade floors, and a time
that is no earlier than the time floor. A catalogue that has expired takes nothing new; what it denies stays denied for
ever, and nothing here keeps the driver from getting the car. Pure; failures are `NotAdmittedError`, each with its own
reason.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from agent.errors import TrustError
from agent.trust.catalogue import Catalogue, CatalogueError, CatalogueFault, dispatcher_keys
from agent.trust.dsse import VerifyingKey
from agent.trust.version_floors import Floored, VersionFloors, version_key

SUMS = "SHA256SUMS"
"""The file of a release that lists its files: its digest names all of it. One of several architectures: SUMS.ARCH."""


class Reason(enum.Enum):
    """Why something may not run here, or why a grant is not taken: one word each, for counting."""

    FORGED = "forged"
    """A signature by a key that counts does not hold, or it is no envelope of this type."""
    KEY_UNKNOWN = "key_unknown"
    KEY_DENIED = "key_denied"
    KEY_EPOCH = "key_epoch"
    """The key was replaced by a newer generation."""
    AUDIENCE = "audience"
    """For another unit."""
    NONCE = "nonce"
    VALIDITY = "validity"
    """It says for how long it is good in a way that cannot be."""
    CATALOGUE_MISSING = "catalogue_missing"
    CATALOGUE_EXPIRED = "catalogue_expired"
    PACKAGE_UNLISTED = "package_unlisted"
    PACKAGE_NAME = "package_name"
    """The digest belongs to a package of another name or version."""
    PACKAGE_DENIED = "package_denied"
    PACKAGE_DOWNGRADE = "package_downgrade"
    AGENT_DENIED = "agent_denied"
    AGENT_DOWNGRADE = "agent_downgrade"
    POLICY_DOWNGRADE = "policy_downgrade"
    RELEASE_UNLISTED = "release_unlisted"
    RELEASE_CHANGED = "release_changed"
    """The files of this version are others than those that are listed."""


class NotAdmittedError(TrustError):
    """It may not run here, or it does not count."""

    def __init__(self, reason: Reason, what: str, *, hint: str = "") -> None:
        super().__init__(f"{what} [{reason.value}]", hint=hint)
        self.reason = reason


@dataclass(frozen=True)
class Standing:
    """What is judged against. `pinned` are the keys of the configuration, which count where no catalogue names any."""

    catalogue: Catalogue | None
    floors: VersionFloors
    now_ms: int
    agent_version: str
    pinned: Mapping[str, VerifyingKey]


def check_package(standing: Standing, name: str, sha256: str, version: str | None = None) -> None:
    """May this package run? `version` is what the package says itself, where it is at hand. Raises NotAdmittedError."""
    catalogue = known(standing)
    shown = f"the package {name} ({sha256[:16]}…)"
    if denied := catalogue.denies(catalogue.denied.packages, sha256):
        raise NotAdmittedError(Reason.PACKAGE_DENIED, f"{shown} is denied: {denied.why or 'no reason given'}")
    listed = catalogue.package(sha256)
    if listed is None:
        raise NotAdmittedError(Reason.PACKAGE_UNLISTED, f"{shown} is not in the catalogue")
    if listed.name != name or version not in {None, listed.version}:
        what = f"{shown} {version or ''} is listed as {listed.name} {listed.version}"
        raise NotAdmittedError(Reason.PACKAGE_NAME, what)
    if standing.floors.is_below(Floored.PACKAGE, listed.version, name):
        newest = standing.floors.floor(Floored.PACKAGE, name)
        what = f"{shown} is version {listed.version}, and {newest} was seen"
        raise NotAdmittedError(Reason.PACKAGE_DOWNGRADE, what, hint="publish it again under a higher version")


def check_new(standing: Standing) -> None:
    """May anything new be taken on at all? Raises NotAdmittedError."""
    catalogue = known(standing)
    if standing.now_ms >= catalogue.expires_ms:
        what = "the catalogue has expired: nothing new is taken on"
        raise NotAdmittedError(Reason.CATALOGUE_EXPIRED, what, hint="see `catalogue` in `driveway status`")
    version = standing.agent_version
    if denied := catalogue.denies_agent(version):
        what = f"this version of the agent ({version}) is denied: {denied.why or 'no reason given'}"
        raise NotAdmittedError(Reason.AGENT_DENIED, what, hint="update the agent")
    if standing.floors.is_below(Floored.AGENT, version):
        what = f"this is version {version} of the agent, and {standing.floors.floor(Floored.AGENT)} ran here before"
        raise NotAdmittedError(Reason.AGENT_DOWNGRADE, what, hint="update the agent")


def check_release(standing: Standing, version: str, sums_sha256: str) -> None:
    """May this version of the agent be installed? `sums_sha256` is of its SHA256SUMS, "" where it is not to be read.

    While no catalogue is believed, or it has expired, only what is remembered or denied speaks against it: the update
    may be what mends that, and whoever brought it has signed it. Raises NotAdmittedError. The way back to the version
    that ran before asks nobody.
    """
    catalogue, shown = standing.catalogue, f"version {version} of the agent"
    if standing.floors.is_below(Floored.AGENT, version):
        what = f"{shown} is older than {standing.floors.floor(Floored.AGENT)}, which ran here"
        raise NotAdmittedError(Reason.AGENT_DOWNGRADE, what, hint="publish a higher number")
    if catalogue is None:
        return
    if denied := catalogue.denies_agent(version):
        raise NotAdmittedError(Reason.AGENT_DENIED, f"{shown} is denied: {denied.why or 'no reason given'}")
    if not catalogue.releases or standing.now_ms >= catalogue.expires_ms:
        return
    files = [one for one in catalogue.releases if version_key(one.version) == version_key(version)]
    if not files:
        raise NotAdmittedError(Reason.RELEASE_UNLISTED, f"{shown} is not in the catalogue")
    sums = {one.sha256 for one in files if one.file.partition(".")[0] == SUMS}
    if sums and sums_sha256 not in sums:
        what = f"the files of {shown} are not those of the catalogue"
        raise NotAdmittedError(Reason.RELEASE_CHANGED, what, hint=f"install the package whose {SUMS} is listed")


def trusted_keys(standing: Standing) -> dict[str, tuple[int, VerifyingKey]]:
    """Epoch and key of the dispatchers by keyid, those that were replaced or denied included."""
    catalogue = standing.catalogue
    if catalogue is None or catalogue.dispatchers is None:
        return {name: (0, key) for name, key in standing.pinned.items()}
    return dispatcher_keys(catalogue.dispatchers)


def check_key(standing: Standing, keyid: str, epoch: int) -> None:
    """Does what this dispatcher's key signs count? Raises NotAdmittedError."""
    catalogue = standing.catalogue
    if catalogue is None:
        return
    if denied := catalogue.denies(catalogue.denied.dispatchers, keyid):
        what = f"the dispatcher's key {keyid[:16]}… is denied: {denied.why or 'no reason given'}"
        raise NotAdmittedError(Reason.KEY_DENIED, what)
    if catalogue.dispatchers is not None and epoch < catalogue.dispatchers.minimum_epoch:
        least = catalogue.dispatchers.minimum_epoch
        what = f"the dispatcher's key {keyid[:16]}… is of epoch {epoch}, and {least} is the oldest that counts"
        raise NotAdmittedError(Reason.KEY_EPOCH, what)


def check_rollback(catalogue: Catalogue, floors: VersionFloors) -> None:
    """Raise CatalogueError for a catalogue whose deny list or dispatcher keys are older than what was seen."""
    for (kind, name), number in _numbers(catalogue).items():
        if floors.is_below(kind, number, name):
            what = f"the catalogue's {kind.value} is {number}, and {floors.floor(kind, name)} was seen"
            raise CatalogueError(CatalogueFault.ROLLBACK, what)


def take(catalogue: Catalogue, floors: VersionFloors, agent_version: str, *, on_trial: bool = False) -> None:
    """Raise the floors to what this newly verified catalogue lists; of the agent, to the version that runs here.

    One on trial raises none: it may yet have to make room for the one before, which then is to work.
    """
    marks = _numbers(catalogue)
    if not on_trial and any(one.version == agent_version for one in catalogue.releases):
        marks[Floored.AGENT, ""] = agent_version
    for kind, listed in ((Floored.PACKAGE, catalogue.packages), (Floored.POLICY, catalogue.policies)):
        for one in listed:
            marks[kind, one.name] = max(marks.get((kind, one.name), "0"), one.version, key=version_key)
    floors.saw(marks)


def check_policy(catalogue: Catalogue, floors: VersionFloors, name: str) -> None:
    """Raise NotAdmittedError where all that is listed of a policy is older than what was seen."""
    versions = [one.version for one in catalogue.policies if one.name == name]
    newest = max(versions, key=version_key, default=None)
    if newest is not None and floors.is_below(Floored.POLICY, newest, name):
        what = f"the policy {name} is version {newest}, and {floors.floor(Floored.POLICY, name)} was seen"
        raise NotAdmittedError(Reason.POLICY_DOWNGRADE, what, hint="publish it again under a higher version")


def _numbers(catalogue: Catalogue) -> dict[tuple[Floored, str], str]:
    """What counts up in a catalogue itself. One that says nothing of dispatchers is at epoch 0."""
    epoch = 0 if catalogue.dispatchers is None else catalogue.dispatchers.minimum_epoch
    return {(Floored.DENY_LIST, ""): str(catalogue.denied.number), (Floored.DISPATCHER_EPOCH, ""): str(epoch)}


def known(standing: Standing) -> Catalogue:
    """The catalogue; raises NotAdmittedError while none is believed."""
    if standing.catalogue is None:
        what = "no catalogue is known yet: nothing may run"
        raise NotAdmittedError(Reason.CATALOGUE_MISSING, what, hint="see `catalogue` in `driveway status`")
    return standing.catalogue
