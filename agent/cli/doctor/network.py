"""Offline: the buses that are listened to, and the way to the broker: name, port, TLS, and whether it lets us in.

Nothing is sent on a bus. The broker is asked under another client identifier than the daemon's, which would else be
thrown out. What these find is at most a warning: a car may stand where there is no network, and a release on trial
must not be judged by where its car stands.
"""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.cli.doctor.model import Finding, missing, ok, warn
from agent.config import Config
from agent.fleet.tls import TlsFiles

SYS_NET = Path("/sys/class/net")
ARPHRD_CAN = "280"
UP = 0x1
TOOL_S = 10.0
BROKER_S = 4.0
_CONNACK = 0x20
_REFUSALS = {
    0x84: "it speaks no MQTT 5",
    0x86: "user or password",
    0x87: "not authorised",
    0x88: "it is not available",
    0x89: "it is busy",
    0x8A: "banned",
    0x97: "too many connections",
    0x9C: "use another server",
    0x9D: "it has moved",
}
_KNOWS_US = frozenset({0x00, 0x85})
"""It lets us in, or would let in the unit itself."""


# --- buses ------------------------------------------------------------------------------------------------------------


def buses(config: Config, sys_net: Path = SYS_NET, ip: str | None = None) -> Iterator[Finding]:
    """Each CAN interface is there, is one, is up, and its controller is on the bus."""
    for bus in config.vehicle.bus:
        name = f"vehicle.bus.{bus.name}"
        if bus.interface == "socketcan":
            yield _interface(name, bus.channel, sys_net, ip or shutil.which("ip"))
        else:
            yield missing(name, f"{bus.interface} is for rigs, and is heard by the daemon alone")


def _interface(name: str, channel: str, sys_net: Path, ip: str | None) -> Finding:
    folder = sys_net / channel
    try:
        kind, flags = ((folder / file).read_text("ascii").strip() for file in ("type", "flags"))
    except OSError:
        found = sorted(one.name for one in sys_net.glob("*") if _is_can(one)) if sys_net.is_dir() else []
        mend = f"CAN interfaces here: {', '.join(found) or 'none'}; set vehicle.bus.channel, or load the driver"
        return warn(name, f"there is no interface {channel}", mend)
    if kind != ARPHRD_CAN:
        return warn(name, f"{channel} is no CAN interface", "set vehicle.bus.channel to one")
    if not int(flags, 0) & UP:
        up = f"ip link set {channel} up type can bitrate 500000 listen-only on"
        return warn(name, f"{channel} is down", f"{up} (with the bus's own bit rate)")
    told = _controller(channel, ip)
    state = told.get("state", "")
    if state in {"BUS-OFF", "ERROR-PASSIVE"}:
        mend = f"check wiring, termination and bit rate, then: ip link set {channel} type can restart"
        return warn(name, f"the controller of {channel} is {state}", mend)
    modes = told.get("ctrlmode", [])
    listens = "listens only" if "LISTEN-ONLY" in modes else "may acknowledge frames (listen-only is off)"
    return ok(name, f"{channel} is up; its controller {listens if told else 'tells nothing'}")


def _is_can(folder: Path) -> bool:
    try:
        return (folder / "type").read_text("ascii").strip() == ARPHRD_CAN
    except OSError:
        return False


def _controller(channel: str, ip: str | None) -> dict[str, Any]:
    """What iproute2 says of a CAN controller; empty for a virtual bus, and where it cannot be asked."""
    if ip is None:
        return {}
    said = subprocess.run(
        [ip, "-details", "-json", "link", "show", channel], capture_output=True, timeout=TOOL_S, check=False
    )
    try:
        data: dict[str, Any] = json.loads(said.stdout)[0]["linkinfo"]["info_data"]
    except (ValueError, LookupError, TypeError):
        return {}
    return data


# --- brokers ----------------------------------------------------------------------------------------------------------


def brokers(config: Config, timeout_s: float = BROKER_S) -> Iterator[Finding]:
    """Each broker of the configuration: can it be resolved, reached, trusted, and does it let us in."""
    context = None
    if config.fleet.tls is not None:
        if config.fleet.tls.key.startswith("credential:"):
            yield missing("broker.tls", "the key is a credential, which only the service is given: see daemon.link")
            yield from _all_reached(config, None, "", timeout_s)
            return
        try:
            context = config.fleet.tls.found(config.path).context()
        except (OSError, ssl.SSLError) as error:
            mend = "ca, certificate and key of [fleet.tls] must be there and belong together"
            yield warn("broker.tls", f"the TLS files cannot be used: {_words(error)}", mend)
            return
        yield _belong(config.fleet.tls.found(config.path))
    yield from _all_reached(config, context, config.unit.id, timeout_s)


def _belong(files: TlsFiles) -> Finding:
    return ok("broker.tls", f"{files.certificate} and its key belong together")


def _all_reached(config: Config, context: ssl.SSLContext | None, unit: str, timeout_s: float) -> list[Finding]:
    """All at once, each in a thread that is left alone when it takes too long: a resolver can hang for minutes."""
    addresses = config.fleet.addresses()
    found: dict[int, Finding] = {}

    def look(index: int, host: str, port: int) -> None:
        found[index] = _reached(host, port, context, unit, timeout_s)

    threads = [threading.Thread(target=look, args=(index, *one), daemon=True) for index, one in enumerate(addresses)]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + 2 * timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    late = f"no answer within {2 * timeout_s:g} s"
    mend = "check the network and its DNS"
    return [
        found.get(index) or warn(f"broker.{host}:{port}", late, mend) for index, (host, port) in enumerate(addresses)
    ]


def _reached(host: str, port: int, context: ssl.SSLContext | None, unit: str, timeout_s: float) -> Finding:
    """`unit` is whose identifier the trial one begins with; empty: no more is tried than the port."""
    name = f"broker.{host}:{port}"
    try:
        plain = socket.create_connection((host, port), timeout_s)
        with plain:
            if not unit:
                return ok(name, "its port can be reached; TLS was not tried")
            with context.wrap_socket(plain, server_hostname=host) if context is not None else plain as link:
                code = _connack(link, unit)
    except OSError as error:
        return warn(name, *_why(host, error))
    if code not in _KNOWS_US:
        refusal = _REFUSALS.get(code, f"reason 0x{code:02x}")
        return warn(name, f"it refuses a login: {refusal}", "ask the fleet operator whether this unit is enrolled")
    return ok(name, "reached" + (", trusted over TLS" if context is not None else "") + ", and it lets this unit in")


def _why(host: str, error: OSError) -> tuple[str, str]:
    """(what happened, the mend)."""
    match error:
        case socket.gaierror():
            return f"the name {host} is not known: {error.strerror}", "check the name, the network and its DNS"
        case ssl.SSLCertVerificationError():
            mend = "fleet.tls.ca must have signed the broker's certificate, and the clock must be right"
            return f"its certificate is not trusted: {error.verify_message}", mend
        case ssl.SSLError():
            mend = "it may not know this unit's certificate (renew it, enrol again), or speak no TLS 1.3 on this port"
            return f"TLS does not come about: {_words(error)}", mend
        case _NoBrokerError() | ConnectionResetError() | BrokenPipeError():  # it hung up on us
            mend = "is it the right port, and does it want TLS?"
            return f"it does not answer as an MQTT broker: {_words(error)}", mend
        case _:
            return f"it cannot be reached: {_words(error)}", "check the network, the port and the firewalls"


class _NoBrokerError(OSError):
    """What answers speaks another language."""


def _connack(link: socket.socket, unit: str) -> int:
    """The reason code of the broker's CONNACK to a clean MQTT 5 session of nobody; raises OSError."""
    client = f"{unit}-doctor-{secrets.token_hex(4)}".encode()
    body = b"\x00\x04MQTT\x05\x02\x00\x0a\x00" + len(client).to_bytes(2, "big") + client
    link.sendall(bytes((0x10, len(body))) + body)
    head = _exactly(link, 2)
    if head[0] != _CONNACK or not 2 <= head[1] < 128:
        raise _NoBrokerError("what came is no CONNACK")
    code = _exactly(link, head[1])[1]
    if code == 0:
        link.sendall(b"\xe0\x00")
    return code


def _exactly(link: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = link.recv(count - len(found))
        if not more:
            raise _NoBrokerError("it closed the connection")
        found += more
    return found


def _words(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
