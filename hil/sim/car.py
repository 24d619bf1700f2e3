"""One simulated car: its chassis, its computer and its fleet around one core, under virtual time, event-driven.

The core is told what a daemon would tell it, at the moments at which something happens. What a daemon hears besides,
ten times a second, is that nothing has changed: one `SourceHeard` and one reading of the computer just before each
moment stand for all of those since the last (`since_ms`). They say what the repetitions would have said (a live group
is as young, the die as warm), so the gates come to the same states and the same effects;
`tests/hil/test_sim_sparse.py` holds a dense night against the sparse one. A group that has fallen silent is not
refreshed, and is looked at when each class of leaf grows stale. While the die is near where the thermal law acts, every
reading counts and every reading is told.
"""

from __future__ import annotations

import random

import msgspec

from agent.core.effects import KeepAwake
from agent.core.events import ComputeSeen, EventType, HostSeen, SignalsSeen, SourceChanged, SourceHeard, Tick
from agent.core.signals import Staleness
from agent.core.thermal_guard import IDLE_AFTER_S
from agent.errors import DrivewayError
from agent.simulate.promises import Truth
from hil.car.body import Body
from hil.car.power_state import PowerState, after_quiet
from hil.sim.bus import GROUPS, SOURCE
from hil.sim.chassis import Chassis, Traits
from hil.sim.readings import POWER_ERROR_SHARE, WORST_ERROR_C, Telemetry, honest_reading, law_may_act
from hil.sim.shells import Shells
from hil.sim.uplink import Troubles
from hil.sim.witness import Witness

REPEAT_MS = 100
"""What a source repeats is at most this old."""
SURVEY_MS = 300_000
"""How often the slow values (charge, temperatures, voltages) are looked at when nothing else happens."""
HOST_SURVEYS = 4
SLOW_VALUES_MS = 20_000
SUSPENDS_AFTER_MS = 30_000
"""The computer of a sleeping car is suspended this long after the bus fell silent."""
FALLS_SILENT_MS = 2_000
SILENCES_MS = tuple(sorted({ms + 1 for one in Staleness for ms in one.value} | {501, 1_251}))
"""When a silent group's leaves may come to count as late or stale."""
EVENTS_MAX = 2_000_000
"""More events than any night has: the core asks to be looked at again and again."""


class Car(Chassis):
    """One car and its core."""

    def __init__(self, traits: Traits, chance: random.Random, *, keep: bool = True, dense: bool = False) -> None:
        self._missed: list[EventType] = []
        self._bus_sleeps = self.suspended = False
        self.all_well = False
        """Nothing at all speaks against working, and the computer has been told so."""
        super().__init__(traits, chance)
        self._dense = dense
        self.shells = Shells(self.clock, chance, self.tell, self.moved, traits.slice_ms)
        self.witness = Witness(traits, keep=keep)
        self.work_ms = 0
        self.telemetry: Telemetry | None = honest_reading
        self.wall_offset_ms = traits.wall_offset_ms
        self.wall_error_ms: int | None = 20
        self.host = HostSeen(at_ms=0, wall_ms=0, wall_error_ms=20)
        self.stays_awake = traits.stays_awake
        self._leaves_with: float | None = None
        self._stepped_ms = self._touched_ms = self._slow_ms = traits.start_ms
        self._heard_ms = -traits.reading_ms
        self._read_ms: int | None = None
        self._next_reading_ms: int | None = None
        self._kept_awake_until_ms = 0
        self._believed_ms = 0
        self._surveys = 0
        self._ticked_ms = -1
        self.clock.after(0, self._survey)

    # --- time --------------------------------------------------------------------------------------------------

    def run(self, until_ms: int) -> None:
        """Live until then, or until a promise is broken."""
        while not self.witness.broken:
            agenda_ms, wake_ms = self.clock.next_ms, self._wake_ms()
            at_ms = min(agenda_ms if agenda_ms is not None else until_ms, wake_ms)
            if at_ms >= until_ms:
                self._advance(until_ms)
                self.clock.now_ms = until_ms
                return
            self._advance(at_ms)
            if agenda_ms is not None and agenda_ms <= wake_ms:
                self.clock.pop()()
                self._tell_news()
            elif self._next_reading_ms is not None and self._next_reading_ms <= at_ms:
                self.clock.now_ms = at_ms
                self.tell(self._reading())
            else:
                self.clock.now_ms = self._ticked_ms = at_ms
                self.tell(Tick(at_ms=at_ms))
            if self.witness.events > EVENTS_MAX:
                raise DrivewayError(f"{self.traits.name} does not come to rest", hint="look at `State.wakes_ms`")

    def _wake_ms(self) -> int:
        """When something happens by itself: a gate or a rule is due, or the thermal law needs its next reading."""
        if self.suspended:
            return 2**62
        wake_ms = max(self.witness.state.wakes_ms, self.clock.now_ms + (self._ticked_ms == self.clock.now_ms))
        if self._dense:
            wake_ms = min(wake_ms, self.clock.now_ms - self.clock.now_ms % REPEAT_MS + REPEAT_MS)
        return wake_ms if self._next_reading_ms is None else min(wake_ms, max(self._next_reading_ms, self.clock.now_ms))

    def _advance(self, at_ms: int) -> None:
        """The plant moves on to this moment."""
        dt_ms = at_ms - self._stepped_ms
        if dt_ms <= 0:
            return
        if self.shells.load:
            self.work_ms += dt_ms
        self.physics.advance(dt_ms / 1000)
        self._stepped_ms = at_ms
        if at_ms - self._slow_ms >= SLOW_VALUES_MS:
            self._slow_ms = at_ms
            self.show_slow()

    # --- telling the core --------------------------------------------------------------------------------------

    def tell(self, event: EventType) -> None:
        """One event into the core, refreshed before; what it asks for is begun."""
        if self.suspended:
            if not isinstance(event, HostSeen):
                self._missed.append(event)
            return
        self._refresh(reading=not isinstance(event, ComputeSeen))
        self._step(event)

    def _refresh(self, *, reading: bool = True, last: bool = False) -> None:
        """What was repeated until now: that nothing has changed on the bus, and how warm the die is.

        `last`: some group is heard for the last time now, so it is told of however young the others are.
        """
        now_ms = self.clock.now_ms
        if now_ms - self._heard_ms > REPEAT_MS or self._dense or last:
            self._repeat()
        late = self._read_ms is None or now_ms - self._read_ms >= self.traits.reading_ms
        if reading and late and self.telemetry is not None:
            self._step(self._reading())

    def _repeat(self) -> None:
        """The live groups have said the same all the time since they were last told of."""
        now_ms, since_ms = self.clock.now_ms, None if self._dense else self._heard_ms
        self._heard_ms = now_ms
        if self.bus.groups:
            self._step(SourceHeard(at_ms=now_ms, source=SOURCE, groups=self.bus.groups, since_ms=since_ms))

    def _step(self, event: EventType) -> None:
        truth = None if isinstance(event, SourceHeard) else self._truth()
        for effect in self.witness.step(event, truth):
            if isinstance(effect, KeepAwake):
                self._kept_awake_until_ms = self.clock.now_ms + effect.for_ms
                self.clock.after(effect.for_ms + 1, self._rest)
            else:
                self.shells.perform(effect)

    def _truth(self) -> Truth:
        physics = self.physics
        evident = self.person and self.bus.shows_a_person(self.body, unlocked=self.unlocked)
        leaves_with, self._leaves_with = self._leaves_with, None
        return Truth(
            self.clock.now_ms,
            evident,
            physics.die_c,
            physics.charge_percent,
            physics.low_voltage_v,
            self.all_well,
            leaves_with,
            None if leaves_with is None else physics.charge_without_us_percent,
        )

    def _tell_news(self) -> None:
        """What has changed on the bus, in the order in which its groups are sent."""
        if self.suspended or not self.bus.changed:
            return
        self._refresh()
        samples = self.bus.news()
        if samples:
            self._step(SignalsSeen(at_ms=self.clock.now_ms, source=SOURCE, samples=samples))

    def _reading(self) -> ComputeSeen:
        now_ms, physics = self.clock.now_ms, self.physics
        since_ms, self._read_ms = None if self._dense else self._read_ms, now_ms
        die_c, power_w = (None, None) if self.telemetry is None else self.telemetry(physics.die_c, self.computer_w())
        self._next_reading_ms = self._plan_reading()
        return ComputeSeen(
            at_ms=now_ms,
            die_c=die_c,
            power_w=power_w,
            sensor="simulated",
            die_error_c=WORST_ERROR_C,
            power_error_share=POWER_ERROR_SHARE,
            since_ms=since_ms,
        )

    def _plan_reading(self) -> int | None:
        """When the next reading must be told for its own sake: while the thermal law may act on it."""
        every_ms, now_ms = self.traits.reading_ms, self.clock.now_ms
        if self.telemetry is None or not (self._dense or self._every_reading_counts()):
            return None
        return now_ms - now_ms % every_ms + every_ms

    def _every_reading_counts(self) -> bool:
        if self.telemetry is not honest_reading or self.shells.troubles.disobeys:
            return True
        return law_may_act(self.witness.state, self.physics, busy=self.shells.busy)

    # --- what changes the plant --------------------------------------------------------------------------------

    def computer_w(self) -> float:
        """Idle, and what the worker draws."""
        plant = self.traits.plant
        return plant.computer_idle_w + (plant.computer_max_w - plant.computer_idle_w) * self.shells.load

    def moved(self) -> None:
        """Something about the powers has changed; under load the die may come to where readings count."""
        super().moved()
        if self.shells.load and self._next_reading_ms is None and not self.suspended:
            self._next_reading_ms = self._plan_reading()

    def set_fan(self, *, turns: bool) -> None:
        """The fan stops, or turns again."""
        super().set_fan(turns=turns)
        self._next_reading_ms = self._plan_reading()

    def disobey(self, share: float) -> None:
        """The computer draws this much more than its pace allows."""
        self.shells.troubles.disobeys = share
        self.moved()
        self._next_reading_ms = self._plan_reading()

    def mend_computer(self) -> None:
        """Everything about the computer, its disk and its clock is as it should be again."""
        self.shells.disk(full=False)
        self.shells.troubles = Troubles(disk_full=False)
        self.shells.uplink.dispatcher.work = True
        self.wall_offset_ms, self.wall_error_ms = self.traits.wall_offset_ms, 20
        self.host = HostSeen(at_ms=self.clock.now_ms, wall_ms=0, wall_error_ms=20, metered=False)
        self.tell_host()
        self.read_nothing(honest_reading)

    def be_well(self, *, well: bool) -> None:
        """From now on nothing speaks against working."""
        self.all_well = well

    def departs(self, target_percent: float) -> None:
        """This is the moment for which the owner wanted a charge, if the car has stood and charged until now."""
        if self.body.plugged_in and self.charger_w:
            self._leaves_with = target_percent
            self.tell(Tick(at_ms=self.clock.now_ms))

    def _survey(self) -> None:
        """The slow values, and what the host says, also when nothing else happens."""
        self.clock.after(SURVEY_MS, self._survey)
        self._surveys += 1
        outside_c, air_c = self.weather()
        if air_c != self.air_c:
            self.set_air(outside_c, air_c)
        if not self.suspended:
            self.show_slow()
            self._rest()
            if self._surveys % HOST_SURVEYS == 0:
                self.tell_host()

    # --- what a person does ------------------------------------------------------------------------------------

    def sleep(self) -> None:
        """The car goes to sleep now, wherever it is."""
        self.body = Body(plugged_in=self.body.plugged_in, power_state=PowerState.OFF)
        self.person = False
        self.show_body()
        self.moved()
        self._fall_silent()

    def touched(self) -> None:
        """Somebody, or the car itself, has done something: it wakes, and goes to sleep again after a while."""
        self._touched_ms = self.clock.now_ms
        super().touched()
        if self.awake:
            self._bus_wakes()
        if self.suspended and self.awake:
            self.clock.after(self.chance.uniform(200, 2_000), self._resume)
        for wait_ms in (60_500, 600_500):
            self.clock.after(wait_ms, self._rest)

    def _bus_wakes(self) -> None:
        if self._bus_sleeps and not self.suspended:
            self._bus_sleeps = False
            for group in GROUPS:
                self.bus.resume(group)

    def _rest(self) -> None:
        """A car that nobody touches goes to sleep, unless it charges or is kept awake."""
        quiet_s = (self.clock.now_ms - self._touched_ms) / 1000
        kept = self.stays_awake or self.clock.now_ms < self._kept_awake_until_ms
        rested = after_quiet(self.body.power_state, self.body.cabin(), quiet_s, charging=self.physics.charging or kept)
        if rested is not self.body.power_state:
            self.body = msgspec.structs.replace(self.body, power_state=rested)
            self.show_body()
            self.moved()
            if rested is PowerState.OFF:
                self.clock.after(FALLS_SILENT_MS, self._fall_silent)

    # --- sleep -------------------------------------------------------------------------------------------------

    def _fall_silent(self) -> None:
        """The bus of a sleeping car is silent; soon after the computer is suspended."""
        if self.body.power_state is PowerState.OFF:
            self._bus_sleeps = True
            self.quieten(GROUPS)
            self.clock.after(SUSPENDS_AFTER_MS, self._suspend)

    def _suspend(self) -> None:
        if self.body.power_state is PowerState.OFF and not self.shells.busy:
            self.shells.link(connected=False)
            self.suspended = True
            self._next_reading_ms = None

    def _resume(self) -> None:
        """Awake again: everything is said anew, and the link comes up a moment later."""
        if not self.suspended or self.body.power_state is PowerState.OFF:
            return
        self.suspended = self._bus_sleeps = False
        for group in GROUPS:
            self.bus.resume(group)
        self.bus.forget()
        self._heard_ms, self._read_ms = self.clock.now_ms - self.traits.reading_ms, None
        self.show_slow()
        missed, self._missed = self._missed, []
        self.tell_host()
        for event in missed:
            self.tell(_later(event, self.clock.now_ms))
        self.clock.after(3_000, lambda: self.shells.link(connected=True))

    # --- what is seen ------------------------------------------------------------------------------------------

    def quieten(self, groups: object) -> None:
        """These groups are heard one last time, and then no more; the core looks when each class grows stale."""
        names = [group for group in GROUPS if group in groups]  # type: ignore[operator]
        if not self.suspended:
            self._refresh(last=True)
        for name in names:
            self.bus.hush(name)
        for wait_ms in SILENCES_MS:
            self.clock.after(wait_ms, lambda: self.tell(Tick(at_ms=self.clock.now_ms)))

    def source(self, *, alive: bool) -> None:
        """The source itself comes or goes."""
        if alive is self.bus.alive:
            return
        if not alive:
            self.quieten(())
        self.bus.alive = alive
        self.tell(SourceChanged(at_ms=self.clock.now_ms, source=SOURCE, alive=alive, detail="" if alive else "gone"))
        if alive:
            self.bus.forget()

    def read_nothing(self, telemetry: Telemetry | None) -> None:
        """How the computer is read from now on; None: not at all."""
        if self.telemetry is not None and not self.suspended:
            self._refresh(reading=False)
            self._step(self._reading())
        elif self.telemetry is None:
            self._read_ms = None
        self.telemetry = telemetry
        self._next_reading_ms = self._plan_reading()
        for late_ms in (round(IDLE_AFTER_S * 1000), self.traits.policy.compute_stale_ms):
            self.clock.after(late_ms + 1, lambda: self.tell(Tick(at_ms=self.clock.now_ms)))
        if telemetry is not None and not self.suspended:
            self.tell(self._reading())

    def tell_host(self) -> None:
        """The computer's own system says what it says every few seconds; a few of its words stand for all."""
        now_ms = self.clock.now_ms
        self.host = msgspec.structs.replace(
            self.host, at_ms=now_ms, wall_ms=now_ms + self.wall_offset_ms, wall_error_ms=self.wall_error_ms
        )
        self.tell(self.host)
        believed_ms = self.witness.state.wall.distrusted_until_ms
        if now_ms < believed_ms != self._believed_ms:
            self._believed_ms = believed_ms
            self.clock.at(believed_ms, self.tell_host)


def _later(event: EventType, now_ms: int) -> EventType:
    return msgspec.structs.replace(event, at_ms=now_ms)
