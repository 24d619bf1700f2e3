"""Updates of a vehicle that is a folder: real programs and daemons, cuts at every step, and bugs that are found.

`driveway-hil updates` cuts after every operation of every kind of release; here it is some of them.
"""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import agent.update
from agent.update.model import Journal, Phase, Result
from hil.powercut import recorder
from hil.updates.arguments import KINDS
from hil.updates.cuts import ENDS, outcome
from hil.updates.plants import PLANTS
from hil.updates.vehicle import NEW, OLD, Vehicle

pytestmark = pytest.mark.long

pytestmark = pytest.mark.skipif(recorder.compiler() is None, reason="there is no C compiler")
SLOW = {"hangs", "never_ready"}
"""Each run waits for time-outs."""
PATIENCE_S = 60.0
EVERY = {"good": 7, "fails_self_test": 16, "damaged": 9, "older": 9, "migrates": 30, "crashes": 20, "falls_over": 30}


@pytest.mark.parametrize("kind", EVERY)
def test_after_a_cut_anywhere_a_daemon_works_and_nothing_is_lost(kind: str) -> None:
    found = outcome(kind, every=EVERY[kind])
    assert found.failures == ()
    assert found.held
    assert found.cuts > 1
    assert found.results > 0


@pytest.mark.parametrize("kind", sorted(SLOW))
def test_a_release_that_hangs_is_taken_back(kind: str) -> None:
    found = outcome(kind, every=1000)
    assert found.held, found.failures


def test_every_kind_is_tried() -> None:
    assert set(EVERY) | SLOW == set(KINDS)
    assert set(ENDS) <= set(KINDS)


@pytest.mark.parametrize("name", ["journal_late", "commits_unseen", "takes_damaged"])
def test_a_planted_bug_is_found(name: str) -> None:
    assert not outcome(PLANTS[name].shows_on, plant=name, first=True, every=3).held


@pytest.mark.parametrize(("name", "cut"), [("no_folder_sync", 23), ("link_in_place", 25)])
def test_a_planted_bug_that_shows_after_one_cut_is_found(name: str, cut: int) -> None:
    """The search over all cuts is the command's; here it begins shortly before the place."""
    found = outcome(PLANTS[name].shows_on, plant=name, first=True, since=cut)
    assert not found.held
    assert any("links lead to" in failure for failure in found.failures)


@pytest.fixture
def vehicle(tmp_path: Path) -> Vehicle:
    return Vehicle.made(tmp_path / "made")


def until(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_it_waits_while_the_car_is_driven_and_says_so(vehicle: Vehicle) -> None:
    (vehicle.rig / "driving").touch()
    try:
        vehicle.systemctl("start")
        vehicle.stage("good")
        with vehicle.begin() as program:
            try:
                until(lambda: vehicle.places.status.exists() and "is driven" in vehicle.places.status.read_text())
                shown = json.loads(vehicle.places.status.read_text())
                assert (shown["phase"], shown["candidate"], shown["reason"]) == ("waiting", NEW, "the car is driven")
                assert vehicle.disk().current == OLD
                (vehicle.rig / "driving").unlink()
                program.communicate(timeout=PATIENCE_S)
            finally:
                program.kill()
        assert program.returncode == 0
        assert vehicle.disk().current == NEW
    finally:
        vehicle.off()


def test_what_was_rolled_back_is_not_tried_again_and_the_next_is(vehicle: Vehicle) -> None:
    try:
        vehicle.systemctl("start")
        vehicle.add(NEW, "crashes")
        vehicle.update()
        vehicle.add(NEW, "good")
        vehicle.update()
        assert vehicle.disk().current == OLD
        vehicle.add("1.2.0", "good")
        vehicle.update()
        assert vehicle.disk().current == vehicle.disk().good == "1.2.0"
    finally:
        vehicle.off()


def test_a_daemon_that_has_failed_for_good_is_mended_by_an_update(vehicle: Vehicle) -> None:
    try:
        (vehicle.places.home / OLD / "kind").write_text("crashes")
        vehicle.systemctl("start")
        vehicle.stage("good")
        assert vehicle.update().status == 0
        assert vehicle.disk().good == NEW
        assert vehicle.works()
    finally:
        vehicle.off()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"v": 99}', b"\xff" * 100])
def test_a_damaged_journal_is_laid_aside_and_the_good_version_runs(vehicle: Vehicle, content: bytes) -> None:
    vehicle.add(NEW, "good")
    vehicle.versions.point("current", NEW)
    vehicle.places.journal.write_bytes(content)
    try:
        vehicle.boot()
        assert vehicle.disk().current == OLD
        assert vehicle.places.journal.with_name("journal.json.damaged").read_bytes() == content
        assert vehicle.works()
    finally:
        vehicle.off()


def test_three_boots_without_being_well_take_it_back(vehicle: Vehicle) -> None:
    """As when a release takes the whole computer down with it."""
    try:
        vehicle.systemctl("start")
        vehicle.stage("never_ready")
        with vehicle.begin() as program:
            until(lambda: vehicle.journal().phase is Phase.TRIAL)
            program.kill()
            program.communicate()
        while vehicle.journal().phase is Phase.TRIAL:
            assert vehicle.journal().boots < 5
            vehicle.boot()
        assert vehicle.journal().phase is Phase.ROLLING_BACK
        assert vehicle.update().status == 0
        decided = vehicle.journal().decided(NEW)
        assert decided is not None
        assert decided.result is Result.ROLLED_BACK
        assert "3 starts of the computer in a row" in decided.reason
        assert vehicle.works()
    finally:
        vehicle.off()


def test_a_journal_that_cannot_be_written_switches_nothing(vehicle: Vehicle) -> None:
    (vehicle.places.journal.parent / "journal.json.part").mkdir()
    vehicle.stage("good")
    ran = vehicle.update()
    assert ran.status == 1
    assert "cannot write" in ran.said
    assert vehicle.disk().current == OLD
    assert vehicle.journal() == Journal()


def test_it_loads_all_its_code_at_its_start() -> None:
    """It runs by the link `good`, which it moves: what is loaded afterwards would be the new version's."""
    for file in Path(agent.update.__path__[0]).glob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        inside = (
            node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
        )
        assert not [node for node in inside if isinstance(node, ast.Import | ast.ImportFrom)], file
