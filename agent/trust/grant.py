"""Is this grant one to be taken? Everything about it that can be judged without the state of the leases.

    envelope --verify_order--> payload --read as its type, by the caller--> GrantClaims --check_grant--> taken

A grant is signed by a dispatcher whose key the catalogue delegates (or the configuration pins), is for this unit, names
a package that may run here, and says for how long it is good as a duration from when it was asked for, since the car's
clock is not to be trusted. That the same grant opens a second lease is refused elsewhere: in the transaction that opens
the first (`agent.store`).

A grant for a lease that is held already (a renewal) is judged without what only says that nothing new is to be begun.
Every refusal is a `NotAdmittedError` with a reason of its own. Pure: standard library and cryptography.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.admission import NotAdmittedError, Reason, Standing, check_key, check_new, check_package, trusted_keys

NONCE = re.compile(r"([0-9a-f]{2}){8,32}")
LONGEST_S = 86_400


@dataclass(frozen=True)
class GrantClaims:
    """What a grant says of itself, once its signature holds. Durations are in seconds; `renew_s` 0: never renewed."""

    unit: str
    nonce: str
    package: str
    package_sha256: str
    valid_s: int
    renew_s: int = 0


def verify_order(envelope: bytes, payload_type: str, standing: Standing) -> bytes:
    """The payload of whatever a dispatcher has signed, if its key counts.

    Raises NotAdmittedError: FORGED, KEY_UNKNOWN, KEY_DENIED or KEY_EPOCH. Where an envelope has more signatures than
    one, one that counts is enough, and the complaint is about the last that does not.
    """
    try:
        parsed = dsse.parse(envelope)
    except TrustError as error:
        raise NotAdmittedError(Reason.FORGED, error.what) from error
    if parsed.payload_type != payload_type:
        what = f"the envelope holds a {parsed.payload_type[:64]!a}, expected {payload_type!a}"
        raise NotAdmittedError(Reason.FORGED, what)
    complaint = NotAdmittedError(Reason.KEY_UNKNOWN, "no signature is by a dispatcher's key that is known here")
    keys, message = trusted_keys(standing), dsse.pae(parsed.payload_type, parsed.payload)
    for signature in parsed.signatures:
        if signature.keyid not in keys:
            continue
        epoch, key = keys[signature.keyid]
        try:
            check_key(standing, signature.keyid, epoch)
        except NotAdmittedError as error:
            complaint = error
            continue
        if dsse.signature_holds(key, signature.sig, message):
            return parsed.payload
        complaint = NotAdmittedError(Reason.FORGED, f"the signature by {signature.keyid[:16]}… does not hold")
    raise complaint


def check_grant(claims: GrantClaims, *, unit: str, standing: Standing | None, held: bool = False) -> None:
    """Raise NotAdmittedError where this grant must not be taken.

    `standing` is None where no catalogue is configured; then nothing is known of packages but their signatures.
    `held`: its lease is at work already.
    """
    if claims.unit != unit:
        raise NotAdmittedError(Reason.AUDIENCE, f"the grant is for the unit {claims.unit[:64]!a}, this is {unit!a}")
    if not NONCE.fullmatch(claims.nonce):
        raise NotAdmittedError(Reason.NONCE, "the grant's nonce is none: 8 to 32 bytes in hex")
    if not 0 < claims.valid_s <= LONGEST_S:
        raise NotAdmittedError(Reason.VALIDITY, f"the grant is good for {claims.valid_s} s, not for 1 to {LONGEST_S}")
    if claims.renew_s and not 0 < claims.renew_s < claims.valid_s:
        raise NotAdmittedError(Reason.VALIDITY, "the grant ends before its first renewal")
    if standing is None:
        return
    if not held:
        check_new(standing)
    check_package(standing, claims.package, claims.package_sha256)
