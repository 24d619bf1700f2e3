"""Whatever happens in whatever order, no promise is broken, and work goes on afterwards."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.effects import HandIn, RunSlice, SendHandIn, SendRequest, StopWorker
from agent.core.events import LinkChanged, WorkerGone
from agent.core.state import WorkerPhase
from tests.core.stories import DOOR, check
from tests.core.world import Shell

moves = st.lists(
    st.sampled_from(
        [
            "time",
            "time",
            "do",
            "do",
            "do",
            "do",
            "driver",
            "leaves",
            "offline",
            "online",
            "crash",
            "hot",
            "cool",
            "drop",
        ]
    ),
    max_size=120,
)


@settings(max_examples=100, deadline=None)
@given(moves)
def test_no_order_of_events_breaks_a_promise(script: list[str]) -> None:  # noqa: C901, PLR0912 - one arm a move
    """Never a slice while the gate is not open; one worker; no finished slice lost; nothing settled twice."""
    shell = Shell()
    shell.open_the_gate()
    for move in script:
        before = len(shell.effects)
        match move:
            case "time":
                shell.advance(700)
            case "do":
                shell.carry_out()
            case "driver":
                shell.changes = {DOOR: True}
                shell.advance(100)
            case "leaves":
                shell.changes = {}
                shell.advance(3_500)
            case "offline":
                shell.tell(LinkChanged(at_ms=shell.now_ms, connected=False, broker="b:1"))
            case "online":
                shell.connect()
            case "crash" if shell.state.worker.phase is WorkerPhase.READY:
                shell.waiting = [effect for effect in shell.waiting if not isinstance(effect, RunSlice)]
                shell.tell(WorkerGone(at_ms=shell.now_ms, pid=shell.worker_pid, expected=False, detail="SIGSEGV"))
            case "hot":
                shell.die_c = 96.0
                shell.advance(600)
            case "cool":
                shell.die_c = 50.0
                shell.advance(600)
            case "drop":
                # a message that never arrives: the request's answer, or the verdict
                shell.carry_out(lambda effect: isinstance(effect, HandIn | StopWorker))
                shell.waiting = [one for one in shell.waiting if not isinstance(one, SendRequest | SendHandIn)]
        if any(isinstance(effect, RunSlice) for effect in shell.effects[before:]) and move != "do":
            assert move in {"time", "leaves", "cool", "online", "crash"}
        check(shell)
    shell.changes, shell.die_c = {}, 50.0
    shell.connect()
    for _ in range(15):
        shell.advance(3_500)
        shell.settle_down(10)
        check(shell)
    assert shell.settled, "work goes on once the car is parked again"
