"""Mosquitto as a fleet needs it: mutual TLS, names from certificates, and the dynamic-security plugin.

Why not `acl_file`: there a subscription is always granted, and a car that joins the dispatchers' share group swallows
its part of the fleet's results. The plugin refuses the subscription itself. Every car has a role of its own, because
the plugin (2.0) knows no placeholder for the client's name: a deployment makes it when the unit is enrolled.

`use_username_as_clientid` ties the client id to the certificate's common name; without it any car with a certificate
may connect under another car's id and end that car's session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import FleetError
from agent.fleet.tls import TlsFiles
from hil.asyncapi import CONTRACT, Upward
from hil.broker import HOST, Mosquitto

PLUGINS = (
    Path("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so"),
    Path("/usr/lib/aarch64-linux-gnu/mosquitto_dynamic_security.so"),
    Path("/usr/lib/mosquitto_dynamic_security.so"),
)
SECURITY_FILE = "dynamic-security.json"
CONF = """\
per_listener_settings false
listener {port} {host}
allow_anonymous false
cafile {ca}
certfile {certificate}
keyfile {key}
require_certificate true
tls_version tlsv1.3
use_identity_as_username true
{client_id}
set_tcp_nodelay true
persistence false
message_size_limit 65536
max_inflight_messages 20
max_queued_messages 100
plugin {plugin}
plugin_opt_config_file {security}
"""
VERBS = tuple(entry.verb for entry in CONTRACT if isinstance(entry.example, Upward))
"""What a car says. One by one and not as `+`: this broker cannot refuse a retained message for being retained, so a car
that may invent topics may fill the broker's memory."""
CLIENT_ID = "use_username_as_clientid true"


class Member(msgspec.Struct, frozen=True):
    """One car: its pseudonym (the certificate's common name) and its cell."""

    unit: str
    cell: str


class Access(msgspec.Struct, frozen=True):
    """One line of the plugin's access list."""

    acltype: str
    topic: str
    allow: bool = True


def cell_of(unit: str) -> str:
    """The cell that a unit of this name is enrolled in: known before it enrols, so that it may be let in to do so."""
    return hashlib.sha256(unit.encode("utf-8")).hexdigest()[:2]


def car_access(car: Member) -> list[Access]:
    """What a car may do: publish under its own name, and hear what is for it and for its cell. Nothing else."""
    down, pace = f"dw/v1/d/{car.unit}/+", f"dw/v1/b/{car.cell}/pace"
    return [
        *(Access("publishClientSend", f"dw/v1/u/{car.cell}/{car.unit}/{verb}") for verb in VERBS),
        Access("subscribeLiteral", down),
        Access("subscribeLiteral", pace),
        Access("publishClientReceive", down),
        Access("publishClientReceive", pace),
        Access("unsubscribePattern", "#"),
    ]


def dispatcher_access(share_group: str) -> list[Access]:
    """What a dispatcher may do: hear what cars say, through its share group alone, and speak to cars and cells."""
    return [
        Access("subscribeLiteral", f"$share/{share_group}/dw/v1/u/+/+/+"),
        Access("publishClientReceive", "dw/v1/u/+/+/+"),
        Access("publishClientSend", "dw/v1/d/+/+"),
        Access("publishClientSend", "dw/v1/b/+/pace"),
        Access("unsubscribePattern", "#"),
    ]


def dynamic_security(cars: Iterable[Member], dispatchers: Sequence[str], share_group: str) -> bytes:
    """The plugin's whole configuration file: a role a car, one for all dispatchers, and everything else denied."""
    cars = list(cars)
    roles = {f"car-{car.unit}": car_access(car) for car in cars} | {"dispatcher": dispatcher_access(share_group)}
    clients = [(car.unit, f"car-{car.unit}") for car in cars] + [(name, "dispatcher") for name in dispatchers]
    body: dict[str, Any] = {
        "defaultACLAccess": {
            "publishClientSend": False,
            "publishClientReceive": False,
            "subscribe": False,
            "unsubscribe": False,
        },
        "clients": [{"username": name, "roles": [{"rolename": role}]} for name, role in clients],
        "groups": [],
        "roles": [{"rolename": name, "acls": acls} for name, acls in roles.items()],
    }
    return msgspec.json.format(msgspec.json.encode(body), indent=1)


class GuardedMosquitto(Mosquitto):
    """Mosquitto with mutual TLS; `binds_client_id=False` leaves out what ties the client id to the certificate.

    `more` are lines that its configuration has besides.
    """

    def __init__(
        self, folder: Path, port: int, *, tls: TlsFiles, security: bytes, binds_client_id: bool = True, more: str = ""
    ) -> None:
        super().__init__(folder, port)
        self._tls, self._security, self._binds_client_id, self._more = tls, security, binds_client_id, more

    @staticmethod
    def plugin() -> Path | None:
        """The dynamic-security plugin, None where it is not installed."""
        return next((path for path in PLUGINS if path.exists()), None)

    def command(self) -> list[str]:
        """Write mosquitto.conf and the plugin's file; raises FleetError when either program is not installed."""
        command, plugin = super().command(), self.plugin()
        if plugin is None:
            raise FleetError("mosquitto's dynamic-security plugin is not installed", hint="apt-get install mosquitto")
        security = self._folder / SECURITY_FILE
        security.write_bytes(self._security)
        self._folder.chmod(0o755)  # as root, mosquitto becomes the user `mosquitto` before it reads these
        for path in (security, Path(self._tls.key), Path(self._tls.certificate), Path(self._tls.ca)):
            path.chmod(0o644)
        Path(command[-1]).write_text(
            CONF.format(
                port=self.port,
                host=HOST,
                ca=self._tls.ca,
                certificate=self._tls.certificate,
                key=self._tls.key,
                client_id=CLIENT_ID if self._binds_client_id else "",
                plugin=plugin,
                security=security,
            )
            + self._more,
            "utf-8",
        )
        return command
