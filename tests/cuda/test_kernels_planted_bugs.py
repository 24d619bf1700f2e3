"""Every planted bug is caught, by a result that differs under some thread order or by the sanitisers."""

from __future__ import annotations

import faulthandler
import multiprocessing
from pathlib import Path

import pytest

from hil.gpu.hard_cases import CASES
from tests.cuda import sanitized
from tests.cuda.host_kernels import HostKernels, LaunchError, library
from tests.cuda.kernel_cases import ORDERS, difference
from tests.cuda.planted_bugs import BUGS, Bug, StaleBugError, plant

pytestmark = pytest.mark.usefixtures("host_kernels")  # skipped where they cannot be compiled
SAME, DIFFERENT = 0, 1


def compare(path: Path, file: str) -> None:
    """Leave the process with what came of the cases; a bug may also kill it."""
    faulthandler.disable()
    kernels = HostKernels(path)
    try:
        differ = any(difference(case, kernels, order) for case in CASES[file] for order in ORDERS)
    except LaunchError:
        differ = True
    raise SystemExit(DIFFERENT if differ else SAME)


def found_by_comparing(bug: Bug) -> bool:
    process = multiprocessing.get_context("fork").Process(
        target=compare, args=(library(plant(bug), only=[bug.shown_by]), bug.shown_by)
    )
    process.start()
    process.join()
    return process.exitcode != SAME


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_a_planted_bug_is_caught(bug: Bug) -> None:
    if not bug.alone:
        assert found_by_comparing(bug)
        return
    done = sanitized.run(library(plant(bug), only=[bug.shown_by], sanitized=True), bug.shown_by)
    assert done.returncode != 0
    assert "Sanitizer" in done.stderr or "runtime error" in done.stderr, done.stderr


def test_each_bug_has_a_name_of_its_own() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_a_bug_whose_text_is_gone_is_no_bug() -> None:
    with pytest.raises(StaleBugError, match="0 times"):
        plant(Bug("stale", "common.cuh", "text that nobody wrote", "", "ctc_greedy_decode.cu"))


def test_the_right_kernels_show_no_difference() -> None:
    process = multiprocessing.get_context("fork").Process(target=compare, args=(library(), "ctc_greedy_decode.cu"))
    process.start()
    process.join()
    assert process.exitcode == SAME
