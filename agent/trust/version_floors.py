"""Downgrade floors: below the newest version of a thing that was seen signed, nothing of that name is taken any more.

TUF alone keeps a catalogue from going back; a floor also holds against a role whose key was stolen and that lists an
old version again, whose faults are known. Versions are dotted whole numbers (`1.4.2`); `1.4` and `1.4.0` are the same.
To go back on purpose, the old content is published again under a higher number.

A floor is also kept for the agent (the newest listed version that ran here), for the number of the deny list, and for
the epoch below which dispatcher keys count no more. Standard library only; who keeps the floors on disk is given.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping

from agent.errors import TrustError

VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,4}")
NUMBERS = 5


class Floored(enum.Enum):
    """What has a floor; agents, packages and policies have one by name."""

    AGENT = "agent"
    PACKAGE = "package"
    POLICY = "policy"
    DENY_LIST = "deny-list"
    DISPATCHER_EPOCH = "dispatcher-epoch"


def version_key(text: str) -> tuple[int, ...]:
    """A version so that it can be compared; raises TrustError for one that is not dotted whole numbers."""
    if not VERSION.fullmatch(text):
        raise TrustError(f"{text[:64]!a} is no version", hint="write dotted whole numbers, such as 1.4.2")
    numbers = tuple(int(number) for number in text.split("."))
    return numbers + (0,) * (NUMBERS - len(numbers))


class VersionFloors:
    """`keep` is called with all floors (by `kind/name`) whenever one has risen. Use from one thread."""

    def __init__(self, keep: Callable[[Mapping[str, str]], None]) -> None:
        self._keep = keep
        self._floors: dict[str, str] = {}

    def restore(self, kept: Mapping[str, str]) -> None:
        """What an earlier run kept; a floor that is not understood is none. Called once, at the start."""
        self._floors = {name: version for name, version in kept.items() if VERSION.fullmatch(version)}

    def floor(self, kind: Floored, name: str = "") -> str:
        """The newest version seen; "0" while none was."""
        return self._floors.get(f"{kind.value}/{name}", "0")

    def is_below(self, kind: Floored, version: str, name: str = "") -> bool:
        """Whether this version is older than one that was seen; raises TrustError for what is no version."""
        return version_key(version) < version_key(self.floor(kind, name))

    def saw(self, seen: Mapping[tuple[Floored, str], str]) -> None:
        """These versions, by kind and name, were seen signed: floors rise, and are kept if one has risen."""
        risen = {
            f"{kind.value}/{name}": version
            for (kind, name), version in seen.items()
            if version_key(version) > version_key(self.floor(kind, name))
        }
        if risen:
            self._floors |= risen
            self._keep(dict(self._floors))
