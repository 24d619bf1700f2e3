"""Which key is this unit's: the one that the configuration names, and what is remembered of it on the disk.

Three kinds (`backend`): `file`, beside the state and the default; `tpm`; `pkcs11`. At the first start a key is made
there. A key in hardware is then remembered in `unit-key.json` (public part, kind and epoch), so that the agent can
start, knows who it is and says what is missing when the hardware is away; from then on nothing but that very key
counts, and none is ever made in its place. A file key of the first epoch needs no such record: the file is always here.

A unit that takes a new key (`agent.trust.succession`) counts its epochs; the new key lives beside the old one: file
`unit-2.key`, the next persistent handle, label `NAME-2`. `hand_over` makes it, `take_over` makes it the unit's own. The
public parts of the keys before it are remembered with it; the keys themselves are removed later (`remove_key`).
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, assert_never

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import TrustError
from agent.trust.hardware import FormerKey, HardwareSigner, KeyThread, KnownKey, OpenKey
from agent.trust.keys import FileSigner, KeySlowError, Removal, load_der_public_key, load_public_key, public_pem
from agent.trust.pkcs11 import Pkcs11Place, Pkcs11Signer
from agent.trust.records import KeyProtection, Sha256, read, spell
from agent.trust.session import FIRST_KEY_EPOCH, PublicKey
from agent.trust.succession import succeed, verify_succession
from agent.trust.tpm import MAKE_LIMIT_S, SIGN_LIMIT_S, TpmPlace, TpmSigner

RECORD = "unit-key.json"
VERSION = 1
MAX_RECORD_BYTES = 4096
FORMER_KEPT = 8
"""Years of keys: nothing that a dispatcher answers is signed by one before them."""
USES = 2.0
"""Opening a key takes the hardware's own limit at most, and signing as much again."""
MARGIN_S = 1.0
"""What the thread gets beyond that, so that the hardware's own words are heard rather than ours."""

Backend = Literal["file", "tpm", "pkcs11"]
_Backend = Annotated[str, re.compile(r"file|tpm|pkcs11")]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyConfig:
    """Which kind of key, and where one of each kind is; only what belongs to `backend` counts."""

    file: Path
    backend: Backend = "file"
    tpm: TpmPlace = field(default_factory=TpmPlace)
    pkcs11: Pkcs11Place | None = None

    @property
    def limit_s(self) -> float:
        """How long opening the key may take, or signing once."""
        return self.tpm.limit_s if self.backend == "tpm" else SIGN_LIMIT_S

    def at_epoch(self, epoch: int) -> KeyConfig:
        """The same for the unit's key of this epoch."""
        if epoch == FIRST_KEY_EPOCH:
            return self
        token = self.pkcs11
        return replace(
            self,
            file=self.file.with_stem(f"{self.file.stem}-{epoch}"),
            tpm=replace(self.tpm, handle=self.tpm.handle + epoch - FIRST_KEY_EPOCH),
            pkcs11=token and replace(token, key=f"{token.key}-{epoch}"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Former:
    epoch: int
    public_key: PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What `unit-key.json` holds: the key of the unit's present epoch; its public key in DER, base64."""

    v: int
    backend: _Backend
    epoch: int
    keyid: Sha256
    protection: KeyProtection
    public_key: PublicKey
    former: tuple[_Former, ...]


def open_key(config: KeyConfig, *, create: bool) -> OpenKey:
    """The key that the configuration names, made when there is none and `create`; raises TrustError. May block."""
    match config.backend:
        case "file":
            return FileSigner.open_or_create(config.file) if create else FileSigner.open(config.file)
        case "tpm":
            return TpmSigner.open_or_create(config.tpm) if create else TpmSigner.open(config.tpm)
        case "pkcs11":
            if config.pkcs11 is None:
                raise TrustError("backend pkcs11 needs to know which token", hint="add a [trust.key.pkcs11] section")
            return Pkcs11Signer.open(config.pkcs11, create=create)
        case _:
            assert_never(config.backend)


def remove_key(config: KeyConfig, known_keyid: str) -> Removal:
    """Remove the key where `config` names it, for good, if it is this one; raises TrustError. May block."""
    match config.backend:
        case "file":
            return FileSigner.remove(config.file, known_keyid)
        case "tpm":
            return TpmSigner.remove(config.tpm, known_keyid)
        case "pkcs11":
            if config.pkcs11 is None:
                raise TrustError("backend pkcs11 needs to know which token", hint="add a [trust.key.pkcs11] section")
            return Pkcs11Signer.remove(config.pkcs11, known_keyid)
        case _:
            assert_never(config.backend)


async def unit_key(config: KeyConfig, folder: Path, *, create: bool = True) -> HardwareSigner:
    """This unit's key; made and remembered now at the first start, unless not `create`: then it has to be there.

    `folder` is where what is known of it is kept.

    Raises TrustError when no key can be made or what is remembered is of another kind. Hardware that is away is no
    reason once the key is known.
    """
    known = recall(folder)
    if known is None:
        known = await _first(config, folder, create=create)
    elif known.backend != config.backend:
        raise TrustError(
            f"this unit's key is of the kind {known.backend!r}, and the configuration says {config.backend!r}",
            hint=f"set trust.key.backend back, or remove {folder / RECORD} and enrol anew",
        )
    return hardware_signer(config, known)


def hardware_signer(config: KeyConfig, known: KnownKey) -> HardwareSigner:
    """The key that is known, with a thread of its own; opened when it is first used."""
    place = config.at_epoch(known.epoch)
    limit_s = USES * config.limit_s + MARGIN_S
    return HardwareSigner(lambda: open_key(place, create=False), known, limit_s=limit_s)


def recall(folder: Path) -> KnownKey | None:
    """What is remembered of the unit's key, None when nothing is; raises TrustError when that cannot be read."""
    path = folder / RECORD
    try:
        with path.open("rb") as file:
            body = file.read(MAX_RECORD_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrustError(f"{path} cannot be read: {error.strerror}") from error
    try:
        record = _parse(body)
        pem = public_pem(load_der_public_key(record.public_key))
        former = tuple(FormerKey(one.epoch, public_pem(load_der_public_key(one.public_key))) for one in record.former)
    except TrustError as error:
        raise TrustError(f"{path} is damaged: {error}", hint="restore it, or remove it and enrol anew") from error
    return KnownKey(
        backend=record.backend,
        epoch=record.epoch,
        keyid=record.keyid,
        protection=record.protection,
        public_key_pem=pem,
        former=former,
    )


def _parse(body: bytes) -> _Record:
    record = read(_Record, body, RECORD)
    if record.v != VERSION:
        raise TrustError(f"version {record.v} is not understood here")
    return record


def remember(folder: Path, known: KnownKey) -> None:
    """Write down which key is the unit's, whole or not at all; raises TrustError."""
    record = _Record(
        v=VERSION,
        backend=known.backend,
        epoch=known.epoch,
        keyid=known.keyid,
        protection=known.protection,
        public_key=_der_base64(known.public_key_pem),
        former=tuple(_Former(epoch=one.epoch, public_key=_der_base64(one.public_key_pem)) for one in known.former),
    )
    write_whole(folder / RECORD, spell(record))


def write_whole(path: Path, body: bytes) -> None:
    """Write a file, whole or not at all, and on the disk when this returns; raises TrustError."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise TrustError(f"{path} cannot be written: {error.strerror}") from error


def _der_base64(public_key_pem: str) -> str:
    der = load_public_key(public_key_pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode("ascii")


def hand_over(
    config: KeyConfig, known: KnownKey, *, unit: str, overlap_s: int, reason: str, last_session: int = 0
) -> bytes:
    """The envelope in which the known key hands over to the next, which is made now; raises TrustError. May block.

    Nothing changes by it: it is for the dispatcher, and when that has taken it, for `take_over`.
    """
    new = open_key(config.at_epoch(known.epoch + 1), create=True)
    new.close()
    old = open_key(config.at_epoch(known.epoch), create=False)
    old.close()  # a token takes one login of a process: each key is open only while it signs
    if old.keyid != known.keyid:
        raise TrustError(f"the key that is there is {old.keyid[:16]}…, not this unit's {known.keyid[:16]}…")
    epoch = known.epoch + 1
    return succeed(
        _Briefly(old),
        _Briefly(new),
        unit=unit,
        epoch=epoch,
        overlap_s=overlap_s,
        reason=reason,
        last_session=last_session,
    )


def successor(known: KnownKey, envelope: bytes, *, unit: str) -> KnownKey:
    """The key to which the known one handed over; raises TrustError. It signed, so it need not be looked for."""
    succeeded = verify_succession(envelope, load_public_key(known.public_key_pem), unit=unit, epoch=known.epoch)
    return KnownKey(
        backend=known.backend,
        epoch=succeeded.succession.epoch,
        keyid=succeeded.keyid,
        protection=succeeded.succession.protection,
        public_key_pem=public_pem(succeeded.key),
        former=(*known.former, FormerKey(known.epoch, known.public_key_pem))[-FORMER_KEPT:],
    )


def take_over(folder: Path, known: KnownKey, envelope: bytes, *, unit: str) -> KnownKey:
    """Make the key to which the known one handed over the unit's own; raises TrustError.

    The hardware may be away: a power cut may come between the dispatcher's answer and this. Done twice, it is refused
    the second time, and nothing is lost.
    """
    following = successor(known, envelope, unit=unit)
    remember(folder, following)
    return following


class _Briefly:
    """A key that is closed after each signature."""

    def __init__(self, key: OpenKey) -> None:
        self._key, self.keyid, self.protection = key, key.keyid, key.protection

    def public_key_pem(self) -> str:
        """See `agent.ports.Signer`."""
        return self._key.public_key_pem()

    def sign(self, message: bytes) -> bytes:
        """See `agent.ports.Signer`."""
        try:
            return self._key.sign(message)
        finally:
            self._key.close()


def described(key: OpenKey, backend: str, epoch: int) -> KnownKey:
    """What is to be known of an open key."""
    return KnownKey(
        backend=backend,
        epoch=epoch,
        keyid=key.keyid,
        protection=key.protection,
        public_key_pem=key.public_key_pem(),
    )


async def _first(config: KeyConfig, folder: Path, *, create: bool) -> KnownKey:
    """The unit's first key; where `create`, made unless it is there, and remembered. Raises TrustError."""
    thread = KeyThread("unit-key-first")

    def make() -> KnownKey:
        key = open_key(config, create=create)
        key.close()
        known = described(key, config.backend, FIRST_KEY_EPOCH)
        if create and config.backend != "file":
            remember(folder, known)
        return known

    try:
        async with asyncio.timeout(MAKE_LIMIT_S + MARGIN_S):
            return await asyncio.wrap_future(thread.submit(make))
    except TimeoutError as error:
        raise KeySlowError(f"the unit's first key ({config.backend}) was not made in {MAKE_LIMIT_S:g} s") from error
    finally:
        thread.close()
