"""While something stands against a unit's ledger, and how an operator ends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import FleetError
from agent.fleet.messages import LedgerFault
from agent.trust.checkpoint import verify_checkpoint
from hil import orders as command
from hil.cli import main
from hil.dispatcher.operator_api import OperatorApi
from hil.dispatcher.orders import TOKEN_FILE
from hil.dispatcher.service import IN_DISPUTE_S
from hil.dispatcher.web import WebServer
from tests.hil.honest_car import Car, Desk
from tests.hil.ledger_cars import Ledger, LedgerCar, opened, say

pytestmark = pytest.mark.usefixtures("each_database")

TOKEN = "a-secret-of-the-operator"


def test_a_unit_in_dispute_is_granted_nothing_until_it_is_cleared(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job()
    desk.add_job()
    running = car.must_request()
    desk.book.ledgers.hold(car.unit, LedgerFault.FORK, "two roots", (), desk.now_ms)
    car.say("request", car.last_request)
    grant = car.hear_grant()
    assert (grant.job, grant.retry_s) == (None, IN_DISPUTE_S)
    told = opened(desk.hear()[1], desk.trusted())
    assert (told.rid, told.fault, told.detail) == (grant.rid, LedgerFault.FORK, "two roots")
    assert desk.service.book_counts().units_in_dispute == 1
    verdict = car.hand_in(car.result(running, credit=1))
    assert (verdict.verdict.value, verdict.next_grant, verdict.retry_s) == ("settled", None, IN_DISPUTE_S)
    assert other.request() is not None, "its neighbour works on"
    cleared = desk.service.clear_ledger_fault(car.unit, "the pipe bent its proofs")
    assert cleared is not None
    assert cleared.fault is LedgerFault.FORK
    desk.add_job()
    assert car.request() is not None
    (held,) = desk.service.ledger_faults(0, 9)
    assert (held.cleared_why, held.cleared_ms) == ("the pipe bent its proofs", desk.now_ms)
    assert desk.service.clear_ledger_fault(car.unit, "") is None


def test_the_first_fault_stands_and_a_later_one_counts_after_it_was_cleared(desk: Desk, car: Car) -> None:
    ledgers = desk.book.ledgers
    ledgers.hold(car.unit, LedgerFault.FORK, "one", (), desk.now_ms)
    ledgers.hold(car.unit, LedgerFault.ROLLBACK, "two", (), desk.now_ms)
    standing = ledgers.standing(car.unit)
    assert standing is not None
    assert (standing.number, standing.detail) == (1, "one")
    ledgers.clear(car.unit, "", desk.now_ms)
    ledgers.hold(car.unit, LedgerFault.ROLLBACK, "three", (), desk.now_ms)
    assert [(one.number, one.detail, one.cleared_ms is None) for one in ledgers.faults(0, 9)] == [
        (2, "three", True),
        (1, "one", False),
    ]


@pytest.fixture
def rig(desk: Desk, tmp_path: Path) -> Iterator[Path]:
    """A rig's folder, where an operator's command finds the dispatcher."""
    server = WebServer(
        0, desk.objects, desk.enrol, token=TOKEN, more=OperatorApi(lambda question: question(desk.service), TOKEN)
    )
    server.start()
    folder = tmp_path / "rig"
    (folder / "dispatcher").mkdir(parents=True)
    (folder / "dispatcher" / "ready").write_text(json.dumps({"http_url": server.url}))
    (folder / "dispatcher" / TOKEN_FILE).write_text(TOKEN)
    yield folder
    server.close()


def test_an_operator_sees_the_evidence_and_ends_a_dispute(
    desk: Desk, car: Car, grown: LedgerCar, rig: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ledgers", "--dir", str(rig)]) == 0
    assert json.loads(capsys.readouterr().out) == []
    say(desk, car, grown.checkpoint())
    copy = LedgerCar(car, Ledger())
    copy.work(7, "another")
    say(desk, car, copy.checkpoint())
    capsys.readouterr()  # the dispatcher's own log
    assert main(["ledgers", "--dir", str(rig)]) == 1, "something stands"
    (held,) = json.loads(capsys.readouterr().out)
    assert (held["unit"], held["fault"], held["cleared_ms"]) == (car.unit, "fork", None)
    keys = {car.signer.keyid: car.signer.public_key()}
    roots = {verify_checkpoint(json.dumps(one).encode(), keys).root for one in held["evidence"]}
    assert roots == {grown.ledger.root(7), copy.ledger.root(7)}, "anybody can see it who has the unit's key"
    assert main(["ledgers", "--clear", car.unit, "--detail", "its copy was found", "--dir", str(rig)]) == 0
    assert "granted work again" in capsys.readouterr().out
    assert main(["ledgers", "--clear", car.unit, "--dir", str(rig)]) == 1, "nothing stands any more"
    capsys.readouterr()
    assert main(["ledgers", "--clear", "nobody", "--dir", str(rig)]) == 1
    assert "no unit 'nobody' is enrolled" in capsys.readouterr().err
    assert main(["ledgers", "--dir", str(rig)]) == 0
    (held,) = json.loads(capsys.readouterr().out)
    assert held["cleared_why"] == "its copy was found"
    desk.add_job()
    assert car.request() is not None


def test_nobody_but_the_operator_asks(rig: Path) -> None:
    (rig / "dispatcher" / TOKEN_FILE).write_text("a guess")
    with pytest.raises(FleetError, match="403"):
        command.ledger_faults(rig)
    with pytest.raises(FleetError, match="403"):
        command.clear_ledger(rig, "car-1", "")
