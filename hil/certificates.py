"""A private CA for tests and rigs: certificates for any name and time, replaced so that no reader sees half of one.

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

from agent.fleet.tls import TlsFiles

CA_NAME = "Driveway test CA"
HERE = "127.0.0.1"
LIFETIME_S = 2 * 86_400.0
BACKDATED_S = 3_600.0
"""Certificates begin in the past, so that clocks may differ."""


class Authority:
    """One CA, whose own certificate is `ca.pem` in its folder; what it issues is written there too."""

    def __init__(self, folder: Path, name: str = CA_NAME) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = generate_private_key(SECP256R1())
        self._name = _name(name)
        certificate = (
            _builder(self._name, self._name, self._key, LIFETIME_S, -LIFETIME_S)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )
        self._ca = folder / "ca.pem"
        _replace(self._ca, certificate.public_bytes(Encoding.PEM))

    def issue(
        self, name: str, *, valid_s: float = LIFETIME_S, from_s: float = -BACKDATED_S, hosts: tuple[str, ...] = (HERE,)
    ) -> TlsFiles:
        """A certificate for `name`, as a server at these addresses or names, whose key is made the first time.

        It is good from `from_s` to `valid_s`, counted from now.
        """
        files = TlsFiles(
            ca=str(self._ca), certificate=str(self._folder / f"{name}.pem"), key=str(self._folder / f"{name}.key")
        )
        key = _key(Path(files.key))
        certificate = (
            _builder(_name(name), self._name, key, valid_s, from_s)
            .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
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


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, valid_s: float, from_s: float
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(seconds=from_s))
        .not_valid_after(now + dt.timedelta(seconds=valid_s))
    )
