"""The command as a process: a terminal without UTF-8, a pipe nobody reads to its end, a full disk, a socket refused."""

from __future__ import annotations

import grp
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli import exits
from tests.daemon.test_shutdown import configured
from tests.guests import needs_root, open_folder

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


AS_STRANGER = """
import grp, os, sys
from agent.cli import main
main.main(["status", "--socket", "/nowhere"])
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
sys.exit(main.main(["status", "--socket", sys.argv[1]]))
"""
"""What the first question imports may lie where only root may look."""


@needs_root
def test_who_may_not_open_the_socket_is_told_the_group_that_may() -> None:
    users = grp.getgrgid(100)
    with open_folder() as folder, socket.socket(socket.AF_UNIX) as listening:
        path = folder / "control.sock"
        listening.bind(str(path))
        os.chown(path, 0, users.gr_gid)
        path.chmod(0o660)
        line = [sys.executable, "-c", AS_STRANGER, str(path)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == exits.UNREACHABLE
    assert done.stdout == ""
    assert f"driveway: this user may not open {path}" in done.stderr
    assert f"sudo usermod --append --groups {users.gr_name} $USER" in done.stderr
    assert "Traceback" not in done.stderr
