"""Shared by all rooms: keys, and a clock that stands where a test puts it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from agent.trust.keys import FileSigner
from tests.tools import lacking
from tests.trust import conformance

# A machine that does much else is no fault of what is tested: how long an example takes is not looked at.
settings.register_profile("driveway", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("driveway")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tool(present, why): needs a program; made by tests.tools.needs")


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs the tests may have a terminal of any width; parallel workers are told one."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a program that is not here, or fails it: `tests.tools`."""
    for mark in item.iter_markers("tool"):
        present, why = mark.args
        if not present:
            lacking(why)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What nobody should overlook: public vectors that were not there to be checked."""
    lines = conformance.summary(terminalreporter.stats.get("skipped", ()))
    if lines:
        terminalreporter.section("public conformance vectors: NOT CHECKED", sep="!", bold=True, red=True)
        for line in lines:
            terminalreporter.line(line)
        terminalreporter.line("DRIVEWAY_VECTORS names another folder; DRIVEWAY_REQUIRE_VECTORS=1 makes this a failure.")


@dataclass
class FixedClock:
    """A clock that a test moves by hand."""

    now_ms: int = 1_000_000

    def boot_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return 1_790_000_000_000 + self.now_ms


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture(scope="session")
def dispatcher_signer(tmp_path_factory: pytest.TempPathFactory) -> FileSigner:
    """The key of the dispatcher that this unit trusts."""
    folder: Path = tmp_path_factory.mktemp("dispatcher")
    return FileSigner.open_or_create(folder / "dispatcher.key")


@pytest.fixture(scope="session")
def stranger_signer(tmp_path_factory: pytest.TempPathFactory) -> FileSigner:
    """A key that nobody trusts."""
    return FileSigner.open_or_create(tmp_path_factory.mktemp("stranger") / "stranger.key")


@pytest.fixture(scope="session")
def play() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Plays a story on the one event loop of all gRPC tests: gRPC's queue of events belongs to the process."""
    with asyncio.Runner() as runner:
        yield runner.run
