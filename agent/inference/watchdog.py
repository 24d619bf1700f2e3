"""When a worker hangs: what it should take, against how long nothing was heard of it. Pure; time comes as a value.

A worker that is not inside a call of its engine says something at least every second (`wire.Beat`). So silence is the
length of one call, and how long a call takes is known of every package: its micro-batches were timed when it was
loaded. `FACTOR` times that, stretched by the slowest pace since it was heard (a computer that is held back computes
more slowly), is patience enough; below `FLOOR_MS` a busy computer is likelier than a hung kernel. Being given a pace is
no sign of life. A computer that sleeps makes nobody hang: times are of a clock that stands still with it.

Starting, until Hello, is bounded by `START_MS`; then loading as a whole by what the package says of itself
(`limits.load_s`), stretched by the slowest pace: neither has a measure to go by. The core's own deadlines for a start,
a load and a slice remain behind all of this.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

FLOOR_MS = 10_000
FACTOR = 10
SLOWEST_PERMILLE = 100
"""No call is thought to be stretched by more than this pace would."""
START_MS = 60_000
"""Until Hello: an interpreter, our own modules, the cage. As long as the policy can allow at most."""


class Loading(msgspec.Struct, frozen=True, tag=True):
    """It loads a package, which says that this takes at most `limit_ms`."""

    limit_ms: int


class Serving(msgspec.Struct, frozen=True, tag=True):
    """Its package is loaded; a call of its engine was measured to take `call_ms` at most, at full pace."""

    call_ms: float


class Unbounded(msgspec.Struct, frozen=True, tag=True):
    """It does what has no measure (a survey, a build): whoever ordered that sets its bounds."""


class Starting(msgspec.Struct, frozen=True, tag=True):
    """It has been started and has not said Hello; `then` is what it was told to do meanwhile."""

    then: Loading | Serving | Unbounded = Unbounded()


Doing = Starting | Loading | Serving | Unbounded


class Watch(msgspec.Struct, frozen=True):
    """What one worker does since when, and when it was heard last; in ms of a clock that sleeps with the computer."""

    since_ms: int
    heard_ms: int
    doing: Doing = Starting()
    duty_permille: int = 1000
    slowest_permille: int = 1000
    """The lowest pace since it was heard last, and of a load since its beginning: a call may have begun at that one."""

    def began(self, doing: Loading | Serving | Unbounded, now_ms: int) -> Watch:
        """It does something else from now on, or as soon as it is up."""
        if isinstance(self.doing, Starting):
            return msgspec.structs.replace(self, doing=Starting(then=doing))
        return self._does(doing, now_ms)

    def is_up(self, now_ms: int) -> Watch:
        """It said Hello: its start is over."""
        return self._does(self.doing.then, now_ms) if isinstance(self.doing, Starting) else self

    def heard(self, now_ms: int) -> Watch:
        """It said something; what it does is as it was."""
        slowest = self.slowest_permille if isinstance(self.doing, Loading) else self.duty_permille
        return msgspec.structs.replace(self, heard_ms=now_ms, slowest_permille=slowest)

    def paced(self, duty_permille: int) -> Watch:
        """It computes for this share of the time from now on."""
        slowest = min(self.slowest_permille, duty_permille)
        return msgspec.structs.replace(self, duty_permille=duty_permille, slowest_permille=slowest)

    @property
    def due_ms(self) -> int | None:
        """When it hangs if nothing is heard until then; None: never."""
        match self.doing:
            case Starting():
                return self.since_ms + START_MS
            case Loading(limit_ms=limit_ms):
                return self.since_ms + self._stretched_ms(limit_ms)
            case Serving():
                return self.heard_ms + self._patience_ms()
            case Unbounded():
                return None
            case _:
                assert_never(self.doing)

    def verdict(self, now_ms: int) -> str:
        """How it hangs, for a person; empty where it does not."""
        due_ms = self.due_ms
        if due_ms is None or now_ms < due_ms:
            return ""
        match self.doing:
            case Starting():
                return f"said nothing for {now_ms - self.since_ms} ms after its start"
            case Loading(limit_ms=limit_ms):
                return f"loads for {now_ms - self.since_ms} ms, more than the package's {self._stretched_ms(limit_ms)}"
            case Serving(call_ms=call_ms):
                return f"hangs in a kernel for {now_ms - self.heard_ms} ms, expected {self._stretched_ms(call_ms)}"
            case Unbounded():
                return ""
            case _:
                assert_never(self.doing)

    def _does(self, doing: Loading | Serving | Unbounded, now_ms: int) -> Watch:
        return msgspec.structs.replace(
            self, doing=doing, since_ms=now_ms, heard_ms=now_ms, slowest_permille=self.duty_permille
        )

    def _patience_ms(self) -> int:
        assert isinstance(self.doing, Serving)
        return max(FLOOR_MS, FACTOR * self._stretched_ms(self.doing.call_ms))

    def _stretched_ms(self, ms: float) -> int:
        return round(ms * 1000 / max(self.slowest_permille, SLOWEST_PERMILLE))
