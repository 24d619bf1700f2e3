"""`driveway config check | show`: whether the configuration is right, and what counts and where each value is from.

`check` tells every mistake with its file, its line and what to write, and numbers that look as if another unit was
meant. `show` lists what is in force: from the default, the file, a drop-in, a commissioning, the catalogue's policy or
the command line. Both read files alone, and ask no daemon. Secrets in the configuration are never shown.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.cli import exits
from agent.cli.text import paint, print_json
from agent.config import Config, PolicyFile, config_layers, load, policy_layer
from agent.config_mistakes import Mistake, Places, doubts, leaves, mistakes
from agent.config_units import unit_of
from agent.core.policy import Policy
from agent.errors import ConfigError
from agent.policy_check import check_policy, contradictions
from agent.policy_profile import configured_profile, with_profile
from agent.printable import printable
from agent.toml import Layer, merged

FORMAT = 1
"""Of the JSON documents; raised when a name changes its meaning."""
SECRETS = frozenset({"fleet.enrol_code"})
HIDDEN = "(hidden)"
SOCKET_BYTES = 107
"""unix(7): the longest path of a socket."""
COMMISSIONING = re.compile(r"commissioning\.toml$")
_URL_SECRET = re.compile(r"(?<=//)[^/@\s]*@|\?.*$")
_KEY = re.compile(r"\b(?:policy|vehicle|fleet|inference|computer|trust|metrics|control)(?:\.[a-z_0-9]+)+")


class Origin(msgspec.Struct, frozen=True):
    """Where a value is from; `line` is 0 where there is none to tell."""

    kind: str
    """`default`, `file`, `drop-in`, `commissioning`, `catalogue`, or `command line`."""
    path: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return place if self.kind == "file" else f"{self.kind} {place}".strip()


class Value(msgspec.Struct, frozen=True):
    """One value in force."""

    key: str
    value: Any
    unit: str
    origin: Origin


# --- check ----------------------------------------------------------------------------------------------------------


def check(options: argparse.Namespace) -> int:
    """Print what is wrong; exit code 1 for a mistake, 4 for a number that looks like another unit."""
    path = options.policy or options.config
    wrong, unsure, drop_ins = _checked(path, policy=options.policy is not None)
    result = "failed" if wrong else "degraded" if unsure else "ok"
    if options.json:
        print_json(
            {
                "v": FORMAT,
                "file": str(path),
                "drop_ins": drop_ins,
                "result": result,
                "mistakes": [_as_json(one) for one in wrong],
                "doubts": [_as_json(one) for one in unsure],
            }
        )
    else:
        for mark, colour, found in (("wrong", "red", wrong), ("look", "yellow", unsure)):
            for one in found:
                print(_as_text(one, paint(mark, colour)))
        with_them = f" with {_count(len(drop_ins), 'drop-in')}" if drop_ins else ""
        told = [_count(len(wrong), "mistake")] * bool(wrong) + [_count(len(unsure), "doubt")] * bool(unsure)
        print(f"{printable(str(path))}{with_them}: {', '.join(told) or 'right'}")
    return {"failed": exits.FAILED, "degraded": exits.DEGRADED, "ok": exits.FINE}[result]


def _checked(path: Path, *, policy: bool) -> tuple[list[Mistake], list[Mistake], list[str]]:
    """(mistakes, doubts, drop-ins) of a configuration, or of a policy's file."""
    try:
        layers = [policy_layer(path)] if policy else config_layers(path)
    except ConfigError as error:
        return [Mistake("", path, 0, error.what.removeprefix(f"{path}: "), error.hint)], [], []
    wrong = mistakes(layers, PolicyFile if policy else Config)
    if not wrong:
        wrong = list(_beyond_types(path, layers, policy=policy))
    return wrong, doubts(layers, {one.key for one in wrong}), [str(one.path) for one in layers[1:]]


def _beyond_types(path: Path, layers: Sequence[Layer], *, policy: bool) -> Iterator[Mistake]:
    """What contradicts itself, and what names something that is not there."""
    places = Places(layers)

    def found(what: str, hint: str) -> Mistake:
        key = match[0] if (match := _KEY.search(what)) else ""
        return Mistake(key, *places.of(key), what.removeprefix(f"{path}: "), hint)

    limits = _policy_of(layers)
    told = [found(*one) for one in contradictions(limits)]
    yield from told
    try:
        if policy:
            check_policy(limits, path)
            return
        config = load(path)
    except ConfigError as error:
        if not told:
            yield found(error.what, error.hint)
        return
    for look in (_brokers, _profiles, _socket):
        try:
            look(config)
        except ConfigError as error:
            yield found(error.what, error.hint)


def _policy_of(layers: Sequence[Layer]) -> Policy:
    return msgspec.convert({"policy": merged(layers).get("policy", {})}, PolicyFile).policy


def _brokers(config: Config) -> None:
    config.fleet.addresses()


def _profiles(config: Config) -> None:
    from agent.vehicle.profile import load_profile  # noqa: PLC0415 - with what it is about

    for one in config.vehicle.profiles:
        try:
            load_profile(one)
        except ConfigError as error:
            raise ConfigError(f"vehicle.profiles: {error.what}", hint=error.hint) from error


def _socket(config: Config) -> None:
    path = config.path(config.control_socket)
    if len(os.fsencode(path)) > SOCKET_BYTES:
        what = f"control_socket: {path} is longer than the {SOCKET_BYTES} bytes that a socket's path may have"
        raise ConfigError(what, hint="choose a shorter one, as /run/driveway/control.sock")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _as_text(one: Mistake, mark: str) -> str:
    place = f"{one.path}:{one.line}: " if one.line else ""
    mend = f"\n    → {printable(one.hint)}" if one.hint else ""
    return f"{mark}  {printable(place + one.what)}{mend}"


def _as_json(one: Mistake) -> dict[str, Any]:
    return {"key": one.key, "file": str(one.path), "line": one.line or None, "what": one.what, "hint": one.hint}


# --- show -----------------------------------------------------------------------------------------------------------


def show(options: argparse.Namespace) -> int:
    """Print the values in force, those of the keys that are named, or only what differs from the defaults."""
    found = [one for one in values(options.config, options.socket) if _wanted(one, options)]
    if options.keys and not found:
        hint = "see `driveway config show`" if not options.changed else "leave --changed out"
        raise exits.UsageError(f"no value of the configuration is {' or '.join(options.keys)}", hint=hint)
    if options.json:
        rows = [{"key": one.key, "value": one.value, "unit": one.unit or None, **_origin(one.origin)} for one in found]
        print_json({"v": FORMAT, "file": str(options.config), "values": rows})
        return exits.FINE
    for one in found:
        unit = f"{one.unit}; " if one.unit and one.value is not None else ""
        line = f"{one.key} = {_shown(one.value)}"
        print(f"{printable(line):<48}  {paint(printable(f'# {unit}{one.origin}'), 'grey')}")
    return exits.FINE


def values(path: Path, socket: Path | None = None) -> list[Value]:
    """Every value in force, secrets hidden; raises ConfigError."""
    layers = config_layers(path)
    config = load(path)
    profile = configured_profile(config)
    effective = with_profile(config)
    replaced = None
    if profile is not None and effective is not config:
        replaced = Places([policy_layer(profile.path)])
    places = Places(layers)
    table = msgspec.to_builtins(effective)
    del table["base"]

    def origin(key: str) -> Origin:
        if key == "control_socket" and socket is not None:
            return Origin("command line", "--socket")
        if replaced is not None and key.startswith("policy."):
            return Origin("catalogue", *said) if (said := _said(replaced, key)) else Origin("default")
        said = _said(places, key)
        return Origin(_kind(said[0], path), *said) if said else Origin("default")

    if socket is not None:
        table["control_socket"] = str(socket)
    return [Value(key, _safe(key, value), _unit(key), origin(key)) for key, value in leaves(table)]


def _said(places: Places, key: str) -> tuple[str, int] | None:
    found = places.said(key)
    return None if found is None else (str(found[0]), found[1])


def _kind(said: str, main: Path) -> str:
    if said == str(main):
        return "file"
    return "commissioning" if COMMISSIONING.search(said) else "drop-in"


def _unit(key: str) -> str:
    unit = unit_of(key)
    return "" if unit is None else unit.words


def _safe(key: str, value: Any) -> Any:
    if key in SECRETS:
        return HIDDEN if value else value
    return _URL_SECRET.sub(HIDDEN, value) if isinstance(value, str) and "//" in value else value


def _wanted(one: Value, options: argparse.Namespace) -> bool:
    if options.changed and one.origin.kind == "default":
        return False
    return not options.keys or any(one.key == key or one.key.startswith((f"{key}.", f"{key}[")) for key in options.keys)


def _origin(origin: Origin) -> dict[str, Any]:
    return {"source": origin.kind, "file": origin.path or None, "line": origin.line or None}


def _shown(value: Any) -> str:
    return "-" if value is None else json.dumps(value, ensure_ascii=False)
