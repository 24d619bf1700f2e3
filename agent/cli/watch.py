"""`driveway watch`: what the agent does, live, on any terminal; or a line a change.

The screen is drawn with nothing but "home" and "erase", so it works over a serial line; a change of its size is seen at
once (SIGWINCH) or, where a serial line tells nobody, with the next look. Where there is no terminal, or one that takes
no escape sequence, and with `--plain`, a line is printed when something changed. A daemon that goes away is waited for.

What it costs the daemon: two short answers a look, and the gate's history once a minute and after a change.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.cli import exits
from agent.cli.client import UnreachableError, ask, socket_path
from agent.cli.terminal import plain, screen
from agent.cli.text import shown
from agent.cli.watch_parts import Scene, cells
from agent.cli.watch_screen import CHARGE, UNLIKE, lines
from agent.errors import DrivewayError

HISTORY_EVERY_S = 60.0
HISTORY_LEAST_S = 5.0
RATE_OVER_S = 60.0
"""Slices a second are counted over this time."""
HOME, END_OF_LINE, END_OF_SCREEN, CLEAR = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[2J"


def watch(options: argparse.Namespace) -> int:
    """Show it until Ctrl-C, or for so many looks."""
    eyes = Eyes(socket_path(options.socket, options.config), options.hours)
    on = screen()
    try:
        if options.json:
            return _json(eyes, options)
        return _lines(eyes, options) if options.plain or not on.ansi else _live(eyes, options)
    except KeyboardInterrupt:
        return exits.FINE


class Eyes:
    """Asks the daemon, and remembers what it said last."""

    def __init__(self, path: Path, hours: float) -> None:
        self._path, self._hours = path, hours
        self._kept: deque[tuple[float, int]] = deque()
        self._asked_s = -HISTORY_EVERY_S
        self._seen: object = None
        self._knows_timeline = True
        self.scene = Scene(time.time(), hours=hours)

    def look(self) -> Scene:
        """The newest of everything; a daemon that does not answer leaves it as it was, and says why. Never raises."""
        now_s = time.time()
        try:
            status = shown(ask(self._path, "status"))
            signals = shown(ask(self._path, "signals"))
            timeline = self._timeline(status)
        except DrivewayError as error:
            self._kept.clear()
            what = str(error).rstrip(".")
            self.scene = self.scene._replace(now_s=now_s, trouble=f"No answer: {what}", slices_per_s=None)
            return self.scene
        self.scene = self.scene._replace(
            now_s=now_s,
            status=status,
            signals=signals,
            timeline=timeline,
            trouble="",
            heard_s=now_s,
            slices_per_s=self._rate(status),
        )
        return self.scene

    def _timeline(self, status: Any) -> Any:
        """The history, which is asked for again when it is old, or when the gate has changed since."""
        seen, now_s = (status.get("gate"), first(status)), time.monotonic()
        changed = seen != self._seen and now_s - self._asked_s >= HISTORY_LEAST_S
        if not self._knows_timeline or not (changed or now_s - self._asked_s >= HISTORY_EVERY_S):
            return self.scene.timeline
        since_ms = round((time.time() - self._hours * 3600) * 1000)
        try:
            found = shown(ask(self._path, "timeline", since_wall_ms=since_ms))
        except UnreachableError:
            raise
        except DrivewayError:
            self._knows_timeline = False  # an earlier version: it is watched without its history
            return None
        self._seen, self._asked_s = seen, now_s
        return found

    def _rate(self, status: Any) -> float | None:
        """Slices a second, over the last minute."""
        now_s, kept = time.monotonic(), int(status.get("slices", {}).get("kept", 0))
        if self._kept and kept < self._kept[-1][1]:
            self._kept.clear()  # another daemon
        self._kept.append((now_s, kept))
        while now_s - self._kept[0][0] > RATE_OVER_S:
            self._kept.popleft()
        begun_s, begun = self._kept[0]
        return (kept - begun) / (now_s - begun_s) if now_s > begun_s else None


def first(status: Any) -> str:
    """The code of the first reason; "" without one."""
    reasons = status.get("reasons") or [{}]
    return str(reasons[0].get("code", ""))


def _looks(options: argparse.Namespace, eyes: Eyes) -> Iterator[Scene]:
    """A scene every so often; a change of the terminal's size ends a wait."""
    number = 0
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
    while True:
        yield eyes.look()
        number += 1
        if number == options.count:
            return
        due_s = time.monotonic() + options.every
        while (left_s := due_s - time.monotonic()) > 0:
            if signal.sigtimedwait({signal.SIGWINCH}, left_s) is None:
                break
            yield eyes.scene._replace(now_s=time.time())


def _live(eyes: Eyes, options: argparse.Namespace) -> int:
    """Draw it anew with each look."""
    size = None
    for scene in _looks(options, eyes):
        on = screen()
        drawn = f"{END_OF_LINE}\r\n".join(lines(scene, on._replace(rows=on.rows - 1)))
        begin = HOME if size == (on.columns, on.rows) else HOME + CLEAR
        size = on.columns, on.rows
        print(f"{begin}{drawn}{END_OF_LINE}\r\n{END_OF_SCREEN}", end="", flush=True)
    return exits.FINE


def _lines(eyes: Eyes, options: argparse.Namespace) -> int:
    """A line when something changed."""
    before, on = "", screen()
    for scene in _looks(options, eyes):
        said = changed_line(scene)
        if said != before:
            before = said
            text = f"{time.strftime('%H:%M:%S')} {said}"
            print(text if on.unicode else plain(text), flush=True)
    return exits.FINE


def _json(eyes: Eyes, options: argparse.Namespace) -> int:
    """One JSON object a line when something changed: the status as the daemon says it, or the trouble."""
    before = ""
    for scene in _looks(options, eyes):
        said = changed_line(scene)
        if said != before:
            before = said
            print(json.dumps({"trouble": scene.trouble} if scene.trouble else scene.status), flush=True)
    return exits.FINE


def changed_line(scene: Scene) -> str:
    """What is worth a line when it changes; figures that always move are rounded."""
    status = scene.status
    if scene.trouble or status is None:
        return cells(scene.trouble)
    parts = [f"{status.get('state')} gate {status.get('gate')}"]
    with contextlib.suppress(*UNLIKE):
        parts += _changing(status, scene)
    return cells(", ".join(parts))


def _changing(status: dict[str, Any], scene: Scene) -> Iterator[str]:
    lease, computer = status.get("lease"), status.get("computer") or {}
    charge = next((one["value"] for one in scene.signals if one.get("path") == CHARGE), None)
    reasons = status.get("reasons") or []
    if reasons:
        yield f"{reasons[0]['gate']} {reasons[0]['code']} ({reasons[0]['signal']})"
    if lease is not None:
        yield f"lease {lease['job']}/{lease['epoch']} {lease['slices_done']}/{lease['slices_wanted']}"
    for found, step, unit in ((computer.get("die_c"), 5, "°C"), (computer.get("power_w"), 10, "W"), (charge, 1, "%")):
        if isinstance(found, int | float):
            yield f"{round(found / step) * step} {unit}"
    if not (status.get("link") or {}).get("connected", True):
        yield "no broker"
