"""Whether a TPM is one: its endorsement key's certificate leads to a maker that the operator trusts.

    a maker's certificate (`--ek-roots`)  ->  at most `MAX_CHAIN` authorities, sent by the unit  ->  the EK's

What the operator names is trusted as it is: a root, an intermediate, or what the fleet certified its boards with, for
as long as it is named. What the unit sends is a stranger's: each certificate between has to be an authority's (basic
constraints, key usage, path length), be valid, say nothing critical that is not understood here, and bear the signature
of the one above. Each is used once, so that two which certify each other lead nowhere.

`now` is the dispatcher's clock, which is a server's: the car's is asked nothing. A certificate that is over is refused,
in between as well, and also where the TPM was made while it was valid: nothing signed tells when that was. It counts
when a key is enrolled or succeeded and never after, so no car stops earning because a maker's certificate ends; an
operator whose makers' intermediates are over names those themselves. Revocation lists are not fetched.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from agent.errors import TrustError
from agent.trust.tpm_enrolment import MAX_CHAIN, MAX_CHAIN_BYTES, TpmEvidence
from agent.trust.tpm_structures import parse_public

Kind = TypeVar("Kind", bound=x509.ExtensionType)
UNDERSTOOD = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.CertificatePolicies)
"""What an authority's certificate may call critical. Name constraints would have to be applied."""


def check_endorsement(evidence: TpmEvidence, makers: Sequence[x509.Certificate], now: dt.datetime) -> x509.Certificate:
    """The endorsement key's certificate, for this very key, leading to one of the makers'; raises TrustError.

    `now` has a time zone.
    """
    if len(evidence.ek_chain) > MAX_CHAIN or sum(map(len, evidence.ek_chain)) > MAX_CHAIN_BYTES:
        raise TrustError(f"endorsement: a chain of more than {MAX_CHAIN} certificates or {MAX_CHAIN_BYTES} bytes")
    certificate = _parsed(evidence.ek_certificate, "")
    try:
        certified = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"endorsement: not a certificate: {error}") from error
    if certified != parse_public(evidence.ek).key:
        raise TrustError("endorsement: the certificate is another TPM's")
    if not _is_valid(certificate, now):
        raise TrustError("endorsement: the certificate is not valid now")
    search = _Search(tuple(makers), now)
    if not search.leads_to(certificate, [_parsed(one, " in between") for one in evidence.ek_chain]):
        why = f" ({search.refused[0]})" if search.refused else ""
        raise TrustError(f"endorsement: none of the makers that are trusted issued the certificate{why}")
    return certificate


def _parsed(der: bytes, where: str) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise TrustError(f"endorsement: not a certificate{where}: {error}") from error


@dataclass(frozen=True)
class _Search:
    """For a way to a maker. `refused`: why authorities that are on a way do not count."""

    makers: tuple[x509.Certificate, ...]
    now: dt.datetime
    refused: list[str] = field(default_factory=list)

    def leads_to(self, certificate: x509.Certificate, others: Sequence[x509.Certificate], below: int = 0) -> bool:
        """Whether a maker issued the certificate, or one of the `others` did to which the same applies.

        `below` is how many authorities are between it and the endorsement key's.
        """
        if any(_is_issued_by(certificate, maker) for maker in self.makers):
            return True
        for issuer in others:
            if not _is_issued_by(certificate, issuer):
                continue
            if why := _why_not(issuer, self.now, below):
                self.refused.append(f"{issuer.subject.rfc4514_string()[:100]!a} {why}")
            elif self.leads_to(issuer, [one for one in others if one != issuer], below + 1):
                return True
        return False


def _why_not(issuer: x509.Certificate, now: dt.datetime, below: int) -> str:
    """Why a certificate cannot be an authority's over so many others; "" where it can."""
    try:
        extensions = issuer.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        return f"cannot be read: {error}"
    constraints, usage = _value(extensions, x509.BasicConstraints), _value(extensions, x509.KeyUsage)
    if constraints is None or not constraints.ca:
        return "is no authority's"
    if constraints.path_length is not None and constraints.path_length < below:
        return f"allows {constraints.path_length} authorities below it, not {below}"
    if usage is not None and not usage.key_cert_sign:
        return "may not sign certificates"
    if any(one.critical and not isinstance(one.value, UNDERSTOOD) for one in extensions):
        return "has a critical extension that is not understood here"
    return "" if _is_valid(issuer, now) else "is not valid now"


def _value(extensions: x509.Extensions, kind: type[Kind]) -> Kind | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _is_valid(certificate: x509.Certificate, now: dt.datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the names fit and the signature holds."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
