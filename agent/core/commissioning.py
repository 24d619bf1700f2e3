"""The step test: finds the bounds that the guard's proof needs from one record of power and temperature. Pure.

The record: the computer idles until its temperature has settled, then works at full power for some minutes, then idles
again. The model is the guard's (`agent.core.thermal_guard`), as deviations x from the settled state, u the power above
idle:

    C1 x1' = u - (x1 - x2)/R12        C2 x2' = (x1 - x2)/R12 - x2/R2a

R12, C1, C2 and R2a are fitted to the die's readings by least squares (Levenberg-Marquardt over their logarithms and
the settled temperature); between two readings the model is solved exactly, with the second's power, which is a mean
since the first. What R2a comes to is of no interest: it is the fan's and the weather's.

**Margins.** A bound lies MARGIN (10 %) beyond the estimate, and three standard deviations besides. The deviations come
from the fit's own residual, so noise and steps of 0.5 K are in them. The 10 % are for what one test cannot show: paste
that ages, a mount that differs, a plant that is not quite two nodes, a reading that lags by part of a second. The die's
own heat capacity is known worst (it is a matter of the first ten seconds), and gets MARGIN_DIE (25 %).
Computers age: the test belongs to commissioning and to every service that opens the computer.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

import msgspec

MARGIN, MARGIN_DIE, DEVIATIONS = 0.10, 0.25, 3.0
IDLE_MIN_S, STEP_MIN_S, AFTER_MIN_S = 60.0, 240.0, 60.0
"""Too short an idle shows no settled state; too short a step heats only the die and not the sink."""
GAP_MAX_S = 3.0
RISE_MIN_K = 8.0
"""A smaller rise drowns in half a kelvin of noise."""
DRIFT_MAX_K_PER_MIN = 0.3
"""More than noise makes it look like."""
SAG_MAX_SHARE = 0.1
RESIDUAL_MAX_K = 1.5
ROUNDS = 40


class StepTestError(ValueError):
    """The record shows no step test; the text says what was wrong with it, in words for the person who made it."""


class StepSample(msgspec.Struct, frozen=True):
    """One reading during the test; `power_w` is the mean since the reading before it, as power sensors give it."""

    at_ms: int
    die_c: float
    power_w: float


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy needs, by its own names; `residual_k` is how far model and readings are apart (root mean square).

    `die_to_sink_k_per_w`, `sink_j_per_k` and `die_j_per_k` are the estimates within the bounds.
    """

    die_to_sink_min_k_per_w: float
    die_to_sink_max_k_per_w: float
    sink_min_j_per_k: float
    die_min_j_per_k: float
    die_max_j_per_k: float
    residual_k: float
    die_to_sink_k_per_w: float
    sink_j_per_k: float
    die_j_per_k: float

    def policy_lines(self) -> tuple[str, ...]:
        """What belongs into the `[policy]` table of the configuration."""
        return (
            f"die_to_sink_min_k_per_w = {self.die_to_sink_min_k_per_w:.4f}",
            f"die_to_sink_max_k_per_w = {self.die_to_sink_max_k_per_w:.4f}",
            f"sink_min_j_per_k = {self.sink_min_j_per_k:.1f}",
            f"die_min_j_per_k = {self.die_min_j_per_k:.1f}",
            f"die_max_j_per_k = {self.die_max_j_per_k:.1f}",
        )


class Record(msgspec.Struct, frozen=True):
    """A step test that was checked: seconds since the reading before, die temperature, power above idle.

    `step` is where full power begins and `after` where it ends.
    """

    spans_s: tuple[float, ...]
    die_c: tuple[float, ...]
    above_idle_w: tuple[float, ...]
    step: int
    after: int


def fit(samples: Sequence[StepSample]) -> Bounds:
    """The bounds that the record shows. Raises StepTestError when it was no proper step test."""
    record = _checked(samples)
    values, covariance = _least_squares(record, _first_guess(record))
    residual_k = math.sqrt(sum(one * one for one in _residuals(record, values)) / len(record.die_c))
    if residual_k > RESIDUAL_MAX_K:
        raise StepTestError(
            f"model and readings are {residual_k:.1f} K apart: this computer is not a die on a heatsink, or something "
            "else warmed or cooled it meanwhile"
        )
    resistance, die, sink = (math.exp(value) for value in values[:3])
    spread = [DEVIATIONS * math.sqrt(max(0.0, covariance[place][place])) for place in range(3)]
    if max(spread) > 1.0:
        raise StepTestError("the readings are too noisy, or the step too short, to tell the sink from the die")
    return Bounds(
        die_to_sink_min_k_per_w=resistance * math.exp(-spread[0]) * (1 - MARGIN),
        die_to_sink_max_k_per_w=resistance * math.exp(spread[0]) * (1 + MARGIN),
        sink_min_j_per_k=sink * math.exp(-spread[2]) * (1 - MARGIN),
        die_min_j_per_k=die * math.exp(-spread[1]) * (1 - MARGIN_DIE),
        die_max_j_per_k=die * math.exp(spread[1]) * (1 + MARGIN_DIE),
        residual_k=residual_k,
        die_to_sink_k_per_w=resistance,
        sink_j_per_k=sink,
        die_j_per_k=die,
    )


# --- the record -----------------------------------------------------------------------------------------------


def _checked(samples: Sequence[StepSample]) -> Record:
    """The record cut into idle, step and idle; whatever is not as it must be is said."""
    if len(samples) < 3 or not all(math.isfinite(one.die_c) and math.isfinite(one.power_w) for one in samples):
        raise StepTestError("there are hardly any readings, or some without a value")
    spans_s = tuple((two.at_ms - one.at_ms) / 1000 for one, two in itertools.pairwise(samples))
    if min(spans_s) <= 0 or max(spans_s) > GAP_MAX_S:
        raise StepTestError(f"readings must follow each other within {GAP_MAX_S:.0f} s; here they lie up to "
                            f"{max(spans_s):.1f} s apart")  # fmt: skip
    step, after = _step(samples)
    seconds = [0.0]
    for span_s in spans_s:
        seconds.append(seconds[-1] + span_s)
    for name, long_s, needed_s in (
        ("the idle before the step", seconds[step], IDLE_MIN_S),
        ("the step", seconds[after] - seconds[step], STEP_MIN_S),
        ("the idle after it", seconds[-1] - seconds[after], AFTER_MIN_S),
    ):
        if long_s < needed_s:
            raise StepTestError(f"{name} took {long_s:.0f} s and must take {needed_s:.0f} s")
    _check_power(samples, step, after)
    _check_heat(samples, seconds, step, after)
    idle_w = statistics.fmean(one.power_w for one in samples[:step])
    return Record(
        spans_s=(0.0, *spans_s),
        die_c=tuple(one.die_c for one in samples),
        above_idle_w=tuple(one.power_w - idle_w for one in samples),
        step=step,
        after=after,
    )


def _step(samples: Sequence[StepSample]) -> tuple[int, int]:
    """Where full power begins and where it ends: the longest stretch above half of the highest power."""
    powers = [one.power_w for one in samples]
    half_w = (min(powers) + max(powers)) / 2
    longest, begins = (0, 0), None
    for place, power_w in enumerate([*powers, min(powers)]):
        if power_w > half_w:
            begins = place if begins is None else begins
        elif begins is not None:
            longest = max(longest, (begins, place), key=lambda stretch: stretch[1] - stretch[0])
            begins = None
    return longest[0], min(longest[1], len(samples) - 1)


def _check_power(samples: Sequence[StepSample], step: int, after: int) -> None:
    """One clean step: idle is quiet, and full power stays full."""
    idle = [one.power_w for one in samples[:step]] + [one.power_w for one in samples[after + 1 :]]
    full = [one.power_w for one in samples[step + 1 : after]]
    size_w = statistics.fmean(full) - statistics.fmean(idle)
    if max(idle) - min(idle) > size_w / 2:
        raise StepTestError("something else used the computer while it should have been idle: power was not quiet")
    tenth = max(1, len(full) // 10)
    early_w, late_w = statistics.median(full[:tenth]), statistics.median(full[-tenth:])
    if early_w - late_w > SAG_MAX_SHARE * size_w:
        raise StepTestError(
            f"power sank from {early_w:.0f} W to {late_w:.0f} W during the step: the platform throttled; test "
            "at a lower power or in cooler air"
        )


def _check_heat(samples: Sequence[StepSample], seconds: Sequence[float], step: int, after: int) -> None:
    """Settled before the step, and warmed by it."""
    idle = [(seconds[place], samples[place].die_c) for place in range(step)]
    half = [one for one in idle if one[0] >= idle[-1][0] - max(2 * IDLE_MIN_S, idle[-1][0] / 2)]
    slope = statistics.linear_regression([one[0] for one in half], [one[1] for one in half])
    noise_k = statistics.pstdev(one[1] - slope.intercept - slope.slope * one[0] for one in half)
    unsure = DEVIATIONS * noise_k / (math.sqrt(len(half)) * statistics.pstdev(one[0] for one in half))
    drift = 60 * (abs(slope.slope) - unsure)
    if drift > DRIFT_MAX_K_PER_MIN:
        raise StepTestError(
            "the computer had not settled before the step: its temperature moved by at least "
            f"{drift:.1f} K a minute; idle longer"
        )
    before_c = statistics.fmean(one[1] for one in half)
    rise_k = statistics.fmean(one.die_c for one in samples[max(step, after - 10) : after]) - before_c
    if rise_k < RISE_MIN_K:
        raise StepTestError(
            f"the power step is too small: the die warmed by {rise_k:.1f} K and must warm by {RISE_MIN_K:.0f} K to be "
            "told from noise"
        )


# --- the fit --------------------------------------------------------------------------------------------------


def _first_guess(record: Record) -> list[float]:
    """Logarithms of R12, C1, C2 and R2a from the jump, the slope and the rise; then the settled temperature."""
    settled_c = statistics.fmean(record.die_c[: record.step])
    power_w = statistics.fmean(record.above_idle_w[record.step + 1 : record.after])
    rise_k = statistics.fmean(record.die_c[max(record.step, record.after - 10) : record.after]) - settled_c
    resistance = 0.4 * rise_k / power_w
    return [math.log(resistance), math.log(10 / resistance), math.log(200 / resistance),
            math.log(1.5 * rise_k / power_w), settled_c]  # fmt: skip


def _residuals(record: Record, values: Sequence[float]) -> list[float]:
    """How far each reading is from the model."""
    resistance, die, sink, to_air = (math.exp(value) for value in values[:4])
    advance = _solution(resistance, die, sink, to_air)
    steps: dict[float, tuple[float, float, float, float]] = {}
    die_k = sink_k = 0.0
    apart = []
    for span_s, die_c, power_w in zip(record.spans_s, record.die_c, record.above_idle_w, strict=True):
        if span_s not in steps:
            steps[span_s] = advance(span_s)
        dd, ds, sd, ss = steps[span_s]
        die_far_k, sink_far_k = die_k - (resistance + to_air) * power_w, sink_k - to_air * power_w
        die_k = dd * die_far_k + ds * sink_far_k + (resistance + to_air) * power_w
        sink_k = sd * die_far_k + ss * sink_far_k + to_air * power_w
        apart.append(values[4] + die_k - die_c)
    return apart


def _solution(
    resistance: float, die: float, sink: float, to_air: float
) -> Callable[[float], tuple[float, float, float, float]]:
    """The matrix e^(A t) of the model, by Sylvester's formula: A has two real, different eigenvalues."""
    a, b = -1 / (resistance * die), 1 / (resistance * die)
    c, d = 1 / (resistance * sink), -(1 / resistance + 1 / to_air) / sink
    root = math.sqrt((a - d) ** 2 + 4 * b * c)
    fast, slow = (a + d - root) / 2, (a + d + root) / 2

    def advance(span_s: float) -> tuple[float, float, float, float]:
        faded, kept = math.exp(fast * span_s), math.exp(slow * span_s)
        share, rest = (kept - faded) / root, (kept * fast - faded * slow) / root
        return share * a - rest, share * b, share * c, share * d - rest

    return advance


def _least_squares(record: Record, values: list[float]) -> tuple[list[float], list[list[float]]]:
    """(the values with the least squares, their covariance), by Levenberg and Marquardt."""
    damping = 1e-2
    apart = _residuals(record, values)
    cost = sum(one * one for one in apart)
    for _ in range(ROUNDS):
        normal, pull = _normal_equations(record, values, apart)
        damped = [[one * (1 + damping * (i == j)) for j, one in enumerate(row)] for i, row in enumerate(normal)]
        moved = [value - by for value, by in zip(values, _solve(damped, pull), strict=True)]
        moved[:4] = [min(max(value, -12.0), 14.0) for value in moved[:4]]
        there = _residuals(record, moved)
        lower = sum(one * one for one in there)
        if lower >= cost:
            damping *= 8
            if damping > 1e8:
                break
            continue
        settled = cost - lower < 1e-7 * cost
        values, apart, cost, damping = moved, there, lower, damping / 8
        if settled:
            break
    normal, _ = _normal_equations(record, values, apart)
    variance = cost / max(1, len(apart) - len(values))
    columns = [_solve(normal, [float(i == j) for i in range(len(values))]) for j in range(len(values))]
    return values, [[variance * one for one in column] for column in columns]


def _normal_equations(
    record: Record, values: Sequence[float], apart: Sequence[float]
) -> tuple[list[list[float]], list[float]]:
    """(J'J, J'r), with J by differences."""
    small = 1e-4
    slopes = []
    for place in range(4):
        moved = [value + small * (place == i) for i, value in enumerate(values)]
        slopes.append([(b - a) / small for a, b in zip(apart, _residuals(record, moved), strict=True)])
    slopes.append([1.0] * len(apart))
    normal = [[sum(map(float.__mul__, one, two)) for two in slopes] for one in slopes]
    for place in range(len(normal)):
        normal[place][place] += 1e-9
    return normal, [sum(map(float.__mul__, one, apart)) for one in slopes]


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """The solution of a small system of linear equations, by elimination with pivoting."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for place in range(size):
        pivot = max(range(place, size), key=lambda one: abs(rows[one][place]))
        rows[place], rows[pivot] = rows[pivot], rows[place]
        for below in range(place + 1, size):
            factor = rows[below][place] / rows[place][place]
            rows[below] = [one - factor * two for one, two in zip(rows[below], rows[place], strict=True)]
    solution = [0.0] * size
    for place in reversed(range(size)):
        rest = sum(rows[place][one] * solution[one] for one in range(place + 1, size))
        solution[place] = (rows[place][size] - rest) / rows[place][place]
    return solution
