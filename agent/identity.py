"""Who this unit is: its key, the cell its messages go to, and the dispatcher it believes.

The key is made at the first start, where the configuration says (`agent.trust.keyring`), and introduced to the
dispatcher once; what the dispatcher answered is kept, so later starts need nobody, nor the key's hardware. A key that
was handed over to before a power cut is the unit's if the dispatcher is known to have taken it (`agent.enrolled`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from agent.config import Config
from agent.enrolled import ENROLLED, keep, kept, settle
from agent.errors import ConfigError, TrustError
from agent.fleet.channel import Web
from agent.fleet.enrol import enrol
from agent.fleet.tls import FreshContext, TlsFiles
from agent.log import logger
from agent.ports import Signer
from agent.sealing import Sealing, establish_sealing
from agent.trust.dsse import VerifyingKey
from agent.trust.hardware import BlockingSigner, HardwareSigner
from agent.trust.keyring import hardware_signer, unit_key
from agent.trust.keys import keyid, load_verifying_key


@dataclass(frozen=True)
class Identity:
    """What signing and listening need. `signer` is the same key, for a thread that may wait for it.

    `sealing`: what inputs may be sealed to; None where there can be no such key.
    """

    key: HardwareSigner
    signer: Signer
    cell: str
    tls: TlsFiles | None
    web: Web
    dispatcher_keys: Mapping[str, VerifyingKey]
    sealing: Sealing | None = None


async def establish(config: Config) -> Identity:
    """The unit's identity, made and enrolled if this is the first start.

    Raises ConfigError for a path that cannot be used, FleetError when enrolment is refused or nobody answers.
    """
    folder = config.path(config.state_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"state_dir: cannot make {folder}: {error.strerror}") from error
    key = await unit_key(config.key, folder)
    known = settle(folder, key.known, unit=config.unit.id)
    if known != key.known:
        key.close()
        key = hardware_signer(config.key, known)
    signer = BlockingSigner(key)
    keys = read_key(config, config.fleet.dispatcher_key, "fleet.dispatcher_key")
    tls = _tls(config)
    web = Web(None if tls is None else FreshContext(tls), config.fleet.allow_loopback_http)
    sealing = await asyncio.to_thread(establish_sealing, folder, config.unit.id, signer)
    if not config.fleet.enrol_url:
        return Identity(key, signer, config.unit.cell, tls, web, keys, sealing)
    enrolled = kept(folder)
    if enrolled is None:
        enrolled = await enrol(
            web,
            url=config.fleet.enrol_url,
            code=config.fleet.enrol_code,
            unit=config.unit.id,
            key=key,
            place=config.key.at_epoch(known.epoch).tpm,
            dispatcher_keys=keys,
        )
        keep(folder, enrolled)
        if enrolled.endorsement:
            logger().info("key_proven", protection=key.protection, endorsement=enrolled.endorsement)
    if enrolled.unit != config.unit.id or enrolled.keyid != signer.keyid:
        raise TrustError(f"{folder / ENROLLED} is for another unit or key", hint="remove it to enrol this one")
    return Identity(key, signer, enrolled.cell, tls, web, keys, sealing)


def _tls(config: Config) -> TlsFiles | None:
    """The TLS files with their paths resolved, and proven to be usable; raises ConfigError."""
    named = config.fleet.tls
    if named is None:
        return None
    tls = named
    try:
        tls = named.found(config.path)
        tls.context()
    except (OSError, ValueError) as error:
        raise ConfigError(f"fleet.tls: {tls.ca}, {tls.certificate} or {tls.key} cannot be used: {error}") from error
    return tls


def read_key(config: Config, value: str, name: str) -> dict[str, VerifyingKey]:
    """A public key that the configuration names, by its keyid; raises ConfigError."""
    path = config.path(value)
    try:
        key = load_verifying_key(path.read_text("ascii"))
    except (OSError, UnicodeDecodeError, TrustError) as error:
        raise ConfigError(f"{name}: cannot use the public key {path}: {error}") from error
    return {keyid(key): key}
