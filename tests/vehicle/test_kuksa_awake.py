"""Keeping the platform awake: one leaf is all that can ever be written, and nobody else in the agent can write it."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import agent
from agent.awake import KeepAwakeWishes
from agent.errors import VehicleError
from agent.vehicle.databroker import DatabrokerConfig, build_awakener
from agent.vehicle.kuksa_awake import KEEP_AWAKE_LEAF, KuksaAwakener
from agent.vehicle.kuksa_channel import Door

from .databroker import AwkwardBroker

Play = Callable[[Coroutine[Any, Any, Any]], Any]
ROOT = Path(agent.__file__).parent
WRITING = {"Actuate", "ActuateStream", "BatchActuate", "PublishValue", "PublishValues", "OpenProviderStream"}


class WallClock:
    """2026-01-15 03:04:05 UTC, always."""

    def boot_ms(self) -> int:
        return 0

    def wall_ms(self) -> int:
        return 1_768_446_245_000


def writes(tree: ast.AST) -> Iterator[str]:
    """Where code names a call of kuksa.val.v2 that writes, or hides what it calls."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=attr) if attr in WRITING or attr.startswith(("unary_", "stream_")):
                yield attr
            case ast.Constant(value=str(text)) if text in WRITING or "/kuksa.val.v" in text:
                yield text
            case ast.Attribute(attr=attr) if attr.removesuffix("Request") in WRITING:
                yield attr


def test_one_call_in_the_whole_agent_can_write_and_its_leaf_is_a_constant() -> None:
    found = {path.name: sorted(writes(ast.parse(path.read_text("utf-8")))) for path in ROOT.rglob("*.py")}
    assert {name: calls for name, calls in found.items() if calls} == {"kuksa_awake.py": ["Actuate", "ActuateRequest"]}
    tree = ast.parse((ROOT / "vehicle" / "kuksa_awake.py").read_text("utf-8"))
    paths = [
        ast.unparse(keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in {"path", "id"}
    ]
    assert paths == ["KEEP_AWAKE_LEAF"]
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "KEEP_AWAKE_LEAF"]
    assert [type(node.ctx) for node in assigned].count(ast.Store) == 1
    assert KEEP_AWAKE_LEAF == "Vehicle.Driveway.KeepAwakeUntil"


@pytest.mark.parametrize(
    "code",
    ["stub.BatchActuate(r)", "channel.unary_unary(p)", "f = stub.PublishValue", "call('/kuksa.val.v2.VAL/Actuate')"],
)
def test_the_check_sees_the_ways_to_write(code: str) -> None:
    assert list(writes(ast.parse(code)))


def test_the_wish_is_the_moment_until_which_the_work_would_like_the_platform_awake(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        await broker.start()
        try:
            awakener = KuksaAwakener(WallClock(), Door(broker.address))
            await awakener.keep_awake(90_000)
            await awakener.keep_awake(0)
        finally:
            await broker.stop()
        assert broker.actuated == [
            (KEEP_AWAKE_LEAF, "2026-01-15T03:05:35Z"),
            (KEEP_AWAKE_LEAF, "1970-01-01T00:00:00Z"),
        ]

    play(story())


class FrontDoor(Door):
    """The real door, which counts how often somebody goes in, and keeps what it opened."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.opened: list[grpc.aio.Channel] = []

    def open(self) -> grpc.aio.Channel:
        self.opened.append(super().open())
        return self.opened[-1]

    @property
    def still_open(self) -> int:
        return sum(one.get_state() is not grpc.ChannelConnectivity.SHUTDOWN for one in self.opened)


def test_one_connection_lasts_until_letting_go_or_a_failure(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        await broker.start()
        door = FrontDoor(broker.address)
        awakener = KuksaAwakener(WallClock(), door)
        for _ in range(5):
            await awakener.keep_awake(5_000)
        assert (len(door.opened), door.still_open) == (1, 1)
        await awakener.keep_awake(0)
        assert (len(door.opened), door.still_open) == (1, 0)
        await awakener.keep_awake(5_000)
        assert len(door.opened) == 2
        await broker.stop()
        with pytest.raises(VehicleError, match="cannot be reached"):
            await awakener.keep_awake(5_000)
        assert (len(door.opened), door.still_open) == (2, 0), "a failure is the end of a connection"
        with pytest.raises(VehicleError, match="cannot be reached"):
            await awakener.keep_awake(0)
        assert (len(door.opened), door.still_open) == (3, 0)

    play(story())


def test_a_clock_beyond_every_calendar_is_a_sentence(play: Play) -> None:
    clock = WallClock()
    clock.wall_ms = lambda: 10**18  # type: ignore[method-assign]

    async def story() -> None:
        with pytest.raises(VehicleError, match="no date"):
            await KuksaAwakener(clock, Door("127.0.0.1:1")).keep_awake(5_000)

    play(story())


def test_a_token_that_may_only_read_cannot_keep_the_car_awake(play: Play, tmp_path: Path) -> None:
    token = tmp_path / "token"

    async def story() -> None:
        broker = AwkwardBroker()
        broker.tokens = {"read": frozenset({KEEP_AWAKE_LEAF}), "awake": frozenset({f"actuate:{KEEP_AWAKE_LEAF}"})}
        await broker.start()
        awakener = KuksaAwakener(WallClock(), Door(broker.address, token))
        try:
            with pytest.raises(VehicleError, match="token"):
                await awakener.keep_awake(1_000)
            token.write_text("read")
            with pytest.raises(VehicleError, match=f"{KEEP_AWAKE_LEAF}.*may the token actuate it"):
                await awakener.keep_awake(1_000)
            (tmp_path / "other").write_text("awake")
            (tmp_path / "other").replace(token)
            await awakener.keep_awake(1_000)
        finally:
            await broker.stop()
        assert len(broker.actuated) == 1
        with pytest.raises(VehicleError, match="cannot be reached"):
            await awakener.keep_awake(1_000)

    play(story())


def test_it_is_off_unless_it_is_configured() -> None:
    off = DatabrokerConfig(address="unix:/broker")
    assert build_awakener(off, WallClock(), Path) is None
    on = DatabrokerConfig(address="unix:/broker", keep_awake=True)
    assert isinstance(build_awakener(on, WallClock(), Path), KuksaAwakener)


class Platform:
    """Takes wishes when it is let, and refuses them while it is told to."""

    def __init__(self) -> None:
        self.wishes: list[int] = []
        self.refuses = False
        self.free = asyncio.Event()

    async def keep_awake(self, for_ms: int) -> None:
        await self.free.wait()
        if self.refuses:
            raise VehicleError("no provider")
        self.wishes.append(for_ms)


def test_the_newest_wish_wins_and_what_is_held_is_let_go_at_the_end() -> None:
    async def story() -> None:
        platform, notes = Platform(), list[str]()
        wishes = KeepAwakeWishes(platform, lambda name, _fields: notes.append(name))
        for wish_ms in (1_000, 2_000, 3_000):
            wishes.want(wish_ms)
            await asyncio.sleep(0)
        platform.free.set()
        await wishes.close()
        assert platform.wishes in ([1_000, 0], [1_000, 3_000, 0])
        assert notes == []

    asyncio.run(story())


def test_a_failure_is_told_once_and_so_is_its_end() -> None:
    async def story() -> None:
        platform, notes = Platform(), list[str]()
        platform.free.set()
        wishes = KeepAwakeWishes(platform, lambda name, _fields: notes.append(name))
        for refuses in (True, True, False, False):
            platform.refuses = refuses
            wishes.want(1_000)
            for _ in range(5):
                await asyncio.sleep(0)
        await wishes.close()
        assert notes == ["keep_awake_failed", "keep_awake_works"]

    asyncio.run(story())


def test_without_an_awakener_nothing_is_asked() -> None:
    async def story() -> None:
        wishes = KeepAwakeWishes(None, lambda _name, _fields: None)
        wishes.want(1_000)
        await wishes.close()

    asyncio.run(story())
