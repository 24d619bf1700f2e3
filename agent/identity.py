"""Who this unit is: its key, the cell its messages go to, and the dispatcher it believes.

The key is made at the first start and introduced to the dispatcher once; what the dispatcher answered is kept beside
the key, so later starts need nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.config import Config
from agent.errors import ConfigError, TrustError
from agent.fleet import messages
from agent.fleet.channel import Web
from agent.fleet.enrol import enrol
from agent.fleet.tls import FreshContext, TlsFiles
from agent.ports import Signer
from agent.trust.keys import FileSigner, keyid, load_public_key

ENROLLED = "enrolled.json"


@dataclass(frozen=True)
class Identity:
    """What signing and listening need."""

    signer: Signer
    cell: str
    tls: TlsFiles | None
    web: Web
    dispatcher_keys: Mapping[str, EllipticCurvePublicKey]


async def establish(config: Config) -> Identity:
    """The unit's identity, made and enrolled if this is the first start.

    Raises ConfigError for a path that cannot be used, FleetError when enrolment is refused or nobody answers.
    """
    folder = config.path(config.state_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"state_dir: cannot make {folder}: {error.strerror}") from error
    signer = FileSigner.open_or_create(folder / "unit.key")
    keys = read_key(config, config.fleet.dispatcher_key, "fleet.dispatcher_key")
    tls = _tls(config)
    web = Web(None if tls is None else FreshContext(tls), config.fleet.allow_loopback_http)
    if not config.fleet.enrol_url:
        return Identity(signer, config.unit.cell, tls, web, keys)
    done = folder / ENROLLED
    if not done.exists():
        enrolled = await enrol(
            web,
            url=config.fleet.enrol_url,
            code=config.fleet.enrol_code,
            unit=config.unit.id,
            signer=signer,
            dispatcher_keys=keys,
        )
        part = done.with_suffix(".part")
        part.write_bytes(messages.encode(enrolled))
        part.replace(done)
    try:
        enrolled = messages.decode(done.read_bytes(), messages.Enrolled)
    except messages.MessageError as error:
        raise TrustError(f"{done} is damaged: {error}", hint="remove it to enrol again") from error
    if enrolled.unit != config.unit.id or enrolled.keyid != signer.keyid:
        raise TrustError(f"{done} is for another unit or key", hint="remove it to enrol this one")
    return Identity(signer, enrolled.cell, tls, web, keys)


def _tls(config: Config) -> TlsFiles | None:
    """The TLS files with their paths resolved, and proven to be usable; raises ConfigError."""
    named = config.fleet.tls
    if named is None:
        return None
    tls = TlsFiles(
        ca=str(config.path(named.ca)), certificate=str(config.path(named.certificate)), key=str(config.path(named.key))
    )
    try:
        tls.context()
    except (OSError, ValueError) as error:
        raise ConfigError(f"fleet.tls: {tls.ca}, {tls.certificate} or {tls.key} cannot be used: {error}") from error
    return tls


def read_key(config: Config, value: str, name: str) -> dict[str, EllipticCurvePublicKey]:
    """A public key that the configuration names, by its keyid; raises ConfigError."""
    path = config.path(value)
    try:
        key = load_public_key(path.read_text("ascii"))
    except (OSError, UnicodeDecodeError, TrustError) as error:
        raise ConfigError(f"{name}: cannot use the public key {path}: {error}") from error
    return {keyid(key): key}
