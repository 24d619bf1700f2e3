"""A key that handed over is removed when nobody needs it any more: not a moment before, and never another one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from agent.config import Config
from agent.core.model import HandInKind, Spent
from agent.enrolled import keep, kept, retired, write_retired
from agent.errors import TrustError
from agent.fleet.messages import Envelope, Yield, encode
from agent.identity import Identity
from agent.retiring import Circumstances, Retiring, lowest_epoch_owing
from agent.rows import HandInRow
from agent.store import Store, StoreThread
from agent.trust import dsse
from agent.trust.checkpoint import CHECKPOINT_TYPE, Checkpoint
from agent.trust.hardware import HardwareSigner
from agent.trust.keyring import recall, remember
from agent.trust.keys import FileSigner
from agent.trust.session import SESSION_TYPE, SessionKey, certificate_of
from agent.trust.tpm import TpmSigner
from hil.emulated_keys import EmulatedTpm
from tests.core.world import grant
from tests.hil.honest_car import new_signer
from tests.test_identity import Office, enrolling, in_tpm, start, state
from tests.test_rotation import PowerCutError, cut_before, signs, taken
from tests.trust.hardware_keys import needs_swtpm

OVERLAP_S = 60


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


@dataclass
class World:
    """What the old key's end hangs on, all of it as it has to be: the clock is past the overlap."""

    wall: int
    boot: int = 0
    trusted: bool = True
    owed: int | None = None

    def boot_ms(self) -> int:
        return self.boot

    def wall_ms(self) -> int:
        return self.wall

    def after(self, config: Config) -> Retiring:
        async def owing() -> int | None:
            return self.owed

        at = Circumstances(clock=self, is_clock_trusted=lambda: self.trusted, owing=owing)
        return Retiring(config.key, config.path(config.state_dir), at)


def rotated(config: Config, car: Path) -> tuple[Identity, World]:
    """A unit that has taken its second key, and a world at the end of the first one's overlap."""
    start(config).key.close()
    asyncio.run(taken(config, overlap_s=OVERLAP_S)).close()
    (old,) = retired(state(car))
    assert old.epoch == 1
    return start(config), World(old.ends_wall_ms)


def ask(retiring: Retiring, key: HardwareSigner) -> list[str]:
    """What the log is told."""

    async def once() -> None:
        await retiring(key)

    with capture_logs() as told:
        asyncio.run(once())
    return [str(one["event"]) for one in told]


def test_when_the_overlap_is_over_the_old_file_is_gone_and_the_unit_starts(car: Path, office: Office) -> None:
    config = enrolling(car, office)
    identity, world = rotated(config, car)
    retiring, old = world.after(config), state(car) / "unit.key"
    assert ask(retiring, identity.key) == ["former_key_removed"]
    assert not old.exists()
    assert retired(state(car)) == ()
    world.boot += 10**9
    assert ask(retiring, identity.key) == [], "it is told once"
    again = start(config)
    assert (again.key.keyid, again.key.known.epoch) == (identity.key.keyid, 2)
    assert [one.epoch for one in again.key.known.former] == [1], "what it signed is still verified"
    assert signs(again.key)


def _early(world: World, _folder: Path) -> None:
    world.wall -= 1


def _clock_unsure(world: World, _folder: Path) -> None:
    world.trusted = False


def _owed(world: World, _folder: Path) -> None:
    world.owed = 1


def _unconfirmed(_world: World, folder: Path) -> None:
    """The dispatcher's last answer names the old key, as on a disk that was put back in part."""
    answer = kept(folder)
    assert answer is not None
    keep(folder, msgspec.structs.replace(answer, keyid=FileSigner.open(folder / "unit.key").keyid))


@pytest.mark.parametrize("spoil", [_early, _clock_unsure, _owed, _unconfirmed])
def test_not_a_moment_before(car: Path, office: Office, spoil: Callable[[World, Path], None]) -> None:
    config = enrolling(car, office)
    identity, world = rotated(config, car)
    spoil(world, state(car))
    assert ask(world.after(config), identity.key) == []
    assert (state(car) / "unit.key").exists()
    assert len(retired(state(car))) == 1


def test_what_is_owed_by_the_new_key_is_no_reason_to_keep_the_old_one(car: Path, office: Office) -> None:
    config = enrolling(car, office)
    identity, world = rotated(config, car)
    world.owed = 2
    assert ask(world.after(config), identity.key) == ["former_key_removed"]


def test_another_key_in_its_place_is_left_alone(car: Path, office: Office) -> None:
    config = enrolling(car, office)
    identity, world = rotated(config, car)
    (state(car) / "unit.key").unlink()
    stranger = FileSigner.open_or_create(state(car) / "unit.key")
    assert ask(world.after(config), identity.key) == ["former_key_not_there"]
    assert FileSigner.open(state(car) / "unit.key").keyid == stranger.keyid
    assert retired(state(car)) == ()


def test_a_power_cut_at_either_end_forgets_no_key(car: Path, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    config = enrolling(car, office)
    start(config)
    with monkeypatch.context() as patched:
        patched.setattr("agent.enrolled.remember", cut_before(remember))
        with pytest.raises(PowerCutError):
            asyncio.run(taken(config, overlap_s=OVERLAP_S))
    (old,) = retired(state(car))
    early = World(old.ends_wall_ms)
    identity = start(config)
    assert identity.key.known.epoch == 2
    assert retired(state(car)) == (old,), "noted once, for the overlap that was begun"
    with monkeypatch.context() as patched:
        patched.setattr("agent.retiring.write_retired", cut_before(write_retired))
        with pytest.raises(PowerCutError):
            ask(early.after(config), identity.key)
    assert not (state(car) / "unit.key").exists()
    assert ask(early.after(config), identity.key) == ["former_key_removed"]
    assert retired(state(car)) == ()


@needs_swtpm
def test_a_key_in_a_tpm_is_evicted_once_the_tpm_is_there(car: Path, office: Office, tmp_path: Path) -> None:
    with EmulatedTpm(tmp_path / "emulated") as tpm:
        config = in_tpm(enrolling(car, office), tpm)
        identity, world = rotated(config, car)
        retiring = world.after(config)
        tpm.stop()
        with pytest.raises(TrustError, match="no TPM answers"):
            ask(retiring, identity.key)
        tpm.start()
        assert ask(retiring, identity.key) == [], "a TPM is not asked again at once"
        world.boot += 3_600_000
        assert ask(retiring, identity.key) == ["former_key_removed"]
        known = recall(state(car))
        assert known is not None
        first, second = (config.key.at_epoch(epoch).tpm for epoch in (1, 2))
        with second.opened() as open_tpm:
            assert open_tpm.read_public(first.handle) is None
        assert TpmSigner.open(second).keyid == known.keyid == identity.key.keyid
        identity.key.close()


# --- what is owed -------------------------------------------------------------------------------------------------

OLD, NEW = new_signer(), new_signer()


def certificate(epoch: int) -> bytes:
    key = SessionKey("file")
    said = certificate_of(key, unit="car-0001", key_epoch=epoch, number=1, boot_id="", boot_ms=0, wall_ms=0)
    return dsse.sign(SESSION_TYPE, said.to_bytes(), OLD if epoch == 1 else NEW)


def waiting(store: Store, number: int, epoch: int | None) -> None:
    """A hand-in of a session of this key epoch; None: a yield that has no statement."""
    said = None if epoch is None else msgspec.json.decode(certificate(epoch), type=Envelope)
    body = encode(Yield(rid="r", job=f"job-{number}", epoch=1, why="driver", session=said))  # type: ignore[arg-type]  # as JSON has it
    one = grant(number)
    store.open_lease(one, 1)
    row = HandInRow(HandInKind.YIELD, body, None, "", 0)
    store.hand_in(one, why="driver", spent=Spent(0, 0), wall_ms=2, build=lambda *_: row)


def checkpointed(store: Store, epoch: int) -> None:
    said = Checkpoint(
        v=1,
        unit="car-0001",
        key_epoch=epoch,
        size=epoch,
        root="ab" * 32,
        session=1,
        boot_id="",
        issued_boot_ms=0,
        issued_wall_ms=0,
    )
    store.add_checkpoint(said, dsse.sign(CHECKPOINT_TYPE, said.to_bytes(), OLD if epoch == 1 else NEW), 0)


def owing(folder: Path, session: bytes | None, *done: Callable[[Store], None]) -> int | None:
    async def look() -> int | None:
        store = StoreThread(folder / "driveway.db")
        await store.open()
        try:
            for one in done:
                await store.call(one)
            return await lowest_epoch_owing(store, session)
        finally:
            await store.close()

    return asyncio.run(look())


def test_what_is_owed_is_what_still_waits_for_somebody(tmp_path: Path) -> None:
    assert owing(tmp_path, None) is None
    assert owing(tmp_path, None, lambda store: waiting(store, 1, None)) is None
    assert owing(tmp_path, certificate(2), lambda store: waiting(store, 2, 2)) == 2
    assert owing(tmp_path, certificate(2), lambda store: waiting(store, 3, 1)) == 1
    assert owing(tmp_path, certificate(1)) == 1


def test_a_checkpoint_is_owed_until_a_newer_one_is_signed(tmp_path: Path) -> None:
    assert owing(tmp_path, None, lambda store: checkpointed(store, 1)) == 1
    assert owing(tmp_path, None, lambda store: checkpointed(store, 2)) == 2
