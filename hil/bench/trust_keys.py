"""How fast the unit's key signs, by where it lives: a file, an emulated TPM (swtpm), an emulated token (SoftHSM).

The emulators run on this processor and say what the way to the hardware costs, not what hardware takes: published
figures of real chips are 25 to 200 ms a signature (docs/keys.md). A TPM that this computer has is measured too, when it
is named: a key is made in it at a handle of its own, and removed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.hardware import OpenKey
from agent.trust.keys import FileSigner, load_public_key
from agent.trust.pkcs11 import Pkcs11Signer
from agent.trust.tpm import TpmPlace, TpmSigner
from hil.emulated_keys import EmulatedTpm, make_token

SIGNATURES = 500
VERIFICATIONS = 2000
MESSAGE = dsse.pae("application/vnd.driveway.benchmark", bytes(1100))
"""As long as a statement."""
BENCH_HANDLE = 0x810001FE


class KeyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one backend; verifying does not depend on it, and is measured with each key. Why there are none: `absent`."""

    backend: str
    sign_p50_ms: float | None = None
    sign_p99_ms: float | None = None
    verify_per_s: float | None = None
    absent: str = ""


def measure_keys(device: str = "") -> tuple[KeyFigures, ...]:
    """Every backend that can be had here; `device` names a real TPM to be measured besides."""
    with tempfile.TemporaryDirectory(prefix="driveway-keys-") as name:
        folder = Path(name)
        figures = [
            _figures("file", lambda: _file(folder)),
            _figures("swtpm", lambda: _emulated(folder)),
            _figures("softhsm", lambda: _token(folder)),
        ]
    if device:
        figures.append(_figures(device, lambda: _real(device)))
    return tuple(figures)


def _figures(backend: str, measured: Callable[[], KeyFigures]) -> KeyFigures:
    try:
        return measured()
    except TrustError as error:
        return KeyFigures(backend=backend, absent=str(error))


def _file(folder: Path) -> KeyFigures:
    return _measure("file", FileSigner.open_or_create(folder / "unit.key"))


def _emulated(folder: Path) -> KeyFigures:
    with EmulatedTpm(folder / "swtpm") as tpm:
        return _measure("swtpm", TpmSigner.open_or_create(TpmPlace(device=tpm.address)))


def _token(folder: Path) -> KeyFigures:
    signer = Pkcs11Signer.open(make_token(folder / "softhsm"), create=True)
    try:
        return _measure("softhsm", signer)
    finally:
        signer.close()


def _real(device: str) -> KeyFigures:
    place = TpmPlace(device=device, handle=BENCH_HANDLE)
    with place.opened() as tpm:
        if tpm.read_public(BENCH_HANDLE) is not None:
            raise TrustError(
                f"somebody's key is at {BENCH_HANDLE:#x}, where the benchmark's would go: it is left alone"
            )
    signer = TpmSigner.open_or_create(place)
    try:
        return _measure(device, signer)
    finally:
        with place.opened() as tpm:
            tpm.persist(BENCH_HANDLE, BENCH_HANDLE)  # of a handle that is persistent: remove it


def _measure(backend: str, key: OpenKey) -> KeyFigures:
    """Sign and verify; raises TrustError when a signature does not hold."""
    took_ms = []
    for _ in range(SIGNATURES):
        began_s = time.perf_counter()
        signature = key.sign(MESSAGE)
        took_ms.append((time.perf_counter() - began_s) * 1000)
    public = load_public_key(key.public_key_pem())
    began_s = time.perf_counter()
    held = all(dsse.signature_holds(public, signature, MESSAGE) for _ in range(VERIFICATIONS))
    verify_s = time.perf_counter() - began_s
    if not held:
        raise TrustError(f"the {backend} key's signature does not hold")
    return KeyFigures(
        backend=backend,
        sign_p50_ms=statistics.median(took_ms),
        sign_p99_ms=statistics.quantiles(took_ms, n=100)[98],
        verify_per_s=VERIFICATIONS / verify_s,
    )
