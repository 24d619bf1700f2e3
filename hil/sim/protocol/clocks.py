"""The clocks of a simulated world: none of them is right, each in its own way.

True time is the loop's. A car has CLOCK_BOOTTIME, which runs a little too fast or too slow, goes on while the car is
suspended and begins anew with a reboot; and a wall clock beside it, which jumps. The dispatchers have the one clock of
their database.
"""

from __future__ import annotations

from hil.sim.protocol.timeloop import VirtualLoop

EPOCH_WALL_MS = 1_790_000_000_000
"""What wall clocks show, more or less, when a simulation begins: some evening."""
BOOTED_MS = 8_000
"""How long after its boot a car's agent starts."""


class CarClock:
    """A car's two clocks; see `agent.ports.Clock`. `rate_ppm` is how much too fast both run."""

    def __init__(self, loop: VirtualLoop, rate_ppm: float, wall_offset_ms: int) -> None:
        self._loop, self._rate = loop, 1 + rate_ppm * 1e-6
        self.boots = 0
        self._since_s = 0.0
        self._boot_ms = 3_600_000.0
        self._wall_ms = float(EPOCH_WALL_MS + wall_offset_ms)

    @property
    def boot_id(self) -> str:
        """Names the present boot."""
        return f"boot-{self.boots}"

    def boot_ms(self) -> int:
        """Milliseconds since the car's computer was booted, by its own crystal."""
        return int(self._boot_ms + self._passed_ms)

    def wall_ms(self) -> int:
        """Milliseconds since 1970, as the car believes."""
        return int(self._wall_ms + self._passed_ms)

    def true_ms(self, boot_ms: float) -> float:
        """The true time at which the boot time will be, or was, that."""
        return self._since_s * 1000 + (boot_ms - self._boot_ms) / self._rate

    def jump(self, by_ms: float) -> None:
        """The wall clock is set; boot time goes on."""
        self._settle()
        self._wall_ms += by_ms

    def reboot(self) -> None:
        """Boot time begins anew; the wall clock was kept by a battery."""
        self._settle()
        self.boots += 1
        self._boot_ms = float(BOOTED_MS)

    @property
    def _passed_ms(self) -> float:
        return (self._loop.now_s - self._since_s) * 1000 * self._rate

    def _settle(self) -> None:
        passed_ms = self._passed_ms
        self._boot_ms += passed_ms
        self._wall_ms += passed_ms
        self._since_s = self._loop.now_s


class DatabaseClock:
    """The database's clock, on which all replicas agree. `jumps` counts how often it was set."""

    def __init__(self, loop: VirtualLoop, rate_ppm: float) -> None:
        self._loop, self._rate = loop, 1 + rate_ppm * 1e-6
        self._since_s = 0.0
        self._wall_ms = float(EPOCH_WALL_MS)
        self.jumps = 0

    def now_ms(self) -> int:
        """Milliseconds since 1970, as the database believes."""
        return int(self._wall_ms + (self._loop.now_s - self._since_s) * 1000 * self._rate)

    def true_ms(self, wall_ms: float) -> float:
        """The true time at which the database's clock will show that, if nobody sets it."""
        return self._since_s * 1000 + (wall_ms - self._wall_ms) / self._rate

    def jump(self, by_ms: float) -> None:
        """The clock is set."""
        self._wall_ms += (self._loop.now_s - self._since_s) * 1000 * self._rate + by_ms
        self._since_s = self._loop.now_s
        self.jumps += 1
