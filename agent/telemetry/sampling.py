"""Mean power from a sensor that shows only this moment's: many samples between two readings, and no regular beat.

An INA3221 converts within milliseconds, and work at a pace draws full power and idle in turns. One sample a reading
shows one or the other by chance: the guard counts on the lower (`agent.core.thermal_guard`, assumption A4), and most
of the work is lost. So while there is a worker the power is sampled every SAMPLE_S on average, and a reading is the
mean of all samples since the one before.

Samples at equal distances would fall into step with the pace and see the same part of it each time. Each is therefore
put somewhere into its own SAMPLE_S, by the golden ratio: its multiples spread evenly and repeat after no period.

What is left: of half a second at a pace of 20 ms micro-batches the mean is off by 2 W of 52 (one standard deviation),
either way, and by chance anew in each reading. It is no part of `power_error_share`, which is the sensor's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

SAMPLE_S = 0.01
"""Two orders below the time constant of a die; a sample of one rail is two reads of sysfs."""
GOLDEN = (math.sqrt(5) - 1) / 2


def moments_s() -> Iterator[float]:
    """When to sample, in seconds from now on: once within each SAMPLE_S, at another part of it each time."""
    return ((count + count * GOLDEN % 1.0) * SAMPLE_S for count in itertools.count())


class PowerMean:
    """Adds up samples (watts) between two readings."""

    def __init__(self) -> None:
        self._sum_w, self._count = 0.0, 0

    def add(self, power_w: float | None) -> None:
        """One more sample; one that could not be read is left out."""
        if power_w is not None:
            self._sum_w += power_w
            self._count += 1

    def take(self, last_w: float | None) -> float | None:
        """The mean up to this last sample, and begin anew; None when the last could not be read."""
        self.add(last_w)
        mean_w = None if last_w is None else self._sum_w / self._count
        self._sum_w, self._count = 0.0, 0
        return mean_w
