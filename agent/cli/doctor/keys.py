"""Offline: the keys and certificates that the unit has, and those that it trusts."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path

from agent.cli.doctor.model import Finding, fail, missing, ok, warn
from agent.config import Config
from agent.errors import DrivewayError
from agent.fleet.tls import CREDENTIAL

RENEW_DAYS = 30


def trusted(config: Config) -> Iterator[Finding]:
    """Whose grants and whose packages count."""
    from agent.identity import read_key  # noqa: PLC0415 - with what it is about

    named = {
        "fleet.dispatcher_key": config.fleet.dispatcher_key,
        "inference.publisher_key": config.inference.publisher_key,
    }
    for name, value in named.items():
        try:
            (keyid,) = read_key(config, value, name)
        except DrivewayError as error:
            yield fail(f"keys.{name}", error.what, "put the public key there that came with the installation")
        else:
            yield ok(f"keys.{name}", f"{keyid[:16]}…")


def own(config: Config) -> Finding:
    """The unit's own key is where the configuration says; whether it signs is asked of the daemon."""
    key = config.key
    match key.backend:
        case "file":
            if not key.file.is_file():
                return missing("keys.unit", f"{key.file} is not there yet: the daemon makes it at its first start")
            return warn("keys.unit", f"it is in a file, {key.file}", "on a vehicle use a TPM or a token (docs/keys.md)")
        case "tpm":
            return _tpm(key.tpm.device)
        case "pkcs11":
            assert key.pkcs11 is not None
            module = Path(key.pkcs11.module)
            if not module.is_file():
                return fail(
                    "keys.unit", f"there is no PKCS#11 module {module}", "install it, or set trust.key.pkcs11.module"
                )
            return ok("keys.unit", f"in the token {key.pkcs11.token} by {module}")


def _tpm(device: str) -> Finding:
    if device.startswith("tcp:"):
        return warn("keys.unit", f"in an emulated TPM at {device}", "on a vehicle use its own")
    node = Path(device.removeprefix("unix:"))
    if not node.exists():
        mend = "enable the TPM in the firmware, and load its driver; or choose another trust.key.backend"
        return fail("keys.unit", f"the TPM {node} is not there", mend)
    if not os.access(node, os.R_OK | os.W_OK):
        return fail(
            "keys.unit", f"this user may not use the TPM {node}", "run it as the daemon's user, in the group tss"
        )
    return ok("keys.unit", f"in the TPM {node}")


def certificates(config: Config) -> Iterator[Finding]:
    """The broker's CA and this unit's certificate are good for a while."""
    tls = config.fleet.tls
    if tls is None:
        yield missing("keys.tls", "no TLS is configured: only a broker on this computer can be meant")
        return
    for name, value in (("ca", tls.ca), ("certificate", tls.certificate)):
        if value.startswith(CREDENTIAL):
            yield missing(f"keys.tls.{name}", "it is a credential, which only the service is given")
        else:
            yield _expiry(f"keys.tls.{name}", config.path(value))


def _expiry(name: str, path: Path) -> Finding:
    from cryptography import x509  # noqa: PLC0415 - with what it is about

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return fail(name, f"{path} is no certificate: {error}", "put the one there that came with the enrolment")
    left = certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    if left <= dt.timedelta():
        return fail(name, f"{path} expired on {until}", "renew it, and check this computer's clock")
    if left < dt.timedelta(days=RENEW_DAYS):
        return warn(name, f"{path} expires on {until}", "renew it")
    return ok(name, f"{path} is good until {until}")
