"""What came of a run, and whether it was good enough: from the dispatcher's book, the daemon's figures and the truth.

Attestations are verified by `securesystemslib`, which shares no code with ours.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as VerificationError
from securesystemslib.signer import SSlibKey

from hil.demo.evidence import Evidence
from hil.dispatcher.view import Attestation, View
from hil.images import LineImage, accuracy
from hil.record import Limit, Outcome

ACCURACY_MIN = 0.95
SLICES_LOST_MAX = 1
VACATE_MAX_MS = 250.0


def assess(
    view: View, jobs: Sequence[tuple[str, Sequence[LineImage]]], status: dict[str, Any], vacate_ms: float
) -> Outcome:
    """The figures of the run; `jobs` are the jobs' names with the images that went into each."""
    truths, answers = [], []
    for job, images in jobs:
        for image, answer in zip(images, view.answers(job), strict=True):
            if image.text is not None:
                truths.append(image.text)
                answers.append(answer.get("text", ""))
    attestations = view.attestations()
    earned = status["earnings"]
    return Outcome(
        images=sum(job.items_done for job in view.jobs()),
        accuracy=accuracy(truths, answers),
        slices_done=sum(job.slices_done for job in view.jobs()),
        slices_lost=status["slices"]["started"] - status["slices"]["kept"],
        vacate_ms=vacate_ms,
        attestations=len(attestations),
        attestations_verified=sum(map(independently_verified, attestations)),
        energy_wh=status["energy_wh"],
        gross=earned["gross"],
        energy_cost=earned["energy_cost"],
        net=earned["net"],
        currency=earned["currency"],
    )


def independently_verified(attestation: Attestation) -> bool:
    """Whether securesystemslib accepts the envelope under the session key that the unit's enrolled key certified.

    Without a certificate: under the unit's key itself.
    """
    key = SSlibKey.from_crypto(load_pem_public_key(attestation.public_key_pem.encode()), keyid=attestation.keyid)
    try:
        if attestation.session is not None:
            key = _certified(attestation.session, key)
        Envelope.from_dict(msgspec.json.decode(attestation.envelope)).verify([key], 1)
    except VerificationError:
        return False
    return True


def _certified(certificate: bytes, unit_key: SSlibKey) -> SSlibKey:
    """The session key in a certificate that the unit's key signed; raises securesystemslib's errors."""
    envelope = Envelope.from_dict(msgspec.json.decode(certificate))
    envelope.verify([unit_key], 1)
    der = base64.b64decode(msgspec.json.decode(envelope.payload)["publicKey"])
    return SSlibKey.from_crypto(load_der_public_key(der), keyid=hashlib.sha256(der).hexdigest())


def limits(outcome: Outcome, images_expected: int, paid_micro: int) -> list[Limit]:
    """Each figure that decides the exit code, against its limit."""
    return [
        _limit("images answered", str(outcome.images), str(images_expected), outcome.images == images_expected),
        _limit("characters right", f"{outcome.accuracy:.4f}", f">= {ACCURACY_MIN}", outcome.accuracy >= ACCURACY_MIN),
        _limit(
            "attestations verified",
            str(outcome.attestations_verified),
            f"all {outcome.attestations}",
            0 < outcome.attestations == outcome.attestations_verified,
        ),
        _limit(
            "slices lost to the driver",
            str(outcome.slices_lost),
            f"<= {SLICES_LOST_MAX}, the one in flight",
            0 <= outcome.slices_lost <= SLICES_LOST_MAX,
        ),
        _limit(
            "vacate, door to worker gone",
            f"{outcome.vacate_ms:.0f} ms",
            f"< {VACATE_MAX_MS:.0f} ms",
            outcome.vacate_ms < VACATE_MAX_MS,
        ),
        _limit(
            "paid, by the car and by the dispatcher",
            f"{outcome.gross:.6f}",
            f"{paid_micro / 1e6:.6f}",
            round(outcome.gross * 1e6) == paid_micro,
        ),
        _limit("energy measured", f"{outcome.energy_wh:.4f} Wh", "> 0", outcome.energy_wh > 0),
    ]


def given_back_limit(leases: Sequence[dict[str, Any]]) -> Limit:
    """The story is only told when the driver took the computer away from a lease, once."""
    given_back = sum(row["lease"]["why"] == "driver" for row in leases)
    return _limit("leases given back to the driver", str(given_back), "1", given_back == 1)


def statements_limit(outcome: Outcome, statements: int) -> Limit:
    """Every statement in the car's ledger has arrived at the dispatcher and was accepted."""
    held = outcome.attestations == statements
    return _limit(
        "attestations, by the dispatcher and by the car's ledger", str(outcome.attestations), str(statements), held
    )


def evidence_limits(evidence: Evidence) -> list[Limit]:
    """Every result bundle holds by itself, and the witnessed part of the ledger has work in it that can be proven."""
    return [
        _limit(
            "result bundles that `driveway verify` says hold",
            str(evidence.results_verified),
            f"all {evidence.results}",
            0 < evidence.results == evidence.results_verified,
        ),
        _limit(
            "proofs of witnessed statements that hold",
            str(evidence.proofs_verified),
            f"all {evidence.proofs}, at least 1",
            0 < evidence.proofs == evidence.proofs_verified,
        ),
    ]


def _limit(name: str, value: str, limit: str, held: bool) -> Limit:  # noqa: FBT001 - the verdict itself
    return Limit(name=name, value=value, limit=limit, held=held)
