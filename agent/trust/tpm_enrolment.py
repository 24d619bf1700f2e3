"""How a TPM shows that the unit's key lives in it: evidence for whoever issues the certificate, and the answer to them.

Three keys take part. The endorsement key (EK) is the TPM's identity; its maker, or on a Jetson whoever provisioned the
board, certified it. It can only open what was sealed for another key of the same TPM. The attestation key (AK) signs
only what the TPM itself says. The unit's key signs what the agent says. So:

1. The unit sends its evidence: the EK and its certificate, the AK, the unit's key, and the AK's certification of it,
   over the digest of the certificate request (`gather`).
2. The issuer seals a secret for that AK in the TPM of that EK (`hil.dispatcher.credential.make_credential`).
3. Only that TPM can open it, and only if the AK lives there (`activate`); the unit sends the secret back.
4. The issuer checks the certification: the unit's key is in the same TPM, and cannot leave it.

EK and AK are primary keys of the endorsement hierarchy: made from the TPM's seed each time, the same each time, and
kept nowhere.

Most makers' roots certify an intermediate authority, and that the EK. The certificates in between go along: from the
TPM, where its maker put them there, and from a file where the configuration names one. They prove nothing here; whoever
issues checks them (`hil.dispatcher.endorsement`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from agent.errors import TrustError
from agent.trust.keys import KeyAbsentError
from agent.trust.tpm import MAKE_LIMIT_S, TpmPlace
from agent.trust.tpm_commands import ENDORSEMENT, Tpm
from agent.trust.tpm_structures import attestation_template, endorsement_template

EK_CERTIFICATE_RSA, EK_CERTIFICATE_ECC = 0x01C00002, 0x01C0000A
"""NV indexes of the EK's certificates (TCG EK Credential Profile, 2.2.1.4 and 2.2.1.5)."""
EK_CHAIN = range(0x01C00100, 0x01C00108)
"""NV indexes of the certificates above it, one behind the other in DER, where the maker put them (2.2.1.5.2): the first
eight of the 256 that are reserved, far more than `MAX_CHAIN_BYTES`."""
MAX_CHAIN, MAX_CHAIN_BYTES = 4, 6 * 1024
"""Certificates between the EK's and the maker's root. More than that would not fit into an enrolment of 16 KiB."""
DER_HEAD_BYTES = 4
"""A SEQUENCE with a length of two bytes, as every certificate of 256 bytes to 64 KB begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmEvidence:
    """What the issuer is sent. Keys are public areas (TPMT_PUBLIC); `ek_certificate` is DER, empty where there is none.

    `certification` (TPMS_ATTEST) and its signature by the AK (DER) are about the unit's key. `ek_chain` are the
    certificates (DER) between the EK's and the maker's root, in any order.
    """

    ek_certificate: bytes
    ek: bytes
    ak: bytes
    key: bytes
    certification: bytes
    signature: bytes
    ek_chain: tuple[bytes, ...] = ()


def gather(place: TpmPlace, request: bytes) -> TpmEvidence:
    """The evidence that goes with a certificate request (PKCS#10, DER); raises TrustError. Takes seconds on a chip.

    The EK is the one that has a certificate: ECC rather than RSA, and ECC where neither has.
    """
    chain = [] if place.ek_chain_file is None else _chain_in(place.ek_chain_file)
    with place.opened(MAKE_LIMIT_S) as tpm:
        key = tpm.read_public(place.handle)
        if key is None:
            raise KeyAbsentError(f"the TPM {place.device} has no key at {place.handle:#x}")
        certificate, rsa = _unpadded(tpm.read_nv(EK_CERTIFICATE_ECC)), False
        if not certificate:
            certificate = _unpadded(tpm.read_nv(EK_CERTIFICATE_RSA))
            rsa = bool(certificate)
        chain += _split(b"".join(_stored_chain(tpm)))
        with tpm.primary(ENDORSEMENT, endorsement_template(rsa=rsa)) as (_, ek):
            pass  # its public part is all that is wanted
        with tpm.primary(ENDORSEMENT, attestation_template()) as (handle, ak):
            certification, signature = tpm.certify(place.handle, handle, hashlib.sha256(request).digest())
    return TpmEvidence(
        ek_certificate=certificate,
        ek=ek.area,
        ak=ak.area,
        key=key.area,
        certification=certification,
        signature=signature,
        ek_chain=_bounded(chain),
    )


def activate(place: TpmPlace, ek: bytes, blob: bytes, secret: bytes) -> bytes:
    """What the issuer sealed for this TPM's AK (`blob` and `secret` as `make_credential` gave them).

    `ek` is the evidence's. Raises TrustError, as when it was sealed for another TPM or key.
    """
    for rsa in (False, True):
        with (
            place.opened(MAKE_LIMIT_S) as tpm,
            tpm.primary(ENDORSEMENT, endorsement_template(rsa=rsa)) as (ek_handle, found),
        ):
            if found.area != ek:
                continue
            with tpm.primary(ENDORSEMENT, attestation_template()) as (ak_handle, _):
                return tpm.activate_credential(ak_handle, ek_handle, blob, secret)
    raise TrustError("the secret is sealed for an endorsement key that this TPM does not have")


def _stored_chain(tpm: Tpm) -> Iterator[bytes]:
    """What the maker put beside the EK's certificate, index after index."""
    read_bytes = 0
    for index in EK_CHAIN:
        stored = tpm.read_nv(index)
        if stored is None or read_bytes > MAX_CHAIN_BYTES:
            return
        read_bytes += len(stored)
        yield stored


def _chain_in(path: Path) -> list[bytes]:
    """The certificates in a file of PEM or DER; raises TrustError."""
    from cryptography import x509  # noqa: PLC0415 - half a megabyte, for an enrolment alone

    try:
        with path.open("rb") as file:
            body = file.read(4 * MAX_CHAIN_BYTES)
        if b"-----BEGIN" not in body:
            return _split(body)
        return [one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(body)]
    except OSError as error:
        raise TrustError(f"the chain of the TPM's certificate {path}: {error.strerror}") from error
    except ValueError as error:
        raise TrustError(f"the chain of the TPM's certificate {path}: {error}") from error


def _bounded(chain: list[bytes]) -> tuple[bytes, ...]:
    """Each once, and no more than may be sent: what is left out, the issuer can be given as well."""
    kept, size = list[bytes](), 0
    for one in dict.fromkeys(chain):
        size += len(one)
        if len(kept) == MAX_CHAIN or size > MAX_CHAIN_BYTES:
            break
        kept.append(one)
    return tuple(kept)


def _split(stored: bytes) -> list[bytes]:
    """The certificates that lie one behind the other, up to what is none."""
    found = list[bytes]()
    while one := _unpadded(stored):
        found.append(one)
        stored = stored[len(one) :]
    return found


def _unpadded(stored: bytes | None) -> bytes:
    """A certificate without what some makers fill the rest of its NV index with; empty where there is none."""
    if stored is None or len(stored) < DER_HEAD_BYTES or stored[:2] != b"\x30\x82":
        return b""
    return stored[: DER_HEAD_BYTES + int.from_bytes(stored[2:DER_HEAD_BYTES], "big")]
