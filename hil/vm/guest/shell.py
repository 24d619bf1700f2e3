#!/usr/bin/python3
"""In the vehicle: does what a line of JSON on a virtio-serial port says. It needs no network, and outlives a dead one.

    {"id": 7, "sh": "uname -r", "timeout_s": 60}                   ->  {"id": 7, "rc": 0, "out": "...", "err": ""}
    {"id": 8, "put": "/tmp/x", "data": "<base64>", "append": true, "mode": 420}  ->  {"id": 8, "rc": 0, ...}
    {"id": 9, "get": "/tmp/x"}                                     ->  {"id": 9, "rc": 0, "out": "<base64>", ...}
    {"id": 10, "unix": "/run/x.sock", "line": "hello"}             ->  {"id": 10, "rc": 0, "out": "what comes back"}

One after the other. While nobody is connected at the other end, reading gives nothing at all: it is tried again. What
is not a request is answered with `rc` -1 and the reason.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

PORT = "/dev/virtio-ports/shell.0"
UNCONNECTED_S = 0.05


def answer(line: bytes) -> dict[str, Any]:
    """The answer to one line."""
    request: dict[str, Any] = {}
    try:
        request = json.loads(line)
        (name,) = VERBS.keys() & request.keys()
        return {"id": request["id"], **VERBS[name](request)}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return {"id": request.get("id") if isinstance(request, dict) else None, "rc": -1, "out": "", "err": repr(error)}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One command by /bin/sh, killed with all its children where it takes too long."""
    process = subprocess.Popen(  # noqa: S602 - a shell is what this is
        request["sh"],
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=request.get("timeout_s", 60))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        err += b"\nkilled: it took too long\n"
    return {"rc": process.returncode, "out": out.decode("utf-8", "replace"), "err": err.decode("utf-8", "replace")}


def put(request: dict[str, Any]) -> dict[str, Any]:
    """A file, or a piece more of one."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if request.get("append") else os.O_TRUNC)
    descriptor = os.open(request["put"], flags, request.get("mode", 0o644))
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64decode(request["data"]))
    return {"rc": 0, "out": "", "err": ""}


def get(request: dict[str, Any]) -> dict[str, Any]:
    """A whole file."""
    return {"rc": 0, "out": base64.b64encode(Path(request["get"]).read_bytes()).decode(), "err": ""}


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """A line to whoever listens on a Unix socket, and the line that comes back: no process has to start for it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(request.get("timeout_s", 60))
        connection.connect(request["unix"])
        connection.sendall(request["line"].encode() + b"\n")
        with connection.makefile("rb") as answers:
            return {"rc": 0, "out": answers.readline().decode("utf-8", "replace"), "err": ""}


VERBS = {"sh": run, "put": put, "get": get, "unix": ask}


def main() -> None:
    """Until the vehicle is switched off."""
    port, waiting = os.open(PORT, os.O_RDWR), b""
    while True:
        chunk = os.read(port, 1 << 18)
        if not chunk:
            time.sleep(UNCONNECTED_S)
            continue
        *lines, waiting = (waiting + chunk).split(b"\n")
        for line in filter(None, lines):
            left = memoryview(json.dumps(answer(line)).encode() + b"\n")
            while left:
                left = left[os.write(port, left) :]


if __name__ == "__main__":
    main()
