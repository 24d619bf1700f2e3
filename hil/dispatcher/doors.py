"""Where a dispatcher is reached over HTTP: by its own machine, and, where it is told to listen, by cars.

    127.0.0.1:PORT           always: everything, the operator's resources too (their token is a file of this machine)
    --listen HOST:PORT       for cars, from anywhere: `/objects/…`, `/uploads/…`, `/enrol` and `/succession`, nothing
                             of an operator's

The door for cars is TLS 1.3 (`hil.dispatcher.server_tls`). In plain text it opens on a loopback address only, for a
proxy of this machine that ends TLS. What grants name is `--public-url`: the address of the proxy or of a load balancer
over all replicas. Any replica may answer for any other, since rights and units are rows of the database, and objects
and what was brought are files in the folder that replicas share. Without it, what this replica listens on is named, and
a car that works when the replica ends waits until it is back.
"""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from agent.errors import ConfigError
from hil.dispatcher.leases import Places
from hil.dispatcher.objects import Objects
from hil.dispatcher.server_tls import ServerTls, ServerTlsFiles
from hil.dispatcher.uploads import MayUpload
from hil.dispatcher.web import WebServer

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Listening:
    """The door for cars. `public_url`: what they are told, without a slash at its end."""

    address: Address
    public_url: str
    tls: ServerTlsFiles | None


def address(text: str) -> Address:
    """HOST:PORT, with an IPv6 address in brackets; raises ArgumentTypeError."""
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def add_listening(parser: argparse.ArgumentParser) -> None:
    """The options that `listening` reads."""
    add = parser.add_argument
    add("--listen", type=address, metavar="HOST:PORT", help="serve cars here: objects, uploads, enrolment (TLS 1.3)")
    add("--listen-certificate", default="", metavar="FILE", help="the certificate for it, with its chain (PEM)")
    add("--listen-key", default="", metavar="FILE", help="the certificate's key (PEM)")
    add("--listen-client-ca", default="", metavar="FILE", help="serve only who has a certificate of this CA (PEM)")
    add("--public-url", default="", metavar="URL", help="what cars are told to use (default: what is listened on)")


def listening(arguments: argparse.Namespace) -> Listening | None:
    """What the options say, None for this machine alone; raises ConfigError."""
    where: Address | None = arguments.listen
    certificate, key, client_ca = arguments.listen_certificate, arguments.listen_key, arguments.listen_client_ca
    url: str = arguments.public_url.rstrip("/")
    if where is None:
        if certificate or key or client_ca or url:
            raise ConfigError("--listen-… and --public-url are about --listen HOST:PORT, which is missing")
        return None
    if bool(certificate) != bool(key) or (client_ca and not key):
        raise ConfigError("--listen-certificate and --listen-key go together, and --listen-client-ca with them")
    if not certificate and not _is_loopback(where[0]):
        raise ConfigError(
            f"will not serve cars at {where[0]} in plain text",
            hint="give --listen-certificate and --listen-key, or listen on 127.0.0.1 behind a proxy that ends TLS",
        )
    tls = ServerTlsFiles(certificate, key, client_ca) if certificate else None
    if url:
        _check(url)
    elif _is_any(where[0]) or where[1] == 0:
        raise ConfigError(f"what should cars call {where[0]}:{where[1]}?", hint="say it with --public-url")
    else:
        host = f"[{where[0]}]" if ":" in where[0] else where[0]
        url = f"{'https' if tls else 'http'}://{host}:{where[1]}"
    return Listening(where, url, tls)


def _check(url: str) -> None:
    """Raises ConfigError for what no car would use."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment or parts.username)
        usable = usable and url.isascii() and url.isprintable() and " " not in url
        usable = usable and (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or "")))
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"cars would not use {url!r}", hint="write https://dispatch.example")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


class Doors:
    """The web servers of one dispatcher: `inner` for its machine, and one for cars where there is a `Listening`."""

    def __init__(
        self,
        inner: WebServer,
        cars: Listening | None,
        objects: Objects,
        enrol: Callable[[bytes], bytes],
        may_upload: MayUpload,
        *,
        rotate: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._servers = [inner]
        self.url, self.public_url = inner.url, inner.url if cars is None else cars.public_url
        self.places = Places(
            object_url=lambda sha256: f"{self.public_url}/objects/{sha256}",
            upload_url=f"{self.public_url}/uploads",
            small=objects.small,
            sealing=objects.sealing,
        )
        if cars is not None:
            tls = None if cars.tls is None else ServerTls(cars.tls)
            host, port = cars.address
            self._servers.append(
                WebServer(port, objects, enrol, rotate=rotate, may_upload=may_upload, host=host, tls=tls)
            )

    def start(self) -> None:
        """Begin to answer."""
        for server in self._servers:
            server.start()

    def close(self) -> None:
        """Stop listening and wait for the threads."""
        for server in self._servers:
            server.close()
