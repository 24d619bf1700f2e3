"""Which key is the unit's: made once, known ever after, and nothing else in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.hardware import HardwareSigner, KeyState
from agent.trust.keyring import (
    RECORD,
    KeyConfig,
    described,
    hand_over,
    open_key,
    recall,
    remember,
    take_over,
    unit_key,
)
from agent.trust.keys import FileSigner, KeyAbsentError, load_public_key
from agent.trust.pkcs11 import Pkcs11Place
from agent.trust.succession import verify_succession
from agent.trust.tpm import DEFAULT_HANDLE, TpmPlace
from hil.emulated_keys import EmulatedTpm
from tests.trust.hardware_keys import needs_swtpm


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[EmulatedTpm]:
    with EmulatedTpm(tmp_path / "emulated") as emulated:
        yield emulated


def of_tpm(folder: Path, tpm: EmulatedTpm) -> KeyConfig:
    return KeyConfig(backend="tpm", file=folder / "unit.key", tpm=TpmPlace(device=tpm.address))


def signs(key: HardwareSigner) -> bool:
    signature = asyncio.run(key.sign(b"x"))
    return dsse.signature_holds(load_public_key(key.public_key_pem()), signature, b"x")


def opened(config: KeyConfig, folder: Path, *, create: bool = True) -> HardwareSigner:
    return asyncio.run(unit_key(config, folder, create=create))


def test_a_file_key_needs_no_record(tmp_path: Path) -> None:
    config = KeyConfig(file=tmp_path / "unit.key")
    with pytest.raises(KeyAbsentError, match="there is no key"):
        opened(config, tmp_path, create=False)
    key = opened(config, tmp_path)
    assert signs(key)
    assert (key.known.backend, key.known.epoch, key.protection) == ("file", 1, "file")
    assert [path.name for path in tmp_path.iterdir()] == ["unit.key"]
    assert opened(config, tmp_path, create=False).keyid == key.keyid


@needs_swtpm
def test_a_key_in_hardware_is_known_without_it_and_works_when_it_comes_back(tmp_path: Path, tpm: EmulatedTpm) -> None:
    config = of_tpm(tmp_path, tpm)
    first = opened(config, tmp_path)
    assert signs(first)
    tpm.stop()
    later = opened(config, tmp_path)  # the agent starts, and knows who it is
    assert (later.keyid, later.protection) == (first.keyid, "ftpm")
    with pytest.raises(KeyAbsentError, match="no TPM answers"):
        asyncio.run(later.sign(b"x"))
    assert later.health.state is KeyState.ABSENT
    tpm.start()
    back = opened(config, tmp_path)
    assert signs(back)
    for key in (first, later, back):
        key.close()


@needs_swtpm
def test_no_key_is_made_in_the_place_of_one_that_is_known(tmp_path: Path, tpm: EmulatedTpm) -> None:
    """A TPM that was cleared, or replaced with the computer, must not become a new identity by itself."""
    first = opened(of_tpm(tmp_path, tpm), tmp_path)
    with EmulatedTpm(tmp_path / "another") as another:
        config = of_tpm(tmp_path, another)
        cleared = opened(config, tmp_path)
        with pytest.raises(KeyAbsentError, match=r"was it cleared\? enrol again"):
            asyncio.run(cleared.sign(b"x"))
        open_key(config, create=True)
        replaced = opened(config, tmp_path)
        with pytest.raises(TrustError, match="the hardware holds the key"):
            asyncio.run(replaced.sign(b"x"))
    assert first.keyid == cleared.keyid == replaced.keyid


@needs_swtpm
def test_without_the_hardware_there_is_no_first_key(tmp_path: Path, tpm: EmulatedTpm) -> None:
    tpm.stop()
    with pytest.raises(KeyAbsentError, match="no TPM answers"):
        opened(of_tpm(tmp_path, tpm), tmp_path)
    assert not (tmp_path / RECORD).exists()


@needs_swtpm
def test_looking_changes_nothing(tmp_path: Path, tpm: EmulatedTpm) -> None:
    config = of_tpm(tmp_path, tpm)
    with pytest.raises(KeyAbsentError):
        opened(config, tmp_path, create=False)
    open_key(config, create=True)
    assert opened(config, tmp_path, create=False).protection == "ftpm"
    assert not (tmp_path / RECORD).exists()


def test_another_backend_than_the_known_keys_is_refused(tmp_path: Path) -> None:
    key = FileSigner.open_or_create(tmp_path / "unit.key")
    remember(tmp_path, described(key, "tpm", 1))
    with pytest.raises(
        TrustError, match=r"of the kind 'tpm', and the configuration says 'file'; set trust.key.backend"
    ):
        opened(KeyConfig(file=tmp_path / "unit.key"), tmp_path)


def test_a_later_epoch_lives_beside_the_first(tmp_path: Path) -> None:
    token = Pkcs11Place(module=tmp_path, token="t", key="driveway", pin_file=tmp_path)
    config = KeyConfig(file=tmp_path / "unit.key", pkcs11=token)
    assert config.at_epoch(1) == config
    third = config.at_epoch(3)
    assert third.file == tmp_path / "unit-3.key"
    assert third.tpm.handle == DEFAULT_HANDLE + 2
    assert third.pkcs11 == replace(token, key="driveway-3")
    known = described(FileSigner.open_or_create(third.file), "file", 3)
    remember(tmp_path, known)
    assert recall(tmp_path) == known
    assert signs(opened(config, tmp_path))


def test_a_key_hands_over_to_the_next_and_the_unit_goes_on_with_it(tmp_path: Path) -> None:
    hands_over(KeyConfig(file=tmp_path / "unit.key"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unit-2.key", RECORD, "unit.key"]


@needs_swtpm
def test_a_key_in_a_tpm_hands_over_to_one_at_the_next_handle(tmp_path: Path, tpm: EmulatedTpm) -> None:
    hands_over(of_tpm(tmp_path, tpm), tmp_path)


def hands_over(config: KeyConfig, folder: Path) -> None:
    first = opened(config, folder)
    envelope = hand_over(config, first.known, unit="car-1", overlap_s=3600, reason="rotation")
    unchanged = opened(config, folder)
    assert unchanged.keyid == first.keyid  # until the dispatcher has taken it
    found = verify_succession(envelope, load_public_key(first.public_key_pem()), unit="car-1", epoch=1)
    with pytest.raises(TrustError, match="of unit 'car-1', not 'car-2'"):
        take_over(folder, first.known, envelope, unit="car-2")
    successor = take_over(folder, first.known, envelope, unit="car-1")
    later = opened(config, folder)
    assert signs(later)
    assert (later.keyid, later.known.epoch) == (found.keyid, 2) == (successor.keyid, 2)
    with pytest.raises(TrustError, match="by another key than the one that it says"):
        take_over(folder, successor, envelope, unit="car-1")
    for key in (first, unchanged, later):
        key.close()


def test_a_key_that_is_not_this_units_cannot_hand_over(tmp_path: Path) -> None:
    config = KeyConfig(file=tmp_path / "unit.key")
    known = opened(config, tmp_path).known
    (tmp_path / "unit.key").unlink()
    FileSigner.open_or_create(tmp_path / "unit.key")
    with pytest.raises(TrustError, match="not this unit's"):
        hand_over(config, known, unit="car-1", overlap_s=0, reason="")


def test_pkcs11_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="needs to know which token"):
        open_key(KeyConfig(backend="pkcs11", file=tmp_path / "x"), create=False)


@pytest.mark.parametrize(
    ("old", "new"), [(b'"v":1', b'"v":2'), (b'"epoch":1', b'"epoch":-1'), (b'"tpm"', b'"cloud"'), (b"}", b"")]
)
def test_a_damaged_record_is_named_with_the_remedy(tmp_path: Path, old: bytes, new: bytes) -> None:
    remember(tmp_path, described(FileSigner.open_or_create(tmp_path / "k"), "tpm", 1))
    path = tmp_path / RECORD
    spoilt = path.read_bytes().replace(old, new)
    path.write_bytes(spoilt)
    with pytest.raises(TrustError, match=f"{RECORD} is damaged: .*; restore it, or remove it and enrol anew"):
        recall(tmp_path)
    assert path.read_bytes() == spoilt


@settings(max_examples=100, derandomize=True, deadline=None)
@given(body=st.binary(max_size=400))
def test_a_record_of_any_bytes_is_refused(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    folder = tmp_path_factory.mktemp("record")
    (folder / RECORD).write_bytes(body)
    with pytest.raises(TrustError, match="is damaged"):
        recall(folder)
