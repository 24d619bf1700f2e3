"""How long to wait before trying again: doubled with every try in vain, spread between cars, and never nothing.

The spread is a share in [0, 1) that the caller brings (`State.jitter`), so that a night replays. Full jitter, a wait
anywhere between nothing and the bound, is what makes a fleet that lost its dispatcher come back one by one
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
"""

from __future__ import annotations

from agent.core.model import Pace

DOUBLINGS_MAX = 20
LEAST_MS = 1_000
"""No wait is shorter: a peer that answers wrongly at once must not be asked at once again."""


def bound_ms(first_ms: int, most_ms: int, tries: int) -> int:
    """`first_ms` doubled `tries` times, at most `most_ms`."""
    return int(min(most_ms, first_ms * 2 ** min(tries, DOUBLINGS_MAX)))


def full_jitter_ms(bound: int, share: float) -> int:
    """A wait anywhere up to the bound, but for the least there is."""
    return max(LEAST_MS, round(bound * share))


def about_ms(wait_ms: int, share: float) -> int:
    """About `wait_ms`: a quarter more or less, where the wait itself is somebody's wish."""
    return max(LEAST_MS, round(wait_ms * (0.75 + 0.5 * share)))


def stretched_ms(wait_ms: int, pace: Pace) -> int:
    """The wait at the fleet's pace; never less than the least there is."""
    return max(LEAST_MS, wait_ms * pace.interval_permille // 1000)
