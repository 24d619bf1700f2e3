"""The rig in virtual time: the pure core, a simulated car and a simulated fleet around it; weeks in seconds.

The car, its plant, the worker, the disk and the fleet are those of `hil.sim`, each as honest and as bad as there; a
scenario says what happens instead of chance. After every event the promises are checked against what is true
(`agent.simulate.promises`), and the run ends at the first that is broken. Nothing here is a process, so there is
nothing to kill but the worker; keys, sandbox and wire are for the other rigs.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import ClassVar

from agent import __version__
from agent.simulate.promises import PROMISES
from agent.simulate.recording import write
from hil.rigs.faults import AgentHangs, AgentKilled, Fault, KeyAbsent, KeySlow, PowerCut, Suspend
from hil.rigs.interface import Reached, Rig
from hil.rigs.observation import Evidence, Measurement, Observation
from hil.rigs.sim_car import START_MS, ScenarioCar
from hil.rigs.sim_faults import strike
from hil.rigs.sim_stimuli import do
from hil.rigs.stimuli import StartAgent, Stimulus
from hil.scenario.model import RigName

PROCESS = "no process to stop or start in virtual time; `driveway-hil sim --protocol` restarts the agent's core"
CANNOT: dict[type, str] = {
    AgentKilled: PROCESS,
    AgentHangs: PROCESS,
    StartAgent: PROCESS,
    PowerCut: PROCESS,
    Suspend: "virtual time suspends an idle computer only (car_sleeps)",
    KeyAbsent: "no keys in virtual time",
    KeySlow: "no keys in virtual time",
}


class SimRig(Rig):
    """One car in virtual time."""

    name: ClassVar[RigName] = "sim"
    about: ClassVar[str] = "the pure core in virtual time"
    _car: ScenarioCar

    @classmethod
    def cannot(cls, what: Stimulus | Fault) -> str | None:
        """See `CANNOT`."""
        return CANNOT.get(type(what))

    @property
    def now_ms(self) -> int:
        """Virtual."""
        return self._car.clock.now_ms - START_MS

    @property
    def car(self) -> ScenarioCar:
        """The car, for whoever wants to look closer."""
        return self._car

    def install(self) -> None:
        """There is nothing to put anywhere; what was seen before is forgotten."""
        self.observations.clear()

    def begin(self) -> None:
        """The car appears."""
        self._car = ScenarioCar(self.scenario, self._seen)

    def _seen(self, observation: Observation) -> None:
        self.observations.append(observation)

    def end(self) -> None:
        """Leases and vacates are summed up, and what was broken at the very end is found."""
        car = self._car
        car.view.finish(self.now_ms)
        if not car.witness.broken:
            car.witness.broken += car.witness.watch.finish(car.witness.state)

    def remove(self) -> None:
        """Nothing is left running."""

    def do(self, stimulus: Stimulus) -> int:
        """At once."""
        car = self._car
        car.act(lambda: do(car, stimulus))
        return self.now_ms

    def strike(self, fault: Fault) -> Callable[[], None]:
        """At once."""
        car, mends = self._car, list[Callable[[], None]]()
        car.act(lambda: mends.append(strike(car, fault)))
        return lambda: car.act(mends[0])

    def advance(self, until_ms: int, reached: Reached | None) -> bool:
        """In as little time as it takes; ends early where a promise is broken."""
        car, count = self._car, len(self.observations)
        if reached is None:
            car.run(until_ms + START_MS)
            return False
        if reached(self.last):
            return True

        def found() -> bool:
            nonlocal count
            news, count = self.observations[count:], len(self.observations)
            return any(reached(one) for one in news)

        return car.run_until(until_ms + START_MS, found)

    @property
    def broken_promise(self) -> str:
        """The first promise that was broken, and how; empty while all hold."""
        broken = self._car.witness.broken
        return f"{broken[0].name}: {broken[0].detail}" if broken else ""

    def evidence(self) -> Evidence:
        """The promises, and the recording, which `driveway simulate` plays again."""
        car = self._car
        recording = self.folder / "recording.jsonl"
        write(recording, car.witness.header, car.witness.lines)
        broken = {one.name: one for one in car.witness.broken}
        held = [
            Measurement(
                name=f"promise {name}",
                value=float(name in broken),
                unit="broken",
                at_most=0.0,
                held=name not in broken,
                detail=f"at {(broken[name].at_ms - START_MS) / 1000:.3f} s: {broken[name].detail}"
                if name in broken
                else "",
            )
            for name in PROMISES
        ]
        return Evidence(
            measurements=tuple(held),
            leases=tuple(car.view.leases),
            vacates=tuple(car.view.vacates),
            versions={"driveway": __version__, "python": platform.python_version()},
            files={"recording": recording},
            notes=(f"{car.witness.events:,} events in virtual time; seed {self.scenario.setup.seed}",),
        )
