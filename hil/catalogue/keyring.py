"""The keys of a catalogue, in files: each a P-256 private key in PEM, readable by its owner only.

    KEYS/offline/root-1.pem …   the roots, and the key of `targets`: on a medium that is in a safe
    KEYS/online/…               timestamp and snapshot: on the server that signs every day
    KEYS/roles/…                packages, policies, dispatchers, releases: with whoever builds those
    KEYS/retired/…              replaced ones, which sign nothing any more

A step needs only the keys of the roles that it signs for; the rest may be elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from agent.errors import TrustError
from agent.trust.keyfile import create_secret, read_secret

FOLDERS = {"root": "offline", "targets": "offline", "timestamp": "online", "snapshot": "online"}
DELEGATED = "roles"
RETIRED = "retired"


class Keyring:
    """The keys below one folder, by their TUF key id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, role: str) -> CryptoSigner:
        """A new key for a role, in a file of its own; raises TrustError."""
        folder = self._folder / FOLDERS.get(role, DELEGATED)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        taken = [int(path.stem.rpartition("-")[2]) for path in self._folder.glob(f"*/{role}-*.pem")]
        signer = CryptoSigner.generate_ecdsa()
        create_secret(folder / f"{role}-{max(taken, default=0) + 1}.pem", signer.private_bytes)
        return signer

    def available(self) -> dict[str, CryptoSigner]:
        """Every key that is here and not retired, by key id; raises TrustError for a file that holds none."""
        return {signer.public_key.keyid: signer for signer in map(_load, self._files())}

    def retire(self, keyid: str) -> None:
        """Put a key away that signs nothing any more, if it is here."""
        for path in self._files():
            if _load(path).public_key.keyid == keyid:
                (self._folder / RETIRED).mkdir(exist_ok=True, mode=0o700)
                path.rename(self._folder / RETIRED / path.name)

    def _files(self) -> list[Path]:
        return [path for path in sorted(self._folder.glob("*/*.pem")) if path.parent.name != RETIRED]


def _load(path: Path) -> CryptoSigner:
    try:
        return CryptoSigner(load_pem_private_key(read_secret(path), None))
    except (ValueError, TypeError) as error:
        raise TrustError(f"{path} is no private key in PEM: {error}") from error
