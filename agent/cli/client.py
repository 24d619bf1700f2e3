"""Asks the daemon one question over its control socket (see `agent.control`)."""

from __future__ import annotations

import contextlib
import json
import socket
import stat
import struct
from pathlib import Path
from typing import Any

from agent.errors import ConfigError, DrivewayError
from agent.printable import printable
from agent.toml import merged, read_layers

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
    table = merged(read_layers(config, "configuration", hint="give --config FILE or --socket PATH"))
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
            # A Unix socket whose queue is full refuses a connection that does not wait, so this waits in the kernel.
            wait = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1_000_000))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
            connection.connect(str(path))
            connection.settimeout(timeout_s)
            connection.sendall(request)
            with connection.makefile("rb") as answers:
                line = answers.readline()
    except PermissionError as error:
        raise UnreachableError(f"this user may not open {path}", hint=_who_may(path)) from error
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        hint = "is `driveway run` running?"
        raise UnreachableError(f"no daemon answers on {path}: {error}", hint=hint, absent=absent) from error
    if not line:
        raise UnreachableError(f"the daemon on {path} closed the connection without an answer")
    return _data(path, verb, line)


def _who_may(path: Path) -> str:
    """What lets a user in: the group of the socket, or of the first folder above it that keeps everybody else out."""
    import grp  # noqa: PLC0415 - for this sentence alone

    group = ""
    for place in (*reversed(path.absolute().parents), path.absolute()):
        try:
            found = place.stat()
        except OSError:
            break
        if not found.st_mode & (stat.S_IXOTH if stat.S_ISDIR(found.st_mode) else stat.S_IWOTH):
            with contextlib.suppress(KeyError):
                group = grp.getgrgid(found.st_gid).gr_name
    if group in {"", "root"}:
        return "use sudo"
    return f"it is for the group {group}: sudo usermod --append --groups {group} $USER, and log in anew; or use sudo"


def _data(path: Path, verb: str, line: bytes) -> Any:
    """What an answer's line holds; raises UnreachableError for what is no answer, DrivewayError for a refusal."""
    try:
        answer = json.loads(line)
        if answer["ok"]:
            return answer.get("data")
        error, hint, code = str(answer["error"]), str(answer.get("hint", "")), answer.get("code")
    except (ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise UnreachableError(f"what answers on {path} is not the daemon", hint="see control_socket") from wrong
    misfit = error.startswith("not a request") and (error.endswith("`$.verb`") or "unknown field" in error)
    if code == "unknown_verb" or misfit:
        # Daemons that have no codes say the latter, and all of them of a field that they do not know: docs/control.md.
        what = f"the daemon that runs is of another version than this command, and does not know `{verb}`"
        what += ", or not all that is asked of it" if "unknown field" in error else ""
        raise DrivewayError(what, hint="start the installed one anew: systemctl restart driveway")
    raise DrivewayError(printable(error), hint=printable(hint))
