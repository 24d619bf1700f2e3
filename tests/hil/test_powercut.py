"""Power cuts and failing disks: the store as shipped holds, and each weaker one is found out by the same check."""

from __future__ import annotations

import asyncio
import errno
import random
import sqlite3
from pathlib import Path

import msgspec
import pytest

from agent.errors import DrivewayError
from hil.cli import parser
from hil.powercut import command, recorder, states
from hil.powercut.books import Finding, judge
from hil.powercut.disk import Disk
from hil.powercut.io_faults import FaultWish, survey
from hil.powercut.recorder import Fault, Operation
from hil.powercut.work import DATABASE, Done, Plant, Wish, Work
from tests.tools import needs

needs_compiler = needs(recorder.compiler(), "there is no C compiler for the recorder")
WISH = Wish(folder="", seed=3, transactions=10, checkpoint_pages=12)


# --- the model ----------------------------------------------------------------------------------------------------


def disk(*operations: tuple[str, str, int, bytes]) -> Disk:
    made = Disk()
    for kind, name, offset, data in operations:
        made.apply(Operation(kind, name, offset, data))
    return made


def images(made: Disk) -> list[dict[str, bytes]]:
    return list(made.images(random.Random(1), 30))


MADE = (("C", "a", 0, b""), ("S", "a", 0, b""))


def test_what_was_synced_is_always_there() -> None:
    made = disk(*MADE, ("W", "a", 0, b"x" * 2000), ("D", "a", 0, b""))
    assert images(made) == [{"a": b"x" * 2000}]


def test_sectors_that_were_not_synced_are_there_in_any_subset() -> None:
    made = disk(*MADE, ("W", "a", 0, b"x" * 1024), ("S", "a", 0, b""), ("W", "a", 500, b"y" * 24))
    found = {bytes(image["a"][500:524]) for image in images(made)}
    assert found == {b"x" * 24, b"y" * 12 + b"x" * 12, b"x" * 12 + b"y" * 12, b"y" * 24}


def test_names_are_there_in_their_order() -> None:
    made = disk(("C", "a", 0, b""), ("C", "b", 0, b""), ("U", "a", 0, b""))
    assert [sorted(image) for image in images(made)] == [[], ["a"], ["a", "b"], ["b"]]


def test_a_sync_makes_those_names_durable_that_came_before() -> None:
    made = disk(("C", "a", 0, b""), ("C", "b", 0, b""), ("D", "b", 0, b""), ("C", "c", 0, b""))
    assert [sorted(image) for image in images(made)] == [["a", "b"], ["a", "b", "c"]]
    folder = disk(("C", "a", 0, b""), ("R", "a", 0, b"b"), ("S", "", 0, b""))
    assert [sorted(image) for image in images(folder)] == [["b"]]


def test_what_a_failed_sync_let_go_of_no_later_sync_brings_back() -> None:
    lost = (*MADE, ("W", "a", 0, b"x" * 100), ("F", "a", 0, b""), ("W", "a", 4096, b"y"), ("S", "a", 0, b""))
    assert {image["a"][:1] for image in images(disk(*lost))} == {b"\0", b"x"}
    assert disk(*lost).now()["a"][:1] == b"x", "and yet it can be read"
    again = disk(*lost, ("W", "a", 0, b"x"), ("S", "a", 0, b""))
    assert {image["a"][:100] for image in images(again)} == {b"x" * 100}


def test_what_was_cut_off_does_not_come_back() -> None:
    made = disk(*MADE, ("W", "a", 0, b"x" * 600), ("T", "a", 0, b""), ("S", "a", 0, b""))
    assert images(made) == [{"a": b""}]


# --- the check ----------------------------------------------------------------------------------------------------


def worked(folder: Path) -> list[Done]:
    acknowledged = list[Done]()
    told = asyncio.run(Work(msgspec.structs.replace(WISH, folder=str(folder)), acknowledged.append).run())
    assert told.is_through
    return acknowledged


def test_the_check_finds_what_is_missing(tmp_path: Path) -> None:
    acknowledged = worked(tmp_path)
    assert {done.what for done in acknowledged} == {
        *("open", "slice", "remember", "hand_in", "settle", "session", "witness"),
    }
    for what in ("open", "hand_in", "settle", "remember", "witness"):
        said = asyncio.run(judge(tmp_path, [*acknowledged, Done(what, 77, sha256="0" * 64)]))
        assert (said.finding, said.detail) == (Finding.LOST, f"{what} 77 was acknowledged and is not there")
    other = Done("hand_in", acknowledged[-1].number, sha256="0" * 64)
    assert asyncio.run(judge(tmp_path, [other])).finding is Finding.LOST, "another statement in its place"
    assert asyncio.run(judge(tmp_path, acknowledged)).finding is Finding.OK


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("UPDATE leases SET paid_micro = 20 WHERE state = 'closed'", Finding.TWICE),
        ("UPDATE ledger SET leaf = 'other' WHERE idx = 1", Finding.TORN),
        ("DELETE FROM ledger WHERE idx = 0", Finding.TORN),
        ("INSERT INTO outbox SELECT job, epoch, kind, '', '' FROM leases WHERE state = 'closed'", Finding.TORN),
        ("DELETE FROM leases", Finding.LOST),
    ],
)
def test_the_check_finds_what_does_not_fit(tmp_path: Path, change: str, finding: Finding) -> None:
    acknowledged = worked(tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as db:
        db.execute(change)
    db.close()
    said = asyncio.run(judge(tmp_path, [done for done in acknowledged if done.what == "open"]))
    assert said.finding is finding, said


# --- the recorded store -------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("checkpoint_pages", [0, WISH.checkpoint_pages])
def test_the_store_as_shipped_loses_nothing_at_any_operation(checkpoint_pages: int) -> None:
    wish = msgspec.structs.replace(WISH, checkpoint_pages=checkpoint_pages)
    found = states.outcome("as shipped", wish, samples=1)
    assert found.held, found
    assert found.states > 300


@needs_compiler
@pytest.mark.parametrize("plant", [Plant.NORMAL, Plant.OFF])
def test_a_store_that_syncs_less_is_found_out(plant: Plant) -> None:
    found = states.outcome(plant.value, msgspec.structs.replace(WISH, plant=plant), samples=1, every=4)
    assert found.lost > 0
    assert (found.torn > 0) == (plant is Plant.OFF)


@needs_compiler
@pytest.mark.parametrize("plant", [Plant.NONE, Plant.GOES_ON, Plant.READS_BACK])
def test_only_a_store_that_is_written_again_survives_a_failed_sync(plant: Plant) -> None:
    wish = msgspec.structs.replace(WISH, checkpoint_pages=0)
    nth = states.syncs_after_a_log_line(states.recorded(wish))[0]
    failing = msgspec.structs.replace(wish, plant=plant, fault=Fault("S", nth, errno.EIO))
    found = states.outcome(plant.value, failing, samples=1, every=4)
    assert found.refusals == 1
    assert "disk I/O error" in found.first_refusal
    assert (found.lost + found.torn == 0) == (plant is Plant.NONE), found


@needs_compiler
def test_a_checkpoint_with_a_log_line_may_tear_the_database_in_silence() -> None:
    """SQLite does not tell of a sync that failed in a checkpoint, and here it was of frames that nobody had synced."""
    shipped = Wish(folder="", seed=1, transactions=8, checkpoint_pages=14)
    planted = msgspec.structs.replace(shipped, plant=Plant.LOG_CHECKPOINTS)
    syncs = states.syncs_before_a_checkpoint(states.recorded(planted))
    closings = states.syncs_before_a_checkpoint(states.recorded(shipped))
    assert len(closings) < len(syncs), "as shipped only the end of a process copies what was not synced"
    failing = [msgspec.structs.replace(planted, fault=Fault("S", nth, errno.EIO)) for nth in syncs]
    found = states.together("planted", [states.outcome("planted", one, samples=0, every=1000) for one in failing])
    assert found.refusals == 0
    assert found.lost + found.torn > 0, found


@needs_compiler
@pytest.mark.parametrize(("error", "said"), [(errno.EIO, "disk I/O error"), (errno.ENOSPC, "is full")])
@pytest.mark.parametrize(("kind", "every"), [("W", 9), ("S", 1), ("T", 1), ("O", 1)])
def test_any_call_may_fail(kind: str, every: int, error: int, said: str) -> None:
    times = 4 if error == errno.EIO else 1
    found = survey(FaultWish(work=WISH, kind=kind, error=error, times=times, every=every))
    assert found.held, found
    assert 0 < found.refused <= found.faults
    if kind == "W":
        assert any(said in reason for reason in found.reasons)


@needs_compiler
def test_a_recorder_that_misses_something_gives_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = recorder.operations

    def deaf(log: Path, folder: Path) -> list[Operation]:
        every = heard(log, folder)
        missed = next(one for one in reversed(every) if one.kind == "W" and one.name == DATABASE)
        every.remove(missed)
        return every

    monkeypatch.setattr(recorder, "operations", deaf)
    with pytest.raises(DrivewayError, match="the recorder missed operations"):
        states.outcome("deaf", WISH, samples=0, every=10_000)


# --- the command --------------------------------------------------------------------------------------------------


def test_without_a_compiler_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "BUILDS", tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DrivewayError, match="no C compiler"):
        recorder.build()


@needs_compiler
def test_the_command_draws_and_writes_and_fails_for_what_did_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = states.outcome("as shipped", msgspec.structs.replace(WISH, transactions=10), samples=0, every=50)
    bad = msgspec.structs.replace(one, ok=one.ok - 1, lost=1, failures=("after operation 7: lost: open 1",))
    calls = survey(FaultWish(work=msgspec.structs.replace(WISH, transactions=10), kind="O", error=errno.EIO))
    told = command.Figures(
        versions={"driveway": "1", "sqlite": "3"}, seed=1, cuts=(one,), planted=(bad,), faults=(calls,)
    )
    options = parser().parse_args(["powercut", "--json", str(tmp_path / "figures.json"), "--transactions", "10"])
    for figures, code in (
        (told, 0),
        (msgspec.structs.replace(told, cuts=(bad,)), 1),
        (msgspec.structs.replace(told, planted=(one,)), 1),
        (msgspec.structs.replace(told, faults=(msgspec.structs.replace(calls, stuck=1),)), 1),
    ):
        monkeypatch.setattr(command, "run", lambda _seed, _transactions, figures=figures: figures)
        assert command.powercut(options) == code
    assert "did not hold: as shipped: after operation 7: lost: open 1" in capsys.readouterr().out
    written = msgspec.json.decode((tmp_path / "figures.json").read_bytes(), type=command.Figures)
    assert written.cuts[0].states == one.states
