"""The unit's key in a token, against SoftHSM: made there, cannot leave, and a wrong PIN is tried once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from agent.errors import TrustError
from agent.ports import Signer
from agent.trust import dsse, pkcs11
from agent.trust.csr import certificate_request
from agent.trust.keyring import KeyConfig, described, hand_over, open_key, remove_key, take_over
from agent.trust.keys import KeyAbsentError, KeyRefusedError, Removal, load_public_key
from agent.trust.pkcs11 import Pkcs11Place, Pkcs11Signer
from hil.emulated_keys import make_token
from tests.trust.hardware_keys import needs_softhsm

pytestmark = needs_softhsm


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pkcs11Place]:
    before = os.environ.get("SOFTHSM2_CONF")
    yield make_token(tmp_path_factory.mktemp("token"))
    os.environ.pop("SOFTHSM2_CONF")
    if before is not None:
        os.environ["SOFTHSM2_CONF"] = before


@pytest.fixture
def signers() -> Iterator[list[Pkcs11Signer]]:
    """What is in it is closed at the end: a process can be logged in to a token once."""
    opened: list[Pkcs11Signer] = []
    yield opened
    for signer in opened:
        signer.close()


def test_a_key_is_made_once_and_is_the_same_afterwards(token: Pkcs11Place, signers: list[Pkcs11Signer]) -> None:
    with pytest.raises(KeyAbsentError, match=r"has no key 'driveway'; was it replaced\? enrol again"):
        Pkcs11Signer.open(token)
    first = Pkcs11Signer.open(token, create=True)
    signature = first.sign(b"x" * 3000)
    first.close()
    again = Pkcs11Signer.open(token, create=True)
    signers.append(again)
    signer: Signer = again
    assert (signer.keyid, signer.protection) == (first.keyid, "pkcs11")
    assert dsse.signature_holds(load_public_key(signer.public_key_pem()), signature, b"x" * 3000)
    assert dsse.signature_holds(again.public_key(), again.sign(b"y"), b"y")


def test_a_session_that_was_closed_is_opened_again(token: Pkcs11Place, signers: list[Pkcs11Signer]) -> None:
    signer = Pkcs11Signer.open(replace(token, key="again"), create=True)
    signers.append(signer)
    signer.close()
    assert dsse.signature_holds(signer.public_key(), signer.sign(b"x"), b"x")


def test_its_certificate_request_is_valid(token: Pkcs11Place, signers: list[Pkcs11Signer]) -> None:
    signer = Pkcs11Signer.open(replace(token, key="request"), create=True)
    signers.append(signer)
    request = x509.load_der_x509_csr(certificate_request("car-0001", signer))
    assert request.is_signature_valid
    assert request.public_key() == signer.public_key()


def test_a_key_that_can_be_taken_out_or_is_of_another_kind_is_refused(token: Pkcs11Place) -> None:
    import pkcs11  # noqa: PLC0415 - an extra

    p256 = bytes.fromhex("06082a8648ce3d030107")
    p384 = bytes.fromhex("06052b81040022")
    with pkcs11.lib(str(token.module)).get_token(token_label=token.token).open(rw=True, user_pin="1234") as session:
        for label, curve, leaves in (("leaves", p256, True), ("p384", p384, False)):
            parameters = {pkcs11.Attribute.EC_PARAMS: curve}
            domain = session.create_domain_parameters(pkcs11.KeyType.EC, parameters, local=True)
            template = {pkcs11.Attribute.EXTRACTABLE: leaves, pkcs11.Attribute.SENSITIVE: not leaves}
            domain.generate_keypair(label=label, store=True, private_template=template)
        session.generate_keypair(pkcs11.KeyType.RSA, 1024, label="rsa", store=True)
    for label, said in (("leaves", "can be taken out"), ("p384", "not ECDSA P-256"), ("rsa", "not ECDSA P-256")):
        with pytest.raises(TrustError, match=said):
            Pkcs11Signer.open(replace(token, key=label), create=True)


def test_a_key_hands_over_to_another_label_of_the_same_token(token: Pkcs11Place, tmp_path: Path) -> None:
    """One login at a time: neither key is open while the other signs."""
    config = KeyConfig(backend="pkcs11", file=tmp_path / "x", pkcs11=replace(token, key="rotates"))
    first = open_key(config, create=True)
    first.close()
    known = described(first, "pkcs11", 1)
    envelope = hand_over(config, known, unit="car-1", overlap_s=60, reason="rotation")
    successor = take_over(tmp_path, known, envelope, unit="car-1")
    assert (successor.epoch, successor.protection) == (2, "pkcs11")
    assert successor.keyid != known.keyid


def test_a_refused_pin_is_a_refusal(token: Pkcs11Place, tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.touch(mode=0o600)
    pin.write_text("9999")
    with pytest.raises(KeyRefusedError, match="PinIncorrect; put the right PIN into"):
        Pkcs11Signer.open(replace(token, pin_file=pin))
    pin.chmod(0o644)
    with pytest.raises(TrustError, match="chmod 600"):
        Pkcs11Signer.open(replace(token, pin_file=pin))
    pin.unlink()
    with pytest.raises(TrustError, match="cannot be read"):
        Pkcs11Signer.open(replace(token, pin_file=pin))


def test_a_token_that_is_not_there_is_absent_and_a_module_that_is_none_is_said(
    token: Pkcs11Place, tmp_path: Path
) -> None:
    with pytest.raises(KeyAbsentError, match=r"NoSuchToken.*is it plugged in"):
        Pkcs11Signer.open(replace(token, token="another"))
    with pytest.raises(TrustError, match="is it the right module"):
        Pkcs11Signer.open(replace(token, module=tmp_path / "nothing.so"))


def test_without_the_extra_it_says_what_to_install(token: Pkcs11Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(TrustError, match=r"driveway-agent\[pkcs11\]"):
        Pkcs11Signer.open(token)


def test_a_key_is_destroyed_if_it_is_the_one_that_is_meant(token: Pkcs11Place, signers: list[Pkcs11Signer]) -> None:
    place = replace(token, key="to-be-destroyed")
    config = KeyConfig(backend="pkcs11", file=place.pin_file.with_name("none"), pkcs11=place)
    beside = Pkcs11Signer.open(replace(token, key="beside-it"), create=True)
    beside.close()
    made = Pkcs11Signer.open(place, create=True)
    made.close()
    assert remove_key(config, beside.keyid) is Removal.FOREIGN
    kept = Pkcs11Signer.open(place)
    kept.close()
    assert kept.keyid == made.keyid
    assert remove_key(config, made.keyid) is Removal.DONE
    with pytest.raises(KeyAbsentError, match="has no key 'to-be-destroyed'"):
        Pkcs11Signer.open(place)
    assert remove_key(config, made.keyid) is Removal.ABSENT
    left = Pkcs11Signer.open(replace(token, key="beside-it"))
    signers.append(left)
    assert left.keyid == beside.keyid


def test_a_destruction_that_was_cut_off_can_be_finished(token: Pkcs11Place) -> None:
    place = replace(token, key="half-gone")
    made = Pkcs11Signer.open(place, create=True)
    made.close()
    session = pkcs11._session(place, writing=True)
    pkcs11._private_key(session, place).destroy()
    session.close()
    assert Pkcs11Signer.remove(place, made.keyid) is Removal.DONE
    assert Pkcs11Signer.remove(place, made.keyid) is Removal.ABSENT
