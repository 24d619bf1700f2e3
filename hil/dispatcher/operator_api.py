"""The operator's word over HTTP: take a lease back, set a cell's pace, and see how the dispatcher is doing.

    POST /jobs/{job}/cancel    a CancelOrder -> a Cancelled, which says whose lease ends (or that nobody had one)
    POST /cells/{cell}/pace    a PaceOrder; the cell is two hex digits, or `all` -> a Paced
    GET  /counts               Counts: jobs by state, copies, messages

All with the operator's token (`Authorization: Bearer …`); what is wrong is answered with one sentence (`{"error": …}`).
Orders to a single unit are in `hil.dispatcher.web`, jobs in `hil.dispatcher.jobs_api`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Protocol, TypeVar

import msgspec

from agent.errors import StoreError
from agent.fleet.messages import MAX_MESSAGE_BYTES, MessageError
from hil.dispatcher.http_exchange import NO_OPERATOR, Exchange, RequestError, is_operator, read_body, refuse, send
from hil.dispatcher.paces import PaceOrder
from hil.dispatcher.service import Dispatcher
from hil.dispatcher.view import Counts

CANCEL = re.compile(r"/jobs/([A-Za-z0-9_-]{1,64})/cancel")
PACE = re.compile(r"/cells/([0-9a-f]{2}|all)/pace")

T = TypeVar("T")


class OnDispatcher(Protocol):
    """Runs a question on the thread that owns the book, and waits for its answer."""

    def __call__(self, question: Callable[[Dispatcher], T], /) -> T:
        """Its answer; raises what the question raises, and TimeoutError."""
        ...


class CancelOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take the job's lease back within `grace_s`; with `withdraw` it is granted to nobody again."""

    grace_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0
    why: Annotated[str, msgspec.Meta(max_length=128)] = ""
    withdraw: bool = False


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """Whose lease ends, and which; no unit: nobody had one."""

    job: str
    epoch: int = 0
    unit: str = ""


class Paced(msgspec.Struct, frozen=True, kw_only=True):
    """For how many cells the pace was set, and when that was."""

    cells: int
    issued_wall_ms: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the book has, and what this replica has heard and said since it started."""

    book: Counts
    replica: dict[str, int]


class OperatorApi:
    """Give it to `hil.dispatcher.web.WebServer` as part of `more`; called on its threads."""

    def __init__(self, on_dispatcher: OnDispatcher, token: str) -> None:
        self._on_dispatcher, self._token = on_dispatcher, token

    def __call__(self, request: Exchange) -> bool:
        """Answer a request for one of the resources above; False for any other, of which nothing has been read."""
        cancel = CANCEL.fullmatch(request.path) if request.command == "POST" else None
        pace = PACE.fullmatch(request.path) if request.command == "POST" else None
        if cancel is None and pace is None and (request.command, request.path) != ("GET", "/counts"):
            return False
        try:
            if not is_operator(request, self._token):
                raise RequestError(HTTPStatus.FORBIDDEN, NO_OPERATOR)  # noqa: TRY301 - refused as the rest is
            if cancel is not None:
                answer = self._cancel(cancel[1], read_body(request, MAX_MESSAGE_BYTES, usual="0"))
            elif pace is not None:
                answer = self._pace(pace[1], read_body(request, MAX_MESSAGE_BYTES, usual="0"))
            else:
                answer = msgspec.json.encode(self._on_dispatcher(_report))
        except RequestError as error:
            refuse(request, error.status, error.what)
        except MessageError as error:
            refuse(request, HTTPStatus.BAD_REQUEST, str(error))
        except StoreError as error:
            refuse(request, HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except TimeoutError:
            refuse(request, HTTPStatus.SERVICE_UNAVAILABLE, "the dispatcher is busy")
        else:
            send(request, HTTPStatus.OK, answer)
        return True

    def _cancel(self, job: str, body: bytes) -> bytes:
        wanted = _read(body, CancelOrder)
        message = self._on_dispatcher(
            lambda dispatcher: dispatcher.cancel(job, wanted.grace_s, wanted.why, withdraw=wanted.withdraw)
        )
        done = Cancelled(job=job) if message is None else Cancelled(job=job, epoch=message.epoch, unit=message.unit)
        return msgspec.json.encode(done)

    def _pace(self, cell: str, body: bytes) -> bytes:
        wanted = _read(body, PaceOrder)
        paces = self._on_dispatcher(lambda dispatcher: dispatcher.pace(cell, wanted))
        return msgspec.json.encode(Paced(cells=len(paces), issued_wall_ms=max(one.issued_wall_ms for one in paces)))


Order = TypeVar("Order", CancelOrder, PaceOrder)


def _report(dispatcher: Dispatcher) -> Report:
    return Report(book=dispatcher.book_counts(), replica=dict(dispatcher.counts))


def _read(body: bytes, kind: type[Order]) -> Order:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a {kind.__name__}: {error}") from error
