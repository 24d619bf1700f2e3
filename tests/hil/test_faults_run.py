"""A short run of the real thing: real processes, real faults, accounts that hold, and fail once a book is falsified.

It judges only what must hold, never how fast; how many faults there is time for depends on the machine.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.simulate import recording
from hil.broker import Mosquitto
from hil.dispatcher.database import FILE
from hil.faults.accounts import Loss, audit
from hil.faults.books import Ordered, read_agent, read_dispatcher, sqlite_query
from hil.faults.command import ORDERED
from hil.faults.figures import Figures
from hil.faults.recordings import recordings_of

pytestmark = pytest.mark.long

JOBS, UNITS = 14, ("car-0000", "car-0001")
WAIT_S = 400.0
MAIN = "import sys; from hil.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that held."""
    folder = tmp_path_factory.mktemp("faults")
    broker = "embedded" if Mosquitto.binary() is None else "mosquitto"
    options = ["--jobs", str(JOBS), "--cars", str(len(UNITS)), "--seed", "11", "--broker", broker, "--minutes", "5"]
    files = ["--dir", str(folder / "run"), "--json", str(folder / "figures.json")]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "faults", *options, *files],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "recovery p99" in done.stdout
    return folder


def findings(folder: Path) -> set[tuple[Loss, str]]:
    """The accounts of a run's folder, done again."""
    with sqlite_query(folder / "dispatcher" / FILE) as query:
        dispatcher = read_dispatcher(query)
    agents = [read_agent(unit, folder / unit / "state" / "driveway.db") for unit in UNITS]
    ordered = msgspec.json.decode((folder / ORDERED).read_bytes(), type=list[Ordered])
    key = (folder / "dispatcher" / "dispatcher.pub").read_text("ascii")
    return {(one.loss, one.rule) for one in audit(ordered, dispatcher, agents, key)}


def test_every_job_is_settled_once_under_faults(run: Path) -> None:
    figures = msgspec.json.decode((run / "figures.json").read_bytes(), type=Figures)
    assert (figures.jobs, figures.settled, figures.lost, figures.doubled) == (JOBS, JOBS, 0, 0)
    assert figures.findings == []
    assert figures.executions >= 3 * JOBS
    assert figures.extra_executions == figures.executions - 3 * JOBS
    assert figures.not_injected == []
    assert sum(row.injected for row in figures.faults.values()) == figures.faults_injected
    assert findings(run / "run") == set()


def test_what_each_car_recorded_plays_again_to_the_same_effects(run: Path) -> None:
    found = recordings_of(run / "run")
    assert {path.parent.parent.name for path in found} == set(UNITS)
    for path in found:
        outcome = recording.replay(recording.read(path))
        assert outcome.events
        assert outcome.differs == ()


def _the_agent_let_go(folder: Path) -> None:
    """As if it had dropped a hand-in at the PUBACK: its statement has no verdict, and nobody waits for one."""
    _write(folder / "car-0000/state/driveway.db", "DELETE FROM ledger WHERE idx = (SELECT max(idx) FROM ledger)")


def _the_dispatcher_forgot(folder: Path) -> None:
    """As if it had answered before its commit was on the disk."""
    job = "(SELECT job FROM handins ORDER BY at_ms LIMIT 1)"
    for table in ("results", "handins"):
        _write(folder / "dispatcher" / FILE, f"DELETE FROM {table} WHERE job = {job}")


def _the_dispatcher_settled_twice(folder: Path) -> None:
    """As if its table had no constraint: a hand-in once more, under the next epoch."""
    copy = (
        "job, epoch + 1, unit, verdict, reason, paid_micro, micro_wh, at_ms, statement_sha256, keyid, -1, envelope,"
        " session"
    )
    columns = copy.replace("epoch + 1", "epoch").replace("-1", "counter")
    one = f"INSERT INTO handins ({columns}) SELECT {copy} FROM handins WHERE verdict = 'settled' LIMIT 1"
    _write(folder / "dispatcher" / FILE, one)


def _write(path: Path, sql: str) -> None:
    database = sqlite3.connect(path)
    try:
        assert database.execute(sql).rowcount > 0, "the falsification is one"
        database.commit()
    finally:
        database.close()


@pytest.mark.parametrize(
    ("falsify", "expected"),
    [
        (_the_agent_let_go, {(Loss.LOST, "ledger_torn")}),
        (_the_dispatcher_forgot, {(Loss.LOST, "settled_not_in_rows"), (Loss.LOST, "job_incomplete")}),
        (_the_dispatcher_settled_twice, {(Loss.DOUBLED, "slice_settled_twice"), (Loss.DOUBLED, "sums_differ")}),
    ],
)
def test_a_falsified_book_is_found_out(
    run: Path, tmp_path: Path, falsify: Callable[[Path], None], expected: set[tuple[Loss, str]]
) -> None:
    shutil.copytree(run / "run", tmp_path / "run", ignore=shutil.ignore_patterns("*.sock"))
    falsify(tmp_path / "run")
    assert expected <= findings(tmp_path / "run")
