"""The notary on a real store, with a witness that checks what a dispatcher has to check before it signs."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from agent import notary as notary_module
from agent.core.events import EventType, SelfTested
from agent.errors import TrustError
from agent.fleet.messages import CheckpointMessage, Envelope, LedgerFault, WitnessMessage
from agent.notary import Notary, ThreadedKey
from agent.store import Store, StoreThread
from agent.trust import dsse, merkle
from agent.trust.checkpoint import CHECKPOINT_TYPE, Checkpoint, Earlier, countersign, verify_checkpoint
from agent.trust.keys import load_public_key
from agent.trust.session import SessionKey, verify_session
from tests.conftest import FixedClock
from tests.core.world import grant
from tests.test_store import hand_in, settle

UNIT, DISPATCHER = SessionKey("file"), SessionKey("file")
UNIT_KEYS = {UNIT.keyid: load_public_key(UNIT.public_key_pem())}
WITNESSES = {DISPATCHER.keyid: load_public_key(DISPATCHER.public_key_pem())}


class Witness:
    """The other side: it signs what continues the last checkpoint it signed, and says what that was."""

    def __init__(self) -> None:
        self.last: Checkpoint | None = None
        self.envelope: bytes | None = None
        self.heard: list[Checkpoint] = []

    def answer(self, message: CheckpointMessage) -> WitnessMessage:
        envelope = msgspec.json.encode(message.checkpoint)
        said = verify_checkpoint(envelope, UNIT_KEYS)
        self.heard.append(said)
        size, root = (0, merkle.EMPTY_ROOT) if self.last is None else (self.last.size, bytes.fromhex(self.last.root))
        if message.from_size == size and said.size >= size:
            proof = [bytes.fromhex(one) for one in message.proof]
            merkle.verify_consistency(size, said.size, root, bytes.fromhex(said.root), proof)
            self.last, self.envelope = said, countersign(envelope, DISPATCHER)
        return self.word()

    def word(self) -> WitnessMessage:
        assert self.envelope is not None
        return WitnessMessage(rid="w1", unit="car-0001", checkpoint=msgspec.json.decode(self.envelope, type=Envelope))


class Agent:
    """A notary with its store, and what it sent."""

    def __init__(self, folder: Path, key: ThreadedKey | None = None) -> None:
        self.store, self.clock = StoreThread(folder / "driveway.db"), FixedClock()
        self.sent: list[CheckpointMessage] = []
        self.events: list[EventType] = []
        self.notary = Notary(
            unit="car-0001",
            key_epoch=1,
            boot="b",
            key=key or ThreadedKey(UNIT),
            witnesses=WITNESSES,
            clock=self.clock,
            store=self.store,
            send=self._send,
        )

    def _send(self, message: CheckpointMessage) -> bool:
        self.sent.append(message)
        return True

    async def work(self, leases: int, first: int = 0) -> None:
        """So many leases, settled: two leaves each."""

        def leases_done(store: Store) -> None:
            for number in range(first, first + leases):
                one = grant(number)
                store.open_lease(one, 1)
                hand_in(store, one)
                settle(store, one)

        await self.store.call(leases_done)

    async def hears(self, message: WitnessMessage) -> None:
        self.notary.witnessed(message)
        await self.notary.close()


def told(folder: Path, story: Callable[[Agent], Awaitable[None]], key: ThreadedKey | None = None) -> None:
    async def run() -> None:
        agent = Agent(folder, key)
        await agent.store.open()
        running = asyncio.get_running_loop().create_task(agent.notary.run(agent.events.append))
        try:
            await story(agent)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await agent.notary.close()
            await agent.store.close()

    asyncio.run(run())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - any condition, also one of files
            await asyncio.sleep(0.002)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks, and tries again, at once."""
    monkeypatch.setattr(notary_module, "LOOK_S", 0.01)
    monkeypatch.setattr(notary_module, "RETRY_S", (0.01, 0.02))


def test_a_session_is_certified_and_is_a_leaf_before_it_signs(tmp_path: Path) -> None:
    async def story(agent: Agent) -> None:
        with pytest.raises(TrustError, match="no session"):
            _ = agent.notary.session
        await agent.notary.begin()
        (leaf,) = await agent.store.call(Store.ledger, 10)
        assert (leaf.kind, leaf.leaf) == ("session", agent.notary.session.certificate)
        certified = verify_session(agent.notary.session.certificate, UNIT_KEYS)
        assert certified.keyid == agent.notary.session.key.keyid != UNIT.keyid
        assert (certified.certificate.session, certified.certificate.unit) == (1, "car-0001")
        await agent.notary.begin()
        assert agent.notary.session.number == 1, "it is begun once"

    told(tmp_path, story)


def test_each_parking_and_each_start_has_its_own_session(tmp_path: Path) -> None:
    async def story(agent: Agent) -> None:
        await agent.notary.begin()
        first = agent.notary.session
        agent.notary.parked(is_parked=False)
        agent.notary.parked(is_parked=True)
        await asyncio.sleep(0.05)
        assert agent.notary.session is first, "a parking that begins changes nothing"
        agent.notary.parked(is_parked=False)
        await until(lambda: agent.notary.session.number == first.number + 1)
        assert agent.notary.session.key.keyid != first.key.keyid

    told(tmp_path, story)
    told(tmp_path, story)
    store = Store(tmp_path / "driveway.db")
    assert [row.epoch for row in store.ledger(10)] == [1, 2, 3, 4]
    store.close()


def test_a_checkpoint_is_sent_until_it_is_witnessed_and_the_next_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notary_module, "CHECKPOINT_LEAVES", 6)
    witness = Witness()

    async def story(agent: Agent) -> None:
        await agent.notary.begin()
        await until(lambda: len(agent.sent) == 1)
        await asyncio.sleep(0.05)
        assert len(agent.sent) == 1, "not again so soon"
        agent.clock.now_ms += notary_module.RESEND_MS
        await until(lambda: len(agent.sent) == 2)
        await agent.hears(witness.answer(agent.sent[-1]))
        await agent.work(2)
        await asyncio.sleep(0.05)
        assert len(agent.sent) == 2, "four leaves are no reason"
        await agent.work(1, first=2)
        await until(lambda: len(agent.sent) == 3)
        assert agent.sent[-1].from_size == 1
        await agent.hears(witness.answer(agent.sent[-1]))
        kept = await agent.store.call(Store.checkpoint, witnessed=True)
        assert kept is not None
        assert (kept.size, kept.envelope) == (7, witness.envelope)
        assert not agent.events

    told(tmp_path, story)


def test_some_time_after_the_first_leaf_a_checkpoint_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(agent: Agent) -> None:
        await agent.notary.begin()
        await agent.work(1)
        await until(lambda: len(agent.sent) == 1)
        monkeypatch.setattr(notary_module, "CHECKPOINT_AFTER_MS", 0)
        await until(lambda: len(agent.sent) == 2)

    told(tmp_path, story)


def test_a_disk_that_shows_an_older_state_is_found_out_and_nothing_is_healed(tmp_path: Path) -> None:
    witness = Witness()

    async def honest(agent: Agent) -> None:
        await agent.notary.begin()
        await agent.store.call(lambda store: store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)"))
        shutil.copy(tmp_path / "driveway.db", tmp_path / "image")
        await agent.hears(witness.answer(await _first(agent)))
        await agent.work(40)
        await until(lambda: len(agent.sent) == 2)
        await agent.hears(witness.answer(agent.sent[-1]))
        assert witness.last is not None
        assert witness.last.size == 81

    told(tmp_path, honest)
    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(tmp_path / "image", restored / "driveway.db")

    async def later(agent: Agent) -> None:
        await agent.notary.begin()
        await agent.hears(witness.word())
        (event,) = agent.events
        assert isinstance(event, SelfTested)
        assert "the ledger is in dispute: 81 entries of this unit were witnessed" in event.problem
        await agent.work(60, first=100)
        await agent.hears(witness.word())
        assert "81 entries" in str(await agent.store.call(Store.ledger_fault)), "the first fault stands"

    told(restored, later)

    async def started_again(agent: Agent) -> None:
        with pytest.raises(TrustError, match="in dispute"):
            await agent.notary.begin()

    told(restored, started_again)


def test_another_past_of_the_same_size_is_found_out(tmp_path: Path) -> None:
    async def story(agent: Agent) -> None:
        await agent.notary.begin()
        witnessed = verify_checkpoint(msgspec.json.encode((await _first(agent)).checkpoint), UNIT_KEYS)
        another = dsse.sign(CHECKPOINT_TYPE, dataclasses.replace(witnessed, root="ab" * 32).to_bytes(), UNIT)
        other = msgspec.json.decode(countersign(another, DISPATCHER), type=Envelope)
        await agent.hears(WitnessMessage(rid="w1", unit="car-0001", checkpoint=other))
        (event,) = agent.events
        assert isinstance(event, SelfTested)
        assert "there are two ledgers" in event.problem

    told(tmp_path, story)


def test_what_the_dispatcher_holds_against_it_shuts_the_gate(tmp_path: Path) -> None:
    async def story(agent: Agent) -> None:
        await agent.notary.begin()
        await agent.hears(WitnessMessage(rid="w1", unit="car-0001", fault=LedgerFault.FORK, detail="two roots"))
        (event,) = agent.events
        assert isinstance(event, SelfTested)
        assert "fork: two roots" in event.problem

    told(tmp_path, story)


def test_a_witness_that_is_none_changes_nothing(tmp_path: Path) -> None:
    async def story(agent: Agent) -> None:
        await agent.notary.begin()
        message = await _first(agent)
        for envelope in (
            msgspec.json.encode(message.checkpoint),
            countersign(msgspec.json.encode(message.checkpoint), SessionKey("file")),
        ):
            word = msgspec.json.decode(envelope, type=Envelope)
            await agent.hears(WitnessMessage(rid="w1", unit="car-0001", checkpoint=word))
        assert await agent.store.call(Store.checkpoint, witnessed=True) is None
        assert not agent.events

    told(tmp_path, story)


def test_while_the_key_does_not_answer_the_session_before_goes_on(tmp_path: Path) -> None:
    class Moody(ThreadedKey):
        broken = False

        async def sign(self, message: bytes) -> bytes:
            if self.broken:
                raise TrustError("the TPM does not answer")
            return await super().sign(message)

    key = Moody(UNIT)

    async def story(agent: Agent) -> None:
        await agent.notary.begin()
        first = agent.notary.session
        key.broken = True
        agent.notary.parked(is_parked=True)
        agent.notary.parked(is_parked=False)
        await asyncio.sleep(0.1)
        assert agent.notary.session is first
        key.broken = False
        await until(lambda: agent.notary.session is not first)

    told(tmp_path, story, key)


def test_a_checkpoint_names_the_root_at_what_was_witnessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notary_module, "CHECKPOINT_LEAVES", 6)
    witness = Witness()

    async def story(agent: Agent) -> None:
        await agent.notary.begin()
        await agent.hears(witness.answer(await _first(agent)))
        first = witness.heard[0]
        assert first.continues is None, "nothing was witnessed before"
        await agent.work(3)
        await until(lambda: len(agent.sent) == 2)
        witness.answer(agent.sent[-1])
        assert witness.heard[1].continues == Earlier(size=first.size, root=first.root)

    told(tmp_path, story)


def test_what_the_dispatcher_wants_to_see_is_signed_and_sent_at_once_and_told_once(tmp_path: Path) -> None:
    witness = Witness()

    async def story(agent: Agent) -> None:
        await agent.notary.begin()
        await agent.hears(witness.answer(await _first(agent)))
        await agent.work(2)
        await asyncio.sleep(0.05)
        assert len(agent.sent) == 1, "four leaves are no reason"
        for _ in range(5):
            agent.notary.wanted()
        await until(lambda: len(agent.sent) == 2)
        agent.clock.now_ms += notary_module.WANTED_EVERY_MS
        agent.notary.wanted()
        await until(lambda: len(agent.sent) == 3)  # the same once more, although nobody answered
        assert agent.sent[1].checkpoint == agent.sent[2].checkpoint
        assert await agent.store.call(Store.witness_wanted) is not None
        await agent.hears(witness.word())
        assert await agent.store.call(Store.witness_wanted) is not None, "what was witnessed before is no news"
        await agent.hears(witness.answer(agent.sent[-1]))
        assert await agent.store.call(Store.witness_wanted) is None
        assert not agent.events

    with capture_logs() as logs:
        told(tmp_path, story)
    events = [one["event"] for one in logs]
    assert (events.count("hand_ins_wait_for_witness"), events.count("witness_came")) == (1, 1)


def test_a_ledger_that_is_damaged_under_its_feet_shuts_the_gate_once(tmp_path: Path) -> None:
    async def story(agent: Agent) -> None:
        await agent.notary.begin()
        await agent.work(3)
        await agent.store.call(lambda store: store._db.execute("UPDATE nodes SET hash = NULL"))
        await until(lambda: bool(agent.events))
        await asyncio.sleep(0.05)
        (event,) = agent.events
        assert isinstance(event, SelfTested)
        assert "the ledger is damaged: its tree lacks node" in event.problem

    told(tmp_path, story)


def test_a_witness_whose_envelope_was_bent_is_noise(tmp_path: Path) -> None:
    """Both signatures have to hold over this very payload: else nothing is held against the ledger."""

    async def story(agent: Agent) -> None:
        await agent.notary.begin()
        message = await _first(agent)
        said = verify_checkpoint(msgspec.json.encode(message.checkpoint), UNIT_KEYS)
        other = dataclasses.replace(said, root="ab" * 32).to_bytes()
        signed = countersign(msgspec.json.encode(message.checkpoint), DISPATCHER)
        word = msgspec.json.decode(signed, type=Envelope)
        for _ in range(9):
            bent = msgspec.structs.replace(word, payload=dsse.to_base64(other))
            await agent.hears(WitnessMessage(rid="w1", unit="car-0001", checkpoint=bent))
        assert await agent.store.call(Store.ledger_fault) is None
        assert not agent.events

    told(tmp_path, story)


def test_a_key_that_hangs_is_a_problem_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notary_module, "SIGN_S", 0.05)

    class Slow(SessionKey):
        def sign(self, message: bytes) -> bytes:
            time.sleep(0.3)
            return super().sign(message)

    async def story(agent: Agent) -> None:
        with pytest.raises(TrustError, match="did not answer within"):
            await agent.notary.begin()

    told(tmp_path, story, ThreadedKey(Slow("tpm")))


async def _first(agent: Agent) -> CheckpointMessage:
    await until(lambda: bool(agent.sent))
    return agent.sent[0]
