"""The doors of the whole daemon to its own computer: control socket and metrics, asked by other users and attackers."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agent import log
from agent.cli.client import UnreachableError, ask
from agent.metrics import families
from agent.peers import Bounds
from hil import control_schema
from tests.daemon.test_shutdown import configured
from tests.guests import ask_as, needs_root, open_folder
from tests.metrics.openmetrics import read

PATIENCE_S = 60.0
STRANGER = 54_321
OWNERS = next(group for group in grp.getgrall() if group.gr_gid not in {0, os.getgid(), STRANGER})
"""Some group of this computer, whichever it is."""
DOORS = f"""
[control]
owner_group = "{OWNERS.gr_name}"
[metrics]
listen = "unix:metrics.sock"
textfile = "driveway.prom"
interval_s = 1
"""


class Running:
    """A daemon process with all its doors open, in a folder that everybody may enter."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.control = folder, folder / "control.sock"
        configured(folder)
        config = folder / "agent.toml"
        config.write_text(config.read_text() + DOORS)
        self.log = folder / "log"
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-m", "agent", "run", "--config", "agent.toml"]
        with self.log.open("wb") as log_file:
            self.process = subprocess.Popen(command, cwd=folder, stderr=log_file, env=environment)
        for door in (self.control, folder / "metrics.sock", folder / "driveway.prom"):
            self.wait_for(door)
        self.control.chmod(0o666)

    def wait_for(self, path: Path) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not path.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end_s, f"no {path.name}: {self.log.read_text()}"
            time.sleep(0.02)

    def scrape(self) -> str:
        with socket.socket(socket.AF_UNIX) as scraper:
            scraper.settimeout(PATIENCE_S)
            scraper.connect(str(self.folder / "metrics.sock"))
            scraper.sendall(b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n")
            with scraper.makefile("rb") as answer:
                return answer.read().decode().partition("\r\n\r\n")[2]

    def refused(self) -> float:
        """How many connections the control socket has turned away."""
        return read(self.scrape())["driveway_control_refused"].samples["driveway_control_refused_total", ()]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)


@pytest.fixture
def running() -> Iterator[Running]:
    with open_folder() as folder:
        one = Running(folder)
        try:
            yield one
        finally:
            one.process.kill()
            one.process.wait()


def test_the_metrics_of_a_real_daemon(running: Running) -> None:
    told = read(running.scrape())
    status: Any = ask(running.control, "status")
    assert told["driveway_state"].samples["driveway_state", (("state", status["state"]),)] == 1
    assert told["driveway_build"].samples["driveway_build_info", (("version", status["version"]),)] == 1
    assert (
        told["driveway_computer_die_celsius"].samples["driveway_computer_die_celsius", ()]
        == status["computer"]["die_c"]
    )
    assert told["process_cpu_seconds"].samples["process_cpu_seconds_total", ()] > 0
    known = {family.name for family in families.ALL}
    assert set(told) <= known
    assert {"driveway_battery_charge_ratio", "driveway_lease_slices_done"}.isdisjoint(told), "nothing is known of them"
    in_file = (running.folder / "driveway.prom").read_text()
    assert f'driveway_state{{state="{status["state"]}"}} 1' in in_file
    running.stop()
    assert not (running.folder / "driveway.prom").exists()
    assert not (running.folder / "metrics.sock").exists()


READ = ("status", "why", "signals", "leases", "earnings", "ledger", "owner", "packages", "keys", "update_show", "hello")


@pytest.mark.parametrize("verbs", [READ, ("pause", "owner_set", "resume", "record")], ids=["reads", "changes"])
def test_what_a_real_daemon_answers_is_valid_by_the_schemas(running: Running, verbs: tuple[str, ...]) -> None:
    for verb in verbs:
        schema = json.loads((control_schema.FOLDER / f"{verb}.schema.json").read_text("utf-8"))
        jsonschema.Draft202012Validator(schema).validate(ask(running.control, verb))


@needs_root
def test_the_owner_group_of_a_real_daemon(running: Running) -> None:
    async def story() -> None:
        pause, status = json.dumps({"verb": "pause"}), json.dumps({"verb": "status"})
        refused, read_it = await ask_as(STRANGER, running.control, pause, status)
        assert (refused["ok"], refused["code"]) == (False, "refused")
        assert OWNERS.gr_name in refused["error"]
        assert read_it["data"]["owner"]["mode"] == "auto"
        paused, told = await ask_as(STRANGER, running.control, pause, status, groups=(OWNERS.gr_gid,))
        assert paused["ok"]
        assert told["data"]["owner"]["mode"] == "paused"

    asyncio.run(story())


ATTACK = """
import os, socket, sys, time
os.setgroups([]); os.setgid(54321); os.setuid(54321)
path, end = sys.argv[1], time.monotonic() + 120
held = []
while time.monotonic() < end:
    try:
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        one.connect(path)
        one.send(b'{"verb":"status"}\\n' * 200)
        held.append(one)
    except OSError:
        held = held[-100:]
"""
"""Connects without end, asks two hundred questions on each connection, and reads no answer."""


@needs_root
def test_a_flood_from_another_user_does_not_keep_the_technician_out(running: Running) -> None:
    attackers = [subprocess.Popen([sys.executable, "-I", "-S", "-c", ATTACK, str(running.control)]) for _ in range(2)]
    try:
        end_s = time.monotonic() + PATIENCE_S
        while not running.refused():  # until then nobody attacks
            assert time.monotonic() < end_s
        answered = 0
        while answered < 10:
            with contextlib.suppress(UnreachableError):  # all places were taken: as a technician would, again
                assert ask(running.control, "status")["state"]
                answered += 1
        told = read(running.scrape())
        clients = told["driveway_control_clients"].samples["driveway_control_clients", ()]
        assert clients <= Bounds().guests
        assert all(one.poll() is None for one in attackers), "they attack to the end"
    finally:
        for one in attackers:
            one.kill()
            one.wait()
    assert running.process.poll() is None
    running.stop()
    assert running.process.returncode == 0


def test_its_log_says_which_car_it_is_about(running: Running) -> None:
    running.stop()
    events = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert {"started", "stopped"} <= {event["event"] for event in events}
    assert {event.get("unit") for event in events if event["event"] in {"started", "stopped"}} == {"unit-1"}
    assert log.HELD_BACK not in {event["event"] for event in events}
