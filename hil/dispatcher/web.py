"""The dispatcher's HTTP side: job inputs out, answers and enrolments in, and the operator's orders.

    /objects/…, /uploads/…         bulk data out and in: see `hil.dispatcher.bulk`
    POST /enrol                    a DSSE envelope around an Enrolment -> a DSSE envelope around Enrolled; for a key in
                                   a TPM first around a TpmChallenge
    POST /succession               a Rotation -> likewise
    POST /units/{unit}/prices      a PricesOrder, with the operator's token -> the order as it was issued
    POST /units/{unit}/demand      a DemandOrder, likewise

The server runs in threads of its own; `enrol` and `order` are called on one of them and have to bring the request to
the thread that owns the book. The token (`Authorization: Bearer …`) is what makes a client of this machine the
operator: an order is signed with the dispatcher's key. Who reaches it where is in `hil.dispatcher.doors`; what a
request may look like, and how long it may take, in `hil.dispatcher.http_exchange`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus

from agent.errors import StoreError, TrustError
from agent.fleet.messages import MAX_MESSAGE_BYTES, MessageError
from hil.dispatcher.bulk import answer_object, answer_upload
from hil.dispatcher.http_exchange import (
    MAX_CLIENTS,
    NO_OPERATOR,
    Exchange,
    RequestError,
    Server,
    is_operator,
    read_body,
    refuse,
    send,
)
from hil.dispatcher.objects import Objects
from hil.dispatcher.server_tls import ServerTls
from hil.dispatcher.staging import Staging
from hil.dispatcher.units import EnrolmentRefusedError
from hil.dispatcher.uploads import MayUpload, Uploads

HOST = "127.0.0.1"
ORDER_PATH = re.compile(r"/units/([A-Za-z0-9_-]{1,64})/(prices|demand)")

Routes = Callable[[Exchange], bool]
"""More resources: answers the request and says True, or leaves it alone (see `hil.dispatcher.jobs_api`)."""
Take = Callable[[bytes], bytes]
"""A request's body to the answer's; raises EnrolmentRefusedError, TrustError or MessageError."""
Order = Callable[[str, str, bytes], bytes]
"""Takes a unit, which order (`prices` or `demand`) and its body; gives what was issued. Raises MessageError."""


class WebServer:
    """Serves from `start` until `close`, this machine alone unless there is a `host`; over TLS where there is `tls`.

    Port 0 takes any free one at once. Raises OSError when the port is taken. Without `order`, `token` and `more`, there
    is nothing for an operator.
    """

    def __init__(
        self,
        port: int,
        objects: Objects,
        enrol: Take,
        order: Order | None = None,
        token: str = "",
        *,
        more: Routes | None = None,
        may_upload: MayUpload | None = None,
        max_clients: int = MAX_CLIENTS,
        rotate: Take | None = None,
        host: str = HOST,
        tls: ServerTls | None = None,
    ) -> None:
        class Handler(_Handler):
            pass

        Handler.more = None if more is None else staticmethod(more)
        Handler.uploads = None if may_upload is None else Uploads(Staging(objects), may_upload)
        Handler.objects = objects
        Handler.enrol = staticmethod(enrol)
        Handler.rotate = None if rotate is None else staticmethod(rotate)
        Handler.order = None if order is None else staticmethod(order)
        Handler.token = token
        self._scheme, self._host = "http" if tls is None else "https", f"[{host}]" if ":" in host else host
        self._server = Server((host, port), Handler, max_clients, tls)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"{self._scheme}://{self._host}:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening and wait for the thread."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Handler(Exchange):
    """One client. Class attributes, since the standard library makes the instances."""

    objects: Objects
    enrol: Take
    rotate: Take | None = None
    order: Order | None = None
    token: str = ""
    more: Routes | None = None
    uploads: Uploads | None = None

    def do_GET(self) -> None:  # noqa: N802 - the standard library's name
        """An object, or 404."""
        if self.more is not None and self.more(self):
            return
        if not answer_object(self, self.objects):
            refuse(self, HTTPStatus.NOT_FOUND, "no such object")

    def do_HEAD(self) -> None:  # noqa: N802 - the standard library's name
        """How long an object is, or how much of an upload is here; or 404."""
        if self.uploads is not None and answer_upload(self, self.uploads):
            return
        if not answer_object(self, self.objects):
            refuse(self, HTTPStatus.NOT_FOUND, "no such object")

    def do_POST(self) -> None:  # noqa: N802 - the standard library's name
        """An enrolment, a rotation or an order: 200, or 400 for what is none, 403 if refused, 413 for too much."""
        if self.more is not None and self.more(self):
            return
        path = ORDER_PATH.fullmatch(self.path)
        take = {"/enrol": self.enrol, "/succession": self.rotate}.get(self.path)
        order = self.order
        if path is not None and order is not None:
            take = partial(order, path[1], path[2])
        if take is None:
            refuse(self, HTTPStatus.NOT_FOUND, "no such resource")
            return
        if path is not None and not is_operator(self, self.token):
            refuse(self, HTTPStatus.FORBIDDEN, NO_OPERATOR)
            return
        try:
            body = read_body(self, MAX_MESSAGE_BYTES)
            answer = take(body)
        except RequestError as error:
            refuse(self, error.status, error.what)
        except EnrolmentRefusedError as error:
            refuse(self, HTTPStatus.FORBIDDEN, str(error))
        except (TrustError, MessageError) as error:
            refuse(self, HTTPStatus.BAD_REQUEST, str(error))
        except (StoreError, TimeoutError):
            refuse(self, HTTPStatus.SERVICE_UNAVAILABLE, "the dispatcher's database does not answer; try again later")
        else:
            send(self, HTTPStatus.OK, answer)

    def do_PUT(self) -> None:  # noqa: N802 - the standard library's name
        """What a car or an operator brings, or 404."""
        if self.uploads is not None and answer_upload(self, self.uploads):
            return
        if self.more is None or not self.more(self):
            refuse(self, HTTPStatus.NOT_FOUND, "no such resource")
