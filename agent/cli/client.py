"""Asks the daemon one question over its control socket (see `agent.control`)."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from agent.errors import ConfigError, DrivewayError
from agent.printable import printable
from agent.toml import read_toml

TIMEOUT_S = 5.0


class UnreachableError(DrivewayError):
    """No daemon answers; `absent` when nobody serves the socket at all, as where no daemon runs."""

    def __init__(self, what: str, *, hint: str = "", absent: bool = False) -> None:
        super().__init__(what, hint=hint)
        self.absent = absent


def socket_path(explicit: Path | None, config: Path) -> Path:
    """The control socket: as given, or as the configuration names it (relative to the configuration's directory)."""
    if explicit is not None:
        return explicit
    table = read_toml(config, "configuration", hint="give --config FILE or --socket PATH")
    named = table.get("control_socket")
    if not isinstance(named, str):
        raise ConfigError(f"{config} names no control_socket", hint="give --socket PATH")
    return config.resolve().parent / named


def ask(path: Path, verb: str, **arguments: object) -> Any:
    """The daemon's answer as JSON data; raises UnreachableError, or DrivewayError with what the daemon said."""
    return ask_within(TIMEOUT_S, path, verb, **arguments)


def ask_within(timeout_s: float, path: Path, verb: str, /, **arguments: object) -> Any:
    """The same of a question that takes a while."""
    request = json.dumps({"verb": verb, **arguments}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(request)
            with connection.makefile("rb") as answers:
                line = answers.readline()
    except PermissionError as error:
        raise UnreachableError(f"may not open {path}", hint="join the socket's group, or use sudo") from error
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        hint = "is `driveway run` running?"
        raise UnreachableError(f"no daemon answers on {path}: {error}", hint=hint, absent=absent) from error
    if not line:
        raise UnreachableError(f"the daemon on {path} closed the connection without an answer")
    answer = json.loads(line)
    if not answer["ok"]:
        raise DrivewayError(printable(answer["error"]), hint=printable(answer.get("hint", "")))
    return answer.get("data")
