"""`driveway ledger` and `driveway verify`: a real ledger behind a control socket, and proofs of it that are checked."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from agent import store_ledger
from agent.answers import Answers
from agent.cli import exits
from agent.cli.main import main
from agent.control_server import ControlServer
from agent.core.model import Grant, HandInKind, JobKey, Spent, Verdict
from agent.rows import HandInRow
from agent.store import Store, StoreThread
from agent.trust import dsse
from agent.trust.bundle import result_bundle
from agent.trust.checkpoint import CHECKPOINT_TYPE, Checkpoint, countersign
from agent.trust.statement import Statement
from tests.conftest import FixedClock
from tests.core.world import grant
from tests.trust.conftest import sample_statement
from tests.trust.evidence_world import World


class Unit:
    """A store with a session, leases and checkpoints in its ledger, as a daemon leaves them, and the keys as files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.world = folder, World(sample_statement(), leases=0)
        self.store = StoreThread(folder / "driveway.db")
        self.socket = folder / "control.sock"
        for name, key in (
            ("unit", self.world.unit),
            ("dispatcher", self.world.dispatcher),
            ("other", self.world.stranger),
        ):
            (folder / f"{name}.pub").write_text(key.public_key_pem())

    def fill(self, store: Store) -> None:
        """A session, two settled leases that are witnessed, one that is only signed for, and one that is in neither."""
        store.add_session(3, self.world.session.certificate)
        self.lease(store, 0)
        self.lease(store, 1)
        self.checkpoint(store, witnessed=True)
        self.lease(store, 2)
        self.checkpoint(store, witnessed=False)
        self.lease(store, 3)

    def lease(self, store: Store, number: int) -> None:
        one: Grant = grant(number)
        assert store.open_lease(one, 1)

        def build(counter: int, log_index: int, _slices: object) -> HandInRow:
            lease = dataclasses.replace(self.world.template.lease, job=one.job, epoch=one.epoch)
            said = self.world.say(lease=lease, counter=counter, log_index=log_index)
            return HandInRow(HandInKind.RESULT, b"body", self.world.sign(said.to_bytes()), "e" * 64, 1)

        store.hand_in(one, why=None, spent=Spent(7, 3), wall_ms=2, build=build)
        verdict = self.world.verdict(one.job)
        store.settle(one.key, verdict=Verdict.SETTLED, reason="", paid_micro=5, envelope=verdict)

    def checkpoint(self, store: Store, *, witnessed: bool, **changes: Any) -> bytes:
        head = store.ledger_head()
        said = Checkpoint(
            v=1,
            unit="unit-7",
            key_epoch=1,
            size=head.size,
            root=head.root,
            session=3,
            boot_id="b",
            issued_boot_ms=1,
            issued_wall_ms=2,
        )
        said = dataclasses.replace(said, **changes)
        envelope = dsse.sign(CHECKPOINT_TYPE, said.to_bytes(), self.world.unit)
        if not changes:
            store.add_checkpoint(said, envelope, 1_790_000_000_000)
        if witnessed:
            envelope = countersign(envelope, self.world.dispatcher)
            assert store.take_witness(said, envelope, 1_790_000_000_001) is None
        return envelope

    def driveway(self, *arguments: str | Path) -> int:
        """The command, in this process; what it asks the daemon goes over the socket."""
        return main([str(one) for one in arguments])

    def asks(self, *arguments: str | Path) -> int:
        return self.driveway(*arguments, "--socket", self.socket)

    def verifies(self, *files: Path | str, witness: str = "dispatcher", key: str = "unit") -> int:
        keys: list[str | Path] = ["--key", self.folder / f"{key}.pub"]
        return self.driveway(
            "ledger", "verify", *files, *keys, *(("--witness", self.folder / f"{witness}.pub") if witness else ())
        )


def served(folder: Path, story: Callable[[Unit], None], fill: Callable[[Unit, Store], None] = Unit.fill) -> None:
    """Tell a story while the daemon's own answers are served; only what the ledger's verbs need is behind them."""

    async def run() -> None:
        unit = Unit(folder)
        await unit.store.open()
        nothing = cast("Any", None)
        answers = Answers(
            state=nothing,
            clock=FixedClock(),
            store=unit.store,
            hands=nothing,
            desk=nothing,
            link=nothing,
            shelf=nothing,
            keys=nothing,
            owner=nothing,
            updates=nothing,
            recorder=nothing,
            recordings=folder,
            self_test=nothing,
            prover=nothing,
        )
        server = ControlServer(unit.socket, answers.answer)
        await server.start()
        try:
            await unit.store.call(lambda store: fill(unit, store))
            await asyncio.to_thread(story, unit)
        finally:
            await server.close()
            await unit.store.close()

    asyncio.run(run())


def test_show_says_how_far_the_ledger_is_signed_and_witnessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def story(unit: Unit) -> None:
        assert unit.asks("ledger", "show", "--json") == exits.FINE
        data = json.loads(capsys.readouterr().out)
        ledger = data["ledger"]
        assert (ledger["size"], ledger["witnessed"], ledger["session"], ledger["dispute"]) == (9, 5, 3, "")
        assert (ledger["checkpoint"]["size"], ledger["checkpoint"]["witnessed"]) == (7, False)
        assert [leaf["kind"] for leaf in data["leaves"]] == ["session", *["statement", "verdict"] * 4]
        assert unit.asks("ledger", "--limit", "4") == exits.FINE
        said = capsys.readouterr().out.splitlines()
        assert said[1:4] == [
            "session     3",
            "checkpoint  7 leaves, 2026-09-21T14:13:20.000Z",
            "witnessed   5 of 9 leaves",
        ]
        assert [line.split()[3] for line in said[-4:]] == ["signed", "signed", "-", "-"]

    served(tmp_path, story)


def test_a_proof_is_against_what_was_witnessed_where_that_covers_the_leaf(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def story(unit: Unit) -> None:
        lease = grant(1)
        file = tmp_path / "lease.proof.json"
        assert unit.asks("ledger", "prove", f"{lease.job}/{lease.epoch}", "--out", file, "--json") == exits.FINE
        said = json.loads(capsys.readouterr().out)
        assert (said["kind"], said["index"], said["size"], said["witnessed"]) == ("statement", 3, 5, True)
        assert unit.verifies(file) == exits.FINE
        told = capsys.readouterr().out
        assert f"holds: result of lease {lease.job}/{lease.epoch} by unit unit-7" in told
        assert "leaf 3 of 5, witnessed by the dispatcher" in told
        assert unit.asks("ledger", "prove", "5") == exits.FINE
        (tmp_path / "signed.json").write_text(capsys.readouterr().out)
        assert unit.verifies(tmp_path / "signed.json", witness="") == exits.FINE
        assert "leaf 5 of 7, not asked who witnessed it" in capsys.readouterr().out
        assert unit.verifies(tmp_path / "signed.json") == exits.FAILED
        assert "does NOT hold" in capsys.readouterr().out

    served(tmp_path, story)


def test_every_kind_of_leaf_can_be_proven_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def story(unit: Unit) -> None:
        files = []
        for index in range(5):
            files.append(tmp_path / f"{index}.json")
            assert unit.asks("ledger", "prove", str(index), "--out", files[-1]) == exits.FINE
        assert "Check it anywhere: driveway ledger verify" in capsys.readouterr().out
        assert unit.verifies(*files) == exits.FINE
        said = capsys.readouterr().out
        assert said.count("holds") == 5
        assert "session 3 of unit unit-7 in key epoch 1" in said
        assert "verdict settled on lease" in said
        assert unit.verifies(*files, key="other") == exits.FAILED
        assert capsys.readouterr().out.count("does NOT hold") == 5

    served(tmp_path, story)


@pytest.mark.parametrize(
    ("leaf", "code", "said"),
    [
        ("7", exits.FAILED, "no checkpoint covers leaf 7 yet; the unit's key signs one"),
        ("99", exits.FAILED, "the ledger has 9 leaves, and none is 99; see `driveway ledger show"),
        ("job-x/1", exits.FAILED, "no statement about lease job-x/1; see `driveway ledger show"),
        ("job-x/", exits.USAGE, "'job-x/' is neither a lease nor a leaf; write JOB/EPOCH"),
        ("-1/2", exits.FAILED, "no statement about lease -1/2"),
    ],
)
def test_what_cannot_be_proven_says_why_and_what_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], leaf: str, code: int, said: str
) -> None:
    def story(unit: Unit) -> None:
        assert unit.driveway("ledger", "prove", "--socket", unit.socket, "--", leaf) == code
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1

    served(tmp_path, story)


def test_a_statement_is_proven_whose_session_began_long_before_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_ledger, "LEAVES_KEPT", 4)

    def fill(unit: Unit, store: Store) -> None:
        unit.fill(store)
        for number in range(4, 10):
            unit.lease(store, number)
            unit.checkpoint(store, witnessed=True)
        kept = [row.index for row in store.ledger(100) if row.leaf is not None]
        assert kept == [0, 17, 18, 19, 20], "the certificate, and the newest of the rest"

    def story(unit: Unit) -> None:
        assert unit.asks("ledger", "prove", "17", "--out", tmp_path / "late.json") == exits.FINE
        capsys.readouterr()
        assert unit.verifies(tmp_path / "late.json") == exits.FINE

    served(tmp_path, story, fill)


def test_hand_ins_that_wait_for_the_witness_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fill(unit: Unit, store: Store) -> None:
        unit.fill(store)
        assert store.want_witness(1_790_000_000_000)
        assert not store.want_witness(1_790_000_000_999)

    def story(unit: Unit) -> None:
        assert unit.asks("ledger", "show") == exits.FINE
        assert "hand-ins wait for the witness since 2026-09-21T14:13:20.000Z" in capsys.readouterr().out

    served(tmp_path, story, fill)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE ledger SET leaf = CAST(leaf AS TEXT) WHERE idx = 3",
        "UPDATE ledger SET leaf = 7 WHERE idx = 3",
        "UPDATE ledger SET hash = NULL WHERE idx = 2",
        "UPDATE nodes SET hash = NULL WHERE level = 1",
        "UPDATE nodes SET hash = 'text'",
    ],
)
def test_of_a_damaged_ledger_nothing_is_proven_and_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    def fill(unit: Unit, store: Store) -> None:
        unit.fill(store)
        store._db.execute(damage)

    def story(unit: Unit) -> None:
        assert unit.asks("ledger", "prove", "3") == exits.FAILED
        assert "the ledger is damaged" in capsys.readouterr().err

    served(tmp_path, story, fill)


def test_of_an_old_leaf_only_the_hash_is_kept_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(unit: Unit, store: Store) -> None:
        unit.fill(store)
        store._db.execute("UPDATE ledger SET leaf = NULL WHERE idx < 2")

    def story(unit: Unit) -> None:
        assert unit.asks("ledger", "prove", "1") == exits.FAILED
        assert "of leaf 1 (statement) only the hash is kept" in capsys.readouterr().err
        assert unit.asks("ledger", "prove", "3") == exits.FAILED
        assert "the certificate of session 3, which signed leaf 3, is not kept" in capsys.readouterr().err
        assert unit.asks("ledger", "prove", "2") == exits.FINE, "the hashes of old leaves prove what is left"
        (tmp_path / "verdict.json").write_text(capsys.readouterr().out)
        assert unit.verifies(tmp_path / "verdict.json") == exits.FINE
        assert unit.asks("ledger", "show") == exits.FINE

    served(tmp_path, story, fill)


def test_a_dispute_is_shown_and_is_exit_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fill(unit: Unit, store: Store) -> None:
        unit.fill(store)
        store.hold_against("the first 5 entries are not those that were witnessed: there are two ledgers")

    def story(unit: Unit) -> None:
        assert unit.asks("ledger") == exits.DEGRADED
        assert "there are two ledgers (ask the fleet operator)" in capsys.readouterr().out

    served(tmp_path, story, fill)


def test_the_session_of_a_number_is_the_last_before_the_statement(tmp_path: Path) -> None:
    """Numbers begin anew with each key epoch: the certificate that counts is the one that came before."""

    def fill(unit: Unit, store: Store) -> None:
        store.add_session(3, unit.world.begin(number=3, epoch=1).certificate)
        unit.fill(store)
        store.add_session(3, unit.world.begin(number=3, epoch=1).certificate)
        assert store.leaf_of("session", JobKey("", 3), before=4).index == 1  # type: ignore[union-attr]  # it is there

    def story(unit: Unit) -> None:
        assert unit.asks("ledger", "prove", "2", "--out", tmp_path / "2.json") == exits.FINE
        assert unit.verifies(tmp_path / "2.json") == exits.FINE

    served(tmp_path, story, fill)


def test_no_daemon_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("ledger",), ("ledger", "show"), ("ledger", "prove", "1")):
        assert main([*arguments, "--socket", str(tmp_path / "none.sock")]) == exits.UNREACHABLE
        assert "is `driveway run` running?" in capsys.readouterr().err


# --- verify, without a daemon ----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, World]:
    statement: Statement = sample_statement()
    world = World(statement)
    for name, key in (("unit", world.unit), ("dispatcher", world.dispatcher)):
        (tmp_path / f"{name}.pub").write_text(key.public_key_pem())
    for name, body in (
        ("result", world.result()),
        ("statement", world.leaves[1][1]),
        ("session", world.session.certificate),
        ("checkpoint", world.checkpoint()),
        ("verdict", world.leaves[2][1]),
        ("proof", world.proof(3)),
        ("odd", b'{"mediaType":"text/plain"}'),
        ("list", b"[]"),
        ("noise", b"\xff" * 300_000),
        ("forked", world.checkpoint(root="ab" * 32)),
        ("foreign", result_bundle(world.leaves[1][1], world.begin().certificate)),
    ):
        (tmp_path / f"{name}.json").write_bytes(body)
    return tmp_path, world


def verify(folder: Path, *names: str, options: tuple[str, ...] = ()) -> int:
    paths = [str(folder / f"{name}.json") for name in names]
    return main(["verify", *paths, "--key", str(folder / "unit.pub"), *options, "--json"])


def test_verify_takes_bundles_and_envelopes_of_every_kind(
    files: tuple[Path, World], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _world = files
    options = ("--session", str(folder / "session.json"), "--witness", str(folder / "dispatcher.pub"))
    names = ("result", "statement", "session", "checkpoint", "verdict", "proof")
    assert verify(folder, *names, options=options) == exits.FINE
    said = json.loads(capsys.readouterr().out)
    assert [one["kind"] for one in said] == [
        *("result bundle", "statement", "session", "checkpoint", "verdict", "proof bundle")
    ]
    assert all(one["holds"] for one in said)


def test_what_is_no_file_is_not_waited_for(files: tuple[Path, World], capsys: pytest.CaptureFixture[str]) -> None:
    pipe = files[0] / "pipe.json"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"{}"))  # so that who does read it is not stuck here
    writer.start()
    try:
        assert verify(files[0], "pipe", "result") == exits.FAILED
        said = json.loads(capsys.readouterr().out)
        assert [one["holds"] for one in said] == [False, True]
        assert said[0]["says"] == f"{pipe} is no regular file; give files"
    finally:
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        writer.join()
        os.close(reader)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("statement", "without its session certificate; give --session FILE"),
        ("verdict", "the dispatcher's word; give its public key with --witness"),
        ("odd", "holds a 'text/plain', which is nothing that can be checked here; docs/attestation.md"),
        ("list", "neither a bundle nor a DSSE envelope; docs/attestation.md"),
        ("noise", "more than the 262144 that are looked at; check that --key"),
        ("foreign", "no signature on the envelope was made by a trusted key over these bytes; check that --key"),
        ("missing", "cannot read"),
    ],
)
def test_what_does_not_hold_says_why_and_what_next(
    files: tuple[Path, World], capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    assert verify(files[0], "result", name) == exits.FAILED
    good, bad = json.loads(capsys.readouterr().out)
    assert good["holds"]
    assert not bad["holds"]
    assert said in bad["says"]


def test_two_checkpoints_that_contradict_each_other_are_found(
    files: tuple[Path, World], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(files[0], "checkpoint", "forked") == exits.FAILED
    said = json.loads(capsys.readouterr().out)
    assert ["two roots for the same 7 leaves of one unit; keep both files" in one["says"] for one in said] == [True] * 2
    assert verify(files[0], "checkpoint", "checkpoint") == exits.FINE
