"""The update program's parts: journal and status, versions on the disk, systemctl, and what it reads of a doctor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DrivewayError, StoreError
from agent.update import journal as journals
from agent.update import status
from agent.update.health import Report, judged, read_report
from agent.update.model import Before, Disk, Journal, Past, Phase, Result
from agent.update.program import Places, alone
from agent.update.service import Service, Unit
from agent.update.versions import SUMS, Versions
from hil.updates.vehicle import NEW, OLD, Vehicle

ACTIVE = Unit("active", 0)
TEXTS = st.text(max_size=40)
NUMBERS = st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,9}){0,4}", fullmatch=True)
JOURNALS = st.builds(
    Journal,
    phase=st.sampled_from(Phase),
    candidate=st.just("") | NUMBERS,
    before=st.just("") | NUMBERS,
    boot=TEXTS,
    boots=st.integers(0, 99),
    unwell=st.integers(0, 99),
    reason=TEXTS,
    floor=NUMBERS,
    was=st.builds(Before, st.lists(TEXTS, max_size=3).map(tuple), TEXTS),
    past=st.lists(st.builds(Past, NUMBERS, st.sampled_from(Result), TEXTS, st.integers(0, 2**40)), max_size=4).map(
        tuple
    ),
)


# --- the journal ------------------------------------------------------------------------------------------------------


@given(JOURNALS)
def test_a_journal_is_read_as_it_was_written(journal: Journal) -> None:
    assert journals.decode(journals.encode(journal)) == journal


@given(st.binary(max_size=300) | st.recursive(st.none() | TEXTS, st.lists).map(lambda it: json.dumps(it).encode()))
def test_any_bytes_are_a_journal_or_damaged(content: bytes) -> None:
    with pytest.raises(journals.DamagedError):
        journals.decode(content)


@settings(derandomize=True)
@given(JOURNALS, st.data())
def test_a_journal_with_a_changed_field_is_read_or_damaged(journal: Journal, data: st.DataObject) -> None:
    fields = json.loads(journals.encode(journal))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(st.none() | st.integers() | TEXTS | st.lists(TEXTS))
    try:
        read = journals.decode(json.dumps(fields).encode())
    except journals.DamagedError:
        return
    assert not {"/", "\0"} & set(read.candidate + read.before + read.floor)


def test_a_journal_that_cannot_be_written_is_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    assert journals.read(path) == Journal()
    journals.write(path, Journal(reason="first"))
    (tmp_path / f"journal.json{journals.PART}").mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        journals.write(path, Journal(reason="second"))
    assert journals.read(path).reason == "first"


def test_the_status_is_for_everybody_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "run/driveway-update/status.json"
    past = (Past(OLD, Result.COMMITTED, "installed", 7),)
    waiting = Journal(Phase.WAITING, NEW, OLD, past=past)
    status.write(path, status.encode(waiting, Disk(OLD, OLD, frozenset({OLD, NEW})), "the car is driven"))
    assert path.stat().st_mode & 0o777 == 0o644
    assert json.loads(path.read_text()) == {
        "v": 1,
        "phase": "waiting",
        "candidate": NEW,
        "current": OLD,
        "good": OLD,
        "reason": "the car is driven",
        "past": [{"version": OLD, "result": "committed", "reason": "installed", "at_wall_s": 7}],
    }


# --- versions ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def vehicle(tmp_path: Path) -> Vehicle:
    return Vehicle.made(tmp_path / "made")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda tree: (tree / "data").write_bytes(b"x"), "data is damaged"),
        (lambda tree: (tree / "data").unlink(), "data is missing"),
        (lambda tree: (tree / "more").write_bytes(b""), "more is not in its list"),
        (lambda tree: (tree / SUMS).unlink(), "cannot be checked"),
        (lambda tree: (tree / SUMS).write_text(""), "is empty"),
        (lambda tree: (tree / SUMS).write_text(f"{'0' * 64}  ../../etc/passwd\n"), "is not understood"),
        (lambda tree: (tree / "bin/driveway").chmod(0o644), "cannot be run"),
    ],
)
def test_a_version_that_is_not_whole_says_what_is_wrong(vehicle: Vehicle, spoil: object, says: str) -> None:
    assert vehicle.versions.problem_of(OLD) == ""
    assert callable(spoil)
    spoil(vehicle.places.home / OLD)
    assert says in vehicle.versions.problem_of(OLD)


def test_no_link_ever_leads_to_a_version_that_is_gone(vehicle: Vehicle) -> None:
    with pytest.raises(StoreError, match="is gone"):
        vehicle.versions.point("current", NEW)
    assert vehicle.disk() == Disk(OLD, OLD, frozenset({OLD}))


def test_what_a_link_leads_to_is_not_removed_and_what_is_half_removed_is(vehicle: Vehicle) -> None:
    vehicle.add(NEW, "good")
    (vehicle.places.home / "0.1.0.gone/bin").mkdir(parents=True)
    vehicle.versions.remove(frozenset({OLD, NEW}), but=False)
    assert vehicle.disk().staged == {OLD}
    assert not (vehicle.places.home / "0.1.0.gone").exists()


def test_other_names_are_no_versions(vehicle: Vehicle) -> None:
    for name in ("1.1.0.part", "latest", ".hidden"):
        (vehicle.places.home / name).mkdir()
    (vehicle.places.home / "current.new").symlink_to("/etc")
    assert Versions(vehicle.places.home).look().staged == {OLD}


# --- health -----------------------------------------------------------------------------------------------------------


def report(**results: str) -> Report:
    usual = {"daemon.reachable": "ok", "daemon.version": "ok", "daemon.golden": "ok"}
    names = usual | {name.replace("_", "."): result for name, result in results.items()}
    return Report(names, {name: f"{name} in words" for name in names})


@pytest.mark.parametrize(
    ("found", "unit", "problem", "dead"),
    [
        (report(), ACTIVE, "", False),
        (report(), Unit("failed", 0), "has failed", True),
        (report(), Unit("active", 1), "fell over", True),
        (None, ACTIVE, "says nothing", False),
        (report(daemon_reachable="warn"), ACTIVE, "daemon.reachable in words", False),
        (report(daemon_version="warn"), ACTIVE, "daemon.version in words", False),
        (report(daemon_golden="fail"), ACTIVE, "daemon.golden in words", False),
        (report(daemon_store="fail"), ACTIVE, "daemon.store in words", False),
        (report(disk="fail"), ACTIVE, "", False),
        (report(daemon_link="warn"), ACTIVE, "", False),
    ],
)
def test_what_is_ill_and_what_was_so_before(found: Report | None, unit: Unit, problem: str, dead: bool) -> None:
    health = judged(found, unit, Before(failing=("disk",)))
    assert (problem in health.problem, bool(health.problem), health.dead) == (True, bool(problem), dead)


def test_a_golden_vector_that_was_not_computed_proves_nothing() -> None:
    assert judged(report(), ACTIVE, Before()).computed
    assert not judged(report(daemon_golden="missing"), ACTIVE, Before()).computed


@given(st.text(max_size=100) | st.recursive(st.none() | TEXTS, st.lists).map(json.dumps))
def test_any_text_is_a_doctors_or_none(text: str) -> None:
    found = read_report(text)
    assert found is None or found.results == {}


# --- systemctl --------------------------------------------------------------------------------------------------------


def systemctl(tmp_path: Path, body: str) -> Service:
    path = tmp_path / "systemctl"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return Service(str(path))


def test_what_systemctl_says_is_told_on(tmp_path: Path) -> None:
    assert systemctl(tmp_path, "echo no such unit >&2; exit 5").start(5) == "systemctl start: no such unit"
    assert systemctl(tmp_path, "echo ActiveState=inactive").start(5) == "it was started, and is inactive"
    assert systemctl(tmp_path, "printf 'ActiveState=active\\nNRestarts=3\\n'").look() == Unit("active", 3)
    assert systemctl(tmp_path, "echo nonsense").look() == Unit("unknown", 0)
    assert "more than 0 s" in systemctl(tmp_path, "[ $1 = show ] || exec sleep 5").start(0.2)
    assert "cannot be run" in Service("/no/such/program").stop()


def test_one_update_program_at_a_time(tmp_path: Path) -> None:
    with alone(Places(tmp_path)), pytest.raises(DrivewayError, match="another update program"), alone(Places(tmp_path)):
        pass
    with alone(Places(tmp_path)):
        pass
