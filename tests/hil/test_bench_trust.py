"""The benchmark of trust: that what it counts is the real thing and holds, and figures are told; never how fast."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from agent import ledger_view, store_ledger
from agent.core.model import HandInKind
from agent.errors import DrivewayError, PackageError, TrustError
from agent.fleet import messages
from agent.store import Store
from agent.trust import dsse, statement
from hil.bench import command, trust, trust_leases, trust_logs, trust_rates, trust_sizes
from hil.bench.trust_keys import KeyFigures
from hil.bench.trust_work import UNIT, Work, latency, spread
from hil.cheats.command import Detection, Report

LEAVES = 130


@pytest.fixture(scope="module")
def work() -> Work:
    return Work()


def test_a_spread_is_the_median_between_the_least_and_the_most() -> None:
    told = spread([5.0, 1.0, 2.0])
    assert (told.median, told.min, told.max) == (2.0, 1.0, 5.0)
    rounds = latency([[1.0] * 100 + [9.0] * 4, [2.0] * 102, [3.0] * 102])
    assert (rounds.p50_min_ms, rounds.p50_ms, rounds.p50_max_ms) == (1.0, 2.0, 3.0)
    assert (rounds.p99_min_ms, rounds.p99_ms, rounds.p99_max_ms) == (2.0, 3.0, 9.0)


# --- keys -----------------------------------------------------------------------------------------------------------


def figures(backend: str, p50_ms: float) -> KeyFigures:
    return KeyFigures(backend=backend, sign_p50_ms=p50_ms, sign_p99_ms=2 * p50_ms, verify_per_s=1000 * p50_ms)


def test_rounds_give_medians_and_what_is_absent_its_reason() -> None:
    absent = KeyFigures(backend="softhsm", absent="SoftHSM is not installed")
    rounds = [(figures("file", one), absent) for one in (1.0, 4.0, 2.0)]
    rates = trust_rates.rates_of(rounds, [([1.0, 3.0], [0.5, 0.5]), ([2.0, 2.0], [0.5, 0.5])])
    file = rates.keys["file"]
    assert (file.sign_p50_min_ms, file.sign_p50_ms, file.sign_p50_max_ms, file.sign_p99_ms) == (1.0, 2.0, 4.0, 4.0)
    assert (file.verify_min_per_s, file.verify_per_s, file.verify_max_per_s) == (1000.0, 2000.0, 4000.0)
    assert rates.keys[trust_rates.SESSION].verify_per_s == 2000.0
    assert rates.verify.p50_ms == 0.5
    assert rates.absent == {"softhsm": "SoftHSM is not installed"}
    assert set(rates.keys) == {"file", trust_rates.SESSION}


def test_a_backend_that_failed_in_one_round_has_no_figures() -> None:
    rounds = [(figures("swtpm", 1.0),), (KeyFigures(backend="swtpm", absent="it did not come up"),)]
    rates = trust_rates.rates_of(rounds, [([1.0, 1.0], [1.0, 1.0])])
    assert "swtpm" not in rates.keys
    assert rates.absent == {"swtpm": "it did not come up"}


def test_a_session_key_is_measured_and_a_signature_that_does_not_hold_is_no_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signing, verifying = trust_rates.session_key(3)
    assert len(signing) == len(verifying) == 3
    assert min(*signing, *verifying) > 0
    monkeypatch.setattr(dsse, "signature_holds", lambda *_: False)
    with pytest.raises(DrivewayError, match="does not hold"):
        trust_rates.session_key(1)


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_what_is_sent(work: Work) -> None:
    sizes = trust_sizes.measure_sizes(work, slices=(1, 3), logs=(2, LEAVES))
    row = work.hand_in(work.grant(3, 3), 1, 1, work.finished(3, 3))
    message = messages.decode(row.body, messages.Result)
    assert len(message.outputs) == 3
    assert row.statement is not None
    assert sizes["statement, 3 slices"].bytes == len(dsse.parse(row.statement).payload)
    assert sizes["statement, 1 slice"].bytes < sizes["statement, 3 slices"].bytes
    assert sizes["envelope, 3 slices"].bytes < sizes["result message, 3 slices"].bytes
    assert sizes["session certificate"].bytes == len(work.session.certificate)
    assert sizes[f"inclusion proof, log of {LEAVES}"].bytes == 32 * 8  # 2^7 < 130 leaves <= 2^8
    assert sizes["inclusion proof, log of 2"].bytes == 32
    for kind in ("checkpoint", "countersigned", "checkpoint message", "proof bundle"):
        assert sizes[f"{kind}, log of {LEAVES}"].bytes > 400


def test_a_size_stands_beside_what_zlib_makes_of_it() -> None:
    body = b"the same again " * 40
    told = trust_sizes.size_of(body)
    assert (told.bytes, told.zlib_9_bytes) == (600, len(zlib.compress(body, 9)))


def test_a_lease_that_does_not_fit_is_not_counted_as_a_result(work: Work) -> None:
    with pytest.raises(DrivewayError, match="do not fit"):
        trust_sizes.measure_sizes(work, slices=(40,), logs=())


# --- leases ---------------------------------------------------------------------------------------------------------


def test_leases_go_through_the_real_store_and_leave_their_statements(work: Work, tmp_path: Path) -> None:
    cpu = asyncio.run(trust_leases.measure_cpu(work, tmp_path, rounds=2, slices=3, slice_s=0.01))
    assert tuple(cpu.parts_ms) == trust_leases.PARTS
    assert min(part.min for part in cpu.parts_ms.values()) > 0
    work_ms = 3 * 0.01 * 1000
    assert cpu.share_percent.min >= sum(part.min for part in cpu.parts_ms.values()) * 100 / work_ms - 0.1
    assert cpu.share_percent.max <= sum(part.max for part in cpu.parts_ms.values()) * 100 / work_ms + 0.1
    store = Store(tmp_path / "cpu" / "driveway.db")
    try:
        kinds = [row.kind for row in store.ledger(100)]
        assert kinds == ["session", *["statement", "verdict"] * 3]
        row = store.leaf(kinds.index("statement") + 2)
        assert row is not None
        assert row.leaf is not None
        said, _session = statement.verify_statement(row.leaf, work.session.certificate, work.unit_keys)
        assert (said.unit, said.outcome, len(said.slices)) == (UNIT, HandInKind.RESULT.value, 3)
        assert store.outbox() == []
        newest = store.checkpoint()
        assert newest is not None
        assert newest.size == 7
    finally:
        store.close()


def test_every_commit_is_waited_for_and_told_by_step(work: Work, tmp_path: Path) -> None:
    commits = asyncio.run(trust_leases.measure_commits(work, tmp_path, rounds=2, leases=2))
    assert set(commits) == {"open_lease", "add_slice", "hand_in", "settle"}
    for one in commits.values():
        assert 0 < one.p50_min_ms <= one.p50_ms <= one.p50_max_ms
        assert one.p50_min_ms <= one.p99_max_ms


def test_the_disk_is_named(tmp_path: Path) -> None:
    assert trust_leases.disk_of(Path("/proc")) == "proc"
    assert trust_leases.disk_of(tmp_path) != "proc"


# --- logs -----------------------------------------------------------------------------------------------------------


def test_a_long_log_holds_and_a_stranger_believes_it(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_ledger, "LEAVES_KEPT", 50)
    told = trust_logs.measure_log(work, tmp_path, rounds=1, leaves=LEAVES)
    assert told.leaves == LEAVES
    assert told.bytes > LEAVES * 500
    assert min(one.min for one in told.ms.values()) > 0
    store = Store(tmp_path / "log" / "driveway.db")
    try:
        assert store.ledger_head().size == LEAVES
        assert store.ledger_head() == store.stored_head()
        assert ledger_view.prove_leaf(store, LEAVES * 3 // 4).witnessed
        bodies = [row.leaf is not None for row in store.ledger(LEAVES)]
        assert bodies == [False] * 80 + [True] * 50
    finally:
        store.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger SET leaf = CAST(leaf || x'00' AS BLOB) WHERE idx = 60",
        "DELETE FROM ledger WHERE idx = 129",
        "UPDATE nodes SET hash = zeroblob(32) WHERE level = 1 AND idx = 20",
    ],
)
def test_a_log_that_was_changed_is_not_measured_as_sound(work: Work, tmp_path: Path, change: str) -> None:
    path = tmp_path / "driveway.db"
    store = trust_logs.LongStore(path)
    store.fill(work, LEAVES)
    store.close()
    database = sqlite3.connect(path)
    with database:
        assert database.execute(change).rowcount == 1
    database.close()
    store = trust_logs.LongStore(path)
    try:
        with pytest.raises(DrivewayError, match=r"leaf|root"):
            trust_logs.hold(store)
    finally:
        store.close()


def test_a_strangers_verification_is_one(work: Work, tmp_path: Path) -> None:
    store = trust_logs.LongStore(tmp_path / "driveway.db")
    try:
        given = trust_logs.witness(work, store, store.fill(work, LEAVES))
    finally:
        store.close()
    trust_logs.believe(work, given)
    trust_logs.continues(work, given)
    somebody = Work()
    with pytest.raises(TrustError):
        trust_logs.believe(somebody, given)
    turned = trust_logs.Given(given.proof, given.checkpoints[::-1], given.hashes)
    with pytest.raises(TrustError):
        trust_logs.continues(work, turned)


# --- all of it ------------------------------------------------------------------------------------------------------


CAUGHT = Detection(
    cheat="random answers",
    cheats=2,
    caught=2,
    jobs_median=1.0,
    jobs_p95=3,
    kept_permille=0,
    honest_units=8,
    honest_jobs=80,
    honest_punished=0,
    copies_permille=90,
)
LAZY = msgspec.structs.replace(CAUGHT, cheat="a lazy car", jobs_median=None, jobs_p95=None, caught=0)


def report(*, held: bool) -> Report:
    return Report(
        seed=1, seeds=1, cars=10, jobs_per_car=10, drifts=[], calibrations=[], detections=[CAUGHT, LAZY], held=held
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in a file alone, in this process, leases that compute nothing, and a table that was made before."""

    def one_round() -> Sequence[KeyFigures]:
        return figures("file", 0.1), KeyFigures(backend="swtpm", absent="swtpm is not installed")

    async def quick(work: Work, folder: Path, rounds: int) -> trust_leases.LeaseCpu:
        return await trust_leases.measure_cpu(work, folder, rounds, slices=2, slice_s=0.001)

    monkeypatch.setattr(trust_rates, "backends", one_round)
    monkeypatch.setattr(trust_rates, "CALLS", 3)
    monkeypatch.setattr(trust_logs, "VERIFICATIONS", 1)
    monkeypatch.setattr(trust, "measure_cpu", quick)
    monkeypatch.setattr(trust, "measure_cheats", lambda **_: report(held=True))


@pytest.mark.usefixtures("small")
def test_a_small_run_tells_everything_and_fits_a_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Console", lambda: Console(width=80))
    run = trust.run
    monkeypatch.setattr(trust, "run", lambda: run(rounds=1, leases=2, leaves=LEAVES))
    file = tmp_path / "trust.json"
    assert command.bench(["trust"], file) == 1  # leases without a pause are nothing but trust: far above the aim
    written = json.loads(file.read_text("utf-8"))
    assert written["cpu_share_percent"] > written["aim_percent"] == trust.AIM_PERCENT
    assert set(written["keys"]) == {"file", trust_rates.SESSION}
    assert written["absent"] == {"swtpm": "swtpm is not installed"}
    assert written["cheats"]["random answers"]["caught"] == 2
    assert written["honest"]["a lazy car"]["honest_punished"] == 0
    assert set(written["lease_cpu_ms"]) == set(trust_leases.PARTS)
    assert {"cryptography", "openssl", "sqlite"} <= set(written["versions"])
    printed = capsys.readouterr().out
    for told in ("result message, 20 slices", "a lazy car", "add_slice", "self_test", "swtpm is not installed"):
        assert told in printed
    assert "…" not in printed


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("held", [True, False])
def test_held_needs_the_aim_and_the_simulations_promises(monkeypatch: pytest.MonkeyPatch, *, held: bool) -> None:
    monkeypatch.setattr(trust, "AIM_PERCENT", 1e9)
    monkeypatch.setattr(trust, "measure_cheats", lambda **_: report(held=held))
    assert trust.run(rounds=1, leases=2, leaves=LEAVES).held is held


@pytest.mark.usefixtures("small")
def test_without_the_simulations_model_the_table_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_model(**_terms: object) -> Report:
        raise PackageError("the model could not be had")

    monkeypatch.setattr(trust, "measure_cheats", no_model)
    told = trust.run(rounds=1, leases=2, leaves=LEAVES)
    assert (told.cheats, told.honest) == ({}, {})
    assert told.absent[trust.CHEATS] == "the model could not be had"
