"""Puts a snapshot together: the daemon's view, its own process, its guests and its log."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent import log
from agent.local_config import MetricsSection
from agent.metrics.collect import ProcessFigures, Snapshot
from agent.peers import Guests
from agent.ports import Clock, Source
from agent.view import SignalView, StatusView

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Look:
    """What `Exporter` asks."""

    def __init__(
        self,
        *,
        status: Callable[[], Awaitable[StatusView]],
        signals: Callable[[], list[SignalView]],
        guests: Guests,
        clock: Clock,
    ) -> None:
        self._status, self._signals, self._guests, self._clock = status, signals, guests, clock

    async def __call__(self) -> Snapshot:
        """A snapshot; raises DrivewayError where the store does not answer."""
        return Snapshot(
            status=await self._status(),
            signals=self._signals(),
            process=process_figures(self._clock.wall_ms() - self._clock.boot_ms()),
            control_clients=self._guests.count,
            control_refused=self._guests.refused,
            log_events=log.events_by_level(),
            log_held_back=log.events_held_back(),
        )


def process_figures(wall_offset_ms: int, proc: Path = Path("/proc/self")) -> ProcessFigures:
    """This process, by proc(5): fields 14, 15 (time in ticks), 22 (start after boot) and 24 (pages) of `stat`."""
    fields = (proc / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
    user, system, started, pages = (int(fields[place - 3]) for place in (14, 15, 22, 24))
    return ProcessFigures(
        cpu_s=(user + system) / _TICKS_PER_S,
        resident_bytes=pages * _PAGE_BYTES,
        descriptors=len(os.listdir(proc / "fd")),  # noqa: PTH208 - a count is all that is wanted
        started_s=started / _TICKS_PER_S + wall_offset_ms / 1000,
    )


def exporters(section: MetricsSection, look: Look, path: Callable[[str], Path]) -> tuple[Source, ...]:
    """What shows the metrics: nothing, and nothing of it is loaded, where nobody asked for them."""
    if not (section.listen or section.textfile):
        return ()
    from agent.metrics.exporter import Exporter  # noqa: PLC0415 - as the docstring says

    return (Exporter(section, look, path),)
