"""A unit's key hands over to the next: both sign, the epoch rises by one, and nothing else passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.keys import FileSigner
from agent.trust.session import SESSION_TYPE
from agent.trust.succession import (
    MAX_OVERLAP_S,
    SUCCESSION_TYPE,
    Succession,
    parse_succession,
    succeed,
    verify_succession,
)

UNIT = "car-0001"


def fresh() -> FileSigner:
    return FileSigner(generate_private_key(SECP256R1()))


OLD, NEW, STRANGER = fresh(), fresh(), fresh()


def handed_over(**changes: Any) -> bytes:
    said: dict[str, Any] = {"unit": UNIT, "epoch": 2, "overlap_s": 86_400, "reason": "rotation", **changes}
    return succeed(said.pop("old", OLD), said.pop("new", NEW), **said)


def verified(envelope: bytes, epoch: int = 1) -> str:
    return verify_succession(envelope, OLD.public_key(), unit=UNIT, epoch=epoch).keyid


def test_the_new_key_is_what_the_old_one_named() -> None:
    found = verify_succession(handed_over(), OLD.public_key(), unit=UNIT, epoch=1)
    assert (found.keyid, found.key) == (NEW.keyid, NEW.public_key())
    said = found.succession
    assert (said.epoch, said.overlap_s, said.protection, said.reason) == (2, 86_400, "file", "rotation")
    assert len(dsse.parse(handed_over()).signatures) == 2


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_an_epoch_is_never_repeated_rolled_back_or_skipped(epoch: int) -> None:
    with pytest.raises(TrustError, match=f"epoch 2 does not follow {epoch}"):
        verified(handed_over(), epoch)


def payload(**changes: Any) -> bytes:
    honest = parse_succession(dsse.parse(handed_over()).payload)
    return replace(honest, **changes).to_bytes()


def signed(body: bytes, *signers: FileSigner, kind: str = SUCCESSION_TYPE) -> bytes:
    message = dsse.pae(kind, body)
    return dsse.wrap(kind, body, [dsse.Signature(one.keyid, one.sign(message)) for one in signers])


FORGERIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "by a stranger": (lambda: handed_over(old=STRANGER), "no signature on the envelope"),
    "without the old key": (lambda: signed(payload(), NEW), "no signature on the envelope"),
    "without the new key": (lambda: signed(payload(), OLD), "no signature on the envelope"),
    "somebody else's key": (lambda: signed(payload(), OLD, STRANGER), "no signature on the envelope"),
    "another unit": (lambda: handed_over(unit="car-0002"), "it is of unit 'car-0002', not"),
    "old key misnamed": (lambda: signed(payload(old_keyid=STRANGER.keyid), OLD, NEW), "by another key than the one"),
    "to itself": (lambda: handed_over(new=OLD), "succeeds itself"),
    "another type": (lambda: signed(payload(), OLD, NEW, kind=SESSION_TYPE), "the envelope holds a"),
    "another version": (
        lambda: signed(payload().replace(b'"v":1', b'"v":2'), OLD, NEW),
        "version 2 is not understood",
    ),
    "no key": (lambda: signed(payload(public_key="A" * 64), OLD, NEW), "not a public key in DER"),
    "for ever": (
        lambda: signed(payload().replace(b"86400", str(MAX_OVERLAP_S + 1).encode()), OLD, NEW),
        "an overlap of",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_is_no_succession_is_refused(name: str) -> None:
    forge, said = FORGERIES[name]
    with pytest.raises(TrustError, match=said):
        verified(forge())


def test_a_payload_that_could_not_be_read_back_is_not_made() -> None:
    for changes in ({"overlap_s": MAX_OVERLAP_S + 1}, {"reason": "x" * 513}, {"unit": "no unit"}, {"epoch": -1}):
        with pytest.raises(TrustError):
            handed_over(**changes)
    with pytest.raises(TrustError):
        parse_succession(b"{}")
    assert isinstance(parse_succession(payload()), Succession)
