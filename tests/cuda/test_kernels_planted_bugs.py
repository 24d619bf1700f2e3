"""Every planted bug is caught, by a result that differs under some thread order or by the sanitisers.

A process that crashes, hangs or cannot load its kernels shows nothing about a bug: only a difference that it found, or
a sanitiser's report, counts.
"""

from __future__ import annotations

import enum
import faulthandler
import multiprocessing
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hil.gpu.hard_cases import CASES
from tests.cuda import sanitized
from tests.cuda.host_kernels import HostKernels, LaunchError, library
from tests.cuda.kernel_cases import ORDERS, difference
from tests.cuda.planted_bugs import BUGS, Bug, StaleBugError, plant

pytestmark = pytest.mark.usefixtures("host_kernels")  # skipped where they cannot be compiled
TIMEOUT_S = 60.0


class Outcome(enum.Enum):
    """What came of the cases in a process of their own; for the first two, its exit status."""

    SAME = 0
    DIFFERENT = 3
    """Neither Python's own status after an exception (1), nor its command line's (2), nor a signal's."""
    CRASHED = "crashed"
    TIMED_OUT = "timed out"


def compare(path: Path, file: str) -> None:
    """Leave the process with what came of the cases: different also where the shim found a launch at fault."""
    faulthandler.disable()
    kernels = HostKernels(path)
    try:
        differ = any(difference(case, kernels, order) for case in CASES[file] for order in ORDERS)
    except LaunchError:
        differ = True
    raise SystemExit((Outcome.DIFFERENT if differ else Outcome.SAME).value)


def outcome(story: Callable[..., None], *arguments: object, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Run this in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=story, args=arguments)
    process.start()
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        return Outcome.TIMED_OUT
    return Outcome(process.exitcode) if process.exitcode in (0, 3) else Outcome.CRASHED


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_a_planted_bug_is_caught(bug: Bug) -> None:
    kernels = library(plant(bug), only=[bug.shown_by], sanitized=bug.alone)
    if not bug.alone:
        assert outcome(compare, kernels, bug.shown_by) is Outcome.DIFFERENT
        return
    done = sanitized.run(kernels, bug.shown_by)
    assert done.returncode != 0
    assert "Sanitizer" in done.stderr or "runtime error" in done.stderr, done.stderr


@pytest.mark.parametrize("file", CASES)
def test_the_right_kernels_show_no_difference(file: str) -> None:
    """The same run without a bug; that of the sanitised process is in test_kernels.py."""
    assert outcome(compare, library(only=[file]), file) is Outcome.SAME


def test_a_process_that_ends_otherwise_has_found_nothing(tmp_path: Path) -> None:
    assert outcome(compare, tmp_path / "no_library.so", "ctc_greedy_decode.cu") is Outcome.CRASHED
    assert outcome(signal.raise_signal, signal.SIGKILL) is Outcome.CRASHED
    assert outcome(time.sleep, 60, timeout_s=0.2) is Outcome.TIMED_OUT


def test_each_bug_has_a_name_of_its_own() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_a_bug_whose_text_is_gone_is_no_bug() -> None:
    with pytest.raises(StaleBugError, match="0 times"):
        plant(Bug("stale", "common.cuh", "text that nobody wrote", "", "ctc_greedy_decode.cu"))
