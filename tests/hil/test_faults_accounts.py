"""The accounts of a fault run find what was lost or doubled, each by its name, and nothing in honest books."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.core.model import Verdict
from agent.trust.keys import FileSigner
from agent.trust.session import begin
from hil.faults.accounts import Finding, Loss, audit
from hil.faults.books import JobRow
from hil.faults.figures import Recovery, by_kind, percentile
from hil.faults.schedule import Injection
from tests.hil.faults_books import OPENED_MS, Fleet

REPLACE = msgspec.structs.replace


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Three jobs done by two cars, one of which was late with the third."""
    fleet = Fleet(tmp_path)
    fleet.settle("car-0000", 0)
    fleet.settle("car-0001", 1)
    late = fleet.hand_in("car-0000", 2)
    fleet.settle("car-0001", 2, epoch=2)
    fleet.tell("car-0000", 2, late, verdict=Verdict.STALE, paid=0)
    return fleet


def findings(fleet: Fleet) -> list[Finding]:
    return audit(fleet.ordered, fleet.dispatcher, fleet.agents, fleet.dispatcher_key.public_key_pem())


def test_honest_books_have_no_finding(fleet: Fleet) -> None:
    assert findings(fleet) == []
    fleet.hand_in("car-0000", 3)
    assert findings(fleet) == [], "what is in the outbox is not lost"
    fleet.take("car-0000", 3, fleet.outboxes["car-0000"]["job-3", 1])
    assert findings(fleet) == [], "its verdict is on the way"
    fleet.witness("car-0000")
    fleet.tell("car-0000", 3, fleet.outboxes["car-0000"]["job-3", 1])
    assert findings(fleet) == [], "a ledger grows on what was witnessed"


def test_a_unit_that_took_a_new_key_has_honest_books(fleet: Fleet) -> None:
    fleet.witness("car-0000")
    fleet.rotate("car-0000")
    assert findings(fleet) == [], "what the old key signed counts, and so does its checkpoint"
    fleet.settle("car-0000", 3)
    fleet.witness("car-0000")
    assert findings(fleet) == []


def _new_key_says_it_is_the_old(fleet: Fleet) -> None:
    """A session of the first epoch, certified by the key of the second."""
    fleet.rotate("car-0000")
    fleet.certify("car-0000", 1)


def _outbox_dropped(fleet: Fleet) -> None:
    """An agent that lets go at the PUBACK."""
    fleet.hand_in("car-0000", 3)
    fleet.outboxes["car-0000"].clear()


def _settled_twice(fleet: Fleet) -> None:
    """A dispatcher without the fence: the late car is paid, too, and its rows say so."""
    fleet.leases["car-0000"].pop()
    fleet.ledgers["car-0000"].pop()
    statement = fleet.hand_in("car-0000", 2, epoch=3)
    fleet.take("car-0000", 2, statement, epoch=3)
    fleet.tell("car-0000", 2, statement, epoch=3)


def _told_twice(fleet: Fleet) -> None:
    """A dispatcher that tells both cars that they are paid, though its rows hold one."""
    fleet.tell("car-0000", 2, "", verdict=Verdict.STALE, paid=0)
    statement = fleet.hand_in("car-0000", 1, epoch=2)
    fleet.tell("car-0000", 1, statement, epoch=2)


def _rows_forgotten(fleet: Fleet) -> None:
    """A dispatcher that answered before it had committed."""
    fleet.hand_ins.pop(0)
    fleet.results = [row for row in fleet.results if row.job != "job-0"]
    fleet.jobs["job-0"] = JobRow("job-0", "free", 1, "car-0000")


def _ledger_cut(fleet: Fleet) -> None:
    """An agent's disk that lost what it had acknowledged."""
    del fleet.ledgers["car-0001"][:2]
    del fleet.leases["car-0001"][0]


def _holder_stale(fleet: Fleet) -> None:
    """A dispatcher that calls the work of the holder stale."""
    statement = fleet.hand_in("car-0000", 3)
    fleet.jobs["job-3"] = JobRow("job-3", "leased", 1, "car-0000")
    fleet.tell("car-0000", 3, statement, verdict=Verdict.STALE, paid=0)


def _called_bad(fleet: Fleet) -> None:
    statement = fleet.hand_in("car-0000", 3)
    fleet.tell("car-0000", 3, statement, verdict=Verdict.BAD, paid=0)


def _answers_swapped(fleet: Fleet) -> None:
    fleet.results[0] = REPLACE(fleet.results[0], body=fleet.results[3].body)


def _slice_missing(fleet: Fleet) -> None:
    gone = fleet.results.pop(1)
    row = fleet.hand_ins[0]
    fleet.hand_ins[0] = REPLACE(row, paid_micro=row.paid_micro - gone.paid_micro)


def _job_missing(fleet: Fleet) -> None:
    del fleet.jobs["job-3"]


def _overpaid(fleet: Fleet) -> None:
    fleet.results[0] = REPLACE(fleet.results[0], paid_micro=99)


def _counter_again(fleet: Fleet) -> None:
    fleet.hand_ins[1] = REPLACE(fleet.hand_ins[1], keyid=fleet.hand_ins[0].keyid, counter=fleet.hand_ins[0].counter)


def _money_unwritten(fleet: Fleet) -> None:
    fleet.leases["car-0000"][0] = REPLACE(fleet.leases["car-0000"][0], paid_micro=0)


def _session_dropped(fleet: Fleet) -> None:
    """An agent that signs with a key that nobody certified in its ledger."""
    fleet.ledgers["car-0001"].pop(0)


def _session_again(fleet: Fleet) -> None:
    """An agent whose disk went back: it gives a number a second time."""
    again = begin(fleet.keys["car-0000"], "file", unit="car-0000", number=1)
    fleet.ledgers["car-0000"].append(("session", "", 1, again.certificate))


def _leaves_swapped(fleet: Fleet) -> None:
    """Statements that are not where they say."""
    leaves = fleet.ledgers["car-0000"]
    leaves[1], leaves[3] = leaves[3], leaves[1]


def _past_rewritten(fleet: Fleet) -> None:
    """What the dispatcher witnessed is not what the disk shows, though that is whole in itself."""
    fleet.witness("car-0000")
    fleet.tell("car-0000", 2, "", verdict=Verdict.STALE, paid=0)
    fleet.ledgers["car-0000"].pop(-2)


def _disk_went_back(fleet: Fleet) -> None:
    fleet.hand_in("car-0000", 3)
    fleet.witness("car-0000")
    fleet.ledgers["car-0000"].pop()
    fleet.outboxes["car-0000"].clear()


def _witness_forged(fleet: Fleet) -> None:
    fleet.witness("car-0001")
    fleet.witnessed["car-0000"] = fleet.witnessed["car-0001"]


@pytest.mark.parametrize(
    ("falsify", "loss", "rule"),
    [
        (_session_dropped, Loss.LOST, "leaf_unreadable"),
        (_session_again, Loss.DOUBLED, "session_used_twice"),
        (_new_key_says_it_is_the_old, Loss.LOST, "leaf_unreadable"),
        (_leaves_swapped, Loss.LOST, "leaf_unreadable"),
        (_past_rewritten, Loss.LOST, "ledger_not_as_witnessed"),
        (_disk_went_back, Loss.LOST, "ledger_not_as_witnessed"),
        (_witness_forged, Loss.LOST, "witness_unreadable"),
        (_outbox_dropped, Loss.LOST, "statement_without_verdict"),
        (_rows_forgotten, Loss.LOST, "settled_not_in_rows"),
        (_ledger_cut, Loss.LOST, "settled_not_in_ledger"),
        (_holder_stale, Loss.LOST, "holder_called_stale"),
        (_called_bad, Loss.LOST, "honest_work_called_bad"),
        (_answers_swapped, Loss.LOST, "answers_not_as_signed"),
        (_answers_swapped, Loss.LOST, "answers_wrong"),
        (_slice_missing, Loss.LOST, "job_incomplete"),
        (_job_missing, Loss.LOST, "job_incomplete"),
        (_money_unwritten, Loss.LOST, "sums_differ"),
        (_settled_twice, Loss.DOUBLED, "slice_settled_twice"),
        (_settled_twice, Loss.DOUBLED, "slice_rows_twice"),
        (_settled_twice, Loss.DOUBLED, "slice_settled_by_two_verdicts"),
        (_told_twice, Loss.DOUBLED, "slice_settled_by_two_verdicts"),
        (_told_twice, Loss.LOST, "settled_not_in_rows"),
        (_told_twice, Loss.DOUBLED, "sums_differ"),
        (_overpaid, Loss.DOUBLED, "slice_paid_wrongly"),
        (_counter_again, Loss.DOUBLED, "counter_used_twice"),
    ],
)
def test_each_fault_is_found_by_its_name(fleet: Fleet, falsify: Callable[[Fleet], None], loss: Loss, rule: str) -> None:
    falsify(fleet)
    assert (loss, rule) in {(one.loss, one.rule) for one in findings(fleet)}


def test_a_ledger_that_was_changed_is_torn(fleet: Fleet) -> None:
    agents = fleet.agents
    agents[0] = REPLACE(agents[0], head=(agents[0].head[0], "00" * 32))
    found = audit(fleet.ordered, fleet.dispatcher, agents, fleet.dispatcher_key.public_key_pem())
    assert [one.rule for one in found] == ["ledger_torn"]


def test_a_verdict_by_a_stranger_counts_for_nothing(fleet: Fleet, stranger_signer: FileSigner) -> None:
    found = audit(fleet.ordered, fleet.dispatcher, fleet.agents, stranger_signer.public_key_pem())
    assert {"leaf_unreadable", "statement_without_verdict"} <= {one.rule for one in found}


# --- the figures ----------------------------------------------------------------------------------------------------


def test_recovery_is_the_time_to_the_next_settled_slice_of_the_car_that_was_hit(fleet: Fleet) -> None:
    recovery = Recovery(fleet.dispatcher, ["car-0000", "car-0001"])
    end_ms = OPENED_MS + 700
    assert recovery.samples_s(Injection("agent_killed", "car-0000", OPENED_MS, end_ms)) == [0.8]
    assert recovery.samples_s(Injection("broker_killed", "", OPENED_MS, end_ms)) == [0.8, 0.8]
    assert recovery.samples_s(Injection("broker_killed", "", OPENED_MS, OPENED_MS + 1501)) == [], "nothing more came"


def test_a_finding_is_laid_to_the_faults_of_its_time_and_car(fleet: Fleet) -> None:
    _outbox_dropped(fleet)
    injections = [
        Injection("agent_killed", "car-0000", OPENED_MS + 100, OPENED_MS + 200),
        Injection("driver", "car-0001", OPENED_MS + 100, OPENED_MS + 200),
        Injection("broker_killed", "", OPENED_MS + 900_000, OPENED_MS + 900_001),
    ]
    recovery = Recovery(fleet.dispatcher, ["car-0000", "car-0001"])
    figures = by_kind(injections, recovery, findings(fleet), fleet.agents)
    assert {kind: row.lost for kind, row in figures.items()} == {"agent_killed": 1, "driver": 0, "broker_killed": 0}
    assert figures["agent_killed"].injected == 1
    assert figures["broker_killed"].recovery_p99_s is None


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
