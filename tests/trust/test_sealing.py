"""Sealed inputs: they open for one unit, one lease and one input, in order and whole; everything else is refused."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat import primitives
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import TrustError
from agent.sealing import establish_sealing
from agent.trust import dsse
from agent.trust import sealing as sealing_module
from agent.trust.keys import FileSigner
from agent.trust.sealing import (
    CHUNK_BYTES,
    SEALED_CHUNK_BYTES,
    TAG_BYTES,
    WRAPPED_BYTES,
    Opener,
    SealedObject,
    SealError,
    SealFault,
    key_id,
    seal,
    seal_whole,
    unwrap,
    wrap,
)
from agent.trust.sealing_key import KEPT, RENEWED_AFTER_S, SEALING_KEY_TYPE, SealingKeys, verify_sealing_key
from agent.trust.time_floor import BUILT_MS

KEY = bytes(range(16))
PLAIN = bytes(range(256)) * 800  # 204,800 bytes: three chunks and a bit
SIGNER = FileSigner(generate_private_key(SECP256R1()))
KEYS = {SIGNER.keyid: SIGNER.public_key()}


def about(plain: bytes = PLAIN, job: str = "job-1", epoch: int = 1) -> SealedObject:
    return SealedObject(job=job, epoch=epoch, sha256=hashlib.sha256(plain).hexdigest(), length=len(plain))


def opened(sealed: bytes, what: SealedObject, *, key: bytes = KEY, pieces: tuple[int, ...] = ()) -> bytes:
    """What it is, when it comes in pieces of these lengths and then the rest."""
    found = bytearray()
    opener = Opener(key, what, found.extend)
    for length in pieces:
        opener.add(sealed[:length])
        sealed = sealed[length:]
    opener.add(sealed)
    opener.finish()
    opener.close()
    return bytes(found)


def fault_of(sealed: bytes, what: SealedObject, *, key: bytes = KEY) -> SealFault:
    with pytest.raises(SealError) as refused:
        opened(sealed, what, key=key)
    return refused.value.fault


@given(
    st.sampled_from([0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, len(PLAIN)]),
    st.lists(st.integers(0, 2 * SEALED_CHUNK_BYTES), max_size=5),
)
def test_it_opens_however_it_comes(length: int, pieces: list[int]) -> None:
    plain = PLAIN[:length]
    sealed = seal_whole(KEY, about(plain), plain)
    assert len(sealed) == about(plain).sealed_bytes
    assert opened(sealed, about(plain), pieces=tuple(pieces)) == plain


@given(st.data())
def test_any_part_of_it_can_be_made_alone(data: st.DataObject) -> None:
    what = about()
    whole = seal_whole(KEY, what, PLAIN)
    first = data.draw(st.integers(0, len(whole) - 1))
    last = data.draw(st.integers(first, len(whole) - 1))
    part = b"".join(seal(KEY, what, lambda offset, length: PLAIN[offset : offset + length], first, last))
    assert part == whole[first : last + 1]


@given(st.data())
def test_no_bit_of_it_can_be_changed(data: st.DataObject) -> None:
    sealed = bytearray(seal_whole(KEY, about(), PLAIN))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert fault_of(bytes(sealed), about()) is SealFault.SPOILED


@given(st.binary(max_size=200))
def test_rubbish_is_never_opened(body: bytes) -> None:
    with pytest.raises(SealError):
        opened(body, about(b"x" * 20))


def test_it_cannot_be_shortened_lengthened_put_in_another_order_or_spliced() -> None:
    what, sealed = about(), seal_whole(KEY, about(), PLAIN)
    chunks = [sealed[at : at + SEALED_CHUNK_BYTES] for at in range(0, len(sealed), SEALED_CHUNK_BYTES)]
    assert fault_of(sealed[:-1], what) is SealFault.TRUNCATED
    assert fault_of(b"".join(chunks[:-1]), what) is SealFault.TRUNCATED
    assert fault_of(sealed + b"\0", what) is SealFault.TOO_LONG
    assert fault_of(chunks[1] + chunks[0] + b"".join(chunks[2:]), what) is SealFault.SPOILED
    assert fault_of(chunks[0] + chunks[0] + b"".join(chunks[2:]), what) is SealFault.SPOILED
    other = seal_whole(KEY, about(epoch=2), PLAIN)
    assert fault_of(chunks[0] + other[SEALED_CHUNK_BYTES:], what) is SealFault.SPOILED, "another lease's, same key"
    assert fault_of(sealed, what, key=bytes(16)) is SealFault.SPOILED


def test_a_whole_number_of_chunks_does_not_pass_for_a_shorter_input() -> None:
    """Whoever could name another length still has no last chunk that says that it is one."""
    plain = PLAIN[: 2 * CHUNK_BYTES]
    sealed = seal_whole(KEY, about(plain), plain)
    shorter = SealedObject(job="job-1", epoch=1, sha256=about(plain).sha256, length=CHUNK_BYTES)
    assert fault_of(sealed[:SEALED_CHUNK_BYTES], shorter) is SealFault.SPOILED


def test_only_what_opened_is_handed_on_and_the_buffers_are_wiped() -> None:
    sealed = bytearray(seal_whole(KEY, about(), PLAIN))
    sealed[SEALED_CHUNK_BYTES] ^= 1
    found = bytearray()
    opener = Opener(KEY, about(), found.extend)
    with pytest.raises(SealError, match=r"chunk 1 .* does not open"):
        opener.add(bytes(sealed))
    assert found == PLAIN[:CHUNK_BYTES]
    opener.close()
    assert not any(opener._plain)
    assert not any(opener._waiting)


def test_an_input_that_shrank_on_the_dispatchers_disk_is_not_sealed_short() -> None:
    with pytest.raises(SealError, match="shorter"):
        b"".join(seal(KEY, about(), lambda offset, length: PLAIN[:100][offset : offset + length], 0, 99))


# --- the content key ----------------------------------------------------------------------------------------------


def test_the_content_key_opens_for_one_unit_one_lease_and_one_input() -> None:
    mine, stranger, what = X25519PrivateKey.generate(), X25519PrivateKey.generate(), about()
    wrapped = wrap(KEY, mine.public_key(), what, "car-1")
    assert len(wrapped) == WRAPPED_BYTES
    assert wrapped != wrap(KEY, mine.public_key(), what, "car-1")
    assert unwrap(wrapped, mine, what, "car-1") == KEY
    refused = (
        (wrapped, stranger, what, "car-1"),
        (wrapped, mine, what, "car-2"),
        (wrapped, mine, about(epoch=2), "car-1"),
        (wrapped, mine, about(job="job-2"), "car-1"),
        (wrapped, mine, about(PLAIN[:-1]), "car-1"),
        (wrapped[:-1], mine, what, "car-1"),
        (wrapped[:20], mine, what, "car-1"),
        (bytes(WRAPPED_BYTES), mine, what, "car-1"),
        (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), mine, what, "car-1"),
    )
    for one in refused:
        with pytest.raises(SealError) as error:
            unwrap(*one)
        assert error.value.fault is SealFault.NOT_FOR_THIS


def test_a_content_key_of_another_length_is_none() -> None:
    mine, what = X25519PrivateKey.generate(), about()
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
    info = what.info("car-1", key_id(mine.public_key()))
    with pytest.raises(SealError) as error:
        unwrap(suite.encrypt(b"short", mine.public_key(), info), mine, what, "car-1")
    assert error.value.fault is SealFault.NOT_FOR_THIS


def test_nothing_is_sealed_to_a_point_of_low_order() -> None:
    with pytest.raises(SealError):
        wrap(KEY, X25519PublicKey.from_public_bytes(bytes(32)), about(), "car-1")


def test_an_older_library_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.hpke", None)
    monkeypatch.delattr(primitives, "hpke")
    assert not sealing_module.can_seal()
    with pytest.raises(SealError, match="install cryptography 47 or newer") as error:
        wrap(KEY, X25519PrivateKey.generate().public_key(), about(), "car-1")
    assert error.value.fault is SealFault.UNSUPPORTED


# --- the unit's key -----------------------------------------------------------------------------------------------


def test_a_key_is_made_once_kept_to_its_owner_and_renewed_in_time(tmp_path: Path) -> None:
    first = SealingKeys.open(tmp_path, "car-1", 1_000)
    (file,) = tmp_path.glob("sealing-*.key")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = SealingKeys.open(tmp_path, "car-1", 1_000 + RENEWED_AFTER_S)
    assert again.newest.epoch == first.newest.epoch == 1_000
    second = SealingKeys.open(tmp_path, "car-1", 1_001 + RENEWED_AFTER_S)
    assert second.newest.epoch == 1_001 + RENEWED_AFTER_S
    what = about()
    wrapped = wrap(KEY, first.newest.public, what, "car-1")
    assert second.content_key(wrapped, key_id(first.newest.public), what) == KEY, "the one before it still opens"
    third = SealingKeys.open(tmp_path, "car-1", 10_000 + 2 * RENEWED_AFTER_S)
    assert len(list(tmp_path.glob("sealing-*.key"))) == KEPT
    with pytest.raises(SealError) as error:
        third.content_key(wrapped, key_id(first.newest.public), what)
    assert error.value.fault is SealFault.UNKNOWN_KEY


def test_the_epoch_rises_whatever_the_clock_says(tmp_path: Path) -> None:
    """A clock that goes back makes no key; one that leaps ahead makes one, of a higher epoch."""
    first = SealingKeys.open(tmp_path, "car-1", 2_000_000_000)
    assert SealingKeys.open(tmp_path, "car-1", 5).newest.epoch == first.newest.epoch
    assert SealingKeys.open(tmp_path, "car-1", 2_100_000_000).newest.epoch > first.newest.epoch


def test_a_start_in_the_far_future_does_not_keep_a_key_for_ever(tmp_path: Path) -> None:
    """What it made is renewed once the clock is right, and then in its time, while the epochs go on from the leap."""
    today_s, far_s = BUILT_MS // 1000 + 86_400, 4_000_000_000
    assert SealingKeys.open(tmp_path, "car-1", far_s).newest.epoch == far_s
    for now_s, epoch in (
        (5, far_s),  # a dead battery: nothing is known
        (today_s, far_s + 1),
        (today_s, far_s + 1),
        (today_s + RENEWED_AFTER_S, far_s + 1),
        (today_s + RENEWED_AFTER_S + 1, far_s + 2),
        (today_s + 1, far_s + 2),  # a little back is no future
    ):
        assert SealingKeys.open(tmp_path, "car-1", now_s).newest.epoch == epoch
    assert len(list(tmp_path.glob("sealing-*.key"))) == KEPT


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"short"), lambda path: path.chmod(0o644)])
def test_a_key_that_is_damaged_or_open_to_others_is_not_used(tmp_path: Path, spoil: object) -> None:
    SealingKeys.open(tmp_path, "car-1", 1_000)
    (file,) = tmp_path.glob("sealing-*.key")
    assert callable(spoil)
    spoil(file)
    with pytest.raises(TrustError):
        SealingKeys.open(tmp_path, "car-1", 1_000)
    assert establish_sealing(tmp_path, "car-1", SIGNER, 1_000) is None


def test_the_units_own_key_vouches_for_it_once(tmp_path: Path) -> None:
    made = establish_sealing(tmp_path, "car-1", SIGNER, 1_000)
    assert made is not None
    record, key = verify_sealing_key(made.announcement, "car-1", KEYS)
    assert (record.epoch, key_id(key)) == (1_000, key_id(made.keys.newest.public))
    again = establish_sealing(tmp_path, "car-1", SIGNER, 1_000)
    assert again is not None
    assert again.announcement == made.announcement, "kept: nothing was signed"
    other = FileSigner(generate_private_key(SECP256R1()))
    anew = establish_sealing(tmp_path, "car-1", other, 1_000)
    assert anew is not None
    assert verify_sealing_key(anew.announcement, "car-1", {other.keyid: other.public_key()})[0] == record
    with pytest.raises(TrustError):
        verify_sealing_key(made.announcement, "car-2", KEYS)
    with pytest.raises(TrustError):
        verify_sealing_key(anew.announcement, "car-1", KEYS)


@pytest.mark.parametrize(
    "change",
    [{"v": 2}, {"epoch": -1}, {"publicKey": "AAAA"}, {"unit": "car-2"}, {"more": 1}, {"publicKey": "A" * 43 + "!"}],
)
def test_a_record_that_says_something_else_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    said = json.loads(SealingKeys.open(tmp_path, "car-1", 1_000).newest.record("car-1"))
    envelope = dsse.sign(SEALING_KEY_TYPE, dsse.canonical_json(said | change), SIGNER)
    with pytest.raises(TrustError):
        verify_sealing_key(envelope, "car-1", KEYS)


def test_the_plaintext_of_a_name_is_not_in_it() -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", about().name)
    assert about().name != about().sha256
    assert about().sealed_bytes == len(PLAIN) + TAG_BYTES * about().chunks
