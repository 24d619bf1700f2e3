"""Whatever the platform's library raises is a wish that failed, told once; and the end of the daemon goes on."""

from __future__ import annotations

import asyncio

import pytest

from agent import awake
from agent.awake import KeepAwakeWishes
from agent.errors import VehicleError


class Platform:
    def __init__(self, *faults: Exception | None) -> None:
        self.faults, self.wishes = list(faults), list[int]()

    async def keep_awake(self, for_ms: int) -> None:
        self.wishes.append(for_ms)
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault


def test_any_failure_is_told_once_and_closing_never_raises() -> None:
    platform = Platform(ValueError("year 60000 is out of range"), VehicleError("no provider"), OverflowError("again"))
    told: list[tuple[str, str]] = []

    async def main() -> None:
        wishes = KeepAwakeWishes(platform, lambda name, fields: told.append((name, str(fields.get("detail", "")))))
        for _ in range(2):
            wishes.want(5_000)
            await asyncio.sleep(0.01)
        await wishes.close()

    asyncio.run(main())
    assert platform.wishes == [5_000, 5_000, 0]
    assert told == [("keep_awake_failed", "ValueError('year 60000 is out of range')")]


def test_a_platform_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "CLOSE_S", 0.02)

    class Silent(Platform):
        async def keep_awake(self, for_ms: int) -> None:
            await asyncio.sleep(60)

    async def main() -> None:
        wishes = KeepAwakeWishes(Silent(), lambda _name, _fields: None)
        wishes.want(5_000)
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await wishes.close()

    asyncio.run(main())
