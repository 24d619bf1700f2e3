"""Keys: the file key that signs on computers without a TPM or secure element, and reading public keys of others.

Other kinds of key are in `tpm.py` and `pkcs11.py`; `keyring.py` opens the one that the configuration names, and gives
it a thread of its own. `KeyAbsentError` and its siblings say why a key of any kind does not sign.

A file key is an ECDSA P-256 private key in PEM (PKCS#8), readable by its owner only. It can be copied by whoever is
root, which is why every statement says `keyProtection: file`. It is created whole or not at all (`keyfile.py`).
"""

from __future__ import annotations

import base64
import enum
import hashlib
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.hazmat.primitives.serialization import load_der_public_key as load_der

from agent.errors import TrustError
from agent.trust.dsse import VerifyingKey
from agent.trust.keyfile import create_secret, read_secret, remove_secret


class KeyAbsentError(TrustError):
    """The key's hardware, or the key in it, is not there (yet): try again later."""


class KeySlowError(TrustError):
    """The key's hardware did not answer within its time limit: try again later."""


class KeyRefusedError(TrustError):
    """The hardware refuses to be used like this, as with a wrong PIN: trying again makes it worse."""


class Removal(enum.Enum):
    """What came of removing a key for good."""

    DONE = "done"
    ABSENT = "absent"
    """There was none."""
    FOREIGN = "foreign"
    """Another key is there, and was left alone."""


class FileSigner:
    """A signing key in a file; see `agent.ports.Signer`."""

    protection = "file"

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key
        self.keyid = keyid(key.public_key())

    @classmethod
    def open_or_create(cls, path: Path) -> Self:
        """The key in `path`, made now when there is none.

        Raises TrustError when others may read the file, or when it is no P-256 private key.
        """
        try:
            return cls.open(path)
        except KeyAbsentError:
            _create(path)
            return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The key in `path`; raises KeyAbsentError when there is none, else as `open_or_create`."""
        try:
            return cls(_load(path))
        except FileNotFoundError as error:
            raise KeyAbsentError(f"there is no key {path}", hint="restore it or enrol again") from error

    @classmethod
    def remove(cls, path: Path, known_keyid: str) -> Removal:
        """Remove the key in `path`, on the disk when this returns; raises TrustError when it is no readable key."""
        try:
            if cls.open(path).keyid != known_keyid:
                return Removal.FOREIGN
        except KeyAbsentError:
            return Removal.ABSENT
        remove_secret(path)
        return Removal.DONE

    def public_key(self) -> EllipticCurvePublicKey:
        """The public key, as a verifier wants it."""
        return self._key.public_key()

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        return public_pem(self.public_key())

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER."""
        return self._key.sign(message, ECDSA(SHA256()))

    def close(self) -> None:
        """Nothing is held."""


def keyid(key: VerifyingKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo in DER, as hex."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def public_pem(key: EllipticCurvePublicKey) -> str:
    """The public key as PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def load_public_key(pem: str) -> EllipticCurvePublicKey:
    """A P-256 public key from PEM, as a unit has to have; raises TrustError for anything else."""
    return _p256(_from_pem(pem))


def load_verifying_key(pem: str) -> VerifyingKey:
    """The public key of somebody who is trusted, from PEM: P-256 or Ed25519; raises TrustError for anything else."""
    match _from_pem(pem):
        case Ed25519PublicKey() as key:
            return key
        case EllipticCurvePublicKey(curve=SECP256R1()) as key:
            return key
        case _:
            raise TrustError("the public key is neither ECDSA P-256 nor Ed25519")


def load_der_public_key(text: str) -> EllipticCurvePublicKey:
    """A P-256 public key from its SubjectPublicKeyInfo in DER, base64; raises TrustError for anything else."""
    try:
        key = load_der(base64.b64decode(text, validate=True))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError("not a public key in DER") from error
    return _p256(key)


def _from_pem(pem: str) -> object:
    try:
        return load_pem_public_key(pem.encode("ascii"))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError("not a public key in PEM") from error


def _p256(key: object) -> EllipticCurvePublicKey:
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise TrustError("the public key is not ECDSA P-256")
    return key


def _load(path: Path) -> EllipticCurvePrivateKey:
    pem = read_secret(path)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise TrustError(f"{path} is not a private key in PEM: {error}", hint="restore it or enrol again") from error
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise TrustError(f"the key in {path} is not ECDSA P-256")
    return key


def _create(path: Path) -> None:
    pem = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    create_secret(path, pem)
