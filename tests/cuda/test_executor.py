"""The CUDA executor on real pycuda and the stand-in driver: each scenario in a process of its own.

A scenario asserts by itself; here it must end as it should, without a fault that the stand-in found (a write beside a
buffer, a call that a capture does not allow), and with all memory given back.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda import standin

LOSING = {
    "a_failed_kernel_loses_the_context",
    "a_kernel_that_fails_in_warm_up",
    "an_engine_that_says_it_in_its_own_words",
    "an_engine_that_says_so_while_it_is_bound",
    "ends_after_loss",
}
"""Scenarios after which nothing can be freed any more."""
LEAVING = {"ends_with_an_exception": 7, "ends_after_loss": 5, "sigterm_in_a_capture": 143}
AT_ONCE = {"sigterm_in_a_capture"}
"""Of these, such as end without the driver's good-bye and report: they look at what is left themselves."""
"""Scenarios that end the process without closing anything, and their exit status."""

Play = Callable[..., None]


@pytest.fixture
def play(engine_kernels: Path, tmp_path: Path) -> Play:
    """Runs a scenario in a process that meets the stand-in, and looks at how it ended and what it left."""
    control, report = tmp_path / "control", tmp_path / "report.json"

    def run(module: str, scenario: str, **settings: object) -> None:
        control.write_text("", "utf-8")
        done = subprocess.run(
            [sys.executable, "-m", f"tests.cuda.{module}", scenario],
            env=standin.environment(control=control, report=report, kernels=engine_kernels, **settings),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == LEAVING.get(scenario, 0), done.stderr
        if scenario in AT_ONCE:
            assert done.stderr == ""
            return
        left = standin.read_report(report)
        assert left.violations == (), left.violations
        assert left.unsupported == (), left.unsupported
        if scenario not in LOSING and scenario not in LEAVING:
            assert left.left_behind == (), left.left_behind
            assert (left.used_bytes, left.pinned_bytes) == (0, 0)

    return run


def scenarios(module: str) -> list[str]:
    """The names of a module's scenarios, which cannot be imported here: there is no driver in this process."""
    text = Path(__file__).with_name(f"{module}.py").read_text("utf-8")
    return re.findall(r"^def ([a-z]\w*)\(\) -> None:$", text, re.MULTILINE)


@pytest.mark.parametrize("integrated", [False, True], ids=["discrete", "integrated"])
@pytest.mark.parametrize("scenario", scenarios("executor_answers"))
def test_answers(play: Play, scenario: str, integrated: bool) -> None:
    play("executor_answers", scenario, integrated=integrated)


@pytest.mark.parametrize("scenario", scenarios("executor_faults"))
def test_faults(play: Play, scenario: str) -> None:
    play("executor_faults", scenario, integrated=False)


@pytest.mark.parametrize("scenario", ["no_memory_at_every_allocation", "any_call_may_fail"])
def test_faults_of_mapped_memory(play: Play, scenario: str) -> None:
    play("executor_faults", scenario, integrated=True)


@pytest.mark.parametrize("scenario", scenarios("executor_memory"))
def test_memory(play: Play, scenario: str) -> None:
    play("executor_memory", scenario, integrated=False)


@pytest.mark.parametrize("scenario", scenarios("executor_memory"))
def test_mapped_memory(play: Play, scenario: str) -> None:
    play("executor_memory", scenario, integrated=True)


def test_a_slow_device_is_waited_for(play: Play) -> None:
    """What is right does not hang on the device being as quick as this one."""
    play("executor_answers", "both_slots_in_flight", integrated=False, operation_ms=3)
