"""The inference computer of a rehearsal: its power from the work, its heat from its power. Pure.

    P = P_idle + (P_work - P_idle) * duty                      while it computes, else P_idle
    C1 dT1/dt = P - (T1 - T2)/R12          C2 dT2/dt = (T1 - T2)/R12 - (T2 - T_air)/R2a

Two nodes, die and heatsink, with the numbers of an AGX-Orin-like box: C1 = 40 J/K, R12 = 0.25 K/W, C2 = 450 J/K,
R2a = 0.60 K/W with a running fan (cross-checked with published Orin NX measurements). Integrated by explicit Euler in
steps well under the fastest time constant (R12 C1 = 10 s). What a trace recorded is taken from there instead.
"""

from __future__ import annotations

import math

import msgspec

from agent.core.events import ComputeSeen

DIE_J_PER_K = 40.0
DIE_TO_SINK_K_PER_W = 0.25
SINK_J_PER_K = 450.0
SINK_TO_AIR_K_PER_W = 0.60
STEP_S = 0.5
ROOM_C = 20.0
"""The air around a computer of which nobody recorded anything."""


class Box(msgspec.Struct, frozen=True):
    """What the rehearsal supposes of the computer: its power idle and at full work, in watts."""

    idle_w: float
    work_w: float


class Computer:
    """One computer in virtual time. Recorded values, while there are any, win over the model's."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._now_ms = 0
        self._duty = 0.0
        self._air_c = self._sink_c = self._die_c = ROOM_C
        self._settle(ROOM_C)
        self._air_known = False
        self._recorded_die_c: float | None = None
        self.records_die = False
        """The trace measured the die: where it has no value now, there is no reading, rather than a modelled one."""
        self._recorded_w: float | None = None
        self.records_power = False
        self.energy_wh = 0.0
        """What it used since the start, awake."""

    @property
    def power_w(self) -> float | None:
        """What its power sensor says now (W)."""
        return self._recorded_w if self.records_power else self._modelled_w

    @property
    def die_c(self) -> float | None:
        """What its temperature sensor says now (degrees Celsius)."""
        return self._recorded_die_c if self.records_die else self._die_c

    @property
    def _modelled_w(self) -> float:
        return self._box.idle_w + (self._box.work_w - self._box.idle_w) * self._duty

    def air(self, air_c: float, now_ms: int) -> None:
        """The air around it is this warm from now on; the first word on it counts as if it had always been so."""
        if not self._air_known:
            self._air_known = True
            self._settle(air_c)
        elif air_c != self._air_c:
            self.advance(now_ms)
            self._air_c = air_c

    def record_die(self, die_c: float | None, now_ms: int) -> None:
        """From now on the die is as warm as the trace says; None: nobody measured it."""
        self.advance(now_ms)
        self.records_die, self._recorded_die_c = True, die_c

    def record_power(self, power_w: float | None, now_ms: int) -> None:
        """From now on the computer draws what the trace says; None: nobody measured it."""
        self.advance(now_ms)
        self.records_power, self._recorded_w = True, power_w

    def work(self, duty: float, now_ms: int) -> None:
        """From now on it computes for this share of the time."""
        if duty != self._duty:
            self.advance(now_ms)
            self._duty = duty

    def advance(self, now_ms: int, *, asleep: bool = False) -> None:
        """Let it warm up or cool down until `now_ms`. Asleep, it draws nothing."""
        span_s = (now_ms - self._now_ms) / 1000
        self._now_ms = now_ms
        power_w = 0.0 if asleep else self._modelled_w if self.power_w is None else self.power_w
        self.energy_wh += power_w * span_s / 3600
        count = math.ceil(span_s / STEP_S)
        for _ in range(count):
            step_s = span_s / count
            die_to_sink_w = (self._die_c - self._sink_c) / DIE_TO_SINK_K_PER_W
            sink_to_air_w = (self._sink_c - self._air_c) / SINK_TO_AIR_K_PER_W
            self._die_c += (power_w - die_to_sink_w) * step_s / DIE_J_PER_K
            self._sink_c += (die_to_sink_w - sink_to_air_w) * step_s / SINK_J_PER_K

    def _settle(self, air_c: float) -> None:
        """As warm as an idle computer gets in this air."""
        self._air_c = air_c
        self._sink_c = air_c + SINK_TO_AIR_K_PER_W * self._box.idle_w
        self._die_c = self._sink_c + DIE_TO_SINK_K_PER_W * self._box.idle_w

    def reading(self, now_ms: int) -> ComputeSeen:
        """One reading, as the daemon's telemetry makes it."""
        self.advance(now_ms)
        sensor = "recorded" if self.records_power else "simulated"
        return ComputeSeen(at_ms=now_ms, die_c=self.die_c, power_w=self.power_w, sensor=sensor)
