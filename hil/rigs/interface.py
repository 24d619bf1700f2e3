"""What every rig is: states that it is brought to, things that can be done to it, and what is seen of it.

    off ──> installed ──> running
            everything is   the agent answers, the car is as the scenario begins,
            in its place    and time counts from here

`transition` walks along that line, in both directions. A rig that failed on the way, or while something was done to it,
is broken: the latch keeps the first error, and everything but `transition("off")` is refused with it, since whatever is
seen of half a rig is evidence of nothing. From `off` it is built anew.

A rig is a class with a few methods that touch the world (`install`, `begin`, `end`, `remove`; `do`, `strike`,
`advance`; `evidence`). What it cannot do it says beforehand (`why_not`), in words for the table of scenarios.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from agent.errors import DrivewayError
from hil.rigs.faults import Fault
from hil.rigs.observation import Evidence, Observation
from hil.rigs.stimuli import Stimulus
from hil.scenario.model import RigName, Scenario

Reached = Callable[[Observation], bool]


class RigState(enum.StrEnum):
    """How far a rig is built up."""

    OFF = "off"
    INSTALLED = "installed"
    RUNNING = "running"


ORDER = tuple(RigState)


class BrokenRigError(DrivewayError):
    """The rig broke before, and is good for nothing until it is built anew."""


class Rig(ABC):
    """One rig for one scenario. `folder` keeps what it leaves. Use as a context manager: it is off when it is left."""

    name: ClassVar[RigName]
    about: ClassVar[str]
    time_factor: ClassVar[float] = 1.0
    """How many times longer the agent's own computing takes here than on a vehicle: limits of time are stretched."""
    resolution_ms: ClassVar[int] = 0
    """How late a change may be seen: what a limit of time is given besides."""
    longest_s: ClassVar[float | None] = None
    """A scenario that takes longer is not for this rig; None: time is virtual."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.folder = scenario, folder
        self.observations: list[Observation] = []
        self._state = RigState.OFF
        self._broken: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.transition(RigState.OFF)

    # --- which scenarios ----------------------------------------------------------------------------------------

    @classmethod
    def why_not(cls, scenario: Scenario) -> str | None:
        """Why this scenario cannot be played on this rig, here and now, in one sentence; None when it can."""
        return cls.unsuited(scenario) or cls.lacks(scenario)

    @classmethod
    def unsuited(cls, scenario: Scenario) -> str | None:
        """Why it cannot be played on this kind of rig, whatever the machine has; None when it can."""
        if reason := scenario.not_on.get(cls.name):
            return reason
        if cls.longest_s is not None and scenario.length_s > cls.longest_s:
            return f"takes {_duration(scenario.length_s)}, in real time here"
        for what in (*scenario.stimuli, *scenario.faults):
            if reason := cls.cannot(what):
                return reason
        return None

    @classmethod
    @abstractmethod
    def cannot(cls, what: Stimulus | Fault) -> str | None:
        """Why it cannot be done here; None when it can."""

    @classmethod
    def lacks(cls, _scenario: Scenario) -> str | None:
        """What this machine lacks for the rig (a program, a permission, an interface); None: nothing."""
        return None

    # --- states -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> RigState:
        """How far it is built up."""
        return self._state

    @property
    def broken(self) -> str:
        """What broke it; empty while it is whole."""
        return "" if self._broken is None else str(self._broken) or type(self._broken).__name__

    def transition(self, to: RigState | str) -> None:
        """Bring it to this state, one step after the other. Raises DrivewayError, and is broken, when one fails."""
        goal = RigState(to)
        if goal is RigState.OFF:
            self._take_down()
            return
        self.check()
        with self._latch():
            while self._state is not goal:
                self._step(ORDER.index(goal) > ORDER.index(self._state))

    def _step(self, up: bool) -> None:  # noqa: FBT001 - which way
        match self._state, up:
            case RigState.OFF, _:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.install()
                self._state = RigState.INSTALLED
            case RigState.INSTALLED, True:
                self.begin()
                self._state = RigState.RUNNING
            case RigState.INSTALLED, False:
                self.remove()
                self._state = RigState.OFF
            case RigState.RUNNING, _:
                self.end()
                self._state = RigState.INSTALLED

    def _take_down(self) -> None:
        """Off, whatever state it is in; a rig that is off is whole again."""
        try:
            if self._broken is None:
                while self._state is not RigState.OFF:
                    self._step(up=False)
        finally:
            if self._state is not RigState.OFF or self._broken is not None:  # half built is to be removed, too
                self.remove()
            self._state, self._broken = RigState.OFF, None

    def check(self) -> None:
        """Raise BrokenRigError when it broke before."""
        if self._broken is not None:
            raise BrokenRigError(f"the rig is broken: {self.broken}", hint="build it anew") from self._broken

    @contextmanager
    def _latch(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._broken = self._broken or error
            raise

    def _running(self) -> None:
        self.check()
        if self._state is not RigState.RUNNING:
            raise DrivewayError(f"the rig is {self._state}, not running", hint='transition("running") first')

    # --- while it runs ------------------------------------------------------------------------------------------

    def apply(self, stimulus: Stimulus) -> int:
        """Do this now; when it showed first, in milliseconds since the beginning."""
        self._running()
        with self._latch():
            return self.do(stimulus)

    def begin_fault(self, fault: Fault) -> Callable[[], None]:
        """Make this fault now; what is returned mends it."""
        self._running()
        with self._latch():
            mend = self.strike(fault)

        def mended() -> None:
            self._running()
            with self._latch():
                mend()

        return mended

    def wait(self, until_ms: int, reached: Reached | None = None) -> bool:
        """Let time pass until then, or until an observation shows what is waited for; whether one did."""
        self._running()
        with self._latch():
            return self.advance(until_ms, reached)

    @property
    def last(self) -> Observation:
        """The latest look."""
        return self.observations[-1]

    # --- what a rig is made of ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def now_ms(self) -> int:
        """Milliseconds since the scenario began."""

    @abstractmethod
    def install(self) -> None:
        """Put everything in its place; nothing runs yet."""

    @abstractmethod
    def begin(self) -> None:
        """Start everything, the car as the scenario begins; the first observation is made."""

    @abstractmethod
    def end(self) -> None:
        """Stop in good order; what was written stays for `evidence`."""

    @abstractmethod
    def remove(self) -> None:
        """Take away whatever is left running, however far it had come. Must not fail."""

    @abstractmethod
    def do(self, stimulus: Stimulus) -> int:
        """Carry it out; when it showed first."""

    @abstractmethod
    def strike(self, fault: Fault) -> Callable[[], None]:
        """Make the fault; how to mend it."""

    @abstractmethod
    def advance(self, until_ms: int, reached: Reached | None) -> bool:
        """As `wait`."""

    @abstractmethod
    def evidence(self) -> Evidence:
        """What can be found out behind it, once it has ended (`installed`)."""


def _duration(seconds: float) -> str:
    for unit, length_s in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"
