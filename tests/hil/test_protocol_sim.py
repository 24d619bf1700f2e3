"""Runs of the lease protocol in virtual time: they replay, hold under every fault, and what breaks is shortened."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.errors import ConfigError
from hil.cli import main
from hil.sim.protocol.engine import play
from hil.sim.protocol.faults import KINDS, Fault
from hil.sim.protocol.invariants import INVARIANTS, Invariant
from hil.sim.protocol.plan import FORMAT, Plan, planned, read, write
from hil.sim.protocol.shrink import shrink
from hil.sim.protocol.sweep import KINDS as SWEPT
from hil.sim.protocol.sweep import boundaries, sweep
from tests.hil import protocol_bugs, protocol_bugs_car

CALM = Plan(cars=3, dispatchers=2, jobs=12, seed=5, faults_ms=300_000)
STEPS = {"crash": 5, "reboot": 11, "kill": 9}
"""Each boundary is met by `driveway-hil sim --protocol --sweep`; here every so manieth."""


def test_the_same_plan_gives_the_same_run_to_the_last_signature() -> None:
    plan = planned(4, 2, 25, 9)
    one, two = play(plan), play(plan)
    assert one.fingerprint == two.fingerprint
    assert one.broker == two.broker
    assert play(msgspec.structs.replace(plan, seed=10)).fingerprint != one.fingerprint


def test_without_faults_a_lease_costs_little_more_than_two_messages() -> None:
    """One car that has always work: a request, then a result and a verdict for each lease."""
    jobs = 60
    played = play(Plan(cars=1, dispatchers=1, jobs=jobs, seed=2, faults_ms=60_000))
    assert played.violation is None
    assert played.jobs_done == jobs
    assert played.leases == played.settled == jobs
    assert played.messages_up <= 1.4 * jobs


@pytest.mark.parametrize("seed", range(1, 7))
def test_everything_holds_under_every_kind_of_fault(seed: int) -> None:
    played = play(planned(5, 3, 60, seed))
    assert played.violation is None
    assert played.jobs_done == 60
    assert sum(played.faults.values()) > 20


def test_every_kind_of_fault_is_met() -> None:
    seen = {fault.kind for seed in range(1, 7) for fault in planned(5, 3, 60, seed).faults}
    assert seen == set(KINDS)


@pytest.mark.long
@pytest.mark.parametrize("kind", SWEPT)
def test_the_power_may_fail_at_any_boundary(kind: str) -> None:
    played = list(sweep(kind, step=STEPS[kind]))
    assert [one.violation for one in played] == [None] * len(played)
    assert len({one.fingerprint for one in played}) > 5, "it makes a difference where"
    assert min(boundaries().values()) > 100


def broken_plan() -> tuple[Plan, str]:
    """A run in which a bug shows, which is planted by the caller."""
    bug = next(one for one in protocol_bugs.BUGS if one.plant is protocol_bugs_car.old_leaves_are_pruned_at_a_start)
    return planned(3, 2, 20, 3, faults_ms=900_000), bug.breaks.value


def test_what_breaks_is_shortened_and_breaks_again_from_its_file(tmp_path: Path) -> None:
    plan, name = broken_plan()
    with pytest.MonkeyPatch.context() as patch:
        protocol_bugs_car.old_leaves_are_pruned_at_a_start(patch)
        broken = play(plan).violation
        assert broken is not None
        assert broken.name == name
        short = shrink(plan, broken)
        assert len(short.faults) == 1, "one restart shows it"
        write(tmp_path / "run.json", short)
        again = play(read(tmp_path / "run.json")).violation
        assert again is not None
        assert again.name == name
        assert main(["sim", "--replay", str(tmp_path / "run.json")]) == 1
    assert main(["sim", "--replay", str(tmp_path / "run.json")]) == 0, "without the bug it holds"


def test_the_command_writes_what_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sim.json"
    small = ["--cars", "3", "--dispatchers", "2", "--jobs", "12", "--seed", "4", "--runs", "2"]
    assert main(["sim", "--protocol", *small, "--json", str(path), "--trace-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    section = msgspec.json.decode(path.read_bytes())["protocol"]
    assert section["violations"] == dict.fromkeys(INVARIANTS, 0)
    assert section["jobs_done"] == 24
    assert section["leases"] >= 24
    assert section["events_per_s"] > 0
    assert section["faults"]
    assert all(name in said for name in INVARIANTS)


def test_the_command_says_what_broke_and_leaves_a_run_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol_bugs.every_item_is_paid_twice(monkeypatch)
    small = ["--cars", "2", "--dispatchers", "1", "--jobs", "5", "--trace-dir", str(tmp_path)]
    assert main(["sim", "--protocol", *small]) == 1
    assert f"BROKEN {Invariant.MONEY}: seed 1" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert read(path).faults == (), "it takes no fault"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "driveway-protocol-run/0"}', '{"faults": [{"at_ms": 1, "kind": "meteor"}]}']
)
def test_what_is_no_run_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError):
        read(tmp_path / "x.json")


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = planned(2, 1, 3, 7)
    write(tmp_path / "deep" / "run.json", plan)
    assert read(tmp_path / "deep" / "run.json") == plan
    assert plan.format == FORMAT


def test_to_leave_out_one_kind_of_fault_changes_no_other() -> None:
    some = [one for one in planned(3, 2, 5, 8).faults if one.kind != "lose"]
    assert some == list(planned(3, 2, 5, 8, kinds=tuple(kind for kind in KINDS if kind != "lose")).faults)


def test_a_clock_of_the_database_that_is_set_costs_nobody_anything() -> None:
    """Back and forth by half a minute, every minute."""
    jumps = tuple(
        Fault(at_ms=60_000 * number, kind="clock_jump", amount=30_000 * (-1) ** number) for number in range(1, 10)
    )
    played = play(msgspec.structs.replace(CALM, jobs=30, faults=jumps))
    assert played.violation is None
    assert played.jobs_done == 30
