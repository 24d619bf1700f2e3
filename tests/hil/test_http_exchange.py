"""What a request may look like, how long it may take, and how many are served at once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.dispatcher import http_exchange
from hil.dispatcher.jobs_api import JobsApi
from hil.dispatcher.objects import Objects
from hil.dispatcher.operator_api import OperatorApi
from hil.dispatcher.view import View
from hil.dispatcher.web import WebServer
from tests.hil.honest_car import Desk

TOKEN = "a-secret-of-the-operator"
HEAD = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()


@pytest.fixture
def web(desk: Desk) -> Iterator[WebServer]:
    jobs = JobsApi(desk.objects, lambda question: question(desk.book), TOKEN, desk.key)
    operator = OperatorApi(lambda question: question(desk.service), TOKEN)
    server = WebServer(0, desk.objects, desk.enrol, token=TOKEN, more=lambda one: jobs(one) or operator(one))
    server.start()
    yield server
    server.close()


def connect(web: WebServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(web.url.rpartition(":")[2])), timeout=20)


def said(connection: socket.socket) -> bytes:
    """Until the server closes."""
    got = b""
    while chunk := connection.recv(65_536):
        got += chunk
    return got


def ask(web: WebServer, request: bytes) -> bytes:
    with connect(web) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return said(connection)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_body_where_none_belongs_is_not_the_next_request(web: WebServer, desk: Desk, method: bytes) -> None:
    name = desk.objects.put(b"hello").encode()
    inner = b"GET /counts HTTP/1.1\r\n" + HEAD + b"\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(inner)
    got = ask(web, method + b" /objects/" + name + b" HTTP/1.1\r\n" + HEAD + length + inner)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert got.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "header",
    [
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: identity\r\nContent-Length: 27",
        b"Content-Length: 27\r\nContent-Length: 0",
        b"Content-Length : 27",
        b"X: y\r\nno header\r\nContent-Length: 27",
    ],
)
def test_a_body_of_uncertain_length_is_not_read_as_none(web: WebServer, desk: Desk, header: bytes) -> None:
    job = desk.add_job()
    chunked = b'11\r\n{"withdraw":true}\r\n0\r\n\r\n'
    got = ask(web, b"POST /jobs/" + job.encode() + b"/cancel HTTP/1.1\r\n" + HEAD + header + b"\r\n\r\n" + chunked)
    assert got.split(b"\r\n")[0] in {b"HTTP/1.1 411 Length Required", b"HTTP/1.1 400 Bad Request"}
    assert got.count(b"HTTP/1.1 ") == 1
    with View(desk.folder) as view:
        assert view.jobs()[0].state == "free"


def test_a_path_that_is_none_is_refused(web: WebServer) -> None:
    assert ask(web, b"GET http://[ HTTP/1.1\r\n" + HEAD + b"\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_body_that_ends_early_is_told(web: WebServer) -> None:
    got = ask(web, b"POST /cells/0a/pace HTTP/1.1\r\n" + HEAD + b"Content-Length: 99\r\n\r\n{")
    assert b"98 bytes of the body did not come" in got


def test_a_deadline_is_for_all_of_a_request(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often something of it comes."""
    monkeypatch.setattr(http_exchange, "REQUEST_S", 0.2)
    with connect(web) as connection:
        connection.sendall(b"POST /cells/0a/pace HTTP/1.1\r\n" + HEAD + b"Content-Length: 99\r\n\r\n{")
        assert said(connection).startswith(b"HTTP/1.1 408 ")


def test_more_clients_than_there_is_room_for_are_told_so(tmp_path: Path) -> None:
    server = WebServer(0, Objects(tmp_path), lambda body: body, max_clients=2)
    server.start()
    try:
        silent = [connect(server) for _ in range(2)]
        with connect(server) as late:
            assert said(late).startswith(b"HTTP/1.1 503 ")
        for one in silent:
            one.close()
        for thread in threading.enumerate():
            if "process_request_thread" in thread.name:
                thread.join(20)
        assert ask(server, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 404 ")
    finally:
        server.close()
