"""Tasks that write are waited for, though not for ever."""

from __future__ import annotations

import asyncio

from agent.tasks import finished


def test_what_is_quick_is_done_what_hangs_is_cancelled_and_what_fails_stops_nobody() -> None:
    done: list[str] = []

    async def write(name: str, *, hangs: bool = False) -> None:
        await asyncio.sleep(60 if hangs else 0)
        done.append(name)

    async def fail() -> None:
        raise ValueError("no")

    async def main() -> None:
        await finished((), 1)
        tasks = [asyncio.create_task(one) for one in (fail(), write("a"), write("b", hangs=True), write("c"))]
        await finished(tasks, 0.05)
        assert [task.cancelled() for task in tasks] == [False, False, True, False]
        assert isinstance(tasks[0].exception(), ValueError)

    asyncio.run(main())
    assert done == ["a", "c"]
