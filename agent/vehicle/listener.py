"""One bus's frames as events: the news of a drain as one event, and at times which groups were heard without news.

Age is how the gates know that a source lives, so what repeats itself is named in one cheap event, at most every 100 ms,
and each group as often as its strictest leaf needs it: twice and a half in the age at which that holds back new work. A
loss is said once, and so is the return.

A leaf that changes twice within one drain (a handle pulled and let go) is said twice: no sign of a driver is folded
away. Counting is done here and in the decoder; `counts` is what `driveway status` shows.
"""

from __future__ import annotations

import abc
import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable

from agent.core.events import Sample, SignalsSeen, SourceChanged, SourceHeard
from agent.core.signals import ANY_STALE_MS, DEFAULT_PERIOD_MS, LATE_PERIODS, LEAVES
from agent.ports import Clock, Emit
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.layout import BoundGroup, BoundSignal

REPEAT_MS = 100
"""What is heard without news is named at most this often."""
REPEATS_PER_HOLD = 2.5
SLACK_MS = 10
"""A look at the buses may come a little early or late; it shall not miss its turn by that."""
MAX_REPEAT_MS = 1_000
"""So that the ages which people are shown are true to a second."""
SILENT_MS = 2_000
"""No frame of the profile for this long: the bus sleeps, is cut, or its gateway died. The gates' own age limits are
shorter; this is what lets the agent say why."""


def repeat_ms(group: BoundGroup) -> int:
    """How often this group must be named for its strictest leaf to stay fresh."""
    return max(REPEAT_MS, min(round(min(map(_holds_ms, group.signals)) / REPEATS_PER_HOLD), MAX_REPEAT_MS))


def _holds_ms(signal: BoundSignal) -> int:
    """How old the leaf may be before nothing new is started; see `agent.core.signals.Vehicle.read`."""
    leaf = LEAVES.get(signal.path)
    if leaf is None:
        return ANY_STALE_MS
    late_ms = LATE_PERIODS * (signal.period_ms or DEFAULT_PERIOD_MS)
    return min(leaf.staleness.stale_ms, max(late_ms, leaf.staleness.hold_ms))


class BusListener:
    """Decodes what a source hands it and emits; use it on the event loop's thread only."""

    def __init__(self, name: str, decoder: Decoder, clock: Clock, emit: Emit) -> None:
        self.name = name
        self.decoder = decoder
        self.counted: Counter[str] = Counter()
        """What the source counts besides the decoder: overflows, losses, error frames."""
        self._clock = clock
        self._emit = emit
        self._alive: bool | None = None
        self._heard_ms = clock.boot_ms()
        self._named_ms = 0
        self._unsaid: set[str] = set()
        self._repeats_ms = {group.name: repeat_ms(group) for group in decoder.groups}
        self._named_again_ms: dict[str, int] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Everything that was counted and is not zero."""
        return {**self.decoder.counts, **{name: count for name, count in sorted(self.counted.items()) if count}}

    async def listen(self, keep_open: Callable[[BusListener], Coroutine[None, None, None]]) -> None:
        """Receive with `keep_open` (which hands over frames and losses) and watch for silence, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_silence(), name=f"{self.name} silence")
            group.create_task(keep_open(self), name=f"{self.name} frames")

    def take(self, frames: Iterable[Frame], at_ms: int) -> set[str]:
        """Take the frames of one drain, received until `at_ms`, in their order; the groups that were heard."""
        news: dict[str, Sample] = {}
        heard: set[str] = set()
        for frame in frames:
            said = self.decoder.decode(frame)
            if said is None:
                continue
            if not heard:
                self._heard(at_ms)
            heard.update(said.groups)
            for sample in said.samples:
                if sample.path in news:
                    self._say(tuple(news.values()), at_ms)
                    news.clear()
                news[sample.path] = sample
        self._unsaid |= heard
        self._say(tuple(news.values()), at_ms)
        self._name_heard(at_ms)
        return heard

    def vouch(self, groups: Iterable[str], at_ms: int) -> None:
        """Take the word of somebody else (the kernel's broadcast manager) that these groups are still being heard."""
        self._unsaid.update(groups)
        if self._unsaid:
            self._heard(at_ms)
            self._name_heard(at_ms)

    def silenced(self, key: int, at_ms: int) -> None:
        """The message with this id has stopped: its leaves are unknown from now on."""
        self._say(self.decoder.silenced(key), at_ms)

    def lost(self, detail: str) -> None:
        """The bus cannot be heard, and why; said once until it is heard again."""
        if self._alive is not False:
            self._alive = False
            self.counted["losses"] += 1
            self._emit(SourceChanged(at_ms=self._clock.boot_ms(), source=self.name, alive=False, detail=detail))

    def _heard(self, at_ms: int) -> None:
        self._heard_ms = at_ms
        if not self._alive:
            self._alive = True
            self._emit(SourceChanged(at_ms=at_ms, source=self.name, alive=True))

    def _say(self, samples: tuple[Sample, ...], at_ms: int) -> None:
        if samples:
            self._unsaid.difference_update({sample.group for sample in samples})
            self._emit(SignalsSeen(at_ms=at_ms, source=self.name, samples=samples))

    def _name_heard(self, at_ms: int) -> None:
        if not self._unsaid or at_ms - self._named_ms < REPEAT_MS - SLACK_MS:
            return
        self._named_ms = at_ms
        due = [group for group in self._unsaid if self._named_again_ms.get(group, 0) <= at_ms]
        if not due:
            return
        for group in due:
            self._named_again_ms[group] = at_ms + self._repeats_ms[group] - SLACK_MS
        self._unsaid.difference_update(due)
        self._emit(SourceHeard(at_ms=at_ms, source=self.name, groups=tuple(sorted(due))))

    async def _watch_silence(self) -> None:
        """Say once when nothing has come for `SILENT_MS`; runs until cancelled."""
        while True:
            silent_ms = self._clock.boot_ms() - self._heard_ms
            if silent_ms >= SILENT_MS:
                self.lost(f"no frames for {SILENT_MS / 1000:.0f} s")
            await asyncio.sleep(max(SILENT_MS - silent_ms % SILENT_MS, 50) / 1000)


class BusSource(abc.ABC):
    """A vehicle source (`agent.ports.CountingSource`) that reads one bus; how, is each one's `keep_open`."""

    def __init__(self, name: str, decoder: Decoder, clock: Clock) -> None:
        self.name = name
        self.decoder = decoder
        self.clock = clock
        self._listener: BusListener | None = None

    @property
    def counts(self) -> dict[str, int]:
        """What was heard, what was dropped by reason, and what else was counted."""
        return self.decoder.counts if self._listener is None else self._listener.counts

    async def run(self, emit: Emit) -> None:
        """Read and emit until cancelled."""
        self._listener = BusListener(self.name, self.decoder, self.clock, emit)
        await self._listener.listen(self.keep_open)

    @abc.abstractmethod
    async def keep_open(self, listener: BusListener) -> None:
        """Receive until cancelled, whatever fails in between."""
