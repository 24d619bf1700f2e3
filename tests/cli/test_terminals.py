"""The command as a process: a terminal without UTF-8, a pipe that nobody reads to its end, a disk that is full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli import exits
from tests.daemon.test_shutdown import configured

LONG = ["config", "show"]


def command(*arguments: str, folder: Path, **environment: str) -> tuple[list[str], dict[str, str]]:
    """The command line, and its environment."""
    configured(folder)
    line = [sys.executable, "-m", "agent", *arguments, "--config", str(folder / "agent.toml")]
    return line, {**os.environ, **environment}


@pytest.mark.parametrize("verb", [["config", "show"], ["doctor", "--offline"], ["config", "check"], ["packages"]])
def test_a_terminal_without_utf_8_gets_ascii(verb: list[str], tmp_path: Path) -> None:
    line, environment = command(*verb, folder=tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    done = subprocess.run(line, env=environment, capture_output=True, timeout=60, check=False)
    assert done.stdout.isascii()
    assert b"Traceback" not in done.stderr
    if verb[0] == "doctor":
        assert b"-> map them in a vehicle profile" in done.stdout


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    line, environment = command("config", "show", folder=tmp_path)
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == exits.FINE


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    line, environment = command("config", "show", folder=tmp_path)
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(line, env=environment, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == exits.FAILED
    assert done.stderr == b"driveway: the answer cannot be written: no space is left there\n"
