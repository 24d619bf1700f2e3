"""One HTTP request and its answer, by rules that every resource of the dispatcher shares.

A body has to say its length, once; no transfer coding is taken, and no body on GET or HEAD: what is left of a body
would be read as the next request. What is not so is refused with one sentence (`{"error": …}`), and after a refusal the
connection ends. A request has a deadline, however slowly it drips, and there is a cap on how many are served at once:
beyond it the answer is 503. The operator's token (`Authorization: Bearer …`) is compared in constant time.
"""

from __future__ import annotations

import contextlib
import io
import math
import secrets
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from agent.errors import DrivewayError, StoreError
from agent.fleet.messages import MessageError
from hil.dispatcher.server_tls import ServerTls

CLIENT_TIMEOUT_S = 10.0
"""For the next bytes of a request, or for a client to take some of an answer."""
REQUEST_S = 30.0
"""For a whole request, its body included, unless its resource gives it more (`Exchange.give_time`)."""
BULK_S = 600.0
"""For one that brings or takes an object."""
MAX_CLIENTS = 128
NO_OPERATOR = "the operator's token is missing or wrong"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 30\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Refusal(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: str


class Answer(msgspec.Struct, frozen=True):
    """A request that was carried out, and the JSON to say of it."""

    status: HTTPStatus
    body: bytes


class RequestError(DrivewayError):
    """A request that is not carried out."""

    def __init__(self, status: HTTPStatus, what: str) -> None:
        super().__init__(what)
        self.status = status


class Exchange(BaseHTTPRequestHandler):
    """One client's requests, one after the other."""

    timeout = CLIENT_TIMEOUT_S
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Read from the connection by the request's deadline."""
        super().setup()
        self._timed = _Timed(self.connection)
        self.rfile = io.BufferedReader(self._timed)

    def handle_one_request(self) -> None:
        """The deadline runs from here on."""
        self.give_time(REQUEST_S)
        super().handle_one_request()

    def give_time(self, seconds: float) -> None:
        """The request may take so long from now on."""
        self._timed.ends_s = time.monotonic() + seconds

    def check_time(self) -> None:
        """Raises TimeoutError when the request has taken too long."""
        if time.monotonic() > self._timed.ends_s:
            raise TimeoutError("the request takes too long")

    def parse_request(self) -> bool:
        """Read the head, and refuse what may be understood in two ways."""
        if not super().parse_request():
            return False
        wrong = self._wrong()
        if wrong is None:
            return True
        refuse(self, *wrong)
        return False

    def _wrong(self) -> tuple[HTTPStatus, str] | None:
        names = list(self.headers)
        if self.headers.defects or self.headers.get_payload() or any(name != name.strip() for name in names):
            return HTTPStatus.BAD_REQUEST, "a header is not understood"
        if "Transfer-Encoding" in self.headers:
            return HTTPStatus.LENGTH_REQUIRED, "no transfer coding is taken here: say the Content-Length"
        lengths = self.headers.get_all("Content-Length", [])
        if len(lengths) > 1:
            return HTTPStatus.BAD_REQUEST, "there are two Content-Lengths"
        if self.command in {"GET", "HEAD"} and lengths not in ([], ["0"]):
            return HTTPStatus.BAD_REQUEST, f"{self.command} takes no body"
        try:
            urlsplit(self.path)
        except ValueError:
            return HTTPStatus.BAD_REQUEST, "the path is not understood"
        return None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        """Say nothing: what matters is logged by the service."""


class Server(ThreadingHTTPServer):
    """A thread for each client, of which any may leave in the middle: cars do. Over TLS where there is `tls`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[Exchange],
        max_clients: int = MAX_CLIENTS,
        tls: ServerTls | None = None,
    ) -> None:
        self._room, self._tls = threading.BoundedSemaphore(max_clients), tls
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Take the port, and ask no name server what this machine is called, as the standard library would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread, or say that there are too many."""
        if not self._room.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.setblocking(False)
                if self._tls is None:
                    request.send(BUSY)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be begun
            self._room.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client, and make room for the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one client, after its handshake: on its own thread, since it may take its time."""
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(CLIENT_TIMEOUT_S)
        with self._tls.now().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)
            with contextlib.suppress(OSError):
                secured.shutdown(socket.SHUT_WR)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the standard library's
        """A client that is gone is no news; a bug is."""
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError, ssl.SSLError)):
            structlog.get_logger("dispatcher").error("web_failed", error=repr(error))


class _Timed(io.RawIOBase):
    """What comes over a connection, until the request's deadline. Raises TimeoutError."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.ends_s = math.inf

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some more bytes; 0 when no more come."""
        left_s = self.ends_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request takes too long")
        self._connection.settimeout(min(CLIENT_TIMEOUT_S, left_s))
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(CLIENT_TIMEOUT_S)


def is_operator(request: BaseHTTPRequestHandler, token: str) -> bool:
    """Whether the request carries the operator's token; nobody's does where there is none."""
    given = request.headers.get("Authorization", "").encode("utf-8", "replace")
    return bool(token) and secrets.compare_digest(given, f"Bearer {token}".encode())


def serve_operator(request: BaseHTTPRequestHandler, token: str, work: Callable[[], Answer]) -> None:
    """Do what the operator asks, and answer; what is refused is answered with its sentence. Others are not served."""
    try:
        if not is_operator(request, token):
            raise RequestError(HTTPStatus.FORBIDDEN, NO_OPERATOR)  # noqa: TRY301 - refused as the rest is
        answer = work()
    except RequestError as error:
        refuse(request, error.status, error.what)
    except StoreError as error:
        refuse(request, HTTPStatus.SERVICE_UNAVAILABLE, error.what)
    except (DrivewayError, MessageError) as error:
        refuse(request, HTTPStatus.BAD_REQUEST, str(error))
    except TimeoutError:
        refuse(request, HTTPStatus.SERVICE_UNAVAILABLE, "the dispatcher is busy")
    else:
        send(request, answer.status, answer.body)


def body_length(request: BaseHTTPRequestHandler, most: int, *, usual: str = "") -> int:
    """The length of the body in bytes; `usual` where none is told. Raises RequestError: it is missing, or too much."""
    length = request.headers.get("Content-Length", usual)
    if not length.isascii() or not length.isdigit():
        raise RequestError(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
    if len(length) > 12 or int(length) > most:
        raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {most} bytes")
    return int(length)


def read_body(request: BaseHTTPRequestHandler, most: int, *, usual: str = "") -> bytes:
    """The whole body; raises RequestError when it is too much, or does not come."""
    length = body_length(request, most, usual=usual)
    try:
        body = request.rfile.read(length)
    except TimeoutError as error:
        raise RequestError(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time") from error
    if len(body) < length:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"{length - len(body)} bytes of the body did not come")
    return body


def send(request: BaseHTTPRequestHandler, status: HTTPStatus, body: bytes, **headers: str) -> None:
    """The answer, in JSON; one that is no success ends the connection."""
    refused = status >= HTTPStatus.BAD_REQUEST
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    if refused:
        request.send_header("Connection", "close")  # which ends it: what is left of a body is not the next request
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def refuse(request: BaseHTTPRequestHandler, status: HTTPStatus, what: str, **headers: str) -> None:
    """The answer to what is not carried out: one sentence."""
    send(request, status, msgspec.json.encode(Refusal(what)), **headers)
