"""Setting the platform's limit, and putting back what was found: after work, after a crash, after a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from agent.config import ComputerConfig
from agent.errors import ComputerError
from agent.telemetry.actuators import Devfreq, NvmlLimit
from agent.telemetry.limits import Actuator, PowerLimits, Remembered, recall, restore_left_over
from tests.telemetry.gpu import CLOCKS, Gpu, devfreq
from tests.telemetry.stand_in import Card

BOOT = "this-boot"


class Bench:
    """The limits of one run of the daemon, and what they reported."""

    def __init__(self, root: Path, make: Callable[[], Actuator] | None = None) -> None:
        self.reports: list[tuple[str, str]] = []
        self.file = root / "power-limit.json"
        self.limits = PowerLimits(make or (lambda: devfreq(root)), self.file, BOOT, self._tell)

    async def want(self, *limits_w: float) -> None:
        self.limits.worker_here(True)
        for limit_w in limits_w:
            self.limits.want(limit_w)
        assert self.limits._task is not None
        await self.limits._task

    def _tell(self, name: str, fields: dict[str, str | int | float | bool]) -> None:
        self.reports.append((name, str(fields.get("detail", ""))))


def test_what_was_found_is_noted_before_the_first_write_and_put_back_at_the_end(tmp_path: Path, gpu: Gpu) -> None:
    gpu.max_freq.write_text(f"{CLOCKS[2]}\n")  # a power mode has capped it already
    bench = Bench(tmp_path)

    async def main() -> None:
        await bench.want(35.0)
        assert gpu.max_hz == CLOCKS[1]
        assert recall(bench.file) == Remembered(BOOT, "devfreq", "17000000.gpu", CLOCKS[2])
        await bench.want(60.0)
        assert gpu.max_hz == CLOCKS[2], "never higher than it was found"
        await bench.want(10.0)
        await bench.limits.close()

    asyncio.run(main())
    assert gpu.max_hz == CLOCKS[2]
    assert not bench.file.exists()
    assert bench.reports == []


def test_the_driver_gets_the_whole_computer_back_when_the_worker_goes(tmp_path: Path, gpu: Gpu) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        bench.limits.want(35.0)
        assert bench.limits._task is not None
        await bench.limits._task
        assert gpu.max_hz == CLOCKS[3], "without a worker nothing is held back"
        await bench.want(35.0)
        assert gpu.max_hz == CLOCKS[1]
        bench.limits.worker_here(False)
        bench.limits.want(20.0)
        await bench.limits._task
        assert gpu.max_hz == CLOCKS[3]
        assert not bench.file.exists()
        bench.limits.worker_here(True)
        await bench.limits._task
        assert gpu.max_hz == CLOCKS[0], "the newest limit counts for the next worker"
        await bench.limits.close()

    asyncio.run(main())
    assert gpu.max_hz == CLOCKS[3]
    assert bench.reports == []


def test_a_limit_that_cannot_be_put_back_is_told_and_tried_again_at_the_end(tmp_path: Path, gpu: Gpu) -> None:
    bench = Bench(tmp_path, lambda: Refusing(devfreq(tmp_path), refusing))
    refusing: list[bool] = []

    async def main() -> None:
        await bench.want(20.0)
        refusing.append(True)
        bench.limits.worker_here(False)
        assert bench.limits._task is not None
        await bench.limits._task
        assert [name for name, _ in bench.reports] == ["power_limit_failed"]
        assert bench.file.exists(), "the next start would put it back"
        refusing.clear()
        await bench.limits.close()

    asyncio.run(main())
    assert gpu.max_hz == CLOCKS[3]


def test_the_note_is_on_disk_when_the_clock_changes(tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    noted: list[bool] = []
    write = Devfreq.write

    def spy(actuator: Devfreq, value: int) -> None:
        noted.append(bench.file.exists())
        write(actuator, value)

    monkeypatch.setattr(Devfreq, "write", spy)
    asyncio.run(bench.want(30.0))
    assert noted == [True]
    assert gpu.max_hz < CLOCKS[3]


def test_only_the_newest_wish_counts_and_the_same_clock_is_not_set_again(
    tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(Devfreq, "write", lambda _self, value: written.append(value))

    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.want(30.0, 40.0, 50.0)
        await bench.want(50.5)
        await bench.want(20.0)

    asyncio.run(main())
    assert written == [CLOCKS[2], CLOCKS[0]]
    assert gpu.max_hz == CLOCKS[3]


def test_a_limit_that_somebody_else_set_meanwhile_is_left_alone(tmp_path: Path, gpu: Gpu) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        await bench.want(30.0)
        gpu.max_freq.write_text(f"{CLOCKS[2]}\n")
        with capture_logs() as logs:
            await bench.limits.close()
        assert [log["event"] for log in logs] == ["power_limit_taken_over"]

    asyncio.run(main())
    assert gpu.max_hz == CLOCKS[2]
    assert not bench.file.exists()


def test_after_a_crash_the_next_start_puts_back_what_was_found(tmp_path: Path, gpu: Gpu) -> None:
    bench = Bench(tmp_path)
    asyncio.run(bench.want(10.0))  # and no close: it crashed
    assert gpu.max_hz == CLOCKS[0]
    restore_left_over(bench.file, BOOT, lambda _kind, device: devfreq(tmp_path, device=device))
    assert gpu.max_hz == CLOCKS[3]
    assert not bench.file.exists()


def test_after_a_crash_a_higher_limit_of_somebody_else_is_left_alone(tmp_path: Path, gpu: Gpu) -> None:
    bench = Bench(tmp_path)
    gpu.max_freq.write_text(f"{CLOCKS[1]}\n")
    asyncio.run(bench.want(10.0))
    gpu.max_freq.write_text(f"{CLOCKS[3]}\n")
    restore_left_over(bench.file, BOOT, lambda _kind, device: devfreq(tmp_path, device=device))
    assert gpu.max_hz == CLOCKS[3]


def test_after_a_reboot_nothing_is_put_back(tmp_path: Path, gpu: Gpu) -> None:
    bench = Bench(tmp_path)
    bench.file.write_bytes(msgspec.json.encode(Remembered("another-boot", "devfreq", "17000000.gpu", CLOCKS[3])))
    gpu.max_freq.write_text(f"{CLOCKS[1]}\n")
    restore_left_over(bench.file, BOOT, lambda _kind, device: devfreq(tmp_path, device=device))
    assert gpu.max_hz == CLOCKS[1]
    assert not bench.file.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"boot": 1}'])
def test_a_note_that_cannot_be_read_is_dropped(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "power-limit.json"
    file.write_bytes(content)
    restore_left_over(file, BOOT, lambda _kind, device: devfreq(tmp_path, device=device))
    assert not file.exists()


def test_what_could_not_be_put_back_is_kept_as_found_by_the_next_run(tmp_path: Path, gpu: Gpu) -> None:
    asyncio.run(Bench(tmp_path).want(10.0))
    bench = Bench(tmp_path)

    def broken(_kind: str, _device: str) -> Actuator:
        raise ComputerError("the driver is gone")

    with capture_logs() as logs:
        restore_left_over(bench.file, BOOT, broken)
    assert [log["event"] for log in logs] == ["power_limit_not_restored"]

    async def main() -> None:
        await bench.want(20.0)
        await bench.limits.close()

    asyncio.run(main())
    assert gpu.max_hz == CLOCKS[3], "our own limit must not be taken for what was found"


def test_a_limit_that_may_not_be_set_is_told_once_and_so_is_its_end(tmp_path: Path, gpu: Gpu) -> None:
    bench = Bench(tmp_path, lambda: Refusing(devfreq(tmp_path), refusing))
    refusing = [True]

    async def main() -> None:
        for limit_w in (30.0, 40.0, 20.0):
            await bench.want(limit_w)
        assert [name for name, _ in bench.reports] == ["power_limit_failed"]
        assert "Permission denied" in bench.reports[0][1]
        assert "computer.limits to none" in bench.reports[0][1]
        assert gpu.max_hz == CLOCKS[3]
        refusing.clear()
        await bench.want(30.0)
        await bench.want(20.0)
        assert [name for name, _ in bench.reports] == ["power_limit_failed", "power_limit_works"]
        await bench.limits.close()

    asyncio.run(main())
    assert gpu.max_hz == CLOCKS[3]


@pytest.mark.parametrize("kind", [None, "thermal-devfreq-0", ""])
def test_throttling_while_it_is_put_back_is_nobodys_doing(tmp_path: Path, gpu: Gpu, kind: str | None) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        await bench.want(35.0)
        gpu.throttle(CLOCKS[0], kind)
        bench.limits.worker_here(False)
        assert bench.limits._task is not None
        await bench.limits._task
        assert gpu.set_hz == CLOCKS[3], "the driver has the whole computer as soon as it is cool"
        assert bench.file.exists(), "nobody has seen it in force yet"
        gpu.throttle(None, kind)
        assert gpu.max_hz == CLOCKS[3]
        await bench.want(35.0)
        assert gpu.max_hz == CLOCKS[1]
        await bench.limits.close()

    with capture_logs() as logs:
        asyncio.run(main())
    assert gpu.max_hz == CLOCKS[3]
    assert not bench.file.exists()
    assert logs == []


@pytest.mark.parametrize("kind", [None, "thermal-devfreq-0", "gpu-throttle-alert"])
def test_what_throttling_allows_is_not_taken_for_what_was_set(
    tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    monkeypatch.setattr("agent.telemetry.limits.COOL_LOOK_S", 0.001)
    gpu.throttle(CLOCKS[2], kind)
    bench = Bench(tmp_path)

    async def main() -> None:
        bench.limits.worker_here(True)
        bench.limits.want(35.0)
        await asyncio.sleep(0.05)
        assert gpu.set_hz == CLOCKS[3], "nothing is set before it is known what is to be put back"
        assert not bench.file.exists()
        gpu.throttle(None, kind)
        assert bench.limits._task is not None
        await bench.limits._task
        assert gpu.max_hz == CLOCKS[1], "once it is cool, the wish is followed"
        await bench.limits.close()

    asyncio.run(main())
    assert gpu.max_hz == CLOCKS[3]
    assert bench.reports == []


def test_a_fan_does_not_throttle(tmp_path: Path, gpu: Gpu) -> None:
    gpu.throttle(CLOCKS[2], "pwm-fan")
    assert not devfreq(tmp_path).throttled()


def test_a_worker_that_leaves_a_throttled_computer_leaves_nothing_behind(tmp_path: Path, gpu: Gpu) -> None:
    gpu.throttle(CLOCKS[0])
    bench = Bench(tmp_path)

    async def main() -> None:
        bench.limits.worker_here(True)
        bench.limits.want(35.0)
        await asyncio.sleep(0.02)
        await bench.limits.close()

    asyncio.run(main())
    gpu.throttle(None)
    assert gpu.max_hz == CLOCKS[3]
    assert not bench.file.exists()


def test_after_a_crash_on_a_throttled_computer_the_note_stays_until_it_is_seen(tmp_path: Path, gpu: Gpu) -> None:
    bench = Bench(tmp_path)
    asyncio.run(bench.want(20.0))  # and no close: it crashed
    gpu.throttle(CLOCKS[0])

    def actuator(_kind: str, device: str) -> Actuator:
        return devfreq(tmp_path, device=device)

    restore_left_over(bench.file, BOOT, actuator)
    assert gpu.set_hz == CLOCKS[3]
    assert bench.file.exists()
    gpu.throttle(None)
    restore_left_over(bench.file, BOOT, actuator)
    assert gpu.max_hz == CLOCKS[3]
    assert not bench.file.exists()


def test_a_note_of_less_than_is_in_force_now_is_out_of_date(tmp_path: Path, gpu: Gpu) -> None:
    bench = Bench(tmp_path)
    note = Remembered(BOOT, "devfreq", gpu.folder.name, CLOCKS[1])
    bench.file.write_bytes(msgspec.json.encode(note))

    async def main() -> None:
        await bench.want(10.0)
        assert recall(bench.file) == msgspec.structs.replace(note, found=CLOCKS[3])
        await bench.limits.close()

    asyncio.run(main())
    assert gpu.max_hz == CLOCKS[3]


class Refusing:
    """The GPU's clock, which the platform lets nobody set for now."""

    def __init__(self, actuator: Devfreq, refusing: list[bool]) -> None:
        self.kind, self.device, self._actuator, self._refusing = "devfreq", actuator.device, actuator, refusing

    def current(self) -> int:
        return self._actuator.current()

    def throttled(self) -> bool:
        return self._actuator.throttled()

    def taken_over(self, written: int) -> bool:
        return self._actuator.taken_over(written)

    def value_for(self, limit_w: float, found: int) -> int:
        return self._actuator.value_for(limit_w, found)

    def write(self, value: int) -> None:
        if self._refusing:
            error = PermissionError(13, "Permission denied")
            raise ComputerError(f"cannot write: {error.strerror}", hint="set computer.limits to none") from error
        self._actuator.write(value)


def test_without_a_gpu_the_wish_fails_and_is_tried_again_with_the_next(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        await bench.want(30.0)
        assert [name for name, _ in bench.reports] == ["power_limit_failed"]
        gpu = Gpu(tmp_path)
        await bench.want(20.0)
        assert gpu.max_hz == CLOCKS[0]
        await bench.limits.close()

    asyncio.run(main())


def test_limits_are_off_unless_they_are_asked_for(tmp_path: Path, gpu: Gpu) -> None:
    limits = PowerLimits(None, tmp_path / "power-limit.json", BOOT, lambda _name, _fields: None)

    async def main() -> None:
        limits.want(10.0)
        await limits.close()

    asyncio.run(main())
    assert ComputerConfig().limits == "none"
    assert gpu.max_hz == CLOCKS[3]
    assert not (tmp_path / "power-limit.json").exists()


# --- a card ---------------------------------------------------------------------------------------------------------


def test_a_cards_limit_is_set_and_put_back(card: Card, tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda: NvmlLimit("0"))

    async def main() -> None:
        await bench.want(40.0)
        await bench.limits.close()

    asyncio.run(main())
    assert [line for line in card.done if line.startswith("set")] == ["set 40000", "set 60000"]
    assert card.done.count("init") == card.done.count("shutdown")
    assert bench.reports == []


def test_a_cards_limit_that_somebody_lowered_meanwhile_is_left_alone(card: Card, tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda: NvmlLimit("0"))

    async def main() -> None:
        await bench.want(40.0)
        NvmlLimit("0").write(30_000)
        await bench.limits.close()

    asyncio.run(main())
    assert [line for line in card.done if line.startswith("set")] == ["set 40000", "set 30000"]
    assert not bench.file.exists()


@pytest.mark.parametrize(("code", "hint"), [("!4", "needs root"), ("!999", "refused"), ("!15", "refused")])
def test_a_card_that_refuses_is_told_once(card: Card, tmp_path: Path, code: str, hint: str) -> None:
    card.says_also(set=code)
    bench = Bench(tmp_path, lambda: NvmlLimit("0"))

    async def main() -> None:
        await bench.want(40.0)
        await bench.want(30.0)
        await bench.limits.close()

    asyncio.run(main())
    (told,) = bench.reports
    assert hint in told[1]
