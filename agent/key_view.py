"""What `driveway keys` tells of the unit's key: which it is, where it lives, and whether it signs at this moment.

It is asked for a signature, since nothing less shows that it would give one; what is signed has a type of its own and
can pass for nothing else. Whoever asks gets an answer within `ASK_S`, also from hardware that hangs.
"""

from __future__ import annotations

import time

import msgspec

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.hardware import HardwareSigner, OpenKey
from agent.trust.keys import load_public_key
from agent.trust.tpm import TpmFacts, TpmSigner

ASK_S = 3.0
"""Less than a client of the control socket waits."""
PROBE = dsse.pae("application/vnd.driveway.key-probe", b"driveway keys")


class TpmView(msgspec.Struct, frozen=True, kw_only=True):
    """What the TPM says of itself."""

    manufacturer: str
    vendor: str
    revision: str
    firmware: str
    kind: str
    clock_ms: int
    reset_count: int
    restart_count: int
    clock_is_safe: bool


class KeysView(msgspec.Struct, frozen=True, kw_only=True):
    """The unit's key. `retry_in_s` is None for hardware that this process asks no more; `sign_ms` None if not ready."""

    backend: str
    keyid: str
    protection: str
    epoch: int
    public_key_pem: str
    state: str
    reason: str
    retry_in_s: float | None
    sign_ms: float | None
    tpm: TpmView | None


async def look(key: HardwareSigner) -> KeysView:
    """The key as it is now."""
    sign_ms: float | None = None
    tpm: TpmView | None = None
    try:
        sign_ms, facts = await key.use(_probe, limit_s=ASK_S)
        tpm = None if facts is None else _tpm(facts)
    except TrustError:
        pass  # the key remembers why
    known, health = key.known, key.health
    return KeysView(
        backend=known.backend,
        keyid=known.keyid,
        protection=known.protection,
        epoch=known.epoch,
        public_key_pem=known.public_key_pem,
        state=health.state.value,
        reason=health.reason,
        retry_in_s=health.retry_in_s,
        sign_ms=sign_ms,
        tpm=tpm,
    )


def _probe(key: OpenKey) -> tuple[float, TpmFacts | None]:
    """On the key's thread: how long a signature takes (ms), and what its TPM says; raises TrustError."""
    began_s = time.perf_counter()
    signature = key.sign(PROBE)
    took_ms = (time.perf_counter() - began_s) * 1000
    if not dsse.signature_holds(load_public_key(key.public_key_pem()), signature, PROBE):
        raise TrustError("the unit's key gave a signature that does not hold", hint="enrol this unit with a new key")
    return took_ms, key.facts() if isinstance(key, TpmSigner) else None


def _tpm(facts: TpmFacts) -> TpmView:
    return TpmView(
        manufacturer=facts.manufacturer,
        vendor=facts.vendor,
        revision=facts.revision,
        firmware=facts.firmware,
        kind=facts.kind,
        clock_ms=facts.clock.clock_ms,
        reset_count=facts.clock.reset_count,
        restart_count=facts.clock.restart_count,
        clock_is_safe=facts.clock.is_safe,
    )
