"""How a unit's key becomes known: its enrolment, its succession by another, and the proof that it lives in a TPM.

Both are said by keys that sign, so possession is proven. A key that is said to be in a TPM is believed to be there only
when the TPM itself has shown it, in two requests: the first brings the evidence, and is answered with a challenge; the
second brings what that TPM found in it (`hil.dispatcher.credential`). Nothing is remembered between the two: the secret
is made of the evidence, the time by which it has to be back, and a word that all replicas share, so that any of them
can answer, and nobody can fill a table.

Whether the TPM is a TPM at all rests on its maker's certificate. It is checked where the operator named the makers that
are trusted (`--ek-roots`); where none are named it is written down as `unverified EK`, since anybody's emulator passes.

Everything may be said again: an answer that was lost is given once more. What is refused is refused with a reason.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog
from cryptography import x509
from cryptography.x509.oid import NameOID

from agent.errors import ConfigError, TrustError
from agent.fleet.enrolment_messages import (
    ENROLMENT_TYPE,
    TPM_CHALLENGE_TYPE,
    Enrolled,
    Enrolment,
    Rotation,
    TpmChallenge,
    TpmProof,
)
from agent.fleet.messages import decode, encode
from agent.ports import Signer
from agent.trust import dsse
from agent.trust.hardware import IN_TPM
from agent.trust.keys import keyid, load_public_key, public_pem
from agent.trust.session import FIRST_KEY_EPOCH
from agent.trust.succession import Succeeded, parse_succession, verify_succession
from agent.trust.tpm_enrolment import TpmEvidence
from agent.trust.tpm_structures import parse_public
from hil.dispatcher.book import Book
from hil.dispatcher.credential import check_evidence, make_credential
from hil.dispatcher.endorsement import check_endorsement
from hil.dispatcher.units import EnrolmentRefusedError, NewKey, Unit

CHALLENGE_MS = 600_000
"""A TPM opens a challenge in seconds; over a bad link it takes minutes until that is back."""
VERIFIED, UNVERIFIED = "verified EK", "unverified EK"
PROVE_IT = "a key that is said to be in a TPM has to be proven to be there"

log = structlog.get_logger("dispatcher")


class Enrolling:
    """Use from the thread that owns the book. `makers`: of TPMs that are trusted; none: any is taken, and marked.

    Every method raises StoreError when the database does not answer; then nothing was done.
    """

    def __init__(self, book: Book, key: Signer, makers: Sequence[x509.Certificate] = ()) -> None:
        self._book, self._key, self._makers = book, key, tuple(makers)

    def enrol(self, envelope: bytes) -> bytes:
        """Enrol the unit whose key signed `envelope`; the signed answer: that it is, or a challenge for its TPM.

        Raises EnrolmentRefusedError when it may not be, TrustError or MessageError when the request is not one.
        """
        claimed = decode(dsse.parse(envelope).payload, Enrolment)
        key = load_public_key(claimed.public_key_pem)
        enrolment = decode(dsse.verify(envelope, ENROLMENT_TYPE, {keyid(key): key}), Enrolment)
        self._book.units.check(enrolment, keyid(key))
        endorsement = self._proven(enrolment.unit, keyid(key), enrolment.key_protection, enrolment.tpm)
        if isinstance(endorsement, TpmChallenge):
            return dsse.sign(TPM_CHALLENGE_TYPE, encode(endorsement), self._key)
        unit = self._book.units.enrol(enrolment, keyid(key), endorsement)
        log.info("unit_enrolled", cell=unit.cell, **_key_facts(unit))
        return self._enrolled(unit)

    def rotate(self, body: bytes) -> bytes:
        """Give a unit the key to which its present one handed over; the signed answer, or a challenge. Raises as above.

        The one before counts no more for new sessions at once, and for what its sessions signed after the overlap.
        """
        asked = decode(body, Rotation)
        envelope = msgspec.json.encode(asked.succession)
        said = parse_succession(dsse.parse(envelope).payload)
        unit = self._book.units.get(said.unit)
        if unit is None:
            raise EnrolmentRefusedError(f"no unit {said.unit!r} is enrolled")
        if said.epoch == unit.key_epoch and unit.key_epoch > FIRST_KEY_EPOCH:
            return self._rotated_before(unit, envelope)
        new = verify_succession(envelope, load_public_key(unit.public_key_pem), unit=unit.unit, epoch=unit.key_epoch)
        endorsement = self._proven(unit.unit, new.keyid, new.succession.protection, asked.tpm)
        if isinstance(endorsement, TpmChallenge):
            return dsse.sign(TPM_CHALLENGE_TYPE, encode(endorsement), self._key)
        unit = self._book.units.succeed(unit, _new_key(new, endorsement, envelope))
        log.info("key_rotated", epoch=unit.key_epoch, reason=new.succession.reason, **_key_facts(unit))
        return self._enrolled(unit)

    def _rotated_before(self, unit: Unit, envelope: bytes) -> bytes:
        """The same succession once more, since its answer was lost; a later one may know of more sessions."""
        before = self._book.units.former_keys(unit)[0]
        found = verify_succession(envelope, load_public_key(before.public_key_pem), unit=unit.unit, epoch=before.epoch)
        if found.keyid != unit.keyid:
            raise EnrolmentRefusedError(f"another key of unit {unit.unit} has epoch {unit.key_epoch} already")
        self._book.units.note_last_session(unit, before.epoch, found.succession.last_session)
        return self._enrolled(unit)

    def _enrolled(self, unit: Unit) -> bytes:
        answer = Enrolled(
            unit=unit.unit, cell=unit.cell, keyid=unit.keyid, epoch=unit.key_epoch, endorsement=unit.key_endorsement
        )
        return dsse.sign(ENROLMENT_TYPE, encode(answer), self._key)

    # --- a key in a TPM -------------------------------------------------------------------------------------------

    def _proven(self, unit: str, key: str, protection: str, proof: TpmProof | None) -> str | TpmChallenge:
        """What is known of the maker of the TPM that the key was shown to be in, or the challenge that is to show it.

        Empty for a key that is said to be in none. Raises EnrolmentRefusedError, or TrustError for false evidence.
        """
        if protection not in IN_TPM:
            return ""
        if proof is None:
            what = f"the key is said to be in a TPM ({protection}), and no evidence came with it"
            raise EnrolmentRefusedError(what, hint=PROVE_IT)
        evidence, request = _evidence(proof), _bytes(proof.request)
        attested = check_evidence(evidence, request)
        if attested.keyid != key:
            raise TrustError("evidence: it is about another key than the one that is to be the unit's")
        if _requester(request) != unit:
            raise TrustError(f"evidence: the certificate request is not for unit {unit!r}")
        endorsement = self._endorsement(evidence)
        now_ms = self._book.now_ms()
        if proof.activation is None:
            until_ms = now_ms + CHALLENGE_MS
            sealed = make_credential(
                attested.endorsement, parse_public(evidence.ak).name, self._secret(unit, key, evidence, until_ms)
            )
            return TpmChallenge(
                unit=unit,
                keyid=key,
                blob=base64.b64encode(sealed.blob).decode("ascii"),
                encrypted_seed=base64.b64encode(sealed.encrypted_seed).decode("ascii"),
                until_wall_ms=until_ms,
            )
        until_ms = proof.activation.until_wall_ms
        if not hmac.compare_digest(self._secret(unit, key, evidence, until_ms), _bytes(proof.activation.secret)):
            raise EnrolmentRefusedError("the secret is not the one that only the TPM of this evidence could open")
        if now_ms > until_ms:
            raise EnrolmentRefusedError("the secret came back too late", hint="ask for another challenge")
        return endorsement

    def _secret(self, unit: str, key: str, evidence: TpmEvidence, until_ms: int) -> bytes:
        """32 bytes that only a dispatcher of this book can tell, and (sealed for it) only this TPM."""
        digests = [hashlib.sha256(one).hexdigest() for one in (evidence.ek, evidence.ak)]
        about = msgspec.json.encode([unit, key, *digests, until_ms])
        return hmac.digest(self._book.secret("tpm_challenge").encode(), about, "sha256")

    def _endorsement(self, evidence: TpmEvidence) -> str:
        if not self._makers:
            return UNVERIFIED
        now = dt.datetime.fromtimestamp(self._book.now_ms() / 1000, dt.UTC)
        try:
            check_endorsement(evidence, self._makers, now)
        except TrustError as error:
            hint = "the TPM's maker, or whoever provisioned the board, has to be among --ek-roots"
            raise EnrolmentRefusedError(error.what, hint=hint) from error
        return VERIFIED


def makers_in(folder: Path) -> list[x509.Certificate]:
    """The certificates of the makers that are trusted: every `.pem`, `.crt` and `.cer` file, PEM or DER.

    Raises ConfigError for one that cannot be read, and for a folder without any.
    """
    found = list[x509.Certificate]()
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix not in {".pem", ".crt", ".cer"}:
                continue
            body = path.read_bytes()
            is_pem = b"-----BEGIN" in body
            found += x509.load_pem_x509_certificates(body) if is_pem else [x509.load_der_x509_certificate(body)]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--ek-roots: cannot use the certificates in {folder}: {error}") from error
    if not found:
        raise ConfigError(f"--ek-roots: no certificate (.pem, .crt, .cer) in {folder}")
    return found


def _new_key(found: Succeeded, endorsement: str, envelope: bytes) -> NewKey:
    said = found.succession
    return NewKey(
        keyid=found.keyid,
        public_key_pem=public_pem(found.key),
        protection=said.protection,
        endorsement=endorsement,
        last_session=said.last_session,
        overlap_ms=said.overlap_s * 1000,
        succession=envelope,
    )


def _key_facts(unit: Unit) -> dict[str, str]:
    """What the log is told: of a key in a TPM also what is known of the TPM's maker."""
    facts = {"unit": unit.unit, "keyid": unit.keyid, "key_protection": unit.key_protection}
    return facts | ({"endorsement": unit.key_endorsement} if unit.key_endorsement else {})


def _evidence(proof: TpmProof) -> TpmEvidence:
    return TpmEvidence(
        ek_certificate=_bytes(proof.ek_certificate),
        ek=_bytes(proof.ek),
        ak=_bytes(proof.ak),
        key=_bytes(proof.key),
        certification=_bytes(proof.certification),
        signature=_bytes(proof.signature),
        ek_chain=tuple(_bytes(one) for one in proof.ek_chain),
    )


def _requester(request: bytes) -> str:
    """Whom a certificate request, which was checked, is for."""
    names = x509.load_der_x509_csr(request).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TrustError("evidence: not base64") from error
