"""A private CA for one run: certificates of any lifetime, written so that a reader sees the old one or the new one.

A client keeps its key; only the certificate is renewed, as on a vehicle. A certificate that has run out is no reason
for a broker to end a connection that is there: it is refused at the next handshake.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from agent.fleet.link import TlsFiles

CA_NAME = "fault run CA"
LIFETIME_S = 86_400.0
BACKDATED_S = 3_600.0
"""Certificates begin in the past, so that clocks may differ."""


class Authority:
    """Issues certificates for 127.0.0.1 into one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = generate_private_key(SECP256R1())
        self._name = _name(CA_NAME)
        certificate = (
            _builder(self._name, self._name, self._key, LIFETIME_S)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )
        self._ca = folder / "ca.pem"
        self._ca.write_bytes(certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str, *, valid_s: float = LIFETIME_S) -> TlsFiles:
        """A certificate for `name` that is good for so long from now; its key is made the first time."""
        files = TlsFiles(
            ca=str(self._ca), certificate=str(self._folder / f"{name}.pem"), key=str(self._folder / f"{name}.key")
        )
        key = _key(Path(files.key))
        certificate = (
            _builder(_name(name), self._name, key, valid_s)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )
        _replace(Path(files.certificate), certificate.public_bytes(Encoding.PEM))
        return files


def _key(path: Path) -> EllipticCurvePrivateKey:
    if path.exists():
        key = load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        return key
    key = generate_private_key(SECP256R1())
    _replace(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def _replace(path: Path, body: bytes) -> None:
    fresh = path.with_suffix(f"{path.suffix}.new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(body)
    fresh.replace(path)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, valid_s: float
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(seconds=BACKDATED_S))
        .not_valid_after(now + dt.timedelta(seconds=valid_s))
    )
