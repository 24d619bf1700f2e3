"""Opens a recorded night, whatever it was recorded as: a candump log, a CSV, or a recording of the core's events.

Which of them it is shows in its first line, never in its name. A candump log goes through the daemon's own decoder and
listener, in drains of 20 ms as a socket is drained, so what a rehearsal hears is what the daemon would have heard: the
same samples, the same silence.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from agent.core.events import EventType, SignalsSeen, SourceChanged, SourceHeard
from agent.core.walltime import LATEST_WALL_MS
from agent.errors import ConfigError, TraceError
from agent.simulate import recording
from agent.simulate.recording import Recording
from agent.simulate.rows import LONGEST_S
from agent.simulate.table import read_table
from agent.simulate.trace import Stimulus, Trace
from agent.vehicle.candump import BadLines, CandumpFrame, read_candump
from agent.vehicle.decoder import Frame
from agent.vehicle.listener import SILENT_MS, BusListener
from agent.vehicle.profile import Profile, did_you_mean, load_profile, vehicle_of
from agent.vehicle.source import build_decoder

DRAIN_MS = 20
PLAUSIBLE_WALL_US = 1_000_000_000_000_000
"""Times after 2001 are wall times; before, they count from the log's own start."""
PROBE_BYTES = 65_536


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to read: the car's profiles, which interface of a log is which bus, and when it began (wall ms)."""

    profiles: tuple[str, ...] = ()
    buses: Mapping[str, str] = {}
    start_wall_ms: int | None = None


def open_trace(path: Path, options: Options) -> Trace | Recording:
    """The night in this file. Raises TraceError for the file, ConfigError for the options.

    A candump log is read as it is played: what is wrong with it shows then.
    """
    first = _first_line(path)
    if first.startswith(b"{"):
        return _open_recording(path)
    profiles = [load_profile(name) for name in options.profiles]
    if first.startswith(b"("):
        return _open_candump(path, profiles, options)
    return read_table(path, options.start_wall_ms, vehicle_of(profiles).absent)


def _first_line(path: Path) -> bytes:
    """The first line that says something, as far as it fits into 64 KiB."""
    try:
        with path.open("rb") as file:
            head = file.read(PROBE_BYTES)
        if head.startswith(recording.GZIP):
            with gzip.open(path) as packed:
                head = packed.read(PROBE_BYTES)
            if not head.lstrip().startswith((b"(", b"#", b"{")):
                raise TraceError(f"{path} is gzipped and neither a candump log nor a recording", hint="unpack it first")
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"cannot read the trace {path}: {getattr(error, 'strerror', None) or error}") from error
    lines = (line.strip() for line in head.splitlines())
    first = next((line for line in lines if line and not line.startswith(b"#")), None)
    if first is None:
        raise TraceError(f"{path} is empty", hint="give a candump log, a CSV of signals, or a recording")
    return first


def _open_recording(path: Path) -> Recording:
    try:
        return recording.read(path)
    except ConfigError as error:
        raise TraceError(error.what, hint=error.hint) from error


# --- candump ---------------------------------------------------------------------------------------------------------


def _open_candump(path: Path, profiles: Sequence[Profile], options: Options) -> Trace:
    if not profiles or not options.buses:
        known = sorted({bus for profile in profiles for bus in profile.buses})
        hint = f"--bus INTERFACE=BUS, with BUS one of {', '.join(known)}" if known else "add --profile and --bus"
        raise ConfigError(f"{path} is a candump log: what its frames mean is in a vehicle profile", hint=hint)
    log = _Log(path, profiles, options.buses)
    frames = read_candump(path, log.bad_lines)
    first = next(frames, None)
    if first is None:
        raise TraceError(
            f"{path} has no line that is a frame", hint="it should look like (1436509052.249713) can0 118#00"
        )
    start_wall_ms = options.start_wall_ms
    if start_wall_ms is None and PLAUSIBLE_WALL_US <= first.at_us < LATEST_WALL_MS * 1000:
        start_wall_ms = first.at_us // 1000
    return Trace(
        name=path.name,
        kind="candump",
        start_wall_ms=start_wall_ms,
        stimuli=log.play(itertools.chain([first], frames), first.at_us),
        vehicle=vehicle_of(profiles),
        remarks=log.remarks,
    )


class LogClock:
    """The log's time as a clock, for the listeners."""

    def __init__(self) -> None:
        self.now_ms = 0

    def boot_ms(self) -> int:
        """Milliseconds since the log's first frame."""
        return self.now_ms

    def wall_ms(self) -> int:
        """The same: a log has no other time."""
        return self.now_ms


class _Log:
    """A candump log while it is played: what its listeners hear, drain by drain."""

    def __init__(self, path: Path, profiles: Sequence[Profile], buses: Mapping[str, str]) -> None:
        self.bad_lines = BadLines()
        self.remarks: list[str] = []
        self._path, self._clock = path, LogClock()
        self._heard: list[EventType] = []
        self._listeners = {
            interface: BusListener(bus, build_decoder(bus, profiles), self._clock, self._heard.append)
            for interface, bus in buses.items()
        }
        self._latest_ms = dict.fromkeys(self._listeners, 0)
        self._interfaces: set[str] = set()
        self._beyond = 0

    def play(self, frames: Iterator[CandumpFrame], first_us: int) -> Iterator[Stimulus]:
        """Every event that the daemon's listeners would have emitted. Raises TraceError where no bus was heard."""
        drain: dict[str, list[Frame]] = {interface: [] for interface in self._listeners}
        for one in frames:
            at_ms = max(self._clock.now_ms, (one.at_us - first_us) // 1000)
            if at_ms > LONGEST_S * 1000:
                self._beyond += 1
                continue
            if at_ms >= self._clock.now_ms + DRAIN_MS:
                yield from self._drained(drain, self._clock.now_ms + DRAIN_MS)
                yield from self._silence(at_ms)
                self._clock.now_ms = at_ms
            self._interfaces.add(one.interface)
            if one.interface in drain:
                drain[one.interface].append(one.frame)
        yield from self._drained(drain, self._clock.now_ms + DRAIN_MS)
        self._conclude()

    def _drained(self, drain: dict[str, list[Frame]], at_ms: int) -> Iterator[Stimulus]:
        for interface, frames in drain.items():
            listener = self._listeners[interface]
            before = listener.decoder.frames
            listener.take(frames, at_ms)
            frames.clear()
            if listener.decoder.frames != before:
                self._latest_ms[interface] = at_ms
        yield from self._take_heard()

    def _silence(self, until_ms: int) -> Iterator[Stimulus]:
        """Say of every bus that falls silent before `until_ms` when it did, as the listener's own watch would."""
        for latest_ms, interface in sorted((ms, interface) for interface, ms in self._latest_ms.items()):
            if latest_ms + SILENT_MS < until_ms:
                self._clock.now_ms = max(self._clock.now_ms, latest_ms + SILENT_MS)
                self._listeners[interface].lost(f"no frames for {SILENT_MS / 1000:.0f} s")
        yield from self._take_heard()

    def _take_heard(self) -> Iterator[Stimulus]:
        events, self._heard[:] = list(self._heard), []
        for event in events:
            assert isinstance(event, SignalsSeen | SourceHeard | SourceChanged)
            yield event

    def _conclude(self) -> None:
        if not any(listener.decoder.frames for listener in self._listeners.values()):
            raise TraceError(
                f"{self._path} has no frame that the profile explains on {', '.join(self._listeners)}",
                hint=f"the log's interfaces: {', '.join(sorted(self._interfaces))}",
            )
        for interface, listener in self._listeners.items():
            counts = listener.counts
            if not counts.get("frames"):
                hint = did_you_mean(interface, self._interfaces - set(self._listeners))
                heard = f"Nothing was heard on {interface} ({listener.name})"
                self.remarks.append(f"{heard}: {hint}" if hint else f"{heard}.")
            odd = {name: count for name, count in counts.items() if name not in {"frames", "dropped_foreign", "losses"}}
            if odd:
                told = ", ".join(f"{name} {count}" for name, count in odd.items())
                self.remarks.append(f"On {interface} ({listener.name}): {told}.")
        if self._beyond:
            self.remarks.append(f"{self._beyond} frames are more than 31 days after the first, and were passed over.")
        if self.bad_lines.count:
            first = self.bad_lines.numbers[0]
            self.remarks.append(f"{self.bad_lines.count} lines are no frames (the first is line {first}).")
