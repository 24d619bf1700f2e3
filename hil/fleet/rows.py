"""A car's standing orders, kept in memory: what `agent.fleet.orders` asks of the store, and nothing more.

Ten thousand SQLite files and threads would be the benchmark. What is kept lives as long as the car does, so an outage
of broker or dispatcher changes nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import msgspec

from agent.store import Store, StoreThread

P = ParamSpec("P")
R = TypeVar("R")


class Rows(StoreThread):
    """Takes the place of the store's thread for rows that are remembered, recalled and forgotten by name."""

    def __init__(self) -> None:
        # Not the base's: that would begin a thread for every car.
        self._rows: dict[str, bytes] = {}

    async def call(self, method: Callable[Concatenate[Store, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """One of the store's methods, on the rows."""
        return cast("R", self._do(method.__name__, *args, *kwargs.values()))

    def _do(self, method: str, *arguments: Any) -> Any:
        match method, *arguments:
            case "remember", str(row), value:
                self._rows[row] = msgspec.json.encode(value)
            case "recall", str(row), kind:
                body = self._rows.get(row)
                return None if body is None else msgspec.json.decode(body, type=kind)
            case "forget", str(row):
                self._rows.pop(row, None)
            case _:
                raise NotImplementedError(f"a fleet car keeps rows only, and does not {method}")
        return None
