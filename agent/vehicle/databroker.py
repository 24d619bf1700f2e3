"""The `[vehicle.databroker]` table: where the car's KUKSA databroker is, and what is known of who feeds it.

The broker keeps the last value of a provider that died, for ever, so a value proves nothing about now. What proves a
provider alive is a *heartbeat leaf*: one that it publishes all the time (Continuous, 5 Hz or faster), whether it
changed or not. `heartbeat` is that of every leaf which no `[[vehicle.databroker.provider]]` table claims. Write a table
for each process that feeds the broker, else one that died hides behind another's heartbeat.

A leaf that the broker lists and the token may read is binding: without a value it keeps the gate shut. `absent` names
those that this car does not have. The libraries (gRPC and the databroker's stubs) are an extra, imported on use.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from agent.core.signals import ALIASES, LEAVES, NEVER_ABSENT, SPEED
from agent.errors import ConfigError
from agent.ports import Awakener, Clock, Source
from agent.vehicle.profile import did_you_mean

OVERLAY = "Vehicle.Driveway."
"""Our branch of the tree; `driveway-overlay.json`, beside this file, defines it for the databroker."""

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
SilentMs = Annotated[int, msgspec.Meta(ge=250, le=5_000)]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration: immutable, and closed to keys it does not know."""


class BrokerTls(Table, frozen=True):
    """The authority whose certificates count, and the name in the broker's, where it is not the address."""

    ca: str
    server_name: str = ""


class ProviderConfig(Table, frozen=True):
    """One process that feeds the broker: which leaves are its own, and which of them proves it alive.

    `leaves` are VSS paths or branches (`Vehicle.Cabin.Door`). After `heartbeat_silent_ms` without a heartbeat all
    of them are unknown; whatever is set here, a gate edge is unknown after 500 ms.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_-]{1,32}$")]
    leaves: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    heartbeat: str = SPEED
    heartbeat_silent_ms: SilentMs = 500

    def __post_init__(self) -> None:
        _check_heartbeat(self.heartbeat)

    def owns(self, path: str) -> bool:
        """Whether this provider feeds the leaf."""
        return any(path == leaf or path.startswith(f"{leaf}.") for leaf in self.leaves)


class DatabrokerConfig(Table, frozen=True):
    """The databroker of this car. `address` is `host:port` or `unix:/path/of/its.sock`; files hold JSON Web Tokens."""

    address: str
    tls: BrokerTls | None = None
    token_file: str = ""
    poll_ms: Annotated[int, msgspec.Meta(ge=100, le=250)] = 250
    heartbeat: str = SPEED
    heartbeat_silent_ms: SilentMs = 500
    provider: tuple[ProviderConfig, ...] = ()
    absent: tuple[str, ...] = ()
    keep_awake: bool = False
    """Ask the platform to stay awake through `Vehicle.Driveway.KeepAwakeUntil`: the one thing that is ever written."""
    keep_awake_token_file: str = ""
    """A token that may actuate that leaf and nothing else; without it `token_file` is used for both."""

    def __post_init__(self) -> None:
        _check_address(self.address)
        _check_heartbeat(self.heartbeat)
        names = [provider.name for provider in self.provider]
        if len(set(names)) < len(names):
            raise ValueError("two [[vehicle.databroker.provider]] tables have the same name")
        for path in self.absent:
            if path not in LEAVES:
                raise ValueError(f"absent: no leaf {path!r} is read; {did_you_mean(path, LEAVES)}")
            if path in NEVER_ABSENT:
                raise ValueError(f"absent: no car is without {path}")
        local = self.address.startswith(("unix:", *(f"{host}:" for host in LOCAL_HOSTS)))
        if (self.token_file or self.keep_awake_token_file) and self.tls is None and not local:
            raise ValueError("a token would cross the network in clear; add [vehicle.databroker.tls]")


def _check_address(address: str) -> None:
    """Raises ValueError for what is neither a socket's path nor host:port."""
    kind, _, rest = address.rpartition(":")
    if address.startswith("unix:"):
        if not address.removeprefix("unix:").startswith("/"):
            raise ValueError(f"address: {address!r} needs an absolute path, like unix:/run/kuksa/databroker.sock")
    elif not kind or not rest.isdigit() or "/" in kind:
        raise ValueError(f"address: {address!r} is neither host:port nor unix:/path")


def _check_heartbeat(path: str) -> None:
    """A heartbeat is a leaf we read anyway or one of our branch, so nothing private is ever asked for by mistake."""
    if path not in LEAVES and path not in ALIASES and not path.startswith(OVERLAY):
        hint = did_you_mean(path, LEAVES)
        raise ValueError(f"heartbeat: {path!r} is neither a leaf that is read nor below {OVERLAY}*; {hint}")


def build_databroker(config: DatabrokerConfig, clock: Clock, path: Callable[[str], Path]) -> Source:
    """The source that reads the databroker; `path` makes a configured path absolute. Raises ConfigError."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # we say ourselves, and once, that the broker is gone
    try:
        from agent.vehicle.kuksa import DatabrokerSource  # noqa: PLC0415 - an extra
        from agent.vehicle.kuksa_channel import Door  # noqa: PLC0415 - an extra
    except (ImportError, RuntimeError) as error:  # the stubs raise RuntimeError for a grpcio that is too old
        raise _missing(error) from error
    return DatabrokerSource(config, clock, Door.of(config, config.token_file, path))


def build_awakener(config: DatabrokerConfig, clock: Clock, path: Callable[[str], Path]) -> Awakener | None:
    """What asks the platform to stay awake; None unless it is configured. Raises ConfigError."""
    if not config.keep_awake:
        return None
    try:
        from agent.vehicle.kuksa_awake import KuksaAwakener  # noqa: PLC0415 - an extra
        from agent.vehicle.kuksa_channel import Door  # noqa: PLC0415 - an extra
    except (ImportError, RuntimeError) as error:
        raise _missing(error) from error
    return KuksaAwakener(clock, Door.of(config, config.keep_awake_token_file or config.token_file, path))


def _missing(error: Exception) -> ConfigError:
    return ConfigError(
        f"vehicle.databroker needs the databroker's client: {error}", hint="install the extra: driveway-agent[kuksa]"
    )
