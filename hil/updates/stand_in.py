#!/usr/bin/python3 -IS
"""Stands for `driveway` of one release in an update's rehearsal: a daemon that earns, and its doctor.

It keeps results in SQLite as the agent does (WAL, synchronous=FULL), and says that it has one only once that is
committed. What is wrong with the release is in the file `kind` beside its folder. Standard library only: it is copied
into each version's tree.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

RIG = Path(os.environ["DRIVEWAY_UPDATE_RIG"])
TREE = Path(__file__).resolve().parents[1]
VERSION = TREE.name
KIND = (TREE / "kind").read_text("ascii").strip()
SOCKET = str(RIG / "control.sock")
EVERY_S = 0.02
LEASE_RESULTS = 3
ASK_S = 0.5
FALLS_S = 0.04
"""Before it has finished a lease."""


def daemon() -> int:
    """Earn until told to stop."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if KIND == "crashes":
        return 1
    if KIND == "never_ready":
        time.sleep(3600)
    db = sqlite3.connect(RIG / "state.db", isolation_level=None)
    for setting in ("journal_mode=WAL", "synchronous=FULL"):
        db.execute(f"PRAGMA {setting}")
    db.execute("CREATE TABLE IF NOT EXISTS results (id INTEGER PRIMARY KEY, version TEXT)")
    if KIND == "migrates" and "note" not in {row[1] for row in db.execute("PRAGMA table_info(results)")}:
        db.execute("ALTER TABLE results ADD COLUMN note TEXT")
        db.execute("PRAGMA user_version = 2")
    Path(SOCKET).unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(SOCKET)
    server.listen(8)
    server.settimeout(EVERY_S)
    began_s = time.monotonic()
    (RIG / "ready").write_text(str(os.getpid()))
    held = False
    while True:
        if KIND == "falls_over" and time.monotonic() - began_s > FALLS_S:
            return 1
        if KIND == "hangs":
            time.sleep(3600)
        try:
            client, _ = server.accept()
        except TimeoutError:
            if not held:
                _earn(db)
            continue
        with client:
            client.settimeout(ASK_S)
            asked = json.loads(client.makefile("rb").readline() or b"{}")
            held = held or asked.get("verb") == "update"
            client.sendall(json.dumps({"ok": True, "data": _answer(db, asked)}).encode() + b"\n")


def _earn(db: sqlite3.Connection) -> None:
    """One result more, and word of it once it is committed."""
    row = db.execute("INSERT INTO results (version) VALUES (?)", (VERSION,)).lastrowid
    with (RIG / "acknowledged").open("a") as file:
        file.write(f"{row}\n")


def _answer(db: sqlite3.Connection, asked: dict[str, Any]) -> object:
    match asked.get("verb"):
        case "update":
            driving = (RIG / "driving").exists()
            return {"ready": not driving, "why": "the car is driven" if driving else "", "lease": ""}
        case "leases":
            (count,) = db.execute("SELECT count(*) FROM results WHERE version = ?", (VERSION,)).fetchone()
            job = f"{VERSION}-{count // LEASE_RESULTS}"
            rows = [{"lease": {"job": job, "epoch": 1, "kind": "result"}}] if count >= LEASE_RESULTS else []
            return [] if (RIG / "no_work").exists() else rows
        case _:
            return {"version": VERSION, "self_test": "failed" if KIND in {"fails_self_test", "migrates"} else "passed"}


def doctor(*, quick: bool) -> int:
    """The document that the real doctor prints, with the checks that an update looks at."""
    status = _ask()
    checks = {"daemon.reachable": "warn"}
    if status is not None:
        golden = "missing" if quick else "ok" if status["self_test"] == "passed" else "fail"
        version = "ok" if status["version"] == VERSION else "warn"
        checks = {"daemon.reachable": "ok", "daemon.version": version, "daemon.golden": golden}
    rows = [{"name": name, "result": result, "detail": f"it is {result}"} for name, result in checks.items()]
    print(json.dumps({"v": 1, "version": VERSION, "checks": rows}))
    return 0


def _ask() -> dict[str, Any] | None:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(ASK_S)
            client.connect(SOCKET)
            client.sendall(b'{"verb": "status"}\n')
            answer: dict[str, Any] = json.loads(client.makefile("rb").readline())
            return answer["data"]  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(daemon() if sys.argv[1] == "run" else doctor(quick="--quick" in sys.argv))
