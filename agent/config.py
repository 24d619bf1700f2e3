"""The configuration: one TOML file, typed, and strict. A key nobody knows is an error that suggests the right one.

Paths are taken relative to the file's own directory, so a rig's folder can be moved. Secrets are never in it, only
the paths of key files.
"""

from __future__ import annotations

import difflib
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from agent.core.policy import Policy
from agent.errors import ConfigError
from agent.fleet.link import TlsFiles
from agent.fleet.messages import Identifier
from agent.vehicle.source import BusConfig


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration: immutable, and closed to keys it does not know."""


class UnitConfig(Section, frozen=True):
    """Who this car is to the fleet: a pseudonym, never the VIN."""

    id: Identifier
    cell: Identifier = "00"
    device_class: Annotated[str, msgspec.Meta(max_length=64)] = "generic"


class VehicleConfig(Section, frozen=True):
    """What the car's buses are called here, and which profile explains each."""

    profiles: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    bus: Annotated[tuple[BusConfig, ...], msgspec.Meta(min_length=1)]


class ComputerConfig(Section, frozen=True):
    """How the inference computer is read: a Jetson's sysfs, or a laptop's hwmon."""

    reader: Literal["jetson", "hwmon"] = "jetson"
    sysfs_root: str = "/"
    interval_ms: Annotated[int, msgspec.Meta(ge=50, le=2_000)] = 500


class FleetConfig(Section, frozen=True):
    """Where work comes from, and the dispatcher's public key: only what it signed counts."""

    brokers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    dispatcher_key: str
    enrol_url: str = ""
    enrol_code: str = ""
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=1200)] = 300
    tls: TlsFiles | None = None
    allow_loopback_http: bool = False
    """Rigs alone: fetch objects over plain HTTP from this machine."""

    def addresses(self) -> tuple[tuple[str, int], ...]:
        """(host, port) of each broker; raises ConfigError for one that is not host:port."""
        pairs = []
        for broker in self.brokers:
            host, _, port = broker.rpartition(":")
            if not host or not port.isdigit():
                raise ConfigError(
                    f"fleet.brokers: {broker!r} is not host:port", hint='write for example "127.0.0.1:1883"'
                )
            pairs.append((host, int(port)))
        return tuple(pairs)


class InferenceConfig(Section, frozen=True):
    """What the worker may use, where packages lie, and whose signature on them counts."""

    packages_dir: str
    publisher_key: str
    executor: Literal["onnxruntime"] = "onnxruntime"
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    memory_mb: Annotated[int, msgspec.Meta(ge=128, le=262_144)] = 2048


class Config(Section, frozen=True):
    """The whole configuration."""

    state_dir: str
    control_socket: str
    unit: UnitConfig
    vehicle: VehicleConfig
    fleet: FleetConfig
    inference: InferenceConfig
    computer: ComputerConfig = ComputerConfig()
    policy: Policy = Policy()
    base: str = ""
    """The configuration file's directory; set on loading."""

    def path(self, value: str) -> Path:
        """A path of the configuration, relative to its file."""
        return Path(self.base) / value


def load(path: Path) -> Config:
    """Read and check a configuration; raises ConfigError that names the key and the mend."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}", hint="give it with --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    table.pop("base", None)
    unknown = next(_unknown_keys(table, Config, ""), None)
    if unknown is not None:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}", hint=unknown[1])
    try:
        config = msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_readable(error)}") from error
    _check_policy(config.policy, path)
    return msgspec.structs.replace(config, base=str(path.parent.resolve()))


def _unknown_keys(table: dict[str, Any], kind: type[msgspec.Struct], prefix: str) -> Any:
    """Yield (dotted key, suggestion) for every key that the section `kind` does not have."""
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(fields)}"
            yield f"{prefix}{key}", hint
            continue
        for inner in _structs_in(fields[key]):
            rows = value if isinstance(value, list) else [value]
            for row in rows:
                if isinstance(row, dict):
                    yield from _unknown_keys(row, inner, f"{prefix}{key}.")


def _structs_in(annotation: Any) -> list[type[msgspec.Struct]]:
    """The section types inside an annotation such as `tuple[BusConfig, ...]` or `TlsFiles | None`."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return [annotation]
    return [inner for part in getattr(annotation, "__args__", ()) for inner in _structs_in(part)]


def _choices(annotation: Any) -> Iterator[str]:
    """Every word that the configuration takes in a place where only certain words are taken."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        for field in msgspec.structs.fields(annotation):
            yield from _choices(field.type)
    else:
        for part in get_args(annotation):
            yield from _choices(part)


def _readable(error: msgspec.ValidationError) -> str:
    """Turn the JSON path in a message of msgspec (`$.policy.reserve_percent`) into a dotted key."""
    text = str(error)
    message, _, where = text.partition(" - at `$")
    if wrong := re.search(r"Invalid enum value '(.*)'", message):
        close = difflib.get_close_matches(wrong[1], list(_choices(Config)), n=1)
        message += f"; did you mean {close[0]!r}?" if close else ""
    return f"{where.strip('`.')}: {message}" if where else text


def _check_policy(policy: Policy, path: Path) -> None:
    """Limits that contradict each other would make a gate that never opens, or never shuts."""
    rising = ("die_start_c", "die_target_c", "die_limit_c")
    for low, high in itertools.pairwise(rising):
        if getattr(policy, low) >= getattr(policy, high):
            raise ConfigError(
                f"{path}: policy.{low} ({getattr(policy, low)}) is not below policy.{high} ({getattr(policy, high)})"
            )
    if policy.power_idle_w >= policy.power_max_w:
        raise ConfigError(f"{path}: policy.power_idle_w ({policy.power_idle_w}) is not below power_max_w")
    if policy.reserve_stop_margin_percent > policy.reserve_start_margin_percent:
        raise ConfigError(f"{path}: policy.reserve_stop_margin_percent is above reserve_start_margin_percent")
