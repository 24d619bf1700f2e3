"""Gathers the documents of a bundle. What cannot be had is told in its document, and does not keep the others away."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent import __version__
from agent.cli.bundle.allow import Allowed
from agent.cli.client import ask, socket_path
from agent.cli.config import values
from agent.cli.doctor.command import examine
from agent.config import Config, load
from agent.core.signals import LEAVES
from agent.errors import ConfigError, DrivewayError

ASKED = {"status": {}, "signals": {}, "leases": {"limit": 20}, "ledger": {"limit": 20}, "keys": {}, "packages": {}}
UNITS = (
    *("driveway.service", "driveway-worker.socket", "driveway-update.service", "driveway-update.timer"),
    "driveway-update-boot.service",
)
PROPERTIES = {
    "LoadState": "load_state", "ActiveState": "active_state", "SubState": "sub_state", "UnitFileState": "enabled",
    "Result": "result", "NRestarts": "restarts", "WatchdogUSec": "watchdog", "MemoryCurrent": "memory_bytes",
    "TasksCurrent": "tasks",
}  # fmt: skip
PERSONAL = re.compile(r"policy\.(schedule|departures|time_zone|tariff_zones|currency)\b")
"""What tells where the owner lives, and when nobody is at home."""
LOG_LINES = 2_000
LOG_BYTES = 2 * 1024 * 1024
RECORDING_BYTES = 3 * 1024 * 1024
SECRET_FILE_BYTES = 16_384
ASK_S = 20.0
SHOWN_SIGNALS = 64


def documents(options: argparse.Namespace, *, record: bool) -> tuple[dict[str, bytes], Allowed]:
    """(name: content) of every document, redacted, and what that left out; `record`: have a recording made first."""
    try:
        config: Config | None = load(options.config)
    except ConfigError:
        config = None
    required = [one for name in _required() for one in name.split("-")]
    allowed = Allowed(known=secrets(config) if config is not None else (), words=required)
    gathered: dict[str, Callable[[], Any]] = {
        "about.json": lambda: {"format": "driveway-bundle/1", "version": __version__},
        "config.json": lambda: _config(options),
        "doctor.json": lambda: _doctor(options),
        "units.json": lambda: {"units": list(_units())},
        "versions.json": _versions,
    }
    for name, arguments in ASKED.items():
        gathered[f"{name}.json"] = lambda name=name, arguments=arguments: ask(  # type: ignore[misc]
            socket_path(options.socket, options.config), name, **arguments
        )
    made = {name: _json(allowed.document(name, _found(make))) for name, make in gathered.items()}
    made["log.jsonl"] = _lines(allowed, "log.jsonl", _log(config), LOG_BYTES)
    if options.hours:
        steps = _recording(options, config, record=record)
        made["recording.jsonl"] = _lines(allowed, "recording.jsonl", steps, RECORDING_BYTES)
    made["redacted.json"] = _json({name: dict(sorted(one.items())) for name, one in sorted(allowed.redacted.items())})
    return made, allowed


def secrets(config: Config) -> set[str]:
    """What this user can read of the secrets that the configuration has or names: it must not stand anywhere."""
    key, fleet, databroker = config.key, config.fleet, config.vehicle.databroker
    files = [key.file, *config.path(config.state_dir).glob("*.secret")]
    files += [one for one in (key.tpm.owner_auth_file, key.pkcs11 and key.pkcs11.pin_file) if one]
    if fleet.tls is not None and not fleet.tls.key.startswith("credential:"):
        files.append(config.path(fleet.tls.key))
    if databroker is not None:
        files += [config.path(one) for one in (databroker.token_file, databroker.keep_awake_token_file) if one]
    found = {fleet.enrol_code}
    for path in files:
        try:
            found.update(path.read_bytes()[:SECRET_FILE_BYTES].decode("utf-8", "replace").split())
        except OSError:
            continue  # what this user cannot read cannot come from it either
    return {one for one in found if one and not one.startswith("-----")}


def _found(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except DrivewayError as error:
        return {"error": error.what, "mend": error.hint}
    except Exception as error:  # noqa: BLE001 - a bundle is made where something is broken
        return {"error": f"could not be had: {type(error).__name__}"}


def _json(data: Any) -> bytes:
    return json.dumps(data, indent=1, ensure_ascii=False).encode() + b"\n"


def _lines(allowed: Allowed, name: str, found: Iterator[Any], most_bytes: int) -> bytes:
    """The newest lines, oldest first, as many as fit; `found` gives the newest first."""
    lines: list[bytes] = []
    size, dropped = 0, 0
    try:
        for one in found:
            line = json.dumps(allowed.document(name, one), ensure_ascii=False).encode() + b"\n"
            size += len(line)
            if size > most_bytes:
                dropped += 1
                break
            lines.append(line)
    except Exception as error:  # noqa: BLE001 - the lines before are worth having
        lines.append(_json_line({"error": f"the rest could not be read: {type(error).__name__}"}))
    if dropped:
        lines.append(_json_line({"about": "older lines were left out"}))
    return b"".join(reversed(lines))


def _json_line(data: Any) -> bytes:
    return json.dumps(data).encode() + b"\n"


# --- each document ----------------------------------------------------------------------------------------------------


def _config(options: argparse.Namespace) -> Any:
    """Values as text pass word by word, so names of this car and of places become placeholders."""
    rows = [one for one in values(options.config, options.socket) if not PERSONAL.match(one.key)]
    return {
        "values": [
            {"key": one.key, "value": one.value, "unit": one.unit or None, "source": one.origin.kind,
             "line": one.origin.line or None}
            for one in rows
        ]
    }  # fmt: skip


def _doctor(options: argparse.Namespace) -> Any:
    asked = argparse.Namespace(**{**vars(options), "offline": False, "quick": True})
    findings, _ = examine(asked)
    return {"checks": [{**asdict(one), "result": one.result.value} for one in findings]}


def _units() -> Iterator[dict[str, Any]]:
    systemctl = shutil.which("systemctl")
    if systemctl is None or not Path("/run/systemd/system").is_dir():
        return
    for unit in UNITS:
        said = subprocess.run(
            [systemctl, "show", "--property", ",".join(PROPERTIES), unit],
            capture_output=True, text=True, timeout=ASK_S, check=False,
        )  # fmt: skip
        pairs = (line.partition("=") for line in said.stdout.splitlines())
        yield {"name": unit, **{PROPERTIES[name]: value for name, _, value in pairs if name in PROPERTIES}}


def _versions() -> Any:
    release = {}
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "system": f"{release.get('ID', '')} {release.get('VERSION_ID', '')}".strip(),
        "modules": [{"name": name, "version": _version_of(name)} for name in _required()],
    }


def _required() -> list[str]:
    """The distributions that this program says it needs, in all its variants."""
    said = importlib.metadata.requires("driveway-agent") or []
    return sorted({re.split(r"[^A-Za-z0-9_-]", one, maxsplit=1)[0] for one in said})


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _log(config: Config | None) -> Iterator[dict[str, Any]]:
    """Newest first: the journal of the service where there is one, else the bounded log in the store."""
    journal = shutil.which("journalctl")
    found = False
    if journal and Path("/run/systemd/system").is_dir():
        for line in _journal(journal):
            found = True
            yield line
    if not found and config is not None:
        yield from _stored(config.path(config.state_dir) / "driveway.db")


def _journal(journalctl: str) -> Iterator[dict[str, Any]]:
    command = [journalctl, "SYSLOG_IDENTIFIER=driveway", "-o", "json", "-r", "-n", str(LOG_LINES), "--no-pager"]
    said = subprocess.run(command, capture_output=True, timeout=ASK_S, check=False)
    for line in said.stdout.splitlines():
        entry = json.loads(line)
        fields = {
            name.removeprefix("DRIVEWAY_").lower(): value
            for name, value in entry.items()
            if name.startswith("DRIVEWAY_") and name != "DRIVEWAY_EVENT"
        }
        at_ms = int(entry.get("__REALTIME_TIMESTAMP", 0)) // 1000
        yield {"at_ms": at_ms, "event": entry.get("DRIVEWAY_EVENT", ""), "fields": fields}


def _stored(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5.0)
    try:
        query = "SELECT at_wall_ms, name, fields FROM log ORDER BY rowid DESC LIMIT ?"
        for at_wall_ms, name, fields in database.execute(query, (LOG_LINES,)):
            yield {"at_ms": at_wall_ms, "event": name, "fields": json.loads(fields)}
    finally:
        database.close()


def _recording(options: argparse.Namespace, config: Config | None, *, record: bool) -> Iterator[dict[str, Any]]:
    """Newest first, of the last hours: which events came, which effects they had, and what the car's leaves said."""
    path = None
    if record:
        asked = _found(lambda: ask(socket_path(options.socket, options.config), "record"))
        path = Path(asked["file"]) if "file" in asked else None
    if path is None and config is not None:
        kept = sorted(config.path(config.state_dir).rglob("*.jsonl.gz"), key=lambda one: one.stat().st_mtime)
        path = kept[-1] if kept else None
    if path is None:
        return
    steps = [json.loads(line) for line in _whole_lines(path)][1:]
    newest_ms = max((step["event"].get("at_ms", 0) for step in steps), default=0)
    for step in reversed(steps):
        event = step["event"]
        if newest_ms - event.get("at_ms", 0) > options.hours * 3_600_000:
            return
        yield _step(event, step["effects"])


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Of a recording that may end in the middle."""
    with gzip.open(path) as lines:
        try:
            yield from lines
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return


def _step(event: dict[str, Any], effects: list[dict[str, Any]]) -> dict[str, Any]:
    samples = [one for one in event.get("samples", []) if one["path"] in LEAVES][:SHOWN_SIGNALS]
    told = {"signals": [{"path": one["path"], "value": one["value"]} for one in samples]} if samples else {}
    numbers = {name: event[name] for name in ("die_c", "power_w") if event.get(name) is not None}
    return {
        "at_ms": event.get("at_ms"),
        "event": event.get("type", ""),
        "effects": [one.get("type", "") for one in effects],
        **told,
        **numbers,
    }
