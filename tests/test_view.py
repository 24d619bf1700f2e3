"""What people are told: the state in one word, every reason as a sentence, and what is waited for when all is open."""

from __future__ import annotations

import msgspec
import pytest

from agent import engine_view, view
from agent.core import gates
from agent.core.awake import Awake
from agent.core.effects import Report, RunSlice, SendRequest, StartWorker
from agent.core.events import GrantSeen, LinkChanged, OwnerMode, OwnerSaid, StoreFailed, Unwritten, WorkerReady
from agent.core.findings import GateState, Reason
from agent.explain import SENTENCES, sentence
from agent.fleet.link import LinkStatus
from agent.ledger_view import LedgerView
from agent.rows import Totals, VacateStats
from agent.wire import Confinement
from tests.core.stories import DOOR, ready, until
from tests.core.world import Shell, car


def status(shell: Shell) -> view.StatusView:
    return view.status(
        shell.state,
        wall_offset_ms=1_790_000_000_000,
        items_done_in_slice=0,
        pending=0,
        ledger=LedgerView(0, "00"),
        totals=Totals(energy_micro_wh=1_000_000, paid_micro=500_000, cost_micro=300),
        vacate=VacateStats(0, None, None, None),
        refused_messages={},
        refused_packages={},
    )


def test_one_word_for_what_it_does() -> None:
    shell = Shell()
    assert status(shell).state == "blocked"
    shell = ready()
    assert status(shell).state == "ready"
    shell.settle_down(4)
    assert status(shell).state == "running"
    shell.tell(StoreFailed(at_ms=shell.now_ms, detail="full", step=Unwritten.NOTE))
    assert status(shell).state == "fault"
    shell = ready()
    shell.settle_down(4)
    shell.tell(car(shell.now_ms + 1, {DOOR: True}))
    assert status(shell).state == "yielding"
    shell = ready()
    shell.tell(OwnerSaid(at_ms=shell.now_ms, mode=OwnerMode.PAUSED))
    assert status(shell).state == "paused"


def test_an_open_gate_that_does_nothing_says_why() -> None:
    shell = Shell()
    shell.advance(4_000)
    assert status(shell).waiting == "There is no connection to a broker: it is being made."
    shell.connect()
    assert status(shell).waiting == "The fleet was asked for work and has not answered yet."
    request = until(shell, SendRequest)
    assert isinstance(request, SendRequest)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=None, retry_ms=10_000))
    assert status(shell).waiting.startswith("The fleet has no work now; it is asked again in ")
    shell.tell(car(shell.now_ms + 1, {DOOR: True}))
    assert status(shell).waiting == "", "then the gate's own reasons speak"


def test_money_is_net_of_what_the_energy_cost() -> None:
    earned = status(Shell()).earnings
    assert (earned.gross, earned.energy_cost, earned.net) == (0.5, 0.0003, 0.4997)


def test_a_budget_of_keeping_awake_that_is_used_up_is_told() -> None:
    shell = Shell()
    assert status(shell).awake == view.AwakeView(False, 0.0, 0.0, 0, "", "")
    used = Awake(used_ms=3_600_000, used_wh=200.0, wakes=1, refused="keep_awake_minutes")
    shell.state = msgspec.structs.replace(shell.state, awake=used)
    shown = status(shell).awake
    assert (shown.minutes, shown.energy_wh, shown.wakes) == (60.0, 200.0, 1)
    assert shown.text.startswith("The car was kept awake for as long as the owner allows")


def test_times_are_stamped_and_json_is_plain() -> None:
    shell = Shell()
    shell.advance(1_000)
    shown = msgspec.to_builtins(status(shell))
    reason = shown["reasons"][0]
    assert reason["since"].endswith("Z")
    assert reason["clears_at"].endswith("Z")
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown


@pytest.mark.parametrize("code", sorted(SENTENCES))
def test_every_reason_is_a_sentence(code: str) -> None:
    reason = Reason(code, "parked", GateState.CLOSED, "Vehicle.Speed", 3.0, 0.5, "km/h", 0)
    said = sentence(reason)
    assert said.endswith(".")
    assert "{" not in said


def test_a_reason_nobody_wrote_a_sentence_for_is_still_told() -> None:
    reason = Reason("new_code", "parked", GateState.CLOSED, "Vehicle.Speed", None, 0.5, "km/h", 0)
    assert sentence(reason) == "Vehicle.Speed is unknown, the limit is 0.5 (new_code)."


def test_no_gate_is_without_a_name_for_people() -> None:
    assert set(gates.RULES) == {gate.name for gate in gates.shut(0).gates}


def test_while_the_link_is_down_what_stands_in_the_way_now_is_shown_with_what_was_dropped() -> None:
    """The core hears of a link that stays down but once an hour."""
    link = LinkStatus(
        connected=False,
        broker="b:2",
        detail="the broker's certificate has expired",
        attempts=7,
        connections=1,
        dropped={"flood": 3},
        sent_bytes=10,
        received_bytes=20,
    )
    shell = Shell()
    shell.connect()
    assert view._link(shell.state, link).broker == shell.state.broker != "b:2"
    shell.tell(LinkChanged(at_ms=shell.now_ms, connected=False, broker="b:1", detail="disconnected"))
    shown = view._link(shell.state, link)
    assert (shown.broker, shown.detail, shown.attempts) == ("b:2", "the broker's certificate has expired", 7)
    assert (shown.dropped, shown.sent_bytes, shown.received_bytes) == ({"flood": 3}, 10, 20)


def test_what_the_executor_does_without_is_seen_and_told_once_a_load() -> None:
    shell = ready()
    until(shell, StartWorker)
    notes = ("bucket of 4: no CUDA graph (operation not permitted)", "everything is copied")
    event = WorkerReady(
        at_ms=shell.now_ms, pid=1, executor="x", device="x", package="ocr", micro_batch_ms=5.0, notes=notes
    )
    told = [one for one in shell.tell(event) if isinstance(one, Report)]
    assert [(one.name, one.fields) for one in told] == [
        ("executor_notes", {"package": "ocr", "notes": "; ".join(notes)})
    ]
    seen = engine_view.worker(shell.state)
    assert seen is not None
    assert seen.notes == notes
    shell.advance(1_000)
    assert [one.name for one in shell.effects if isinstance(one, Report)].count("executor_notes") == 1


def test_how_well_the_worker_is_shut_in_is_seen_while_there_is_one() -> None:
    shell = ready()
    cage = (Confinement("landlock_files", "absent: Function not implemented"), Confinement("system_calls", "enforced"))
    assert engine_view.worker(shell.state, cage) is None
    until(shell, RunSlice)
    seen = engine_view.worker(shell.state, cage)
    assert seen is not None
    assert seen.confinement == {"landlock_files": "absent: Function not implemented", "system_calls": "enforced"}
    assert engine_view.accelerator(shell.state, 120).memory_returned_ms == 120
