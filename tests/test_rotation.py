"""A unit takes a new key from a real dispatcher: whatever is cut off where, it has one key that counts."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from agent import enrolled, rotation
from agent.cli import exits
from agent.cli.main import main
from agent.config import Config
from agent.enrolled import PENDING, kept, pending
from agent.errors import FleetError, TrustError
from agent.fleet import enrol
from agent.fleet.messages import Envelope, SealingKeyMessage, encode
from agent.identity import establish
from agent.rotation import KeyKeeper, SealingVouched, home_of
from agent.store import Store
from agent.trust.dsse import pae, signature_holds
from agent.trust.hardware import HardwareSigner
from agent.trust.keyring import recall
from agent.trust.keys import FileSigner, load_public_key
from agent.trust.sealing_key import verify_sealing_key
from agent.trust.succession import MAX_OVERLAP_S
from hil.dispatcher.units import Unit
from hil.emulated_keys import EmulatedTpm
from tests.test_identity import UNIT, Office, enrolling, in_tpm, start, state
from tests.trust.hardware_keys import needs_swtpm


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    """A command says where this process logs to."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "dispatcher")
    yield office
    office.close()


@pytest.fixture
def car(tmp_path: Path) -> Path:
    folder = tmp_path / "car"
    folder.mkdir()
    return folder


def in_book(office: Office) -> Unit:
    unit = office.on_thread(lambda: office.desk.book.units.get(UNIT))
    assert unit is not None
    return unit


def turns(car: Path, *options: str) -> int:
    return main(["keys", "rotate", "--config", str(car / "agent.toml"), *options])


def last_session(office: Office) -> int:
    """What the dispatcher believes of the key before the present one."""
    return office.on_thread(lambda: office.desk.book.units.former_keys(in_unit(office)))[0].last_session


def in_unit(office: Office) -> Unit:
    unit = office.desk.book.units.get(UNIT)
    assert unit is not None
    return unit


def signs(key: HardwareSigner) -> bool:
    signature = asyncio.run(key.sign(pae("test", b"x")))
    return signature_holds(load_public_key(key.public_key_pem()), signature, pae("test", b"x"))


def test_the_command_takes_a_new_key_and_the_unit_goes_on_with_it(
    car: Path, office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(enrolling(car, office))
    store = Store(state(car) / "driveway.db")
    for _ in range(3):
        store.next_session(1)
    store.close()
    capsys.readouterr()
    assert turns(car, "--reason", "the yearly one", "--overlap", "12h", "--json") == exits.FINE
    said = json.loads(capsys.readouterr().out)
    assert (said["epoch"], said["former_keyid"], said["overlap_s"], said["reason"]) == (
        2,
        first.key.keyid,
        43_200,
        "the yearly one",
    )
    unit = in_book(office)
    assert (unit.keyid, unit.key_epoch, unit.key_protection) == (said["keyid"], 2, "file")
    assert last_session(office) == 3
    asked = office.asked
    second = start(enrolling(car, office))
    assert (second.key.keyid, second.key.known.epoch, second.cell) == (unit.keyid, 2, first.cell)
    assert [one.epoch for one in second.key.known.former] == [1]
    assert signs(second.key)
    assert office.asked == asked
    assert turns(car) == exits.FINE
    assert "epoch       3" in capsys.readouterr().out
    assert start(enrolling(car, office)).key.known.epoch == in_book(office).key_epoch == 3


@needs_swtpm
def test_a_key_in_a_tpm_hands_over_to_one_that_is_proven_too(car: Path, office: Office, tmp_path: Path) -> None:
    with EmulatedTpm(tmp_path / "emulated") as tpm:
        config = in_tpm(enrolling(car, office), tpm)
        first = start(config)
        new = asyncio.run(taken(config))
        unit = in_book(office)
        assert (unit.keyid, unit.key_epoch) == (new.keyid, 2)
        assert (unit.key_protection, unit.key_endorsement) == ("ftpm", "unverified EK")
        assert new.keyid != first.key.keyid
        second = start(config)
        assert second.key.keyid == new.keyid
        assert signs(second.key)
        for key in (first.key, new, second.key):
            key.close()


async def taken(config: Config, **options: Any) -> HardwareSigner:
    """The key after a rotation without a daemon."""
    identity = await establish(config)
    said = {"reason": "rotation", "overlap_s": 60, "last_session": 0, **options}
    key, _ = await rotation.rotate(home_of(config, identity, identity.dispatcher_keys), identity.key, **said)
    identity.key.close()
    return key


# --- power cuts -------------------------------------------------------------------------------------------------


class PowerCutError(BaseException):
    """Nothing in the program may catch it for good."""


def cut_after(real: Callable[..., Any]) -> Callable[..., Any]:
    def done(*arguments: Any, **options: Any) -> Any:
        real(*arguments, **options)
        raise PowerCutError

    return done


def cut_before(_real: Callable[..., Any]) -> Callable[..., Any]:
    def done(*_arguments: Any, **_options: Any) -> Any:
        raise PowerCutError

    return done


def cut_after_answer(real: Callable[..., Any]) -> Callable[..., Any]:
    async def done(*arguments: Any, **options: Any) -> Any:
        await real(*arguments, **options)
        raise PowerCutError

    return done


Cut = Callable[[Callable[..., Any]], Callable[..., Any]]
STEPS: dict[str, tuple[object, str, Cut, int, bool]] = {
    # where, what, how; the epoch of the next start, and whether the dispatcher has taken the new key by then
    "the new key and the signatures are made": (rotation, "hand_over", cut_after, 1, False),
    "the succession is written down": (rotation, "write_whole", cut_after, 1, False),
    "the dispatcher has taken it": (enrol, "rotate", cut_after_answer, 1, True),
    "the answer is written down": (rotation, "keep", cut_after, 2, True),
    "the new key is remembered": (enrolled, "forget_pending", cut_before, 2, True),
    "all is done": (enrolled, "forget_pending", cut_after, 2, True),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_power_cut_leaves_one_key_that_counts_and_the_rotation_can_be_finished(
    car: Path, office: Office, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    where, name, cut, epoch, taken_there = STEPS[step]
    config = enrolling(car, office)
    first = start(config)
    with monkeypatch.context() as patched:
        patched.setattr(where, name, cut(getattr(where, name)))
        with pytest.raises(PowerCutError):
            turns(car)
    assert in_book(office).key_epoch == (2 if taken_there else 1)

    again = start(config)
    assert again.key.known.epoch == epoch
    assert signs(again.key)
    if epoch == 1:
        assert again.key.keyid == first.key.keyid
        finished = asyncio.run(finish(config, again.key))
    else:
        finished = again.key
    unit = in_book(office)
    assert (finished.keyid, finished.known.epoch) == (unit.keyid, 2) == (unit.keyid, unit.key_epoch)
    assert pending(state(car)) is None
    last = start(config)
    assert (last.key.keyid, last.key.known) == (unit.keyid, recall(state(car)))
    assert signs(last.key)


class Certifier:
    """What a notary is to the keeper of keys."""

    def __init__(self) -> None:
        self.keys: list[HardwareSigner] = []
        self.told = asyncio.Event()

    def still(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def succeeded(self, key: HardwareSigner) -> None:
        self.keys.append(key)
        self.told.set()


async def _seven(_epoch: int) -> int:
    return 7


async def finish(config: Config, key: HardwareSigner) -> HardwareSigner:
    """As a daemon does that was started anew; where nothing is left to be finished, by command."""
    identity = await establish(config)
    certifier = Certifier()
    keeper = KeyKeeper(home_of(config, identity, identity.dispatcher_keys), key, certifier, _seven)
    if pending(config.path(config.state_dir)) is None:
        await keeper.rotate(reason="again", overlap_s=60)
        return keeper.key
    running = asyncio.ensure_future(keeper.run(lambda _event: None))
    async with asyncio.timeout(20):
        await certifier.told.wait()
    running.cancel()
    return keeper.key


def test_where_nobody_answers_the_old_key_goes_on_until_somebody_does(
    car: Path, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = enrolling(car, office)
    first = start(config)
    monkeypatch.setattr(rotation, "RETRY_S", (0.05, 0.1))
    away = msgspec.structs.replace(
        config, fleet=msgspec.structs.replace(config.fleet, enrol_url="http://127.0.0.1:1/enrol")
    )

    async def run() -> None:
        identity = await establish(config)
        certifier = Certifier()
        keeper = KeyKeeper(home_of(away, identity, identity.dispatcher_keys), first.key, certifier, _seven)
        with pytest.raises(FleetError, match="failed"):
            await keeper.rotate(reason="r", overlap_s=60)
        assert keeper.key is first.key
        assert pending(state(car)) is not None
        assert not certifier.keys
        keeper = KeyKeeper(home_of(config, identity, identity.dispatcher_keys), first.key, certifier, _seven)
        running = asyncio.ensure_future(keeper.run(lambda _event: None))
        async with asyncio.timeout(20):
            await certifier.told.wait()
        running.cancel()
        assert certifier.keys == [keeper.key]
        await keeper.close()

    asyncio.run(run())
    assert (in_book(office).key_epoch, last_session(office)) == (2, 7)


def test_the_new_key_vouches_for_the_sealing_key_at_once_and_the_dispatcher_believes_it(
    car: Path, office: Office
) -> None:
    config = enrolling(car, office)
    first = start(config)
    assert first.sealing is not None
    sealing, told = first.sealing, list[bytes]()

    def announced(envelope: bytes) -> int:
        """How often the dispatcher has complained, once it was told this."""
        message = encode(SealingKeyMessage(sealing_key=msgspec.json.decode(envelope, type=Envelope)))
        service = office.desk.service
        service.on_message(f"dw/v1/u/{first.cell}/{UNIT}/sealing", message)
        return service.counts["refused"]

    async def run() -> HardwareSigner:
        chores = [SealingVouched(sealing, told.append)]
        keeper = KeyKeeper(home_of(config, first, first.dispatcher_keys), first.key, Certifier(), _seven, chores=chores)
        await keeper.rotate(reason="r", overlap_s=60)
        return keeper.key

    second = asyncio.run(run())
    (envelope,) = told
    public = load_public_key(second.public_key_pem())
    record, _ = verify_sealing_key(envelope, UNIT, {second.keyid: public})
    assert record.epoch == sealing.keys.newest.epoch, "the same key: what is sealed to it can be opened"
    assert office.on_thread(lambda: announced(envelope)) == 0
    known = office.on_thread(lambda: office.desk.book.sealing_keys.of(UNIT))
    assert known is not None
    assert known.epoch == record.epoch
    again = start(config).sealing
    assert again is not None
    assert again.announcement == envelope, "it was kept"


def test_hardware_that_is_away_vouches_for_the_sealing_key_when_it_is_back(
    car: Path, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "RETRY_S", (0.01, 0.02))
    config = enrolling(car, office)
    identity = start(config)
    tries, done = itertools.count(1), asyncio.Event()

    async def chore(_key: HardwareSigner) -> None:
        match next(tries):
            case 1 | 2:
                raise TrustError("the hardware is away")
            case 4:
                done.set()

    async def run() -> list[str]:
        keeper = KeyKeeper(
            home_of(config, identity, identity.dispatcher_keys), identity.key, Certifier(), _seven, chores=[chore]
        )
        with capture_logs() as told:
            running = asyncio.ensure_future(keeper.run(lambda _event: None))
            async with asyncio.timeout(20):
                await done.wait()
            running.cancel()
        return [str(one["event"]) for one in told]

    assert asyncio.run(run()) == ["key_chore_waits", "key_chore_done"]


def test_what_the_dispatcher_refuses_is_not_said_again(car: Path, office: Office) -> None:
    config = enrolling(car, office)
    start(config)
    asyncio.run(taken(config))
    for name in ("unit-key.json", "enrolled.json"):
        (state(car) / name).unlink()  # as a disk that was put back to before the rotation
    (state(car) / "unit-2.key").unlink()
    (state(car) / "enrolled.json").write_bytes(
        msgspec.json.encode({"v": 1, "unit": UNIT, "cell": "00", "keyid": start_key(car)})
    )
    with pytest.raises(enrol.RefusedError, match=r"another key of unit car-0001 has epoch 2 already"):
        asyncio.run(taken(config))
    assert not (state(car) / PENDING).exists()


def start_key(car: Path) -> str:
    return FileSigner.open(state(car) / "unit.key").keyid


def test_a_unit_that_is_not_enrolled_or_an_overlap_too_long_is_refused(
    car: Path, office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    config = enrolling(car, office)
    assert turns(car) == exits.FAILED
    assert "not enrolled yet; start the daemon once" in capsys.readouterr().err
    start(config)
    with pytest.raises(TrustError, match="at most 90 days"):
        asyncio.run(taken(config, overlap_s=MAX_OVERLAP_S + 1))
    assert kept(state(car)) is not None
    assert not (state(car) / "unit-2.key").exists()
