"""How a unit is admitted, and takes another key: what crosses HTTPS between it and the dispatcher (docs/protocol.md).

The unit asks (`Enrolment`, `Rotation`); each answer is signed by the dispatcher (`Enrolled`, or a `TpmChallenge`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from agent.fleet.messages import VERSION, Base64, Envelope, Identifier, Sha256, Text, WallMs
from agent.trust.tpm_enrolment import MAX_CHAIN

ENROLMENT_TYPE = "application/vnd.driveway.enrolment+json"
TPM_CHALLENGE_TYPE = "application/vnd.driveway.tpm-challenge+json"


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """What the unit's TPM found in a TpmChallenge, and the time by which that was to come back."""

    secret: Base64
    until_wall_ms: WallMs


class TpmProof(msgspec.Struct, frozen=True, kw_only=True):
    """That a key lives in a TPM (`agent.trust.tpm_enrolment.TpmEvidence`), for a certificate request (PKCS#10, DER).

    Sent twice: without `activation`, which is answered by a TpmChallenge, and with it. `ek_chain` are the certificates
    between the endorsement key's and its maker's root, in any order.
    """

    request: Base64
    ek_certificate: Base64
    ek: Base64
    ak: Base64
    key: Base64
    certification: Base64
    signature: Base64
    ek_chain: Annotated[tuple[Base64, ...], msgspec.Meta(max_length=MAX_CHAIN)] = ()
    activation: Activation | None = None


class TpmChallenge(msgspec.Struct, frozen=True, kw_only=True):
    """The dispatcher's signed answer to evidence: a secret that only the TPM with those keys can open."""

    v: int = VERSION
    unit: Identifier
    keyid: Sha256
    blob: Base64
    encrypted_seed: Base64
    until_wall_ms: WallMs


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What a unit sends once, inside a DSSE envelope signed by the key it enrols (which proves possession).

    A key that is said to be in a TPM comes with the proof of it.
    """

    v: int = VERSION
    code: Text
    unit: Identifier
    public_key_pem: Annotated[str, msgspec.Meta(max_length=1024)]
    key_protection: Identifier
    tpm: TpmProof | None = None


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """What a unit sends to take a new key: the succession, signed by both keys; and the proof for one in a TPM."""

    v: int = VERSION
    succession: Envelope
    tpm: TpmProof | None = None


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """The dispatcher's signed answer: the unit is known, and its messages go to this cell.

    The key `keyid` is its one key now, of this `epoch`. `endorsement` is what is known of who made the TPM that it is
    in: `verified EK` (by the maker's certificate) or `unverified EK`; empty for a key that is in none.
    """

    v: int = VERSION
    unit: Identifier
    cell: Identifier
    keyid: Text
    epoch: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)] = 1
    endorsement: Text = ""
