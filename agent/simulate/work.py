"""What the worker is doing, kept from orders and answers alone: what was asked for, and what the world said of it.

Nothing here is read from the core's own idea of its worker: the promises are checked against this.
"""

from __future__ import annotations

from agent.core.effects import EffectType, RunSlice, SetPace, StartBuild, StartWorker, StopWorker
from agent.core.events import (
    EventType,
    PlanMade,
    SliceFailed,
    SliceStored,
    StoreFailed,
    Unwritten,
    WorkerGone,
    WorkerIdle,
    WorkerReady,
)
from agent.core.model import JobKey


class Work:
    """The one worker and the slice in its hands."""

    def __init__(self) -> None:
        self.alive = False
        self.ready = False
        self.stopped_ms: int | None = None
        """When it was told to stop, and how long it may drain."""
        self.budget_ms = 0
        self.slice: tuple[JobKey, int] | None = None
        self.idle = True
        self.duty_permille = 1000
        self.started: list[RunSlice | StartWorker | StartBuild] = []
        """What the latest step started."""
        self.stop: StopWorker | None = None
        """What the latest step said to stop it."""

    @property
    def running(self) -> bool:
        """There is a worker, and nobody has told it to stop."""
        return self.alive and self.stopped_ms is None

    @property
    def computing(self) -> bool:
        """It may be using the accelerator at this moment."""
        return self.alive and not self.idle

    def happened(self, event: EventType) -> None:
        """What the world says about the worker."""
        match event:
            case WorkerReady():
                self.ready = True
            case WorkerIdle() | PlanMade():
                self.idle = True
            case WorkerGone():
                self.alive = self.ready = False
                self.idle, self.slice, self.stopped_ms = True, None, None
                self.duty_permille = 1000
            case SliceStored(key=key, outcome=outcome) if self.slice == (key, outcome.index):
                self.slice, self.idle = None, True
            case SliceFailed(key=key, index=index) if self.slice == (key, index):
                self.slice, self.idle = None, True
            case StoreFailed(key=key, index=index, step=Unwritten.SLICE) if self.slice == (key, index):
                self.slice, self.idle = None, True
            case _:
                pass

    def ordered(self, effects: tuple[EffectType, ...], now_ms: int) -> None:
        """What the core asked of it."""
        self.started.clear()
        self.stop = None
        for effect in effects:
            match effect:
                case StartWorker():
                    self.started.append(effect)
                    self.alive, self.ready, self.stopped_ms = True, False, None
                case StartBuild():
                    self.started.append(effect)
                    self.alive, self.ready, self.stopped_ms, self.idle = True, False, None, False
                case RunSlice(key=key, index=index):
                    self.started.append(effect)
                    self.slice, self.idle = (key, index), False
                case StopWorker():
                    self.stop = effect
                    if self.stopped_ms is None:
                        self.stopped_ms, self.budget_ms = now_ms, effect.budget_ms
                case SetPace(duty_permille=duty):
                    self.duty_permille = duty
                case _:
                    pass
