"""What to expect and what to do: for every reason of a gate, and for every other cause of doing nothing."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from msgspec.structs import replace

from agent import idle
from agent.advice import ADVICE, UNKNOWN, advice_on
from agent.catalogue_view import CatalogueView
from agent.core.asking import OUTBOX_MAX
from agent.core.builds import Build, Builds
from agent.core.findings import GateState, Reason
from agent.core.lease import Pending
from agent.core.model import HandInKind, JobKey
from agent.core.state import State, WorkerPhase
from agent.explain import SENTENCES
from agent.idle import IdleView, causes
from agent.ledger_view import LedgerView
from tests.core.stories import ready
from tests.core.world import Shell

STAND_ALONE = {code for code in SENTENCES if code.startswith("keep_awake_")}
"""Why a wish was refused: no gate is shut by them."""


def test_every_reason_that_has_a_sentence_has_an_advice_and_the_other_way_round() -> None:
    assert set(ADVICE) == set(SENTENCES) - STAND_ALONE


@pytest.mark.parametrize("code", [*sorted(ADVICE), "a_code_of_tomorrow"])
def test_an_advice_is_two_sentences_with_all_their_names(code: str) -> None:
    found = advice_on(Reason(code, "parked", GateState.CLOSED, "Vehicle.Speed", 3.0, 0.5, "km/h", 0), parked_for_s=3.0)
    for text in found:
        assert text.endswith(".")
        assert text[0].isupper() or text[0] == "`"
        assert not re.search(r"[{}]", text)
        assert "None" not in text
    if code not in ADVICE:
        assert found.do == UNKNOWN.do


WHEN = "2026-01-01T00:00:00Z"


def with_worker(state: State, **other: Any) -> State:
    return replace(state, worker=replace(state.worker, **other))


def at_work() -> State:
    shell = ready()
    shell.settle_down(4)
    return shell.state


def asking(unanswered: int) -> State:
    shell = ready()
    while shell.state.asking is None:
        shell.advance(100)
    return replace(shell.state, unanswered=unanswered)


def left_over() -> State:
    lease = at_work().lease
    assert lease is not None
    return replace(Shell().state, left_over=(lease,))


def outbox_full() -> State:
    return replace(Shell().state, outbox=(Pending(JobKey("job", 1), HandInKind.RESULT, "1" * 64, 0),) * OUTBOX_MAX)


PLAIN = Shell().state
CAUSES: dict[str, Callable[[], list[IdleView]]] = {
    "catalogue_none": lambda: causes(PLAIN, 0, catalogue=CatalogueView()),
    "catalogue_expired": lambda: causes(
        PLAIN, 0, catalogue=CatalogueView(timestamp=1, expires_at=WHEN, expired=True, error="no answer")
    ),
    "ledger_dispute": lambda: causes(PLAIN, 0, ledger=LedgerView(1, "00", dispute="another root at 5")),
    "ledger_unwitnessed": lambda: causes(PLAIN, 0, ledger=LedgerView(300, "00", unpaid_since=WHEN)),
    "worker_loading": lambda: causes(with_worker(at_work(), phase=WorkerPhase.STARTING), 0),
    "vacating": lambda: causes(with_worker(PLAIN, phase=WorkerPhase.STOPPING), 0),
    "plan_building": lambda: causes(with_worker(PLAIN, build=Build(begun_ms=0, done_permille=455)), 0),
    "plans_missing": lambda: causes(replace(PLAIN, builds=Builds(missing=("1" * 64,))), 0),
    "left_over": lambda: causes(left_over(), 0),
    "package_refused": lambda: causes(PLAIN, 0, refused_packages={"ocr": "its signature is not the publisher's"}),
    "outbox_full": lambda: causes(outbox_full(), 0),
    "no_broker": lambda: causes(PLAIN, 0),
    "fleet_asked": lambda: causes(asking(0), 0),
    "fleet_silent": lambda: causes(asking(3), 0),
    "no_work_offered": lambda: causes(replace(PLAIN, connected=True, ask_not_before_ms=PLAIN.now_ms + 9_000), 0),
}
"""For each cause a state that shows it."""


def codes_in(module: ModuleType) -> set[str]:
    """Every code that the module's source names."""
    calls = [one for one in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(one, ast.Call)]
    values = [word.value for call in calls for word in call.keywords if word.arg == "code"]
    return {str(one.value) for value in values for one in ast.walk(value) if isinstance(one, ast.Constant)}


def test_every_cause_has_a_state_that_shows_it() -> None:
    assert set(CAUSES) == codes_in(idle)


@pytest.mark.parametrize("code", sorted(CAUSES))
def test_every_other_cause_says_what_it_is_when_it_ends_and_what_to_do(code: str) -> None:
    (found,) = (one for one in CAUSES[code]() if one.code == code)
    for text in (found.text, found.expects, found.next_step):
        assert text.endswith(".")
        assert len(text) > 10
    assert found.value is None or found.unit or isinstance(found.value, str)


def test_nothing_is_in_the_way_of_an_agent_at_work() -> None:
    assert causes(with_worker(at_work(), phase=WorkerPhase.READY), 0) == []
