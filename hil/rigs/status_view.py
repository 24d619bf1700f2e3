"""Observations of a daemon that is asked through its control socket, and of the car around it: for rigs with processes.

What a look shows was so at some moment since the one before; the rig's `resolution_ms` says how much later a change may
be seen for it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hil.rigs.observation import LeaseSeen, Observation, Why


class StatusView:
    """Turns answers of `driveway status --json`, and the car's own report, into observations."""

    def __init__(self) -> None:
        self._last = Observation(at_ms=0, answers=False)
        self._work_ms = 0
        self._kept_before = self._kept_last = 0
        """Slices kept in earlier lives of the daemon, and in this one."""
        self._energy_start_wh: float | None = None

    def silent(self, at_ms: int) -> Observation:
        """Nobody answers: all else is as it was known last."""
        self._kept_before, self._kept_last = self._kept_before + self._kept_last, 0
        replace = msgspec.structs.replace
        self._last = replace(self._last, at_ms=at_ms, answers=False, worker=False, computing=False, linked=False)
        return self._last

    def look(self, at_ms: int, status: dict[str, Any], car: dict[str, Any], settled: int) -> Observation:
        """One look at both."""
        lease, worker, computer = status["lease"], status["worker"], status["computer"] or {}
        if self._last.computing:
            self._work_ms += at_ms - self._last.at_ms
        self._kept_last = int(status["slices"]["kept"])
        energy_wh = float(status["energy_wh"])
        if self._energy_start_wh is None:
            self._energy_start_wh = energy_wh
        vacate = status["vacate"]
        self._last = Observation(
            at_ms=at_ms,
            answers=True,
            state=status["state"],
            gate=status["gate"],
            reasons=tuple(Why(one["gate"], one["code"], one["signal"]) for one in status["reasons"]),
            linked=status["link"]["connected"],
            worker=worker is not None,
            computing=_computes(status),
            lease="" if lease is None else f"{lease['job']}/{lease['epoch']}",
            outbox=status["outbox"]["pending"],
            power_cap_w=status["power_cap_w"],
            die_c=computer.get("die_c"),
            power_w=computer.get("power_w"),
            charge_percent=car["soc_percent"],
            pack_power_w=car["pack_power_w"],
            low_voltage_v=car["low_voltage_v"],
            ambient_c=car["ambient_c"],
            accelerator=status["accelerator"]["state"],
            owner=status["owner"]["mode"],
            slices_kept=self._kept_before + self._kept_last,
            settled=settled,
            refusals=sum(status["refused_messages"].values()) + len(status["refused_packages"]),
            vacates=vacate["count"],
            vacate_max_ms=vacate["max_ms"],
            work_s=self._work_ms / 1000,
            energy_wh=energy_wh - self._energy_start_wh,
        )
        return self._last


def _computes(status: dict[str, Any]) -> bool:
    lease, worker = status["lease"], status["worker"]
    at_work = lease is not None and lease["phase"] == "running" and worker is not None and worker["phase"] == "ready"
    return (at_work and status["state"] == "running") or (worker is not None and worker["phase"] == "building")


def lease_spans(rows: list[dict[str, Any]], observations: list[Observation]) -> tuple[LeaseSeen, ...]:
    """The leases that the daemon lists (newest first), on the time axis as they were seen."""
    seen: dict[str, tuple[int, int]] = {}
    for look in observations:
        if look.lease:
            seen[look.lease] = (seen.get(look.lease, (look.at_ms, 0))[0], look.at_ms)
    spans = []
    for row in reversed(rows):
        lease = row["lease"]
        name = f"{lease['job']}/{lease['epoch']}"
        if name not in seen:
            continue
        start_ms, end_ms = seen[name]
        spans.append(
            LeaseSeen(
                job=name,
                start_ms=start_ms,
                end_ms=end_ms,
                outcome="finished" if lease["kind"] == "result" else str(lease["why"] or lease["state"]),
                slices_done=lease["slices_done"],
                slices_wanted=lease["slices_wanted"],
            )
        )
    return tuple(spans)
