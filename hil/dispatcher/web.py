"""The dispatcher's HTTP side, on the loopback interface: job inputs out, enrolments and the operator's orders in.

    GET  /objects/{sha256}         an input, with its length
    POST /enrol                    a DSSE envelope around an Enrolment -> a DSSE envelope around Enrolled
    POST /units/{unit}/prices      a PricesOrder, with the operator's token -> the order as it was issued
    POST /units/{unit}/demand      a DemandOrder, likewise

The server runs in threads of its own; `enrol` and `order` are called on one of them and have to bring the request to
the thread that owns the book. The token (`Authorization: Bearer …`) is what makes a client of this machine the
operator: an order is signed with the dispatcher's key. Bodies are capped before they are read, and a silent client is
dropped after ten seconds.
"""

from __future__ import annotations

import re
import secrets
import shutil
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from agent.errors import TrustError
from agent.fleet.messages import MAX_MESSAGE_BYTES, MessageError
from hil.dispatcher.objects import Objects
from hil.dispatcher.units import EnrolmentRefusedError

HOST = "127.0.0.1"
CLIENT_TIMEOUT_S = 10.0
ORDER_PATH = re.compile(r"/units/([A-Za-z0-9_-]{1,64})/(prices|demand)")

Order = Callable[[str, str, bytes], bytes]
"""Takes a unit, which order (`prices` or `demand`) and its body; gives what was issued. Raises MessageError."""


class Refusal(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: str


class WebServer:
    """Serves from `start` until `close`; port 0 takes any free one at once. Raises OSError when the port is taken."""

    def __init__(
        self,
        port: int,
        objects: Objects,
        enrol: Callable[[bytes], bytes],
        order: Order | None = None,
        token: str = "",
    ) -> None:
        class Handler(_Handler):
            pass

        Handler.objects = objects
        Handler.enrol = staticmethod(enrol)
        Handler.order = None if order is None else staticmethod(order)
        Handler.token = token
        self._server = ThreadingHTTPServer((HOST, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://{HOST}:{self._server.server_address[1]}"

    def object_url(self, sha256: str) -> str:
        """Where a car fetches an object."""
        return f"{self.url}/objects/{sha256}"

    def close(self) -> None:
        """Stop listening and wait for the thread."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One client. Class attributes, since the standard library makes the instances."""

    objects: Objects
    enrol: Callable[[bytes], bytes]
    order: Order | None = None
    token: str = ""
    timeout = CLIENT_TIMEOUT_S
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """An object, or 404."""
        path = self.objects.path(self.path.removeprefix("/objects/")) if self.path.startswith("/objects/") else None
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND, "no such object")
            return
        with path.open("rb") as file:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            shutil.copyfileobj(file, self.wfile)

    def do_POST(self) -> None:
        """An enrolment or an order: 200, or 400 for what is none, 403 for one that is refused, 413 for too much."""
        path = ORDER_PATH.fullmatch(self.path)
        if self.path != "/enrol" and (path is None or self.order is None):
            self._refuse(HTTPStatus.NOT_FOUND, "no such resource")
            return
        if path is not None and not self._is_operator():
            self._refuse(HTTPStatus.FORBIDDEN, "the operator's token is missing or wrong")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
            return
        if len(length) > 9 or int(length) > MAX_MESSAGE_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_MESSAGE_BYTES} bytes")
            return
        try:
            body = self.rfile.read(int(length))
            answer = self.enrol(body) if path is None or self.order is None else self.order(path[1], path[2], body)
        except EnrolmentRefusedError as error:
            self._refuse(HTTPStatus.FORBIDDEN, str(error))
        except (TrustError, MessageError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self._send(HTTPStatus.OK, answer)

    def _is_operator(self) -> bool:
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        return bool(self.token) and secrets.compare_digest(given, f"Bearer {self.token}".encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        """Say nothing: what matters is logged by the service."""

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # what is left of the request's body is not the next request
        self._send(status, msgspec.json.encode(Refusal(reason)))

    def _send(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
