"""How far a build is, and that everything that goes wrong while telling it ends the build and nothing else."""

from __future__ import annotations

import threading

import pytest

from agent.worker.tensorrt.progress import Progress


class StopError(Exception):
    """The computer is wanted back."""


def told(stop_after: int = 1000) -> tuple[Progress, list[tuple[str, int]]]:
    seen: list[tuple[str, int]] = []

    def attend(phase: str, done: int) -> None:
        seen.append((phase, done))
        if len(seen) >= stop_after:
            raise StopError

    return Progress(attend), seen


def test_the_phase_with_the_most_steps_is_told() -> None:
    progress, seen = told()
    progress.started("Building", 6)
    progress.started("Computing costs", 10)
    progress.started("Timing", 3)
    assert progress.stepped("Timing", 0)
    assert progress.stepped("Computing costs", 3)
    progress.finished("Computing costs")
    assert progress.stepped("Building", 2)
    assert seen == [("Computing costs", 0), ("Computing costs", 400), ("Building", 500)]


def test_steps_out_of_any_order_stay_within_a_phase() -> None:
    progress, seen = told()
    progress.stepped("never began", 5)
    progress.started("one", 0)
    progress.stepped("one", 99)
    progress.stepped("one", -7)
    progress.finished("never began")
    progress.finished("one")
    progress.finished("one")
    assert seen == [("Building", 0), ("one", 1000), ("one", 1000)]


def test_a_phase_with_terminal_codes_in_its_name_is_printable() -> None:
    progress, seen = told()
    progress.started("\x1b[2Jlayer\n" + "x" * 1000, 2)
    progress.stepped("\x1b[2Jlayer\n" + "x" * 1000, 0)
    assert seen[0][0].isprintable()
    assert (len(seen[0][0]), seen[0][1]) == (400, 500)


def test_told_to_stop_it_never_goes_on() -> None:
    progress, seen = told(stop_after=2)
    progress.started("one", 5)
    assert [progress.stepped("one", step) for step in range(5)] == [True, False, False, False, False]
    assert len(seen) == 2
    assert isinstance(progress.error, StopError)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError()])
def test_an_error_ends_the_build_and_is_kept(error: BaseException) -> None:
    def attend(phase: str, done: int) -> None:
        raise error

    progress = Progress(attend)
    progress.started("one", 2)
    assert [progress.stepped("one", 0), progress.stepped("one", 1)] == [False, False]
    assert progress.error is error


def test_threads_are_let_through_one_by_one() -> None:
    inside, most = 0, 0
    gate = threading.Event()

    def attend(phase: str, done: int) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        gate.wait(0.005)
        inside -= 1

    progress = Progress(attend)
    progress.started("one", 8)
    threads = [threading.Thread(target=progress.stepped, args=("one", step)) for step in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
