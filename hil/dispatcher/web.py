"""The dispatcher's HTTP side, on the loopback interface: job inputs out, enrolments and the operator's orders in.

    /objects/…, /uploads/…         bulk data out and in: see `hil.dispatcher.bulk`
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
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import structlog

from agent.errors import StoreError, TrustError
from agent.fleet.messages import MAX_MESSAGE_BYTES, MessageError
from hil.dispatcher.bulk import answer_object, answer_upload
from hil.dispatcher.objects import Objects
from hil.dispatcher.units import EnrolmentRefusedError
from hil.dispatcher.uploads import MayUpload, Uploads

HOST = "127.0.0.1"
CLIENT_TIMEOUT_S = 10.0
ORDER_PATH = re.compile(r"/units/([A-Za-z0-9_-]{1,64})/(prices|demand)")

Routes = Callable[[BaseHTTPRequestHandler], bool]
"""More resources: answers the request and says True, or leaves it alone (see `hil.dispatcher.jobs_api`)."""
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
        *,
        more: Routes | None = None,
        may_upload: MayUpload | None = None,
    ) -> None:
        class Handler(_Handler):
            pass

        Handler.more = None if more is None else staticmethod(more)
        Handler.uploads = None if may_upload is None else Uploads(objects, may_upload)
        Handler.objects = objects
        Handler.enrol = staticmethod(enrol)
        Handler.order = None if order is None else staticmethod(order)
        Handler.token = token
        self._server = _Server((HOST, port), Handler)
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

    @property
    def upload_url(self) -> str:
        """Where a car brings answers, each under its SHA-256; refused unless `may_upload` was given."""
        return f"{self.url}/uploads"

    def close(self) -> None:
        """Stop listening and wait for the thread."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Threads of its own for each client, of which any may leave in the middle: cars do."""

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the standard library's
        """A client that is gone is no news; a bug is."""
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError)):
            structlog.get_logger("dispatcher").error("web_failed", error=repr(error))


class _Handler(BaseHTTPRequestHandler):
    """One client. Class attributes, since the standard library makes the instances."""

    objects: Objects
    enrol: Callable[[bytes], bytes]
    order: Order | None = None
    token: str = ""
    more: Routes | None = None
    uploads: Uploads | None = None
    timeout = CLIENT_TIMEOUT_S
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """An object, or 404."""
        if self.more is not None and self.more(self):
            return
        if not answer_object(self, self.objects):
            self._refuse(HTTPStatus.NOT_FOUND, "no such object")

    def do_HEAD(self) -> None:
        """How long an object is, or how much of an upload is here; or 404."""
        if self.uploads is not None and answer_upload(self, self.uploads):
            return
        if not answer_object(self, self.objects):
            self._refuse(HTTPStatus.NOT_FOUND, "no such object")

    def do_POST(self) -> None:
        """An enrolment or an order: 200, or 400 for what is none, 403 for one that is refused, 413 for too much."""
        if self.more is not None and self.more(self):
            return
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
        except (StoreError, TimeoutError):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the dispatcher's database does not answer; try again later")
        else:
            self._send(HTTPStatus.OK, answer)

    def do_PUT(self) -> None:
        """What a car or an operator brings, or 404."""
        if self.uploads is not None and answer_upload(self, self.uploads):
            return
        if self.more is None or not self.more(self):
            self._refuse(HTTPStatus.NOT_FOUND, "no such resource")

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
        if self.command != "HEAD":
            self.wfile.write(body)
