"""`driveway-hil doctor RIG.toml`: is this bench wired as its description says? Looks only; nothing is sent on a bus.

    name = "bench-1"
    state_dir = "/var/lib/driveway"       # must take writes
    [[bus]]
    name = "party"                        # as the agent's profiles call it
    interface = "can0"
    bitrate = 500000                      # optional: compared with what the interface has
    frames_within_s = 2                   # optional: so soon a frame must be heard
    [accelerator]
    device = "/dev/nvidia0"               # must be there and may be opened; empty: none
    modules = ["tensorrt", "pycuda"]      # must be found by the worker's interpreter
    python = "/usr/bin/python3"
    [tpm]
    device = "/dev/tpmrm0"

Every check gives a finding: `ok`, or what is wrong and what to do. A bench is fit when nothing is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from agent.errors import ConfigError

SYS_NET = Path("/sys/class/net")
ARPHRD_CAN = "280"
TOOL_S = 20.0
Positive = Annotated[float, msgspec.Meta(gt=0, le=60)]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the description."""


class BenchBus(_Table, frozen=True):
    """One CAN interface."""

    name: str
    interface: str
    bitrate: int | None = None
    frames_within_s: Positive | None = None


class BenchAccelerator(_Table, frozen=True):
    """What runs the engines."""

    device: str = ""
    modules: tuple[str, ...] = ()
    python: str = "/usr/bin/python3"


class BenchTpm(_Table, frozen=True):
    """Where the unit's key is made."""

    device: str = "/dev/tpmrm0"


class Bench(_Table, frozen=True):
    """A whole bench."""

    name: str
    state_dir: str = ""
    bus: tuple[BenchBus, ...] = ()
    accelerator: BenchAccelerator | None = None
    tpm: BenchTpm | None = None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check; an empty `problem` is well."""

    check: str
    problem: str = ""
    hint: str = ""


def load(path: Path) -> Bench:
    """Read a description. Raises ConfigError."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), Bench)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path} describes no bench: {error}", hint="docs/scenarios.md shows one") from error


def examine(bench: Bench, *, net: Path = SYS_NET) -> list[Finding]:
    """Every check of this bench. `net` is where a test puts its own tree."""
    findings = [finding for bus in bench.bus for finding in _bus(bus, net)]
    if not bench.bus:
        findings.append(Finding(check="buses", problem="no bus is described", hint="add a [[bus]]"))
    if bench.state_dir:
        findings.append(_writable(Path(bench.state_dir)))
    if bench.accelerator is not None:
        findings += _accelerator(bench.accelerator)
    if bench.tpm is not None:
        findings.append(_device("tpm", bench.tpm.device, "join the group tss"))
    return findings


def doctor(options: argparse.Namespace) -> int:
    """Print the findings; 1 when something is wrong."""
    findings = examine(load(options.rig))
    for one in findings:
        print(f"{one.check}: {one.problem or 'ok'}{f' ({one.hint})' if one.hint else ''}")
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(findings), indent=2) + b"\n")
    return 1 if any(one.problem for one in findings) else 0


# --- checks ---------------------------------------------------------------------------------------------------------


def _bus(bus: BenchBus, net: Path) -> Iterator[Finding]:
    check, folder = f"bus {bus.name} on {bus.interface}", net / bus.interface
    if not folder.exists():
        yield Finding(check=check, problem="there is no such interface", hint="`ip -brief link` shows those there are")
        return
    if _text(folder / "type") != ARPHRD_CAN:
        yield Finding(check=check, problem="it is no CAN interface")
        return
    if not int(_text(folder / "flags") or "0", 16) & 1:
        up = f"ip link set {bus.interface} up type can bitrate {bus.bitrate or 500_000}"
        yield Finding(check=check, problem="it is down", hint=up)
        return
    yield Finding(check=check)
    if bus.bitrate is not None:
        yield _bitrate(bus)
    yield _hears(bus)


def _bitrate(bus: BenchBus) -> Finding:
    check = f"bit rate of {bus.interface}"
    if shutil.which("ip") is None:
        return Finding(check=check, problem="nobody can tell", hint="apt-get install iproute2")
    command = ["ip", "-json", "-details", "link", "show", bus.interface]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_S, check=False)
    try:
        found = json.loads(shown.stdout)[0]["linkinfo"]["info_data"]["bittiming"]["bitrate"]
    except (ValueError, LookupError):
        return Finding(check=check, problem="the interface does not tell it (a virtual one has none)")
    if found != bus.bitrate:
        return Finding(check=check, problem=f"it is {found}, not {bus.bitrate}", hint="set it down, and up again")
    return Finding(check=check)


def _hears(bus: BenchBus) -> Finding:
    """Whether its frames may be read, and whether there are any."""
    check = f"frames on {bus.interface}"
    try:
        with socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as raw:
            raw.bind((bus.interface,))
            if bus.frames_within_s is None:
                return Finding(check=check)
            raw.settimeout(bus.frames_within_s)
            raw.recv(16)
    except TimeoutError:
        silent = f"no frame in {bus.frames_within_s:g} s"
        return Finding(check=check, problem=silent, hint="is the car awake, and the bus terminated?")
    except OSError as error:
        return Finding(check=check, problem=f"may not be read: {error.strerror}", hint="modprobe can-raw")
    return Finding(check=check)


def _accelerator(one: BenchAccelerator) -> Iterator[Finding]:
    if one.device:
        yield _device("accelerator", one.device, "join the group video or render")
    for module in one.modules:
        check = f"{module} in {one.python}"
        command = [one.python, "-c", f"import {module}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Finding(check=check, problem=str(error))
            continue
        said = done.stderr.strip().splitlines()
        yield Finding(check=check, problem="" if done.returncode == 0 else (said or ["it cannot be imported"])[-1])


def _device(what: str, path: str, hint: str) -> Finding:
    check = f"{what} {path}"
    if not Path(path).exists():
        return Finding(check=check, problem="it is not there")
    if not os.access(path, os.R_OK | os.W_OK):
        return Finding(check=check, problem="it may not be opened", hint=hint)
    return Finding(check=check)


def _writable(folder: Path) -> Finding:
    check = f"state in {folder}"
    if not folder.is_dir():
        return Finding(check=check, problem="there is no such folder")
    return Finding(check=check, problem="" if os.access(folder, os.W_OK) else "it may not be written to")


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""
