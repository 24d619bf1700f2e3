"""What the configuration says of the doors to this computer alone: the control socket, and where metrics are shown.

    [control]
    owner_group = "driveway-owner"      # its members may pause, resume and set wishes; "": root and the daemon's user

    [metrics]
    listen = "127.0.0.1:9469"           # or "unix:metrics.sock"; "": nowhere
    textfile = "/run/driveway/driveway.prom"    # for node_exporter's textfile collector; "": none
    interval_s = 15                     # how often the file is written

Metrics go to this computer only: an address that is not a loopback address is refused.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated

import msgspec

UNIX = "unix:"


class ControlSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may say the owner's word over the control socket, besides root and the daemon's own user."""

    owner_group: Annotated[str, msgspec.Meta(pattern=r"^([a-z_][a-z0-9_-]{0,31})?$(?!\n)")] = ""


class MetricsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where metrics are shown: nowhere, unless asked for."""

    listen: Annotated[str, msgspec.Meta(max_length=256)] = ""
    textfile: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    interval_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 15.0

    def __post_init__(self) -> None:
        if self.listen and not self.listen.startswith(UNIX):
            address_of(self.listen)
        if self.listen == UNIX:
            raise ValueError("metrics.listen names no path after unix:")
        if self.textfile and not self.textfile.endswith(".prom"):
            raise ValueError("metrics.textfile has to end with .prom, or node_exporter does not read it")


def address_of(listen: str) -> tuple[str, int]:
    """(address, port) of `127.0.0.1:9469` or `[::1]:9469`; raises ValueError for anything but a loopback address."""
    host, _, port = listen.rpartition(":")
    example = "write for example 127.0.0.1:9469, [::1]:9469 or unix:metrics.sock"
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ValueError(f"metrics.listen: {listen!r} is not an address and a port; {example}") from None
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise ValueError(f"metrics.listen: {port!r} is not a port; {example}")
    if not address.is_loopback:
        raise ValueError(f"metrics.listen: {host} is not of this computer alone; {example}")
    return str(address), int(port)
