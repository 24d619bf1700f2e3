"""Where the stories of the core begin, how they go on, and what must hold at every moment of them."""

from __future__ import annotations

from agent.core import signals
from agent.core.effects import EffectType, SendRequest, SettleHandIn
from agent.core.events import StoreFailed, Unwritten
from agent.core.findings import GateState
from agent.core.lease import Phase
from agent.core.model import JobKey
from agent.core.state import WorkerPhase
from tests.core.world import Shell

DOOR = signals.DOORS[0]


def ready() -> Shell:
    """The gate is open and a request is out."""
    shell = Shell()
    shell.open_the_gate()
    assert isinstance(shell.waiting[-1], SendRequest)
    return shell


def until(shell: Shell, kind: type[EffectType], limit: int = 50) -> EffectType:
    """Carry out effects until one of `kind` waits, and return that one, not carried out."""
    for _ in range(limit):
        for effect in shell.waiting:
            if isinstance(effect, kind):
                return effect
        assert shell.carry_out(), f"nothing led to {kind}"
    raise AssertionError(f"no {kind} in {limit} steps")


def unwritten(shell: Shell, step: Unwritten, key: JobKey | None = None, index: int | None = None) -> StoreFailed:
    """A full disk."""
    return StoreFailed(at_ms=shell.now_ms, detail="No space left on device", step=step, key=key, index=index)


def check(shell: Shell) -> None:
    state = shell.state
    assert shell.workers_alive <= 1
    if state.gates.state is GateState.CLOSED:
        assert state.worker.phase in {WorkerPhase.ABSENT, WorkerPhase.STOPPING}
        assert state.gates.reasons
    if state.lease is not None and state.lease.phase is Phase.RUNNING:
        assert set(state.lease.done) <= shell.disk.get(state.lease.key, set())
    held = {pending.key for pending in state.outbox}
    assert held <= set(shell.outbox) | set(shell.settled)
    assert set(shell.outbox) <= held | {effect.key for effect in shell.waiting if isinstance(effect, SettleHandIn)}, (
        "a hand-in on disk that the core forgot"
    )
