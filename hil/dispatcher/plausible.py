"""Does what a unit says of time and energy look like what others of its kind say? A flag for a person, never a verdict.

For each package and equivalence class: what an item took, in microseconds and in microwatt-hours. A unit counts once,
with the median of its newest hand-ins, so that nobody can move the band by handing in more. The band is the median of
those whom no check ever found wrong, give or take `WIDTH` of their robust deviations (1.4826 times the median absolute
deviation, which estimates a normal deviation) and never narrower than a share of the median. Too quick is what lazy
fraud looks like; too slow is a hot car. Nothing is paid, held or graded by this.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from hil.dispatcher.database import Database

WIDTH = 6.0
LEAST_SHARE = 0.5
LEAST_UNITS = 5
"""Fewer say nothing of a kind."""
NEWEST = 5_000
NORMAL = 1.4826


class Band(msgspec.Struct, frozen=True):
    """From where to where an item's figure is plausible."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether it is within."""
        return self.low <= value <= self.high


class Flag(msgspec.Struct, frozen=True, kw_only=True):
    """A unit whose figure for a package is out of its class's band. `what` is `us_per_item` or `uwh_per_item`."""

    unit: str
    package_sha256: str
    equivalence_class: str
    what: str
    value: float
    band: Band


def band_of(values: Sequence[float]) -> Band | None:
    """The band of one figure for each honest unit; None where there are too few."""
    if len(values) < LEAST_UNITS:
        return None
    middle = statistics.median(values)
    deviation = NORMAL * statistics.median(abs(value - middle) for value in values)
    reach = max(WIDTH * deviation, LEAST_SHARE * middle)
    return Band(max(0.0, middle - reach), middle + reach)


def flags(database: Database) -> list[Flag]:
    """Who is out of his class's band by the newest hand-ins, by unit."""
    rows = database.rows(
        "SELECT handins.unit, package_sha256, equivalence_class, handins.items, compute_ms, micro_wh, disagreed"
        " FROM handins JOIN (SELECT job, package_sha256 FROM jobs) AS of ON of.job = handins.job"
        " JOIN units ON units.unit = handins.unit"
        " WHERE verdict = 'settled' AND handins.items > 0 ORDER BY at_ms DESC LIMIT :newest",
        newest=NEWEST,
    )
    said: defaultdict[tuple[str, str, str], defaultdict[str, list[float]]]
    said = defaultdict(lambda: defaultdict(list))
    honest: set[str] = set()
    for row in rows:
        for what, value in (("us_per_item", 1000 * row["compute_ms"]), ("uwh_per_item", row["micro_wh"])):
            said[row["package_sha256"], row["equivalence_class"], what][row["unit"]].append(value / row["items"])
        if not row["disagreed"]:
            honest.add(row["unit"])
    found = []
    for (package_sha256, equivalence_class, what), units in sorted(said.items()):
        medians = {unit: statistics.median(values) for unit, values in units.items()}
        band = band_of([value for unit, value in medians.items() if unit in honest])
        found += [
            Flag(
                unit=unit,
                package_sha256=package_sha256,
                equivalence_class=equivalence_class,
                what=what,
                value=value,
                band=band,
            )
            for unit, value in sorted(medians.items())
            if band is not None and not band.holds(value)
        ]
    return found
