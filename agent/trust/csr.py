"""A certificate request (PKCS#10, RFC 2986) for the unit's key, signed through the signer, wherever the key lives.

Libraries build requests for keys that they hold. A key in a TPM or a token is held by nobody, so the few bytes of DER
around the name and the public key are written here, and the signer signs them like anything else. The request says who
the unit is (`CN`) and holds nothing more: what the certificate may be used for is for the authority to say.

The library's certificates (half a megabyte) are imported when a request is made, which is once in a unit's life.
"""

from __future__ import annotations

from typing import Protocol

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import TrustError
from agent.trust.keys import load_public_key

_INTEGER_0, _ATTRIBUTES = bytes.fromhex("020100"), bytes.fromhex("a000")
_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_SEQUENCE, _BIT_STRING = 0x30, 0x03
MAX_NAME = 64
"""Characters of a common name (RFC 5280, ub-common-name)."""


class Requester(Protocol):
    """What a request needs of a key; `agent.ports.Signer` has it."""

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        ...

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER."""
        ...


def certificate_request(unit: str, signer: Requester) -> bytes:
    """The request in DER, for a certificate that says that the signer's key is `unit`'s; raises TrustError."""
    to_sign = request_info(unit, signer.public_key_pem())
    return signed_request(to_sign, signer.sign(to_sign))


def request_info(unit: str, public_key_pem: str) -> bytes:
    """What is to be signed (CertificationRequestInfo, in DER); raises TrustError for a name too long or empty."""
    from cryptography import x509  # noqa: PLC0415 - as the docstring says
    from cryptography.x509.oid import NameOID  # noqa: PLC0415 - as the docstring says

    if not 0 < len(unit) <= MAX_NAME:
        raise TrustError(f"a certificate's name has 1 to {MAX_NAME} characters, not {len(unit)}")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, unit)]).public_bytes()
    key = load_public_key(public_key_pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return _element(_SEQUENCE, _INTEGER_0 + name + key + _ATTRIBUTES)


def signed_request(to_sign: bytes, signature: bytes) -> bytes:
    """The request in DER, of what was to be signed and its signature."""
    return _element(_SEQUENCE, to_sign + _ECDSA_WITH_SHA256 + _element(_BIT_STRING, b"\0" + signature))


def to_pem(request: bytes) -> str:
    """The request as PEM; raises TrustError when it is none, or its signature does not hold."""
    from cryptography import x509  # noqa: PLC0415 - as the docstring says

    try:
        parsed = x509.load_der_x509_csr(request)
    except ValueError as error:
        raise TrustError(f"not a certificate request: {error}") from error
    if not parsed.is_signature_valid:
        raise TrustError("the certificate request's signature does not hold")
    return parsed.public_bytes(Encoding.PEM).decode("ascii")


def _element(tag: int, content: bytes) -> bytes:
    """A DER element: tag, length (of up to 65,535 bytes), content."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    return bytes((tag, 0x81, size) if size < 0x100 else (tag, 0x82, size >> 8, size & 0xFF)) + content
