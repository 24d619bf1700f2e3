"""`driveway status` and `why`: local time with its day, and nothing that could speak to a terminal."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import view
from agent.cli.main import main
from agent.cli.text import shown, table, value
from agent.cli.when import local_text
from agent.control import ControlRequest
from agent.control_server import ControlServer
from agent.core.events import AcceleratorSeen, DemandSeen, LinkChanged, PlansMissing, SourceChanged
from agent.core.model import Accelerator, Readiness
from agent.ledger_view import LedgerView
from agent.printable import printable
from agent.rows import Totals, VacateStats
from tests.core.world import Shell

EVIL = "\x1b[2J\x1b]0;owned\x07all\r\nis\x9bm well\u202e"
WALL_MS = 1_768_446_245_000
"""2026-01-15 03:04:05 UTC."""


class Answering:
    """The control socket of an agent to which the world said evil things, on a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "control.sock"
        self.shell = Shell()
        self.shell.tell(SourceChanged(at_ms=0, source="can0", alive=False, detail=EVIL))
        self.shell.tell(LinkChanged(at_ms=0, connected=False, broker="", detail=EVIL))
        self.shell.tell(DemandSeen(at_ms=0, stop_for_ms=900_000, detail=EVIL))
        lost = Accelerator(Readiness.LOST, "tensorrt", "10.3.0", f"Orin{EVIL}", EVIL)
        self.shell.tell(AcceleratorSeen(at_ms=0, accelerator=lost))
        self.shell.tell(PlansMissing(at_ms=0, packages=("1" * 64, "2" * 64)))
        self._up, self._over, self._loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._up.wait(20)

    async def _serve(self) -> None:
        server = ControlServer(self.path, self._answer)
        await server.start()
        self._up.set()
        await self._over.wait()
        await server.close()

    async def _answer(self, request: ControlRequest) -> object:
        if request.verb == "why":
            return view.reasons(self.shell.state, WALL_MS)
        return view.status(
            self.shell.state,
            wall_offset_ms=WALL_MS,
            items_done_in_slice=0,
            pending=0,
            ledger=LedgerView(0, "00"),
            totals=Totals(energy_micro_wh=0, paid_micro=0, cost_micro=0),
            vacate=VacateStats(0, None, None, None),
            refused_messages={},
            refused_packages={f"ocr{EVIL}": EVIL},
        )

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)
        self._loop.close()


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[str]:
    running = Answering(tmp_path)
    yield str(running.path)
    running.close()


@pytest.mark.parametrize("verb", ["status", "why"])
def test_what_the_world_says_cannot_speak_to_the_terminal(
    socket: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([verb, "--socket", socket])
    out = capsys.readouterr().out
    assert "all is" in out
    assert all(line.isprintable() for line in out.splitlines())
    assert not any(line.startswith("is") for line in out.splitlines())
    main([verb, "--json", "--socket", socket])
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_times_are_local_and_say_their_day(socket: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As `pause` says them; a bare hour of UTC could be any day's."""
    main(["why", "--socket", socket])
    out = capsys.readouterr().out
    begun = local_text(dt.datetime.fromtimestamp(WALL_MS / 1000, dt.UTC).isoformat())
    assert "2026-01-1" in begun
    assert f"    since   {begun} (" in out


def test_status_says_what_runs_the_engines_and_what_is_missing(socket: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["status", "--socket", socket])
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("engine")]
    assert line.startswith("engine    tensorrt 10.3.0 on Orin")
    assert ", lost: " in line
    assert line.endswith("; plans to be built: 2")


def test_text_from_elsewhere_is_printable_and_on_one_line() -> None:
    assert printable("a\n\tb\x00c\u00a0d") == "a bc d"
    assert printable("22 °C · löv") == "22 °C · löv"
    assert value(f"x{EVIL}").isprintable()
    assert table(("A",), [(EVIL,)]).count("\n") == 1
    assert shown({"a\x07": [EVIL, 1, None, True]}) == {"a": [printable(EVIL), 1, None, True]}
