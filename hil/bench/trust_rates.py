"""How fast each key signs and verifies, round by round: the unit's key by its backend, and the session's.

Each round is a process of its own, since SoftHSM reads where its tokens are only once in a process. What is not
installed has no figures but a reason.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.errors import DrivewayError
from agent.trust import dsse
from agent.trust.keys import load_public_key
from agent.trust.session import SessionKey
from hil.bench import trust_keys
from hil.bench.trust_keys import KeyFigures
from hil.bench.trust_work import Latency, latency, spread

SESSION = "session key"
CALLS = 1000


class KeyRate(msgspec.Struct, frozen=True, kw_only=True):
    """Of one key: medians over the rounds, the least and the most beside the p50."""

    sign_p50_ms: float
    sign_p50_min_ms: float
    sign_p50_max_ms: float
    sign_p99_ms: float
    verify_per_s: float
    verify_min_per_s: float
    verify_max_per_s: float


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Every key that is here, why the others are not, and one verification, which is the same for all of them."""

    keys: dict[str, KeyRate]
    absent: dict[str, str]
    verify: Latency


def measure_rates(rounds: int) -> Rates:
    """So many rounds of every key; raises DrivewayError when a signature does not hold."""
    return rates_of([backends() for _ in range(rounds)], [session_key(CALLS) for _ in range(rounds)])


def backends() -> tuple[KeyFigures, ...]:
    """One round of the unit's key, in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(trust_keys.measure_keys).result()


def session_key(calls: int) -> tuple[list[float], list[float]]:
    """Milliseconds of so many signatures of a session key, and of as many verifications; raises DrivewayError."""
    key = SessionKey("file")
    public, signature = load_public_key(key.public_key_pem()), key.sign(trust_keys.MESSAGE)
    signing = [took_ms(lambda: key.sign(trust_keys.MESSAGE)) for _ in range(calls)]
    verifying = [took_ms(lambda: _must_hold(public, signature)) for _ in range(calls)]
    return signing, verifying


def rates_of(
    rounds: Sequence[tuple[KeyFigures, ...]], sessions: Sequence[tuple[Sequence[float], Sequence[float]]]
) -> Rates:
    """All rounds put together; a backend that failed in one has no figures."""
    by_backend: dict[str, list[KeyFigures]] = {}
    for figures in [*rounds, *([_session_figures(*one)] for one in sessions)]:
        for one in figures:
            by_backend.setdefault(one.backend, []).append(one)
    absent = {name: next((one.absent for one in all_of if one.absent), "") for name, all_of in by_backend.items()}
    return Rates(
        keys={name: _rate(all_of) for name, all_of in by_backend.items() if not absent[name]},
        absent={name: why for name, why in absent.items() if why},
        verify=latency([verifying for _signing, verifying in sessions]),
    )


def took_ms(action: Callable[[], object]) -> float:
    """Wall milliseconds of one call."""
    began_s = time.perf_counter()
    action()
    return (time.perf_counter() - began_s) * 1000


def _session_figures(signing: Sequence[float], verifying: Sequence[float]) -> KeyFigures:
    return KeyFigures(
        backend=SESSION,
        sign_p50_ms=statistics.median(signing),
        sign_p99_ms=statistics.quantiles(signing, n=100, method="inclusive")[98],
        verify_per_s=1000 * len(verifying) / sum(verifying),
    )


def _rate(rounds: Sequence[KeyFigures]) -> KeyRate:
    signing = spread([one.sign_p50_ms for one in rounds if one.sign_p50_ms is not None])
    verifying = spread([one.verify_per_s for one in rounds if one.verify_per_s is not None])
    return KeyRate(
        sign_p50_ms=signing.median,
        sign_p50_min_ms=signing.min,
        sign_p50_max_ms=signing.max,
        sign_p99_ms=spread([one.sign_p99_ms for one in rounds if one.sign_p99_ms is not None]).median,
        verify_per_s=verifying.median,
        verify_min_per_s=verifying.min,
        verify_max_per_s=verifying.max,
    )


def _must_hold(public: EllipticCurvePublicKey, signature: bytes) -> None:
    if not dsse.signature_holds(public, signature, trust_keys.MESSAGE):
        raise DrivewayError("the session key's signature does not hold")
