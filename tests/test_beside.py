"""Blocking calls beside the event loop: one at a time, and one that hangs holds up nobody."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from agent.beside import Beside


def fail() -> None:
    raise ValueError("no")


def test_what_it_returns_and_raises() -> None:
    async def main() -> None:
        beside = Beside()
        assert await beside.run(lambda: threading.current_thread().daemon, 5) is True
        with pytest.raises(ValueError, match="no"):
            await beside.run(fail, 5)

    asyncio.run(main())


def test_a_call_that_hangs_is_left_behind_and_the_next_waits_for_it() -> None:
    async def main() -> None:
        beside, released, closed = Beside(), threading.Event(), threading.Event()
        with pytest.raises(TimeoutError):
            await beside.run(released.wait, 0.01)
        with pytest.raises(TimeoutError):
            await beside.run(closed.set, 0.01)
        assert not closed.is_set(), "never two at a time"
        released.set()
        assert closed.wait(5)

    asyncio.run(main())


def test_a_process_ends_although_a_call_still_hangs() -> None:
    code = (
        "import asyncio, contextlib, time\n"
        "from agent.beside import Beside\n"
        "with contextlib.suppress(TimeoutError): asyncio.run(Beside().run(lambda: time.sleep(60), 0.01))"
    )
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
    assert time.monotonic() - began_s < 50
