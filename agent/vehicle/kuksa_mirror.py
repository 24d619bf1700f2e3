"""What a databroker says, as events, and for how long it may be believed. Pure: values and times in, events out.

The broker's timestamps come from its wall clock, so they are never compared with ours; all that is read from them is
that a heartbeat leaf has another one than before: its provider has published. Every age counts from our receipt.

* What a provider says is believed once we witness two heartbeats within `heartbeat_silent_ms` (the values found on
  arrival may be days old), and until as long passed without another: then all its leaves are unknown, whatever the
  broker still shows. Each provider is a source of its own for the gates, so `why` names the one that is gone.
* A change is told at once. That nothing changed is told (`SourceHeard`, as of the last heartbeat) when a poll answered
  or the stream brought a heartbeat. The stream can stand in for one poll that is late, but not for long: two late ones
  in a row end the session (`agent.vehicle.kuksa`).
* A poll's answer loses against what the stream brought while the poll was under way: the stream may be the newer one,
  and if it was not, the next poll puts that right.

The limits: a provider that goes on with its heartbeat but has lost one sensor is not found out here; a value that
changes twice between two polls is missed when the stream drops it as well; and a provider that comes back may publish
its heartbeat before the rest, which the gates' patience (`parked_for_s`) has to cover.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kuksa.val.v2 import types_pb2

from agent.core.events import EventType, LeavesOffered, Quality, Sample, SignalsSeen, SourceChanged, SourceHeard
from agent.core.signals import LEAVES
from agent.vehicle.databroker import DatabrokerConfig
from agent.vehicle.kuksa_leaves import EDGE, SLOW, Name, combine, sample

SOURCE = "databroker"
STAND_IN_MS = 200
"""Between polls, heartbeats on the stream keep edges fresh, so often: one late poll does not shut the gate."""

Point = tuple[str, types_pb2.Datapoint]


class Provider:
    """One process that feeds the broker: whether it lives, and what it said."""

    def __init__(self, source: str, heartbeat: str, silent_ms: int) -> None:
        self.source, self.heartbeat, self.silent_ms = source, heartbeat, silent_ms
        self.alive: bool | None = None
        self.down = ""
        self.begin(0)

    def begin(self, at_ms: int) -> None:
        """A new session: nothing it said before counts."""
        self.samples: dict[str, Sample] = {}
        self.beats = 0
        self.beat_ms = at_ms
        self.told: dict[str, tuple[int, int]] = {}
        self._stamp: tuple[int, int] | None = None

    def beat(self, point: types_pb2.Datapoint, at_ms: int) -> bool:
        """Take the heartbeat leaf as it stands; whether it was published since the last time, and soon after that."""
        stamp = (point.timestamp.seconds, point.timestamp.nanos)
        first, news = self._stamp is None, stamp != self._stamp
        self._stamp = stamp
        if first or not news:
            return False
        steady = self.beats > 0 and at_ms - self.beat_ms <= self.silent_ms
        self.beats += 1
        self.beat_ms = at_ms
        return steady

    def up(self, at_ms: int) -> list[EventType]:
        """It lives: all that it said since the session began counts from now on, and nothing older for a moment."""
        self.alive, self.down = True, ""
        self.told = dict.fromkeys((EDGE, SLOW), (self.beats, at_ms))
        return [
            SignalsSeen(at_ms=at_ms, source=self.source, samples=tuple(self.samples.values())),
            SourceChanged(at_ms=at_ms, source=self.source, alive=True),
        ]

    def lost(self, detail: str, at_ms: int) -> list[EventType]:
        """It cannot be heard; said once for each cause."""
        if self.alive is False and self.down.partition(":")[0] == detail.partition(":")[0]:
            return []
        self.alive, self.down = False, detail
        return [SourceChanged(at_ms=at_ms, source=self.source, alive=False, detail=detail)]

    def heard(self, groups: Sequence[str], at_ms: int) -> list[EventType]:
        """Its leaves in these groups were confirmed, as of its last heartbeat; that counts if it is a new one."""
        fresh = tuple(group for group in groups if self.told.get(group, (0, 0))[0] != self.beats)
        if not self.alive or not fresh:
            return []
        self.told |= dict.fromkeys(fresh, (self.beats, at_ms))
        return [SourceHeard(at_ms=self.beat_ms, source=self.source, groups=fresh)]


class Mirror:
    """The newest word on every leaf. One for the life of the source; `begin` starts each session with the broker."""

    def __init__(self, config: DatabrokerConfig) -> None:
        self._config = config
        named = [Provider(f"{SOURCE}/{one.name}", one.heartbeat, one.heartbeat_silent_ms) for one in config.provider]
        self._fallback = Provider(SOURCE, config.heartbeat, config.heartbeat_silent_ms)
        self._named = tuple(zip(config.provider, named, strict=True))
        unclaimed = any(self._owner(path) is self._fallback for path in LEAVES if path not in config.absent)
        self.providers = (self._fallback, *named) if unclaimed else tuple(named)
        self._names: dict[str, Name] = {}
        self._beats: dict[str, list[Provider]] = {}
        self._owners: dict[str, Provider] = {}
        self._said: dict[str, dict[str, Sample]] = {}
        self._raw: dict[str, types_pb2.Value | None] = {}
        self._streamed: dict[str, int] = {}
        self.turn = 0
        """Counts what the stream brought; a poll notes it before it asks."""

    @property
    def heartbeats(self) -> tuple[str, ...]:
        """The leaves that prove a provider alive."""
        return tuple(dict.fromkeys(provider.heartbeat for provider in self.providers))

    def begin(self, names: Iterable[Name], at_ms: int) -> list[EventType]:
        """A session begins with these names; says which leaves they are."""
        self._names = {name.asked: name for name in names}
        self._owners, self._said, self._raw, self._streamed = {}, {}, {}, {}
        for name in self._names.values():
            if name.path in LEAVES and name.path not in self._config.absent:
                self._owners.setdefault(name.path, self._owner(name.asked, name.path))
                self._said.setdefault(name.path, {})[name.asked] = Sample(name.path, None, Quality.UNKNOWN, name.group)
        self._beats = {}
        for provider in self.providers:
            provider.begin(at_ms)
            self._beats.setdefault(provider.heartbeat, []).append(provider)
        for path, said in self._said.items():
            self._owners[path].samples[path] = combine(tuple(said.values()))
        return [LeavesOffered(at_ms=at_ms, source=SOURCE, paths=tuple(self._said), absent=self._config.absent)]

    def streamed(self, points: Iterable[Point], at_ms: int) -> list[EventType]:
        """Take one message of the subscription."""
        self.turn += 1
        taken = list(points)
        self._streamed |= dict.fromkeys((asked for asked, _ in taken), self.turn)
        beaten, events = self._take(taken, at_ms)
        for provider in beaten:
            if at_ms - provider.told.get(EDGE, (0, 0))[1] >= STAND_IN_MS:
                events += provider.heard((EDGE,), at_ms)
        return events

    def polled(self, points: Iterable[Point], groups: Sequence[str], since: int, at_ms: int) -> list[EventType]:
        """Take a poll's answer; `groups` were asked whole, and `since` was the turn when they were."""
        overtaken = self._streamed
        _, events = self._take([one for one in points if overtaken.get(one[0], 0) <= since], at_ms)
        for provider in self.providers:
            events += provider.heard(groups, at_ms)
        return events + self.watch(at_ms)

    def watch(self, at_ms: int) -> list[EventType]:
        """Look for providers whose heart has stopped."""
        events: list[EventType] = []
        for provider in self.providers:
            if provider.heartbeat not in self._names:
                events += provider.lost(f"the databroker has no readable {provider.heartbeat}, its heartbeat", at_ms)
            elif at_ms - provider.beat_ms > provider.silent_ms:
                silent_s = provider.silent_ms / 1000
                events += provider.lost(f"{provider.heartbeat} was not published for {silent_s:g} s", at_ms)
        return events

    def lost(self, detail: str, at_ms: int) -> list[EventType]:
        """The broker itself cannot be heard."""
        return [event for provider in self.providers for event in provider.lost(detail, at_ms)]

    def _owner(self, *paths: str) -> Provider:
        return next((one for table, one in self._named if any(map(table.owns, paths))), self._fallback)

    def _take(self, points: Sequence[Point], at_ms: int) -> tuple[list[Provider], list[EventType]]:
        """Fold values in: who gave a heartbeat, and what is new of those who live."""
        beaten: list[Provider] = []
        changed: dict[str, Sample] = {}
        for asked, point in points:
            name = self._names.get(asked)
            if name is None:
                continue
            beaten += [provider for provider in self._beats.get(asked, ()) if provider.beat(point, at_ms)]
            value = point.value if point.HasField("value") else None
            if name.path not in self._said or (asked in self._raw and self._raw[asked] == value):
                continue
            self._raw[asked] = value
            said = self._said[name.path]
            said[asked] = sample(name, value)
            samples = self._owners[name.path].samples
            combined = combine(tuple(said.values()))
            if combined != samples[name.path]:
                samples[name.path] = changed[name.path] = combined
        return beaten, self._told(beaten, changed, at_ms)

    def _told(self, beaten: Sequence[Provider], changed: dict[str, Sample], at_ms: int) -> list[EventType]:
        events: list[EventType] = []
        for provider in self.providers:
            if provider.alive:
                news = tuple(one for path, one in changed.items() if self._owners[path] is provider)
                if news:
                    events.append(SignalsSeen(at_ms=at_ms, source=provider.source, samples=news))
            elif provider in beaten:
                events += provider.up(at_ms)
        return events
