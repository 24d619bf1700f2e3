"""Certificate authorities of a test's own, which sign for any name and any time."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

HOUR = dt.timedelta(hours=1)
NOW_VALID, EXPIRED, NOT_YET = (-HOUR, HOUR), (-2 * HOUR, -HOUR), (HOUR, 2 * HOUR)
"""From when and until when, from now."""

Validity = tuple[dt.timedelta, dt.timedelta]


class OwnCa:
    """One authority; its certificate is `ca.pem` in its folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._key, self._name = generate_private_key(SECP256R1()), _named(f"CA of {folder.name}")
        key = self._key.public_key()
        own = (
            x509.CertificateBuilder(self._name, self._name, key, x509.random_serial_number())
            .not_valid_before(dt.datetime.now(dt.UTC) - 10 * HOUR)
            .not_valid_after(dt.datetime.now(dt.UTC) + 10 * HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, SHA256())
        )
        self.file = folder / "ca.pem"
        self.file.write_bytes(own.public_bytes(Encoding.PEM))

    def issue(self, path: Path, valid: Validity = NOW_VALID, address: str = "127.0.0.1") -> tuple[str, str]:
        """A certificate and its key, written to `path`.pem and `path`.key; those file names."""
        key, now = generate_private_key(SECP256R1()), dt.datetime.now(dt.UTC)
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate = (
            x509.CertificateBuilder(self._name, _named("car"), key.public_key(), x509.random_serial_number())
            .not_valid_before(now + valid[0])
            .not_valid_after(now + valid[1])
            .add_extension(alternative, critical=False)
            .sign(self._key, SHA256())
        )
        pem, secret = path.with_suffix(".pem"), path.with_suffix(".key")
        pem.write_bytes(certificate.public_bytes(Encoding.PEM))
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return str(pem), str(secret)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
