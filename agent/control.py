"""What is said on the control socket: one JSON object a line in, one a line out.

    -> {"verb": "leases", "limit": 20}
    <- {"ok": true, "data": [...]}      or      {"ok": false, "code": "refused", "error": "...", "hint": "..."}

Everybody who may open the socket (its group) may read. The owner's word (`OWNERS`) is for the owner group too; what
tells everything or computes (`RESERVED`: a recording, a new key, a self-test) for root and the daemon's own user; what
replaces the daemon (`ROOTS`) for root alone. Who is who: `agent.peers`. How it is served: `agent.control_server`. The
protocol, and what an older or newer command may count on: docs/control.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, get_args

import msgspec

from agent.core.policy import MAX_CLASSES, Window, WorkloadClass
from agent.peers import Rank
from agent.trust.records import MAX_TEXT
from agent.trust.succession import MAX_OVERLAP_S

PROTOCOL = 1
"""It rises when an older command could misunderstand an answer; one more field does not do that."""
MAX_LINE_BYTES = 4096
HELLO = "hello"
"""Asks for `Hello`; answered without the daemon's parts."""
OWNERS = {
    *("pause", "resume", "finish", "consent_accept", "consent_withdraw", "owner_set", "owner_clear"),
    *("update_defer", "update_now"),
}
ROOTS = {"update"}
RESERVED = OWNERS | ROOTS | {"record", "keys_rotate", "self_test"}
READ_FROM_DISK = {"status", "leases", "earnings", "ledger", "ledger_prove", "timeline"}
"""Of these only so many are answered at once."""
LONGEST_PAUSE_MS = 366 * 24 * 3_600_000
MAX_WINDOWS = 28
"""Four a day."""

Wish = Literal["schedule", "price_floor", "classes"]
WISHES: tuple[Wish, ...] = ("schedule", "price_floor", "classes")


Verb = Literal[
    "status",
    "why",
    "signals",
    "timeline",
    "leases",
    "earnings",
    "ledger",
    "ledger_prove",
    "pause",
    "resume",
    "finish",
    "owner",
    "owner_set",
    "owner_clear",
    "consent_accept",
    "consent_withdraw",
    "record",
    "packages",
    "keys",
    "keys_rotate",
    "self_test",
    "update",
    "update_show",
    "update_defer",
    "update_now",
]
VERBS: tuple[Verb, ...] = get_args(Verb)


class Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a pause lasts: a duration, or until a wall time (ms since 1970); neither: until `resume`."""

    for_ms: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_PAUSE_MS)] | None = None
    until_wall_ms: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None


class Wishes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The owner's standing wishes; None where the owner has none, and the configuration counts."""

    # They are remembered in this form. One that is not set is not written (omit_defaults): a version of before, which
    # takes no wish that it does not know, reads the row as long as the owner has not used the new one.

    schedule: Annotated[tuple[Window, ...], msgspec.Meta(max_length=MAX_WINDOWS)] | None = None
    price_floor_micro_per_kwh: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] | None = None
    classes: Annotated[tuple[WorkloadClass, ...], msgspec.Meta(max_length=MAX_CLASSES)] | None = None

    def updated(self, other: Wishes) -> Wishes:
        """These, with what the others name in their place."""
        named = {name: getattr(other, name) for name in self.__struct_fields__ if getattr(other, name) is not None}
        return msgspec.structs.replace(self, **named)

    def without(self, names: tuple[Wish, ...]) -> Wishes:
        """These without those."""
        return Wishes(
            schedule=None if "schedule" in names else self.schedule,
            price_floor_micro_per_kwh=None if "price_floor" in names else self.price_floor_micro_per_kwh,
            classes=None if "classes" in names else self.classes,
        )


class ControlRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client may ask; beside the verb counts only what belongs to it.

    `ledger_prove` is about the leaf at index `leaf`, or without one about the statement of lease `job`, `epoch`.
    `reason` and `overlap_s` are of `keys_rotate`, `release` (a version) of `update`, `for_ms` of `update_defer`.
    `leases`, `earnings` and `timeline` are of `since_wall_ms` until `until_wall_ms` (ms since 1970, the end not in it).
    """

    verb: Verb
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20
    pause: Pause = Pause()
    wishes: Wishes = Wishes()
    clear: tuple[Wish, ...] = ()
    version: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    leaf: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None
    job: Annotated[str, msgspec.Meta(max_length=64)] = ""
    epoch: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    reason: Annotated[str, msgspec.Meta(max_length=MAX_TEXT)] = ""
    overlap_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_OVERLAP_S)] = 0
    release: Annotated[str, msgspec.Meta(max_length=64)] = ""
    for_ms: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_PAUSE_MS)] = 0
    since_wall_ms: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    until_wall_ms: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 2**53


Code = Literal["", "bad_request", "unknown_verb", "refused", "busy", "late", "failed"]


class ControlAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What it is told. `code` is for programs where `ok` is false, `error` and `hint` are for people.

    bad_request: not understood; unknown_verb: by this version; refused: not for this user; busy: too many clients;
    late: given up; failed: what was asked did not work, or a bug.
    """

    ok: bool
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    hint: str = ""
    code: Code = ""


class Hello(msgspec.Struct, frozen=True):
    """Who answers, and what it may be asked: each verb, with whether this guest may."""

    version: str
    protocol: int
    rank: str
    verbs: dict[str, bool]


class Named(msgspec.Struct, frozen=True):
    """The verb alone, whatever else is said."""

    verb: str


Answer = Callable[[ControlRequest], Awaitable[object]]


def needs(verb: str) -> Rank:
    """Who may ask this."""
    if verb in ROOTS:
        return Rank.ROOT
    if verb in OWNERS:
        return Rank.OWNER
    return Rank.OPERATOR if verb in RESERVED else Rank.READER
