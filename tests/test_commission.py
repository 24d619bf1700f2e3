"""The step test against the car's plant, in virtual time: it writes a sysfs tree, the agent's reader reads it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent import commission
from agent.cli.gate import GateShutError, while_open
from agent.commission import MARGIN_C, SILENT_MS, Schedule, StepTest
from agent.core.commissioning import StepSample, fit
from agent.core.events import ComputeSeen
from agent.errors import ComputerError
from agent.telemetry.jetson import JetsonSysfs
from hil.car.plant import PlantInputs, PlantParameters, PlantState, initial_state, step
from hil.car.sysfs import SensorTree

DIE_LIMIT_C = 95.0
SHORT = Schedule(soak_s=20.0, work_s=60.0, cool_s=20.0, interval_s=1.0)


class Computer:
    """A plant in virtual time: clock, sleep, load and sensors of one computer. `mishap` may break something."""

    def __init__(self, root: Path, ambient_c: float = 25.0, parameters: PlantParameters | None = None) -> None:
        self.now_ms = 5_000_000
        self.busy = False
        self.told: list[str] = []
        self.wrong = ""
        self.mishap: Callable[[Computer], None] = lambda _computer: None
        self._ambient_c, self._parameters = ambient_c, parameters or PlantParameters()
        self._tree = SensorTree(root)
        self.plant: PlantState = initial_state(self._parameters, 80.0, ambient_c)
        self.reader: JetsonSysfs | Hanging = JetsonSysfs(root)
        self._advance(0.0)

    def boot_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return self.now_ms

    async def start(self) -> None:
        self.busy = True

    async def stop(self) -> None:
        self.busy = False

    def fault(self) -> str:
        return self.wrong

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(0)
        self.now_ms += round(duration_s * 1000)
        self._advance(duration_s)
        self.mishap(self)

    def step_test(self, schedule: Schedule) -> StepTest:
        return StepTest(
            schedule,
            reader=self.reader,
            load=self,
            clock=self,
            sleep=self.sleep,
            tell=self.told.append,
            die_limit_c=DIE_LIMIT_C,
        )

    def run(self, schedule: Schedule) -> list[StepSample]:
        return asyncio.run(self.step_test(schedule).run())

    def _advance(self, duration_s: float) -> None:
        inputs = PlantInputs(
            ambient_c=self._ambient_c, charger_w=11_000, utilisation=float(self.busy), awake=True, speed_kmh=0.0
        )
        self.plant = step(self.plant, inputs, duration_s, self._parameters)
        self._tree.write(self.plant.die_c, self.plant.sink_c, self.plant.computer_w)


def at(computer: Computer, elapsed_s: float) -> bool:
    return computer.now_ms - 5_000_000 >= elapsed_s * 1000


@pytest.mark.parametrize(
    ("die_to_sink_k_per_w", "sink_j_per_k", "sink_to_air_k_per_w"), [(0.25, 450.0, 0.60), (0.18, 320.0, 0.50)]
)
def test_the_bounds_hold_the_plant_and_are_not_far_from_it(
    tmp_path: Path, die_to_sink_k_per_w: float, sink_j_per_k: float, sink_to_air_k_per_w: float
) -> None:
    parameters = msgspec.structs.replace(
        PlantParameters(),
        die_to_sink_k_per_w=die_to_sink_k_per_w,
        sink_j_per_k=sink_j_per_k,
        sink_to_air_k_per_w=sink_to_air_k_per_w,
    )
    computer = Computer(tmp_path, parameters=parameters)
    samples = computer.run(Schedule(soak_s=120.0, work_s=900.0, cool_s=300.0, interval_s=1.0))
    bounds = fit(samples)
    assert bounds.die_to_sink_min_k_per_w <= die_to_sink_k_per_w <= bounds.die_to_sink_max_k_per_w
    assert bounds.sink_min_j_per_k <= sink_j_per_k
    assert bounds.die_to_sink_min_k_per_w > 0.5 * die_to_sink_k_per_w
    assert bounds.die_to_sink_max_k_per_w < 2 * die_to_sink_k_per_w
    assert bounds.sink_min_j_per_k > 0.4 * sink_j_per_k


def test_the_computer_works_in_the_middle_part_alone(tmp_path: Path) -> None:
    computer = Computer(tmp_path)
    samples = computer.run(SHORT)
    began_ms = samples[0].at_ms
    for sample in samples:
        elapsed_s = (sample.at_ms - began_ms) / 1000
        assert sample.power_w == pytest.approx(60.0 if 20.0 < elapsed_s <= 80.0 else 8.0, abs=0.1), elapsed_s
    assert len(samples) == 100
    assert len(computer.told) == 3
    assert not computer.busy


@pytest.mark.parametrize("phase", ["soak", "work"])
def test_a_die_near_its_limit_ends_the_work_at_once(tmp_path: Path, phase: str) -> None:
    computer = Computer(tmp_path, ambient_c=60.0 if phase == "work" else 92.0)
    with pytest.raises(ComputerError, match="within 5 K of its limit"):
        computer.run(Schedule(soak_s=10.0, work_s=3600.0, cool_s=10.0, interval_s=1.0))
    assert not computer.busy
    assert computer.plant.die_c < DIE_LIMIT_C - MARGIN_C + 2 if phase == "work" else not at(computer, 10)


def _silence(computer: Computer) -> None:
    if at(computer, 40):
        for name in ("cpu", "gpu", "soc0", "tj"):
            _break(computer, f"{name}-thermal")


def _break(computer: Computer, kind: str) -> None:
    assert isinstance(computer.reader, JetsonSysfs)
    for zone in computer.reader._root.glob("sys/devices/virtual/thermal/thermal_zone*"):
        if (zone / "type").read_text() == kind:
            (zone / "temp").write_text("garbage")


def test_a_sensor_that_falls_silent_ends_the_work(tmp_path: Path) -> None:
    computer = Computer(tmp_path)
    computer.mishap = _silence
    with pytest.raises(ComputerError, match="has told no temperature for"):
        computer.run(SHORT)
    assert not computer.busy
    assert not at(computer, 41 + SILENT_MS / 1000 + 1)


def _cut(computer: Computer) -> None:
    assert isinstance(computer.reader, JetsonSysfs)
    next(computer.reader._root.rglob("curr1_input")).write_text("")


def _blink(computer: Computer) -> None:
    if at(computer, 40) and not at(computer, 40 + SILENT_MS / 1000 - 1):
        _cut(computer)


def test_one_reading_that_lacks_something_is_only_left_out(tmp_path: Path) -> None:
    computer = Computer(tmp_path)
    computer.mishap = _blink
    assert len(computer.run(SHORT)) == 98


def test_a_computer_that_measures_no_power_cannot_be_tested(tmp_path: Path) -> None:
    computer = Computer(tmp_path)
    computer.mishap = _cut
    with pytest.raises(ComputerError, match="has told no power"):
        computer.run(SHORT)
    assert not at(computer, 5)


class Hanging:
    """A sensor whose bus hangs at the third reading."""

    def __init__(self) -> None:
        self.readings = 0
        self.released = threading.Event()

    def read(self, at_ms: int) -> ComputeSeen:
        self.readings += 1
        if self.readings == 3:
            self.released.wait()
        return ComputeSeen(at_ms=at_ms, die_c=50.0, power_w=20.0, sensor="hanging")

    def close(self) -> None:
        self.released.set()


def test_a_sensor_that_hangs_ends_the_work_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commission, "SILENT_MS", 50)
    computer = Computer(tmp_path)
    computer.reader.close()
    hanging = computer.reader = Hanging()
    with pytest.raises(ComputerError, match="the sensor hangs"):
        computer.run(Schedule(soak_s=2.0, work_s=60.0, cool_s=20.0, interval_s=1.0))
    assert hanging.readings == 3
    assert not computer.busy
    hanging.close()


def test_a_sensor_that_hangs_hides_no_driver(tmp_path: Path) -> None:
    computer = Computer(tmp_path)
    computer.reader.close()
    hanging = computer.reader = Hanging()
    ended: list[bool] = []

    async def main() -> None:
        async def work() -> None:
            try:
                await computer.step_test(Schedule(soak_s=2.0, work_s=60.0, cool_s=20.0, interval_s=1.0)).run()
            finally:
                ended.append(computer.busy)

        with pytest.raises(GateShutError, match="the driver is here"):
            await while_open(lambda: "the driver is here" if hanging.readings == 3 else None, work())
        assert ended == [False], "while the reading still hangs"
        assert not hanging.released.is_set()
        hanging.close()

    asyncio.run(main())


def _fail(computer: Computer) -> None:
    if at(computer, 50):
        computer.wrong = "the worker was lost"


def test_work_that_fails_ends_the_test(tmp_path: Path) -> None:
    computer = Computer(tmp_path)
    computer.mishap = _fail
    with pytest.raises(ComputerError, match="the worker was lost"):
        computer.run(SHORT)
    assert not computer.busy


def test_cancelling_ends_the_work(tmp_path: Path) -> None:
    computer = Computer(tmp_path)

    async def main() -> None:
        testing = asyncio.create_task(computer.step_test(SHORT).run())

        def returns(one: Computer) -> None:
            if one.busy:
                testing.cancel()

        computer.mishap = returns
        await asyncio.wait({testing})
        assert testing.cancelled()

    asyncio.run(main())
    assert not computer.busy


def test_a_fifth_is_idle_before_and_after() -> None:
    schedule = Schedule.of_minutes(25)
    assert (schedule.soak_s, schedule.work_s, schedule.cool_s) == (300.0, 900.0, 300.0)
