"""The configuration: one TOML file, typed, and strict. A key nobody knows is an error that suggests the right one.

Files in `agent.toml.d` beside it are laid over it (`agent.toml`); `agent.config_mistakes` tells what is wrong.
Paths are taken relative to the file's own directory, so a rig's folder can be moved. Secrets are never in it, only
the paths of key files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from agent.core.policy import Policy
from agent.errors import ConfigError
from agent.fleet.backoff import CAP_S
from agent.fleet.messages import Identifier
from agent.fleet.tls import TlsFiles
from agent.key_config import KeySection
from agent.local_config import ControlSection, MetricsSection
from agent.policy_check import check_policy
from agent.telemetry.actuators import DevfreqStep, check_steps
from agent.toml import Layer, merged, read_layer, read_layers
from agent.trust.keyring import KeyConfig
from agent.vehicle.databroker import DatabrokerConfig
from agent.vehicle.source import BusConfig
from agent.wire import ExecutorName, Measure

Table = TypeVar("Table", bound=msgspec.Struct)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration: immutable, and closed to keys it does not know."""


class UnitConfig(Section, frozen=True):
    """Who this car is to the fleet: a pseudonym, never the VIN."""

    id: Identifier
    cell: Identifier = "00"
    device_class: Annotated[str, msgspec.Meta(max_length=64)] = "generic"


class VehicleConfig(Section, frozen=True):
    """How the car is read: its buses, each explained by a profile, or its databroker, or both."""

    profiles: tuple[str, ...] = ()
    bus: tuple[BusConfig, ...] = ()
    databroker: DatabrokerConfig | None = None

    def __post_init__(self) -> None:
        if not self.bus and self.databroker is None:
            raise ValueError("nothing to read the vehicle from; add a [[vehicle.bus]] or a [vehicle.databroker]")
        if self.bus and not self.profiles:
            raise ValueError("a [[vehicle.bus]] needs the profile that explains it, in `profiles`")


class ComputerConfig(Section, frozen=True):
    """How the inference computer is read (a Jetson's sysfs, an NVIDIA card, a laptop's hwmon) and held back."""

    reader: Literal["jetson", "nvml", "hwmon"] = "jetson"
    sysfs_root: str = "/"
    interval_ms: Annotated[int, msgspec.Meta(ge=50, le=2_000)] = 500
    nvml_device: str = "0"
    """Index or UUID of the card."""
    limits: Literal["none", "devfreq", "nvml"] = "none"
    """By which of its own means the computer is held to the power cap, besides pacing: off unless asked for."""
    devfreq_device: str = ""
    """The GPU's name in /sys/class/devfreq; empty: the one that looks like it."""
    devfreq_steps: tuple[DevfreqStep, ...] = ()
    """What the computer draws at most up to each clock, lowest first; none: a straight line from idle to full power."""


class NetworkConfig(Section, frozen=True):
    """Whether what is sent costs money: said, or told by the interface of the default route."""

    metered: Literal["auto", "yes", "no"] = "auto"
    metered_interfaces: tuple[str, ...] = ("wwan*", "rmnet*", "usb*")
    """Interfaces that are metered under `auto`, as shell patterns."""


class FleetConfig(Section, frozen=True):
    """Where work comes from, and the dispatcher's public key: only what it signed counts."""

    brokers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    dispatcher_key: str
    enrol_url: str = ""
    enrol_code: str = ""
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=1200)] = 300
    reconnect_max_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = CAP_S
    """The longest wait between two attempts to connect: what keeps a fleet from coming back all at once."""
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
    executor: ExecutorName = "onnxruntime"
    worker_python: str = ""
    """The interpreter that has the engine's bindings, where that is not the daemon's own (JetPack's Python 3.10)."""
    library_path: str = ""
    """Where the engine's libraries lie, if the linker does not look there by itself; colons between directories."""
    worker_socket: str = ""
    """The socket unit on which systemd starts workers (`driveway-worker.socket`); empty: they are plain children."""
    worker_reads: str = "/var/lib/driveway/packages"
    """With `worker_socket`: the directory of packages that the workers' unit can read."""
    require_confinement: tuple[Measure, ...] = ()
    """Without these measures of its cage a worker does nothing, and the accelerator is not ready."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    memory_mb: Annotated[int, msgspec.Meta(ge=128, le=262_144)] = 2048
    plan_cache_mb: Annotated[int, msgspec.Meta(ge=64, le=1_048_576)] = 4096
    """So much of the disk (MiB) may hold built engine plans; those used longest ago make room."""


class CatalogueConfig(Section, frozen=True):
    """The operator's catalogue (docs/catalogue.md): its root, pinned, and where it is published."""

    root: str
    """A root.json of the operator's TUF repository, brought with the installation."""
    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^?#\s]+$(?!\n)")]
    refresh_minutes: Annotated[float, msgspec.Meta(ge=0.01, le=10_080)] = 60.0
    policy: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{0,64}$(?!\n)")] = ""
    """The policy of this name replaces `[policy]`, from the start after it has come."""


class TrustConfig(Section, frozen=True):
    """Who may say what runs here, and where the unit's own key lives."""

    catalogue: CatalogueConfig | None = None
    key: KeySection = KeySection()


class Config(Section, frozen=True):
    """The whole configuration."""

    state_dir: str
    control_socket: str
    unit: UnitConfig
    vehicle: VehicleConfig
    fleet: FleetConfig
    inference: InferenceConfig
    computer: ComputerConfig = ComputerConfig()
    network: NetworkConfig = NetworkConfig()
    policy: Policy = Policy()
    trust: TrustConfig = TrustConfig()
    control: ControlSection = ControlSection()
    metrics: MetricsSection = MetricsSection()
    update_flag: str = ""
    """While this file exists, an update waits for the computer; default: `update-pending` in `state_dir`."""
    base: str = ""
    """The configuration file's directory; set on loading."""

    def path(self, value: str) -> Path:
        """A path of the configuration, relative to its file."""
        return Path(self.base) / value

    @property
    def key(self) -> KeyConfig:
        """Where the unit's own key lives, with its paths resolved."""
        return self.trust.key.resolved(self.path(self.state_dir), self.path)

    @property
    def update_flag_path(self) -> Path:
        """Where the platform's updater says that an update waits."""
        return self.path(self.update_flag) if self.update_flag else self.path(self.state_dir) / "update-pending"


def config_layers(path: Path) -> list[Layer]:
    """The configuration and its drop-ins, as they lie there; raises ConfigError for one that is no TOML."""
    layers = read_layers(path, "configuration", hint="give it with --config")
    for layer in layers:
        layer.table.pop("base", None)
    return layers


def load(path: Path) -> Config:
    """Read and check a configuration; raises ConfigError that names the key and the mend."""
    config = _converted(config_layers(path), Config)
    check_policy(config.policy, path)
    databroker = config.vehicle.databroker
    if config.policy.keep_awake and not (databroker and databroker.keep_awake):
        what = f"{path}: policy.keep_awake has no way to the platform"
        raise ConfigError(what, hint="set vehicle.databroker.keep_awake")
    check_steps(config.computer.devfreq_steps, f"{path}: computer.devfreq_steps")
    config = msgspec.structs.replace(config, base=str(path.parent.resolve()))
    _check_workers(config, path)
    return config


def _check_workers(config: Config, path: Path) -> None:
    """Raise ConfigError for what workers that systemd starts could not have: it is their unit that says it."""
    inference = config.inference
    if not inference.worker_socket:
        return
    for key in ("worker_python", "library_path"):
        if getattr(inference, key):
            hint = "set it in a drop-in of driveway-worker@.service"
            raise ConfigError(f"{path}: inference.{key} has no effect with inference.worker_socket", hint=hint)
    packages, reads = (config.path(one).resolve() for one in (inference.packages_dir, inference.worker_reads))
    if not packages.is_relative_to(reads):
        raise ConfigError(
            f"{path}: inference.packages_dir {packages} is not inside {reads}, which the workers' unit can read",
            hint="move the packages, or give the unit another --read and BindReadOnlyPaths= and say so in worker_reads",
        )


class PolicyFile(Section, frozen=True):
    """What counts of a file that is read for its policy alone."""

    policy: Policy = Policy()


def policy_layer(path: Path) -> Layer:
    """What counts of a file that is read for its policy alone, as it lies there; raises ConfigError."""
    layer = read_layer(path, "policy")
    if any(isinstance(value, dict) for value in layer.table.values()):
        return replace(layer, table={"policy": layer.table.get("policy", {})})
    return replace(layer, table={"policy": layer.table}, prefix="policy.")


def load_policy(path: Path) -> Policy:
    """The policy in a TOML file: the `[policy]` table of a configuration, or a file that is such a table and no more.

    Raises ConfigError as `load` does; what else a configuration holds is not looked at.
    """
    policy = _converted([policy_layer(path)], PolicyFile).policy
    check_policy(policy, path)
    return policy


def _converted(layers: Sequence[Layer], kind: type[Table]) -> Table:
    """The layers as what they should be; raises ConfigError that names the file, the line, the key and the mend."""
    try:
        return msgspec.convert(merged(layers), kind)
    except msgspec.ValidationError as error:
        from agent.config_mistakes import mistakes  # noqa: PLC0415 - only a mistake needs it

        first = next(iter(mistakes(layers, kind)), None)
        raise (ConfigError(f"{layers[0].path}: {error}") if first is None else first.error()) from error
