"""`driveway watch`: its screens as they were looked at, from any daemon; and as a process on a terminal.

`watch/scene.json` holds what a real daemon answered, at work and after a door opened; the screens beside it are what is
to be drawn of that (`DRIVEWAY_WRITE_SCREENS=1` draws them anew: look at them before they are kept).
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import exits
from agent.cli.terminal import Screen
from agent.cli.watch import changed_line
from agent.cli.watch_parts import Scene, cells
from agent.cli.watch_screen import lines
from tests.cli.test_status import EVIL, Answering

HERE = Path(__file__).parent / "watch"
SAID: Any = json.loads((HERE / "scene.json").read_text("utf-8"))
COLOUR = re.compile(r"\x1b\[\d+m")
PATIENCE_S = 60.0
WRITE = "DRIVEWAY_WRITE_SCREENS"


def scene(name: str) -> Scene:
    return Scene(SAID["at_s"], **SAID[name], slices_per_s=0.7, heard_s=SAID["at_s"])


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as at:
        at.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


# --- the screens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seen", "on"),
    [
        ("working-80x24", scene("working"), Screen(80, 24, unicode=True)),
        ("closed-80x24", scene("closed"), Screen(80, 24, unicode=True)),
        ("working-ascii-80x24", scene("working"), Screen(80, 24)),
        ("working-40x12", scene("working"), Screen(40, 12)),
        ("working-120x30", scene("working"), Screen(120, 30, unicode=True)),
        ("gone-80x24", scene("working")._replace(trouble="No answer", heard_s=SAID["at_s"] - 75), Screen(80, 24)),
        ("never-80x24", Scene(SAID["at_s"], trouble="No answer: nobody listens"), Screen(80, 24)),
    ],
)
def test_a_screen_as_it_was_looked_at(name: str, seen: Scene, on: Screen, utc: None) -> None:
    drawn = "".join(f"{line.rstrip()}\n" for line in lines(seen, on))
    kept = HERE / f"{name}.txt"
    if WRITE in os.environ:
        kept.write_text(drawn, "utf-8")
    assert drawn == kept.read_text("utf-8")


def test_colours_are_added_and_nothing_else_changes() -> None:
    plain = lines(scene("working"), Screen(80, 24, unicode=True))
    coloured = lines(scene("working"), Screen(80, 24, unicode=True, colour=True, ansi=True))
    assert plain == [COLOUR.sub("", line) for line in coloured]
    assert any("\x1b[32m" in line for line in coloured)


def test_the_heat_and_the_reason_stay_to_the_end() -> None:
    """What matters most is there on the smallest screen."""
    drawn = "\n".join(lines(scene("closed"), Screen(60, 4)))
    assert "gate closed" in drawn
    assert "why" in drawn
    assert "die" not in "\n".join(lines(scene("closed"), Screen(60, 3)))
    assert "earned" not in drawn


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.just(EVIL),
    st.just("漢字e\u0301\u200b"),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def places(found: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place within an answer."""
    entries = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


PLACES = [
    (name, place)
    for name in ("working", "closed")
    for place in places(SAID[name])
    if place[0] != "signals" or len(place) < 2 or place[1] < 3
]


@given(
    changes=st.lists(st.tuples(st.sampled_from(PLACES), st.one_of(ANYTHING, st.just(...))), max_size=4),
    columns=st.integers(20, 200),
    rows=st.integers(2, 60),
    unicode=st.booleans(),
)
def test_whatever_a_daemon_says_fits_the_screen(
    changes: list[tuple[tuple[str, tuple[Any, ...]], Any]], columns: int, rows: int, unicode: bool
) -> None:
    """An older, newer or broken one: any value is anything else, or missing (`...`)."""
    name = changes[0][0][0] if changes else "working"
    said = copy.deepcopy(SAID[name])
    for (which, place), value in changes:
        if which == name:
            with contextlib.suppress(KeyError, IndexError, TypeError):  # a change before took it away
                change(said, place, value)
    seen = Scene(SAID["at_s"], **said)
    assert changed_line(seen).isprintable()
    for line in (drawn := lines(seen, Screen(columns, rows, unicode=unicode))):
        assert len(line) <= columns
        assert line.isprintable()
        assert cells(line) == line
        assert unicode or line.isascii()
    assert 1 <= len(drawn) <= rows


def change(said: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        said = said[key]
    if value is not ...:
        said[place[-1]] = value
    elif len(place) > 1:
        del said[place[-1]]


# --- the process --------------------------------------------------------------------------------------------------


class Terminal:
    """A process with a terminal of some size, whose screen is read."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24, term: str = "vt100") -> None:
        self._master, child = pty.openpty()
        self.resize(columns, rows)
        environment = {**os.environ, "TERM": term, "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent", "watch", *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment,
            start_new_session=True,
        )
        os.close(child)
        self.text = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def until(self, words: str) -> str:
        """Everything up to these words, which is taken away."""
        end_s = time.monotonic() + PATIENCE_S
        while words not in self.text:
            assert time.monotonic() < end_s, f"no {words!r} in {self.text[-2000:]!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self.text += os.read(self._master, 65_536).decode()
        before, _, self.text = self.text.partition(words)
        return before + words

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def test_it_waits_for_a_daemon_draws_resizes_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    with Terminal("--socket", str(tmp_path / "control.sock"), "--every", "1") as terminal:
        assert terminal.until("No answer").startswith("\x1b[H\x1b[2J")
        with contextlib.closing(Answering(tmp_path)):
            begun = terminal.until("link")
            assert "BLOCKED, gate closed" in COLOUR.sub("", begun)
            assert "\x1b]0;" not in begun
            terminal.resize(40, 10)
            terminal.until("\x1b[H\x1b[2J")
            drawn = COLOUR.sub("", terminal.until("\x1b[J")).replace("\x1b[K", "").removesuffix("\x1b[J")
            assert max(map(len, drawn.splitlines())) <= 40
            assert len(drawn.splitlines()) <= 10
        terminal.until("No answer")
        assert terminal.process.poll() is None, "a daemon that goes is waited for"
        with contextlib.closing(Answering(tmp_path)):
            terminal.until("BLOCKED")
        os.kill(terminal.process.pid, signal.SIGINT)
        assert terminal.process.wait(PATIENCE_S) == exits.FINE


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_knows_no_escape_gets_a_line_a_change(term: str, tmp_path: Path) -> None:
    with (
        contextlib.closing(Answering(tmp_path)) as answering,
        Terminal("--socket", str(answering.path), "--count", "3", term=term) as terminal,
    ):
        said = terminal.until("\n")
        assert "blocked gate closed" in said
        assert said.strip().isprintable()
        assert terminal.process.wait(PATIENCE_S) == exits.FINE


def test_a_pipe_gets_a_line_a_change_and_json_an_object(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "agent", "watch", "--socket", str(tmp_path / "control.sock"), "--count", "2"]
    with contextlib.closing(Answering(tmp_path)):
        plain = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        (only,) = plain.stdout.splitlines()
        assert "blocked gate closed" in only
        done = subprocess.run([*line, "--json"], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        assert json.loads(done.stdout)["state"] == "blocked"
    gone = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert "No answer" in gone.stdout
