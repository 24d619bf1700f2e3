"""Sealed inputs: a job's input that only the unit it was granted to can read, in pieces, from anywhere on.

    content key  --HPKE, to the unit's X25519 key; info = which lease, which input, which unit-->  in the signed grant
    chunk n      --AES-128-GCM under the content key; nonce = n and whether it is the last-->      what is downloaded

HPKE is RFC 9180 in base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM. The chunks are the STREAM
construction (Hoang, Reyhanitabar, Rogaway and Vizar, "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance", CRYPTO 2015): 64 KiB of plaintext each, a nonce of seven zero bytes, the number of the chunk in four
and one that is 1 for the last. Every chunk is bound to its lease and input besides, by its associated data. So chunks
that were cut off, put in another order or taken from another input open as nothing. How long the plaintext is, is known
beforehand (the signed grant says so), and with it how many chunks there are and which is the last.

A content key is for one lease of one input and no more: the zero bytes in the nonce are safe for that reason alone.
`SealError.fault` says what is wrong; nothing that did not open is ever handed on.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import TrustError
from agent.trust.dsse import JsonValue, canonical_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives import hpke

CHUNK_BYTES = 64 * 1024
TAG_BYTES = 16
SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES
KEY_BYTES = 16
WRAPPED_BYTES = 32 + KEY_BYTES + TAG_BYTES
"""HPKE's encapsulated key, and the content key under it."""
MOST_BYTES = CHUNK_BYTES * 2**32
"""The number of a chunk has four bytes."""
LABEL = "driveway sealed input v1"
_NONCE = struct.Struct(">7xIB")


class SealFault(enum.StrEnum):
    """What is wrong with a sealed input."""

    UNSUPPORTED = "unsupported"
    """This installation cannot open any."""
    UNKNOWN_KEY = "unknown_key"
    """It is sealed to a key that this unit does not have."""
    NOT_FOR_THIS = "not_for_this"
    """The content key does not open: another unit's, lease's or input's, or bent on the way."""
    SPOILED = "spoiled"
    """A chunk does not open: bent, out of its order, or another input's."""
    TRUNCATED = "truncated"
    TOO_LONG = "too_long"


class SealError(TrustError):
    """A sealed input that cannot be opened."""

    def __init__(self, fault: SealFault, what: str, *, hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.fault = fault


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedObject:
    """Which input of which lease it is; `length` is that of the plaintext, `sha256` its digest."""

    job: str
    epoch: int
    sha256: str
    length: int

    @property
    def context(self) -> bytes:
        """What every chunk is bound to, as 32 bytes."""
        said: JsonValue = {"job": self.job, "epoch": self.epoch, "sha256": self.sha256, "bytes": self.length}
        return hashlib.sha256(LABEL.encode("ascii") + canonical_json(said)).digest()

    @property
    def name(self) -> str:
        """A name for the sealed bytes, which have no digest before they are all there."""
        return self.context.hex()

    @property
    def chunks(self) -> int:
        """How many there are: at least one, so that an empty input is sealed, too."""
        return max(1, -(-self.length // CHUNK_BYTES))

    @property
    def sealed_bytes(self) -> int:
        """How long the sealed bytes are."""
        return self.length + TAG_BYTES * self.chunks

    def chunk_bytes(self, number: int) -> int:
        """How much plaintext is in a chunk."""
        return min(CHUNK_BYTES, self.length - number * CHUNK_BYTES)

    def info(self, unit: str, key_id: str) -> bytes:
        """HPKE's `info`: what the content key is bound to."""
        return canonical_json({"keyid": key_id, "label": LABEL, "object": self.name, "unit": unit})

    def nonce(self, number: int) -> bytes:
        """Of a chunk."""
        return _NONCE.pack(number, number == self.chunks - 1)


# --- the content key ----------------------------------------------------------------------------------------------


def key_id(key: X25519PublicKey) -> str:
    """The name of a sealing key: SHA-256 of its 32 bytes, as hex."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def wrap(content_key: bytes, key: X25519PublicKey, sealed: SealedObject, unit: str) -> bytes:
    """The content key for the unit that has this key, `WRAPPED_BYTES` long; raises SealError.

    Of two calls no two give the same.
    """
    try:
        return _suite().encrypt(content_key, key, sealed.info(unit, key_id(key)))
    except ValueError as error:  # a point of low order
        raise SealError(SealFault.UNKNOWN_KEY, "nothing can be sealed to this key") from error


def unwrap(wrapped: bytes, key: X25519PrivateKey, sealed: SealedObject, unit: str) -> bytes:
    """The content key; raises SealError."""
    suite = _suite()
    try:
        content_key = suite.decrypt(wrapped, key, sealed.info(unit, key_id(key.public_key())))
    except (InvalidTag, ValueError) as error:
        raise SealError(
            SealFault.NOT_FOR_THIS,
            f"the input of {sealed.job}/{sealed.epoch} is not sealed to this unit for this lease",
        ) from error
    if len(content_key) != KEY_BYTES:
        raise SealError(SealFault.NOT_FOR_THIS, f"the input of {sealed.job}/{sealed.epoch} has no usable content key")
    return bytes(content_key)


def can_seal() -> bool:
    """Whether this installation can."""
    try:
        _suite()
    except SealError:
        return False
    return True


def _suite() -> hpke.Suite:
    try:
        from cryptography.hazmat.primitives import hpke  # noqa: PLC0415 - since cryptography 47
    except ImportError as error:
        what = "sealed inputs need HPKE, which the installed cryptography does not have"
        raise SealError(SealFault.UNSUPPORTED, what, hint="install cryptography 47 or newer") from error
    return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)


# --- the chunks -----------------------------------------------------------------------------------------------------


def seal(
    content_key: bytes, sealed: SealedObject, read: Callable[[int, int], bytes], first: int, last: int
) -> Iterator[bytes]:
    """Bytes `first` to `last` (both included) of the sealed bytes, a chunk or a part of one at a time.

    `read` gives so many bytes of the plaintext from an offset on. Raises SealError when there are not as many.
    """
    aead, context = AESGCM(content_key), sealed.context
    for number in range(first // SEALED_CHUNK_BYTES, last // SEALED_CHUNK_BYTES + 1):
        plain = read(number * CHUNK_BYTES, sealed.chunk_bytes(number))
        if len(plain) != sealed.chunk_bytes(number):
            raise SealError(SealFault.TRUNCATED, f"the input {sealed.sha256[:16]}… is shorter than it was")
        begins = number * SEALED_CHUNK_BYTES
        body = aead.encrypt(sealed.nonce(number), plain, context)
        yield body[max(0, first - begins) : last + 1 - begins]


def seal_whole(content_key: bytes, sealed: SealedObject, plain: bytes) -> bytes:
    """All of it, for what is small."""
    whole = sealed.sealed_bytes - 1
    return b"".join(seal(content_key, sealed, lambda offset, length: plain[offset : offset + length], 0, whole))


class Opener:
    """Opens the sealed bytes as they come, in pieces of any length, a chunk at a time: no more is ever in memory.

    `take` is given the plaintext in order; it may keep nothing of the view, which is written over. What is left in the
    buffers is wiped by `close`; the libraries below may hold copies of the key that Python cannot reach.
    """

    def __init__(self, content_key: bytes, sealed: SealedObject, take: Callable[[memoryview], None]) -> None:
        self._aead, self._sealed, self._take = AESGCM(content_key), sealed, take
        self._context = sealed.context
        self._waiting, self._filled = bytearray(SEALED_CHUNK_BYTES), 0
        self._plain = bytearray(CHUNK_BYTES)
        self._number = 0

    def add(self, data: bytes | memoryview) -> None:
        """So much more has come; raises SealError."""
        rest = memoryview(data)
        while rest:
            if self._number == self._sealed.chunks:
                raise SealError(SealFault.TOO_LONG, f"the sealed input {self._sealed.name[:16]}… goes on after its end")
            wanted = self._sealed.chunk_bytes(self._number) + TAG_BYTES
            part = rest[: wanted - self._filled]
            self._waiting[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == wanted:
                self._open(wanted)

    def finish(self) -> None:
        """All has come; raises SealError where it has not."""
        if self._number < self._sealed.chunks:
            raise SealError(SealFault.TRUNCATED, f"the sealed input {self._sealed.name[:16]}… ends before its end")

    def close(self) -> None:
        """Wipe what is here; may be called again."""
        for buffer in (self._waiting, self._plain):
            buffer[:] = bytes(len(buffer))

    def _open(self, wanted: int) -> None:
        chunk, plain = memoryview(self._waiting)[:wanted], memoryview(self._plain)[: wanted - TAG_BYTES]
        try:
            self._aead.decrypt_into(self._sealed.nonce(self._number), chunk, self._context, plain)
        except InvalidTag as error:
            what = f"chunk {self._number} of the sealed input {self._sealed.name[:16]}… does not open"
            raise SealError(SealFault.SPOILED, what) from error
        self._filled = 0
        self._number += 1
        self._take(plain)
