"""Sealing inputs, each to the unit that has the lease: the keys that units announced, and the keys of contents.

A content key is derived from a secret of the book's, the lease and the input; so whichever replica is asked, now or
after a restart, serves the same sealed bytes, and a car goes on where it was broken off. The same key never meets
another plaintext: the input's digest is in it. It leaves the dispatcher wrapped for one unit only, in the signed grant.

Sealed bytes are made as they are fetched, from the object on the disk, a chunk at a time. They are nobody's secret: who
fetches them without the key has noise.
"""

from __future__ import annotations

import re

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.fleet.messages import SealedRef
from agent.trust.dsse import to_base64
from agent.trust.sealing import KEY_BYTES, SealedObject, key_id, seal_whole, wrap
from hil.dispatcher.database import Database

SECRET = "input_sealing"  # noqa: S105 - its name in the book
SEALED_PATH = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9]{1,15})/([0-9a-f]{64})")


def read_path(path: str) -> tuple[str, int, str] | None:
    """The job, the epoch and the input's digest that a path among the objects names; None for none of these."""
    found = SEALED_PATH.fullmatch(path)
    return None if found is None else (found[1], int(found[2]), found[3])


class KnownKey(msgspec.Struct, frozen=True):
    """The sealing key of a unit, as its own key vouched for it."""

    unit: str
    epoch: int
    public: bytes

    @property
    def key(self) -> X25519PublicKey:
        """What is sealed to."""
        return X25519PublicKey.from_public_bytes(self.public)


class SealingKeyBook:
    """Part of the book; see there for threads and time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, unit: str) -> KnownKey | None:
        """The newest key that the unit announced, None when it has announced none."""
        row = self._database.row("SELECT epoch, public_key FROM sealing_keys WHERE unit = :unit", unit=unit)
        return None if row is None else KnownKey(unit, row["epoch"], bytes(row["public_key"]))

    def note(self, unit: str, epoch: int, key: X25519PublicKey) -> bool:
        """Take a key that was verified; False for one that is older than what is known."""
        taken = self._database.execute(
            "INSERT INTO sealing_keys (unit, epoch, public_key) VALUES (:unit, :epoch, :key)"
            " ON CONFLICT (unit) DO UPDATE SET epoch = excluded.epoch, public_key = excluded.public_key"
            " WHERE sealing_keys.epoch < excluded.epoch",
            unit=unit,
            epoch=epoch,
            key=key.public_bytes(Encoding.Raw, PublicFormat.Raw),
        )
        return taken == 1

    def must_seal(self, input_sha256: str, *, wanted: bool) -> bool:
        """Whether a new job's input is to be sealed: as it wants, or since another job with this input wanted it.

        Where it wants it, all that have this input do from now on.
        """
        if wanted:
            self._database.execute("UPDATE jobs SET sealed = 1 WHERE input_sha256 = :input", input=input_sha256)
            return True
        return self.is_sealed(input_sha256)

    def is_sealed(self, input_sha256: str) -> bool:
        """Whether an object is the input of a job that wants it sealed: then it leaves in no other way."""
        found = "SELECT job FROM jobs WHERE input_sha256 = :input AND sealed = 1 LIMIT 1"
        return self._database.row(found, input=input_sha256) is not None


class InputSealing:
    """Use from any thread. `every`: seal all inputs of units that have a key, not only of jobs that ask for it."""

    def __init__(self, secret: str, *, every: bool = False) -> None:
        self._secret, self.every = secret.encode("ascii"), every

    @staticmethod
    def path(sealed: SealedObject) -> str:
        """Where it is, among the objects: `read_path` reads it."""
        return f"{sealed.job}.{sealed.epoch}/{sealed.sha256}"

    def content_key(self, sealed: SealedObject) -> bytes:
        """Of this input of this lease."""
        info = b"driveway input content key v1" + sealed.context
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self._secret)

    def reference(self, sealed: SealedObject, to: KnownKey) -> SealedRef:
        """The content key as the grant carries it. Raises SealError."""
        wrapped = wrap(self.content_key(sealed), to.key, sealed, to.unit)
        return SealedRef(keyid=key_id(to.key), wrapped_key=to_base64(wrapped))

    def small(self, sealed: SealedObject, plain: bytes) -> bytes:
        """A short input, sealed."""
        return seal_whole(self.content_key(sealed), sealed, plain)
