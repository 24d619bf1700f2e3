"""Cars come to a dispatcher by a door of their own: over TLS, at one address for all replicas, and no operator."""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import http.client
import json
import re
import shlex
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.model import Verdict
from agent.errors import ConfigError
from agent.fleet.channel import Web
from agent.fleet.https import request
from agent.fleet.tls import FreshContext
from hil.broker import BrokerProcess, EmbeddedBroker, Mosquitto, free_port
from hil.certificates import Authority
from hil.dispatcher import command_line
from hil.dispatcher.book import Book
from hil.dispatcher.doors import add_listening, address, listening
from hil.dispatcher.objects import Objects
from hil.dispatcher.server_tls import ServerTls, ServerTlsFiles
from hil.dispatcher.submit import add_job
from hil.dispatcher.view import View
from hil.dispatcher.web import WebServer
from tests.hil.honest_car import PACKAGE, PRICE, Car
from tests.hil.test_dispatcher_process import DispatcherProcess, Remote

BODY = b"x" * 300_000
CLIENTS = 6


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_listening(parser)
    return parser.parse_args(given)


# --- what it is told ----------------------------------------------------------------------------------------------

TLS = ("--listen-certificate", "c", "--listen-key", "k")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--public-url", "https://x"], "which is missing"),
        (["--listen-certificate", "c"], "which is missing"),
        (["--listen", "10.0.0.1:1"], "in plain text"),
        (["--listen", "dispatch.example:1"], "in plain text"),
        (["--listen", "[::]:1"], "in plain text"),
        (["--listen", "127.0.0.1:1", "--listen-key", "k"], "go together"),
        (["--listen", "127.0.0.1:1", "--listen-client-ca", "k"], "go together"),
        (["--listen", "0.0.0.0:1", *TLS], "what should cars call"),
        (["--listen", "10.0.0.1:0", *TLS], "what should cars call"),
        (["--listen", "0.0.0.0:1", *TLS, "--public-url", "http://x"], "cars would not use"),
        (["--listen", "0.0.0.0:1", *TLS, "--public-url", "https://"], "cars would not use"),
        (["--listen", "0.0.0.0:1", *TLS, "--public-url", "https://me@x"], "cars would not use"),
        (["--listen", "0.0.0.0:1", *TLS, "--public-url", "https://x/?a"], "cars would not use"),
        (["--listen", "0.0.0.0:1", *TLS, "--public-url", "https://[x"], "cars would not use"),
    ],
)
def test_what_no_car_could_use_is_refused(given: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        listening(options(*given))


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (["--listen", "127.0.0.1:80"], "http://127.0.0.1:80"),
        (["--listen", "[::1]:80"], "http://[::1]:80"),
        (["--listen", "10.0.0.1:443", *TLS], "https://10.0.0.1:443"),
        (["--listen", "0.0.0.0:443", *TLS, "--public-url", "https://dispatch.example/"], "https://dispatch.example"),
        (["--listen", "127.0.0.1:0", "--public-url", "https://x.example/cars"], "https://x.example/cars"),
    ],
)
def test_cars_are_told_the_public_address(given: list[str], url: str) -> None:
    cars = listening(options(*given))
    assert cars is not None
    assert cars.public_url == url


def test_without_a_door_for_cars_there_is_none() -> None:
    assert listening(options()) is None


@pytest.mark.parametrize("text", ["x", ":1", "x:", "x:y", "x:65536", "x:-1", "x:²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        address(text)


def test_the_handbook_names_options_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    handbook = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (command,) = re.findall(r"^python -m hil\.dispatcher ((?:.*\\\n)*.*)$", handbook, re.MULTILINE)
    monkeypatch.setattr(sys, "argv", ["dispatcher", *shlex.split(command.replace("\\\n", " "))])
    parsed = command_line.parse()
    assert len(parsed.broker) == 2
    assert listening(parsed) is not None


# --- TLS ----------------------------------------------------------------------------------------------------------


class Served:
    """The cars' door over a folder with one object, and who comes to it."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "pki")
        server = self.authority.issue("dispatcher")
        self.files = ServerTlsFiles(server.certificate, server.key, server.ca)
        objects = Objects(folder / "objects")
        self.name = objects.put(BODY)
        self.web = WebServer(0, objects, lambda body: body, tls=ServerTls(self.files), max_clients=CLIENTS)
        self.web.start()
        self.url = self.web.url
        self.address = ("127.0.0.1", int(self.url.rpartition(":")[2]))

    def client(self, name: str = "car-1") -> ssl.SSLContext:
        return self.authority.issue(name).context()

    def get(self, context: ssl.SSLContext, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(*self.address, timeout=10, context=context)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def shown(self) -> int:
        """The serial number of the certificate that it shows now."""
        with (
            socket.create_connection(self.address, 10) as raw,
            self.client().wrap_socket(raw, server_hostname="127.0.0.1") as secured,
        ):
            return int(str((secured.getpeercert() or {})["serialNumber"]), 16)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path)
    yield one
    one.web.close()


def test_a_car_fetches_over_tls(served: Served) -> None:
    files = served.authority.issue("car-1")
    web = Web(tls=FreshContext(files))
    assert request(web, "GET", f"{served.url}/objects/{served.name}", None, 1_000_000) == (200, BODY)


def test_who_has_no_certificate_or_an_old_tls_is_not_served(served: Served, tmp_path: Path) -> None:
    bare = ssl.create_default_context(cafile=served.files.client_ca)
    foreign = Authority(tmp_path / "foreign").issue("car-1").context()
    foreign.load_verify_locations(served.files.client_ca)
    expired = served.authority.issue("old", valid_s=-60.0, from_s=-120.0).context()
    aged = served.client()
    aged.minimum_version, aged.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    for context in (bare, foreign, expired, aged):
        with pytest.raises(OSError):  # noqa: PT011 - a reset or an alert, as it happens
            served.get(context, f"/objects/{served.name}")
    with socket.create_connection(served.address, 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert not plain.recv(100).startswith(b"HTTP")
    assert served.get(served.client(), f"/objects/{served.name}")[0] == 200


def test_who_does_not_shake_hands_holds_up_nobody_but_those_like_it(served: Served) -> None:
    with contextlib.ExitStack() as idle:
        idle.enter_context(socket.create_connection(served.address, 10))
        assert served.get(served.client(), f"/objects/{served.name}")[0] == 200
        for _ in range(10 * CLIENTS):  # a client's place is free a moment after it has left
            idle.enter_context(socket.create_connection(served.address, 10))
            with contextlib.suppress(OSError):
                served.get(served.client(), f"/objects/{served.name}")
                continue
            return
    pytest.fail("there is room for everybody")


def test_a_renewed_certificate_counts_at_once_and_half_of_one_changes_nothing(served: Served) -> None:
    first = served.shown()
    served.authority.issue("dispatcher")
    second = served.shown()
    assert second != first
    Path(served.files.certificate).write_text("half")
    assert served.shown() == second
    served.authority.issue("dispatcher")
    assert served.shown() not in {first, second}


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        ServerTls(ServerTlsFiles(str(tmp_path / "none"), str(tmp_path / "none")))


# --- as processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[BrokerProcess]:
    kind = EmbeddedBroker if Mosquitto.binary() is None else Mosquitto
    with kind(tmp_path / "broker", free_port()) as running:
        yield running


def test_any_replica_serves_what_another_named(brokers: BrokerProcess, tmp_path: Path) -> None:
    """Two replicas under one public name: the car is granted by one, and fetches from and brings to the other."""
    folder, authority = tmp_path / "dispatcher", Authority(tmp_path / "pki")
    book = Book.open(folder, lambda: 0)
    add_job(
        book,
        Objects(folder / "objects"),
        package=PACKAGE,
        items=[b"one" * 3_000, b"two"],
        slice_items=2,
        customer="customer-1",
        price_micro_per_item=PRICE,
        currency="EUR",
        ttl_s=600,
    )
    book.close()
    server, client = authority.issue("dispatcher"), authority.issue("car-1")
    ports = {name: free_port() for name in ("a", "b")}
    tls = ("--listen-certificate", server.certificate, "--listen-key", server.key, "--listen-client-ca", server.ca)
    public = f"https://127.0.0.1:{ports['b']}"
    processes = {
        name: DispatcherProcess(
            folder,
            brokers.port,
            *("--listen", f"127.0.0.1:{port}", "--public-url", public, *tls, "--broker", f"127.0.0.1:{brokers.port}"),
            replica=name,
        )
        for name, port in ports.items()
    }
    web = Web(tls=FreshContext(client))
    try:
        ready = processes["a"].start()
        assert ready.public_url == public
        remote = Remote("car-1", brokers.port, ready, (folder / "dispatcher.pub").read_text())
        try:
            car = Car(remote, "car-1", "welcome")
            grant = car.must_request()
            assert grant.input.url.startswith(f"{public}/objects/")
            processes["b"].start()
            status, body = request(web, "GET", grant.input.url, None, 100_000)
            assert (status, hashlib.sha256(body).hexdigest()) == (200, grant.input.sha256)
            plain = car.result(grant)
            assert grant.upload is not None
            bring(web, ports, plain.outputs[0].body, grant.upload.token)
            assert car.hand_in(car.bulky(plain, grant)).verdict is Verdict.SETTLED
        finally:
            remote.close()
        for path in ("/counts", "/jobs", "/units/car-1/prices"):
            token = (folder / "replicas" / "b" / "operator.token").read_text()
            assert operate(client.context(), ports["b"], path, token) == 404, "no operator comes by this door"
        with View(folder) as view:
            assert view.answers(grant.job) == [{"item": 0}, {"item": 1}]
        assert {one.end(signal.SIGTERM) for one in processes.values()} == {0}
    finally:
        for one in processes.values():
            one.kill()


def bring(web: Web, ports: dict[str, int], encoded: str, token: str) -> None:
    """Half of an answer to one replica, the rest to the other."""
    body, context = base64.b64decode(encoded), web.context()
    name, half = hashlib.sha256(body).hexdigest(), len(body) // 2
    for port, first, piece in ((ports["a"], 0, body[:half]), (ports["b"], half, body[half:])):
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
        with contextlib.closing(connection):
            headers = {
                "Authorization": f"Bearer {token}",
                "Content-Range": f"bytes {first}-{first + len(piece) - 1}/{len(body)}",
            }
            connection.request("PUT", f"/uploads/{name}", piece, headers)
            assert connection.getresponse().status == (202 if first == 0 else 201)


def operate(context: ssl.SSLContext, port: int, path: str, token: str) -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    with contextlib.closing(connection):
        method, body = ("POST", json.dumps({})) if path.startswith("/units") else ("GET", None)
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
        return connection.getresponse().status


def test_brokers_are_tried_in_order(brokers: BrokerProcess, tmp_path: Path) -> None:
    """The first of the two is not there."""
    process = DispatcherProcess(tmp_path / "dispatcher", free_port(), "--broker", f"127.0.0.1:{brokers.port}")
    try:
        assert process.start().broker == f"127.0.0.1:{brokers.port}"
    finally:
        process.kill()
