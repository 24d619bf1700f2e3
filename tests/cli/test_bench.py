"""`driveway bench` and the gate that it obeys, against a control socket that answers as a test says."""

from __future__ import annotations

import argparse
import asyncio
import json
import socketserver
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.cli import exits
from agent.cli.bench import BEFORE, WHILE, ready_to_paste, report
from agent.cli.client import UnreachableError
from agent.cli.gate import Gate, GateShutError, while_open
from agent.cli.main import main
from agent.commission import Schedule
from agent.core.commissioning import Bounds, StepSample
from agent.core.policy import Policy
from hil.car.sysfs import SensorTree
from hil.images import drawn_lines
from hil.packages.ocr import build_ocr_package

PARKED: dict[str, Any] = {"reasons": [], "lease": None, "worker": None, "owner": {"mode": "auto"}}


def reason(gate: str) -> dict[str, str]:
    return {"gate": gate, "text": f"The {gate} gate is shut."}


class Daemon:
    """A control socket; `status` is what it answers to every verb's question about it."""

    def __init__(self, path: Path) -> None:
        self.status: dict[str, Any] = dict(PARKED)
        daemon = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                verb = json.loads(self.rfile.readline())["verb"]
                data = daemon.status if verb == "status" else daemon.status["reasons"]
                self.wfile.write(json.dumps({"ok": True, "data": data}).encode() + b"\n")

        self.path = path
        self._server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path / "control.sock")
    yield one
    one.close()


def gate_of(path: Path | None, config: Path, *, rig: bool = False) -> Gate:
    return Gate(argparse.Namespace(socket=path, config=config, rig=rig))


@pytest.mark.parametrize(
    ("status", "before", "during"),
    [
        ({}, None, None),
        ({"reasons": [reason("owner")]}, None, None),
        (
            {"reasons": [reason("occupied"), reason("owner")]},
            "The occupied gate is shut.",
            "The occupied gate is shut.",
        ),
        ({"reasons": [reason("temperature")]}, "The temperature gate is shut.", None),
        ({"lease": {"job": "a"}}, "the daemon is working", "the daemon is working"),
        ({"worker": {"pid": 7}}, "its worker still stands", "its worker still stands"),
    ],
)
def test_who_has_the_computer_already(
    daemon: Daemon, status: dict[str, Any], before: str | None, during: str | None
) -> None:
    daemon.status |= status
    gate = gate_of(daemon.path, Path("none.toml"))
    for but_for, said in ((BEFORE, before), (WHILE, during)):
        taken = gate.taken(but_for)
        assert (taken is None) is (said is None)
        assert said is None or said in (taken or "")


def test_where_there_is_a_car_but_no_daemon_nobody_would_see_the_driver(tmp_path: Path) -> None:
    gate = gate_of(tmp_path / "none.sock", Path("none.toml"))
    assert "nobody would see the driver" in (gate.taken(BEFORE) or "")
    assert "nobody would see the driver" in (gate.shut() or "")
    for without_driver in (gate_of(None, tmp_path / "none.toml"), gate_of(tmp_path / "none.sock", Path("-"), rig=True)):
        assert without_driver.taken(BEFORE) is None, "a laptop and a rig have no driver"
        assert without_driver.shut() is None


@pytest.mark.parametrize("status", [{}, {"reasons": [reason("occupied")]}])
def test_where_a_daemon_answers_it_is_no_rig_without_one(daemon: Daemon, status: dict[str, Any]) -> None:
    daemon.status |= status
    gate = gate_of(daemon.path, Path("none.toml"), rig=True)
    assert "no rig" in (gate.taken(BEFORE) or "")
    assert "no rig" in (gate.shut() or "")


@pytest.mark.parametrize(("mode", "refused"), [("auto", True), ("finish", True), ("paused", False)])
def test_a_step_test_wants_a_daemon_that_takes_on_no_work_meanwhile(daemon: Daemon, mode: str, refused: bool) -> None:
    daemon.status |= {"owner": {"mode": mode}}
    gate = gate_of(daemon.path, Path("none.toml"))
    for but_for in (BEFORE, WHILE):
        assert ("first: driveway pause" in (gate.taken(but_for, paused=True) or "")) is refused
        assert gate.taken(but_for) is None


def test_the_step_test_asks_for_the_pause(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--commission", "--socket", str(daemon.path)]) == exits.REFUSED
    assert "driveway pause" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["bench", "--package", "p"], ["infer", "p"]])
def test_a_car_without_its_daemon_and_a_rig_with_one_run_no_package(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('control_socket = "none.sock"')
    assert main([*arguments, "line.png", "--config", str(config)]) == exits.REFUSED
    assert "nobody would see the driver" in capsys.readouterr().err
    assert main([*arguments, "line.png", "--rig", "--socket", str(daemon.path)]) == exits.REFUSED
    assert "no rig" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(UnreachableError):
        gate_of(tmp_path / "file" / "x.sock", Path("none.toml")).taken(BEFORE)


def test_work_ends_when_the_gate_shuts() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    looks = iter([None, "the driver is here"])
    with pytest.raises(GateShutError, match="the driver is here"):
        asyncio.run(while_open(lambda: next(looks), work()))
    assert ended == [True]


def test_work_that_is_done_is_done_and_work_that_fails_says_so() -> None:
    async def work(result: int) -> int:
        if not result:
            raise ValueError("no")
        return result

    assert asyncio.run(while_open(lambda: None, work(3))) == 3
    with pytest.raises(ValueError, match="no"):
        asyncio.run(while_open(lambda: None, work(0)))


@pytest.mark.parametrize("arguments", [["--commission"], ["--package", "p", "line.png"]])
def test_a_shut_gate_and_a_working_daemon_are_exit_code_5(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    for status in ({"reasons": [reason("occupied")]}, {"lease": {"job": "a"}}):
        daemon.status = PARKED | status
        assert main(["bench", *arguments, "--socket", str(daemon.path)]) == exits.REFUSED
        assert "refused by policy" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--package", "p"]])
def test_nothing_to_measure_is_exit_code_2(arguments: list[str]) -> None:
    assert main(["bench", *arguments]) == exits.USAGE


@pytest.mark.parametrize("minutes", ["9.9", "241", "nan", "long"])
def test_a_step_test_takes_a_sensible_time(minutes: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--commission", "--duration", minutes])
    assert ended.value.code == exits.USAGE


def test_help_says_how_long_it_takes_and_what_is_safe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in ("25 minutes", "parked, plugged in, with nobody in the car", "driver comes back", "die_limit_c"):
        assert words in said


def test_the_throughput_of_a_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = build_ocr_package(tmp_path / "ocr")
    line = tmp_path / "line.png"
    line.write_bytes(drawn_lines(1, 3)[0].png)
    options = ["--package", str(package.path), str(line), "--rounds", "2", "--json"]
    assert main(["bench", *options, "--config", str(tmp_path / "none.toml")]) == exits.FINE
    figures = json.loads(capsys.readouterr().out)
    assert 0 < figures["min_items_per_s"] <= figures["items_per_s"] <= figures["max_items_per_s"]
    assert (figures["rounds"], figures["slice_items"]) == (2, 32)


def test_a_computer_that_does_not_warm_up_gives_no_bounds_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Schedule, "of_minutes", lambda _minutes: Schedule(soak_s=0.2, work_s=0.3, cool_s=0.2, interval_s=0.02)
    )
    SensorTree(tmp_path / "sysfs").write(50.0, 45.0, 20.0)
    config = tmp_path / "agent.toml"
    config.write_text(CONFIG)
    began_s = time.monotonic()
    assert main(["bench", "--commission", "--rig", "--config", str(config)]) == exits.FAILED
    assert time.monotonic() - began_s >= 0.7
    said = capsys.readouterr()
    assert "full power for" in said.err
    assert "driveway: the step test gives no bounds" in said.err
    assert said.out == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "burner"]


def test_the_lines_are_policy_keys_ready_to_paste() -> None:
    bounds = Bounds(
        die_to_sink_min_k_per_w=0.21,
        die_to_sink_max_k_per_w=0.29,
        sink_min_j_per_k=380.0,
        die_min_j_per_k=30.0,
        die_max_j_per_k=50.0,
        residual_k=0.2,
        die_to_sink_k_per_w=0.25,
        sink_j_per_k=450.0,
        die_j_per_k=40.0,
    )
    samples = [StepSample(at_ms=second * 1000, die_c=30.0 + second, power_w=8.0 + 10 * second) for second in range(5)]
    figures = report(bounds, samples, "ina3221")
    assert (figures["power_idle_w"], figures["power_max_w"], figures["die_max_c"]) == (8.0, 48.0, 34.0)
    assert figures["die_to_sink_min_k_per_w"] == 0.21
    pasted = tomllib.loads(ready_to_paste(bounds, figures))
    assert set(pasted) <= set(msgspec.structs.asdict(Policy()))
    assert {"die_to_sink_min_k_per_w", "die_to_sink_max_k_per_w", "sink_min_j_per_k"} <= set(pasted)


CONFIG = """
state_dir = "state"
control_socket = "control.sock"

[unit]
id = "car-1"

[vehicle]
profiles = ["tesla-model3"]

[[vehicle.bus]]
name = "party"
interface = "virtual"
channel = "x"

[computer]
sysfs_root = "sysfs"

[fleet]
brokers = ["127.0.0.1:1883"]
dispatcher_key = "dispatcher.pub"

[inference]
packages_dir = "packages"
publisher_key = "publisher.pub"
"""
