"""The real worker in its cage: how well it is shut in, how it ends by signal, and that it forgets what it was given."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from agent import wire
from agent.package import Package
from hil.images import drawn_lines
from tests.inference.desk import PATIENCE_S, Desk
from tests.inference.test_worker import hand_over, loaded, quick_package
from tests.inference.whole_cage import need

__all__ = ["quick_package"]
COPIES = 5


def copies_in_memory(pid: int, needle: bytes) -> int:
    """How often the bytes occur in a process's memory; only root may look."""
    found = 0
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            if "r" not in rights or "[v" in line:
                continue
            first, last = (int(one, 16) for one in span.split("-"))
            try:
                memory.seek(first)
                found += memory.read(last - first).count(needle)
            except OSError:
                continue  # memory of a device
    return found


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process; see proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.skipif(os.getuid() != 0, reason="nobody but root may look into a worker's memory")
@pytest.mark.parametrize("size", [24, 400, 20_000, 200_000])
def test_a_lease_that_is_over_leaves_nothing_in_memory(quick_package: Package, size: int) -> None:
    async def story() -> None:
        async with loaded(quick_package) as (desk, process, _):
            secret = os.urandom(24)
            picture = drawn_lines(1, seed=1)[0].png if size > 24 else b""
            hand_over(process, [picture + secret + bytes(size - 24)] * COPIES)
            process.run(0, 0, COPIES)
            await desk.wait_for(wire.SliceDone)
            assert copies_in_memory(process.pid, secret) >= COPIES
            process.forget()
            process.run(1, 0, 1)
            assert "no input was sent" in (await desk.wait_for(wire.SliceError)).detail
            assert copies_in_memory(process.pid, secret) == 0

            hand_over(process, [drawn_lines(1, seed=1)[0].png])  # it is as good as before
            process.run(2, 0, 1)
            assert (await desk.wait_for(wire.SliceDone)).failed_items == 0

    asyncio.run(story())


def test_the_worker_says_how_well_it_is_shut_in(quick_package: Package) -> None:
    """And computes in there, with threads: nothing that it needs is refused."""

    async def story() -> None:
        async with loaded(quick_package) as (_, process, _loaded):
            told = Counter(one.name for one in process.confinement)
            assert max(told.values()) == 1
            by_itself = {one.name: one.state for one in process.confinement if not one.name.startswith("cgroup")}
            assert set(by_itself) == set(get_args(wire.Measure))
            need(by_itself)
            status = status_of(process.pid)
            assert int(status["Threads"]) > 1
            assert (status["Seccomp"], status["NoNewPrivs"], int(status["CapEff"], 16)) == ("2", "1", 0)

    asyncio.run(story())


WATCHED = """#!{python} -B
import os, runpy, sys
from agent.worker import ending

class Told:
    def __init__(self, held):
        self._held = held
    def drain(self):
        self._held.drain()
        os.write(2, b"drained ")
    def close(self):
        self._held.close()
        os.write(2, b"closed ")

free_at_end = ending.free_at_end
ending.free_at_end = lambda held: free_at_end(Told(held))
sys.argv = sys.argv[sys.argv.index("agent.worker") :]
runpy.run_module("agent.worker", run_name="__main__")
"""
"""The real worker, which tells on standard error how its executor ends."""


def watched_worker(folder: Path) -> str:
    """An executable that stands in for the interpreter and runs `WATCHED`."""
    path = folder / "python"
    path.write_text(WATCHED.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("by", ["stop", "sigterm"])
def test_however_it_is_told_to_end_it_drains_and_frees(quick_package: Package, tmp_path: Path, by: str) -> None:
    async def story() -> None:
        async with loaded(quick_package, python=watched_worker(tmp_path)) as (desk, process, _):
            if by == "stop":
                process.stop(PATIENCE_S * 1000)
            else:
                async with asyncio.timeout(PATIENCE_S):
                    while not status_of(process.pid)["State"].startswith("S"):  # noqa: ASYNC110 - it waits for orders
                        await asyncio.sleep(0.01)
                os.kill(process.pid, signal.SIGTERM)
            expected, detail = await desk.end()
            assert [type(one) for one in desk.messages if isinstance(one, wire.Idle)] == [wire.Idle] * (by == "stop")
            assert expected is (by == "stop")
            how, _, told = detail.partition("; ")
            assert how.startswith(f"exited with status {0 if by == 'stop' else wire.EXIT_TERMINATED}")
            assert told == ("closed" if by == "stop" else "drained closed")

    asyncio.run(story())


def test_sigterm_ends_it_at_once(quick_package: Package) -> None:
    async def story() -> None:
        async with loaded(quick_package) as (desk, process, _):
            os.kill(process.pid, signal.SIGTERM)
            expected, detail = await desk.end()
            assert not expected
            assert detail == f"exited with status {wire.EXIT_TERMINATED}"

    asyncio.run(story())


def test_sigterm_ends_it_before_it_is_told_anything() -> None:
    async def story() -> None:
        desk = Desk()
        process = desk.launch()
        await desk.wait_for(wire.Hello)
        os.kill(process.pid, signal.SIGTERM)
        _, detail = await desk.end()
        assert detail == f"exited with status {wire.EXIT_TERMINATED}"

    asyncio.run(story())
