"""A unit's key hands over to the next, or is shown to live in a TPM: what the dispatcher takes, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from agent.core.model import Verdict
from agent.errors import ConfigError, FleetError, TrustError
from agent.fleet.enrol import Prover
from agent.fleet.enrolment_messages import (
    ENROLMENT_TYPE,
    TPM_CHALLENGE_TYPE,
    Activation,
    Enrolled,
    Enrolment,
    Rotation,
    TpmChallenge,
    TpmProof,
)
from agent.fleet.messages import Envelope, decode, encode
from agent.trust import dsse
from agent.trust.hardware import HardwareSigner
from agent.trust.keyring import KeyConfig, unit_key
from agent.trust.keys import FileSigner
from agent.trust.session import SESSION_TYPE, Session, SessionKey, certificate_of
from agent.trust.succession import succeed
from agent.trust.tpm import TpmPlace
from hil.certificates import Authority
from hil.dispatcher.enrolling import CHALLENGE_MS, makers_in
from hil.dispatcher.units import EnrolmentRefusedError
from hil.emulated_keys import EmulatedTpm
from tests.hil.honest_car import Car, Desk, new_signer
from tests.hil.ledger_cars import Ledger, LedgerCar
from tests.trust.hardware_keys import needs_swtpm, needs_swtpm_setup

pytestmark = pytest.mark.usefixtures("each_database")

OVERLAP_S = 3_600


def succession(car: Car, new: FileSigner, **changes: Any) -> bytes:
    """The car's key hands over to `new`."""
    said = {"unit": car.unit, "epoch": 2, "overlap_s": OVERLAP_S, "reason": "rotation", "last_session": 1, **changes}
    return succeed(said.pop("old", car.signer), new, **said)


def rotation(envelope: bytes, proof: TpmProof | None = None) -> bytes:
    return encode(Rotation(succession=msgspec.json.decode(envelope, type=Envelope), tpm=proof))


def rotated(desk: Desk, envelope: bytes) -> Enrolled:
    answer = desk.service.rotate(rotation(envelope))
    return decode(dsse.verify(answer, ENROLMENT_TYPE, {desk.key.keyid: desk.key.public_key()}), Enrolled)


def session(car: Car, signer: FileSigner, *, epoch: int, number: int) -> Session:
    key = SessionKey("file")
    said = certificate_of(key, unit=car.unit, key_epoch=epoch, number=number, boot_id="", boot_ms=0, wall_ms=0)
    return Session(number, key, dsse.sign(SESSION_TYPE, said.to_bytes(), signer))


# --- rotation -------------------------------------------------------------------------------------------------------


def test_the_next_key_takes_over_and_the_one_before_counts_for_the_overlap(desk: Desk, car: Car) -> None:
    old, new, before = car.signer, new_signer(), car.session
    for _ in range(4):
        desk.add_job()
    granted = car.must_request()
    answer = rotated(desk, succession(car, new))
    assert (answer.unit, answer.cell, answer.keyid, answer.epoch) == (car.unit, car.cell, new.keyid, 2)
    assert car.hand_in(car.result(granted)).verdict is Verdict.SETTLED, "signed in a session of the old epoch"

    car.session = session(car, new, epoch=2, number=1)
    assert car.hand_in(car.result(car.must_request())).verdict is Verdict.SETTLED

    grant = car.must_request()
    car.session = session(car, old, epoch=1, number=2)
    refused = car.hand_in(car.result(grant))
    assert refused.verdict is Verdict.LATER
    assert "certified by the unit's key of epoch 1 after it had handed over (its last session is 1)" in refused.reason

    car.session = before
    desk.now_ms += OVERLAP_S * 1000
    refused = car.hand_in(car.result(grant))
    assert refused.verdict is Verdict.LATER
    assert refused.reason == "the unit's key of epoch 1 handed over to the next, and its overlap is over"
    assert desk.service.ledger_faults(0, 9) == []
    with desk.viewing() as view:
        keys = [(one.keyid, one.public_key_pem) for one in view.attestations()]
    assert keys == [(old.keyid, old.public_key_pem()), (new.keyid, new.public_key_pem())]


def test_an_answer_that_was_lost_is_given_again_and_names_later_sessions(desk: Desk, car: Car) -> None:
    """The car went on with its old key for a while, since it had not heard."""
    old, new = car.signer, new_signer()
    desk.add_job()
    first = rotated(desk, succession(car, new))
    car.session = session(car, old, epoch=1, number=2)
    grant = car.must_request()
    assert car.hand_in(car.result(grant)).verdict is Verdict.LATER
    assert rotated(desk, succession(car, new, last_session=2)) == first
    assert rotated(desk, succession(car, new, last_session=1)) == first, "a replay takes nothing back"
    assert car.hand_in(car.result(grant)).verdict is Verdict.SETTLED


def test_epochs_rise_by_one_and_never_come_again(desk: Desk, car: Car) -> None:
    second, third = new_signer(), new_signer()
    to_second = succession(car, second)
    rotated(desk, to_second)
    assert rotated(desk, succession(car, third, old=second, epoch=3)).epoch == 3
    for envelope, said in (
        (to_second, "no signature on the envelope was made by a trusted key"),
        (succession(car, new_signer(), epoch=4), "no signature on the envelope was made by a trusted key"),
        (succession(car, new_signer(), old=third, epoch=5), "epoch 5 does not follow 3"),
        (succession(car, new_signer(), old=third, epoch=2), "epoch 2 does not follow 3"),
        (succession(car, new_signer(), old=second, epoch=3), "another key of unit .* has epoch 3 already"),
        (succession(car, new_signer(), old=new_signer(), epoch=4), "no signature on the envelope"),
        (succession(car, new_signer(), old=third, epoch=4, unit="stranger"), "no unit 'stranger' is enrolled"),
    ):
        with pytest.raises(TrustError, match=said):
            rotated(desk, envelope)
    unit = desk.book.units.get(car.unit)
    assert unit is not None
    assert (unit.keyid, unit.key_epoch) == (third.keyid, 3)
    assert [key.epoch for key in desk.book.units.keys_of(unit).values()] == [3, 2, 1]


def test_a_key_of_another_unit_or_of_the_past_is_nobodys_next(desk: Desk, car: Car, other: Car) -> None:
    new = new_signer()
    with pytest.raises(EnrolmentRefusedError, match="is, or was, a unit's already"):
        rotated(desk, succession(car, other.signer))
    rotated(desk, succession(car, new))
    with pytest.raises(EnrolmentRefusedError, match="is, or was, a unit's already"):
        rotated(desk, succession(car, car.signer, old=new, epoch=3))
    with pytest.raises(EnrolmentRefusedError, match="is, or was, a unit's already"):
        rotated(desk, succession(other, car.signer))


def test_checkpoints_are_the_present_keys_alone_and_the_ledger_goes_on(desk: Desk, car: Car) -> None:
    teller = LedgerCar(car, Ledger())
    teller.work(5)

    def say() -> int:
        car.say("checkpoint", encode(teller.checkpoint(key_epoch=epoch)))
        newest = desk.book.ledgers.newest(car.unit)
        assert newest is not None
        teller.witnessed = newest.size, newest.root
        return newest.size

    epoch = 1
    assert say() == 5
    new = new_signer()
    rotated(desk, succession(car, new))
    teller.work(3)
    with capture_logs() as logs:
        assert say() == 5
    assert any("epoch 1, which handed over to the next" in str(log) for log in logs)
    teller.signer, epoch = new, 2
    teller.park_anew()
    assert say() == 9
    assert desk.service.ledger_faults(0, 9) == []


# --- a key in a TPM ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedTpm]:
    with EmulatedTpm(tmp_path_factory.mktemp("tpm")) as emulated:
        yield emulated


class TpmCar:
    """A unit with its key in a TPM, which says what it should, or something else."""

    def __init__(
        self, desk: Desk, folder: Path, tpm: EmulatedTpm, chain: Path | None = None, unit: str = "car-7"
    ) -> None:
        self.desk, self.unit, self.place = desk, unit, TpmPlace(device=tpm.address, ek_chain_file=chain)
        config = KeyConfig(backend="tpm", file=folder / "unit.key", tpm=self.place)
        self.key: HardwareSigner = asyncio.run(unit_key(config, folder))
        self.by = Prover(self.key, self.place, unit)
        desk.book.units.add_code("code")

    def proof(self) -> TpmProof:
        return asyncio.run(self.by.evidence())

    def say(self, proof: TpmProof | None, code: str = "code") -> bytes:
        asked = Enrolment(
            code=code,
            unit=self.unit,
            public_key_pem=self.key.public_key_pem(),
            key_protection=self.key.protection,
            tpm=proof,
        )
        payload = encode(asked)
        signature = asyncio.run(self.key.sign(dsse.pae(ENROLMENT_TYPE, payload)))
        envelope = dsse.wrap(ENROLMENT_TYPE, payload, (dsse.Signature(self.key.keyid, signature),))
        return self.desk.service.enrol(envelope)

    def challenge(self, proof: TpmProof) -> TpmChallenge:
        keys = {self.desk.key.keyid: self.desk.key.public_key()}
        return decode(dsse.verify(self.say(proof), TPM_CHALLENGE_TYPE, keys), TpmChallenge)

    def activated(self, proof: TpmProof) -> TpmProof:
        return asyncio.run(self.by.activated(proof, self.challenge(proof)))

    def enrolled(self, proof: TpmProof) -> Enrolled:
        keys = {self.desk.key.keyid: self.desk.key.public_key()}
        return decode(dsse.verify(self.say(proof), ENROLMENT_TYPE, keys), Enrolled)


@pytest.fixture
def tpm_car(desk: Desk, tmp_path: Path, tpm: EmulatedTpm) -> Iterator[TpmCar]:
    folder = tmp_path / "car"
    folder.mkdir()
    car = TpmCar(desk, folder, tpm)
    yield car
    car.key.close()


@needs_swtpm
def test_a_key_is_in_a_tpm_once_that_has_shown_it(desk: Desk, tpm_car: TpmCar) -> None:
    proof = tpm_car.proof()
    answer = tpm_car.activated(proof)
    assert desk.book.units.get(tpm_car.unit) is None, "nothing is written down before"
    enrolled = tpm_car.enrolled(answer)
    assert (enrolled.keyid, enrolled.endorsement) == (tpm_car.key.keyid, "unverified EK")
    unit = desk.book.units.get(tpm_car.unit)
    assert unit is not None
    assert (unit.key_protection, unit.key_endorsement) == ("ftpm", "unverified EK")
    assert tpm_car.enrolled(answer) == enrolled, "an answer that was lost"


@needs_swtpm
def test_who_claims_a_tpm_and_does_not_show_it_is_refused(desk: Desk, tpm_car: TpmCar) -> None:
    proof = tpm_car.proof()
    until_ms = tpm_car.challenge(proof).until_wall_ms
    guess = base64.b64encode(bytes(32)).decode()
    answer = tpm_car.activated(proof)
    assert answer.activation is not None
    longer = msgspec.structs.replace(answer.activation, until_wall_ms=until_ms + 1)
    bad: list[tuple[Callable[[], TpmProof | None], str]] = [
        (lambda: None, "no evidence came with it; .*has to be proven"),
        (lambda: guessed(guess, until_ms), "not the one that only the TPM"),
        (lambda: msgspec.structs.replace(answer, activation=longer), "not the one that only the TPM"),
        (lambda: msgspec.structs.replace(proof, signature=proof.certification), "not signed by the attestation key"),
        (lambda: msgspec.structs.replace(proof, ek="no base64"), "evidence: not base64"),
    ]

    def guessed(secret: str, until_wall_ms: int) -> TpmProof:
        return msgspec.structs.replace(proof, activation=Activation(secret=secret, until_wall_ms=until_wall_ms))

    for make, said in bad:
        with pytest.raises(TrustError, match=said):
            tpm_car.say(make())
    with pytest.raises(EnrolmentRefusedError, match="the enrolment code is not known"):
        tpm_car.say(proof, code="guess")
    desk.now_ms += CHALLENGE_MS + 1
    with pytest.raises(EnrolmentRefusedError, match="came back too late"):
        tpm_car.say(answer)
    assert desk.book.units.get(tpm_car.unit) is None


@needs_swtpm
def test_evidence_is_for_one_unit_and_key(desk: Desk, tpm_car: TpmCar, car: Car) -> None:
    proof = tpm_car.proof()
    tpm_car.unit = "car-8"
    with pytest.raises(TrustError, match="not for unit 'car-8'"):
        tpm_car.say(proof)

    class Claims:
        """A file that says to be a TPM."""

        protection = "tpm"

        def __init__(self, signer: FileSigner) -> None:
            self.keyid, self.public_key_pem, self.sign = signer.keyid, signer.public_key_pem, signer.sign

    new = Claims(new_signer())
    envelope = succeed(car.signer, new, unit=car.unit, epoch=2, overlap_s=1, reason="", last_session=0)
    with pytest.raises(EnrolmentRefusedError, match="no evidence came with it"):
        desk.service.rotate(rotation(envelope))
    with pytest.raises(TrustError, match="about another key than the one that is to be the unit's"):
        desk.service.rotate(rotation(envelope, proof))
    odd = TpmChallenge(unit="x", keyid="0" * 64, blob="?", encrypted_seed="", until_wall_ms=0)
    with pytest.raises(FleetError, match="not base64"):
        asyncio.run(tpm_car.by.activated(proof, odd))


@needs_swtpm_setup
@needs_swtpm
def test_named_makers_have_to_have_certified_the_tpm(tmp_path: Path) -> None:
    roots, strangers, folder, chained = (tmp_path / name for name in ("roots", "strangers", "car", "far roots"))
    for one in (roots, strangers, folder, chained):
        one.mkdir()
    with EmulatedTpm(tmp_path / "emulated", with_certificate=True) as emulated:
        (chained / "root.pem").write_bytes(emulated.root.read_bytes())
        (roots / "maker.pem").write_bytes(emulated.authority.read_bytes())
        stranger = x509.load_pem_x509_certificate(Path(Authority(tmp_path / "ca").issue("x").ca).read_bytes())
        (strangers / "other.cer").write_bytes(stranger.public_bytes(Encoding.DER))
        for trusted, chain, said in (
            (strangers, None, "none of the makers that are trusted"),
            (strangers, emulated.authority, "none of the makers that are trusted"),
            (chained, None, "none of the makers that are trusted"),
            (roots, None, ""),
            (chained, emulated.authority, ""),
        ):
            desk = Desk(tmp_path / f"{trusted.name} {chain is None}", ek_roots=makers_in(trusted))
            desk.now_ms = int(time.time() * 1000) + 60_000
            car = TpmCar(desk, folder, emulated, chain)
            proof = car.proof()
            if said:
                with pytest.raises(EnrolmentRefusedError, match=said):
                    car.say(proof)
                with pytest.raises(EnrolmentRefusedError, match="not a certificate"):
                    car.say(msgspec.structs.replace(proof, ek_certificate=""))
            else:
                assert car.enrolled(car.activated(proof)).endorsement == "verified EK"
            car.key.close()
            desk.book.close()


def test_a_folder_without_makers_is_a_mistake(tmp_path: Path) -> None:
    for name, said in (("none", "no certificate"), ("spoilt", "cannot use the certificates")):
        folder = tmp_path / name
        folder.mkdir()
        if name == "spoilt":
            (folder / "maker.pem").write_bytes(b"no certificate")
        with pytest.raises(ConfigError, match=said):
            makers_in(folder)
    with pytest.raises(ConfigError, match="cannot use the certificates"):
        makers_in(tmp_path / "not there")
