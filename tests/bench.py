"""The hands on a bench: a real store, a scripted desk, a disk that can refuse, and every event they emitted."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from agent import hands as hands_module
from agent.core.effects import EffectType, HandIn, SendRequest, SettleHandIn
from agent.core.events import EventType
from agent.core.model import Grant, HandInKind, JobKey, LeaseFacts, Spent, Verdict, YieldReason
from agent.core.policy import Policy
from agent.errors import StoreError
from agent.fleet import messages
from agent.fleet.channel import Channel, Web
from agent.fleet.desk import Desk
from agent.fleet.objects import ObjectWanted
from agent.fleet.partials import Partials
from agent.fleet.retry import Patience
from agent.hands import Hands
from agent.inference.planned import PlannedShelf
from agent.inference.shelf import Shelf
from agent.inference.station import WorkerLimits
from agent.rows import OutboxRow
from agent.sealed import InputMemory
from agent.store import Store, StoreThread
from agent.telemetry.limits import PowerLimits
from agent.transfers import Transfers
from agent.trust import session
from agent.trust.keys import FileSigner
from tests.conftest import FixedClock
from tests.core.world import grant
from tests.inference.desk import PATIENCE_S, Kind
from tests.inference.floor import BODY
from tests.inference.test_shelf import TRUSTED, put
from tests.test_handin import UNIT

FACTS = LeaseFacts(started_ms=1, finished_ms=2, energy_micro_wh=7, sensor="simulated", gate_state="open")
AT_ONCE = Patience(for_s=0)
"""One attempt."""
Fault = Callable[..., Any]


class ScriptedDesk:
    """The fleet's side: it takes everything, or raises."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, messages.Capability]] = []
        self.hand_ins: list[tuple[str, bytes]] = []
        self.fault: Exception | None = None
        self.full = False
        """The link takes no hand-in now."""

    def request(self, effect: SendRequest, capability: messages.Capability) -> bool:
        if self.fault is not None:
            raise self.fault
        self.requests.append((effect.rid, capability))
        return True

    def hand_in(self, verb: str, _key: JobKey, body: bytes) -> bool:
        if self.fault is not None:
            raise self.fault
        if not self.full:
            self.hand_ins.append((verb, body))
        return not self.full


class Disk:
    """Stands between the hands and the real store: methods fail for as long as a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: dict[Fault, Exception] = {}
        self.failed: dict[Fault, asyncio.Event] = defaultdict(asyncio.Event)
        real = StoreThread.call

        async def call(thread: StoreThread, method: Fault, *args: Any, **kwargs: Any) -> Any:
            if method in self.faults:
                self.failed[method].set()
                raise self.faults[method]
            return await real(thread, method, *args, **kwargs)

        monkeypatch.setattr(StoreThread, "call", call)
        monkeypatch.setattr(hands_module, "STORE_RETRY_S", 0.001)

    def refuse(self, *methods: Fault) -> None:
        self.faults |= dict.fromkeys(methods, StoreError("the disk refused: disk I/O error"))


class Bench:
    """Real hands on a real store, with one package on the shelf; what they told the core is kept."""

    def __init__(self, folder: Path) -> None:
        put(folder / "packages", "good")
        self.shelf = Shelf(folder / "packages", TRUSTED)
        (self.package,) = self.shelf.packages
        self.store = StoreThread(folder / "driveway.db")
        self.desk = ScriptedDesk()
        self.signer = FileSigner(generate_private_key(SECP256R1()))
        self.session = session.begin(self.signer, "file", unit=UNIT.id, number=1)
        self.policy = Policy()
        self.events: list[EventType] = []
        self.awake: list[int] = []
        self.lost: list[str] = []
        self._news = asyncio.Event()
        self.partials = Partials(folder / "transfers", reserve_bytes=0)
        self.transfers = Transfers(Web(allow_loopback_http=True), self.partials)
        self.transfers.input_patience, self.transfers.upload_patience = lambda _grant: AT_ONCE, AT_ONCE
        self.hands = Hands(
            emit=self._heard,
            clock=FixedClock(),
            store=self.store,
            desk=cast("Desk", self.desk),
            shelf=self.shelf,
            plans=PlannedShelf(self.shelf, None, emit=self._heard, clock=FixedClock(), memory_mb=256),
            session=lambda: self.session,
            unit=UNIT,
            limits=WorkerLimits(threads=1, memory_mb=256),
            executor="stand-in",
            transfers=self.transfers,
            spent=lambda: Spent(42, 13),
            policy=lambda: self.policy,
            power_limits=PowerLimits(None, folder / "power-limit.json", "this-boot", lambda _name, _fields: None),
            keep_awake=self.awake.append,
            accelerator_lost=self.lost.append,
        )

    def job(self, number: int = 1, **changes: Any) -> Grant:
        one = msgspec.structs.replace(
            grant(number), package="good", package_sha256=self.package, ticket_sha256="f" * 64
        )
        return msgspec.structs.replace(one, **changes)

    async def do(self, *effects: EffectType) -> None:
        """Carry these out, and wait until nothing is being done any more."""
        for effect in effects:
            self.hands.perform(effect)
        async with asyncio.timeout(PATIENCE_S):
            while self.hands._tasks:
                await asyncio.wait(self.hands._tasks)

    async def heard(self, kind: type[Kind], times: int = 1) -> Kind:
        """Wait until the core was told of this, so many times; the last of them."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := self.all(kind)) < times:
                self._news.clear()
                await self._news.wait()
        return found[-1]

    def all(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]

    def only(self, kind: type[Kind]) -> Kind:
        """The one thing the core was told since this was asked last."""
        (event,) = self.events
        self.events.clear()
        assert isinstance(event, kind)
        return event

    async def outbox(self) -> list[OutboxRow]:
        return await self.store.call(Store.outbox)

    def _heard(self, event: EventType) -> None:
        self.events.append(event)
        self._news.set()


@asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    made = Bench(folder)
    await made.store.open()
    try:
        yield made
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await made.hands.close()
        await made.store.close()


def served(monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception = BODY) -> None:
    """What comes of fetching an input."""

    async def fetch(_channel: Channel, _partials: Partials, _wanted: ObjectWanted, _patience: Patience) -> InputMemory:
        if isinstance(answer, Exception):
            raise answer
        return InputMemory.holding(answer)

    monkeypatch.setattr("agent.transfers.fetch", fetch)


def result(one: Grant) -> HandIn:
    return HandIn(grant=one, kind=HandInKind.RESULT, why=None, detail="", facts=FACTS)


def given_back(one: Grant, why: YieldReason = YieldReason.DRIVER, detail: str = "door_open") -> HandIn:
    return HandIn(grant=one, kind=HandInKind.YIELD, why=why, detail=detail, facts=FACTS)


def settled(key: JobKey, verdict: Verdict = Verdict.SETTLED, paid_micro: int = 120) -> SettleHandIn:
    return SettleHandIn(key=key, verdict=verdict, reason="", paid_micro=paid_micro, envelope=b"signed")
