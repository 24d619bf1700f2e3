"""Who is at the other end of a local socket, what that lets them do, and how much of the daemon each may take up.

The kernel says who connected (SO_PEERCRED, SO_PEERGROUPS): user, group and further groups, as they were at `connect`.
From that comes a rank, and each verb needs one:

    READER     who may open the socket, its group: asks
    OWNER      the owner group (`[control] owner_group`): says the owner's word too
    OPERATOR   the daemon's own user: everything but updates
    ROOT       everything

What the kernel does not tell lowers the rank and never raises it. In a user namespace (PrivateUsers= of a unit) other
users and groups look like `nobody`, so a unit whose daemon knows an owner group must not have one.

Guests are bounded, because a member of the group may be broken or hostile: so many at once in all and of one user, some
places only for OPERATOR and ROOT, so many questions a second of one user. Who could end the daemon anyway (OPERATOR,
ROOT) asks as often as it likes.
"""

from __future__ import annotations

import enum
import grp
import os
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field

SO_PEERGROUPS = 59
"""asm-generic/socket.h; Python does not name it."""
_GROUPS_BYTES = 1024
"""As much as `socket.getsockopt` takes: of who is in more than 256 groups, only the first is known."""
_CREDENTIALS = struct.Struct("3i")


class Rank(enum.IntEnum):
    """What somebody may do; each includes those before."""

    READER = 0
    OWNER = 1
    OPERATOR = 2
    ROOT = 3


@dataclass(frozen=True)
class Peer:
    """Who connected. `groups` are all of its groups, the first one too."""

    uid: int
    groups: frozenset[int]


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end of a Unix socket; raises OSError where the kernel does not say."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, gid = _CREDENTIALS.unpack(found)
    return Peer(uid, frozenset({gid, *_further_groups(connection)}))


def _further_groups(connection: socket.socket) -> tuple[int, ...]:
    """None where the kernel does not tell (before Linux 4.13), or not as many."""
    try:
        found = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return ()
    return struct.unpack(f"{len(found) // 4}I", found)


def group_named(name: str) -> int | None:
    """The number of a group; None where there is none of this name. May wait, where groups come over a network."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def is_seen(gid: int, gid_map: str) -> bool:
    """Whether a group's members look like that from this process's user namespace, whose /proc/self/gid_map this is."""
    ranges = [tuple(map(int, line.split())) for line in gid_map.splitlines()]
    return any(inside <= gid < inside + count for inside, _outside, count in ranges)


def rank_of(peer: Peer, owner_gid: int | None, own_uid: int | None = None) -> Rank:
    """What this peer may do with a daemon of user `own_uid` (default: this process's)."""
    if peer.uid == 0:
        return Rank.ROOT
    if peer.uid == (os.geteuid() if own_uid is None else own_uid):
        return Rank.OPERATOR
    return Rank.OWNER if owner_gid is not None and owner_gid in peer.groups else Rank.READER


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What all guests together, and each, may take up. Times in seconds."""

    guests: int = 32
    guests_of_one: int = 8
    """Of one user below OPERATOR."""
    places_kept: int = 8
    """Of `guests`, for OPERATOR and ROOT."""
    connects_per_s: float = 200.0
    connects_burst: int = 16
    questions_per_s: float = 25.0
    questions_burst: int = 50
    """Of one user below OPERATOR."""
    reading_at_once: int = 4
    """Answers from the disk under way at once, so that the daemon's own writes never wait behind many."""
    question_s: float = 30.0
    """From the connection, or the answer before, to the end of a question's line."""
    answer_s: float = 20.0
    """How long an answer that only reads may take."""
    reading_s: float = 10.0
    """How long a guest may take to read an answer."""


class Pace:
    """A token bucket: `burst` at once, then `per_s`. Takes the time as a value."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, float(burst)
        self._level, self._at_s = self._burst, 0.0

    def take(self, now_s: float) -> float:
        """Take one; how long (s) to wait before using it. A clock that goes back is taken to stand still."""
        self._level = min(self._burst, self._level + max(0.0, now_s - self._at_s) * self._per_s)
        self._at_s = max(self._at_s, now_s)
        self._level -= 1.0
        return max(0.0, -self._level / self._per_s)

    def is_full(self, now_s: float) -> bool:
        """Whether nothing was taken of late, so that it may be forgotten."""
        return self._level + max(0.0, now_s - self._at_s) * self._per_s >= self._burst


@dataclass
class Guests:
    """The connections there are, and the pace of each user. Ranks from OPERATOR on are bounded by the whole alone."""

    bounds: Bounds
    refused: int = 0
    """Turned away since the start."""
    _here: Counter[int] = field(default_factory=Counter)
    _paces: dict[int, Pace] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many there are."""
        return self._here.total()

    def admit(self, uid: int, rank: Rank) -> str:
        """Count one in: '' when there was room, else why there is none. Who was let in has to be let `go`."""
        bounds, trusted = self.bounds, rank >= Rank.OPERATOR
        why = ""
        if self.count >= bounds.guests - (0 if trusted else bounds.places_kept):
            why = "the daemon has as many clients as it takes"
        elif not trusted and self._here[uid] >= bounds.guests_of_one:
            why = f"user {uid} has {bounds.guests_of_one} connections already"
        if why:
            self.refused += 1
        else:
            self._here[uid] += 1
        return why

    def go(self, uid: int) -> None:
        """One that was admitted has left."""
        self._here[uid] -= 1
        if self._here[uid] <= 0:
            del self._here[uid]

    def wait_s(self, uid: int, rank: Rank, now_s: float) -> float:
        """How long a question that this user asks now has to wait for its turn. Users who left are forgotten."""
        if rank >= Rank.OPERATOR:
            return 0.0
        for other in [one for one, pace in self._paces.items() if one not in self._here and pace.is_full(now_s)]:
            del self._paces[other]
        pace = self._paces.setdefault(uid, Pace(self.bounds.questions_per_s, self.bounds.questions_burst))
        return pace.take(now_s)
