"""The operator's word over HTTP: leases, paces, units whose ledgers are in dispute, and how the dispatcher is doing.

    POST /jobs/{job}/cancel    a CancelOrder -> a Cancelled, which says whose lease ends (or that nobody had one)
    POST /cells/{cell}/pace    a PaceOrder; the cell is two hex digits, or `all` -> a Paced
    GET  /counts               Counts: jobs by state, copies, messages
    GET  /ledgers/faults?first=N    up to 64 faults of units' ledgers with their evidence, those that stand first
    POST /ledgers/{unit}/clear      a ClearOrder -> a Cleared: the unit is granted work again

All with the operator's token (`Authorization: Bearer …`); what is wrong is answered with one sentence (`{"error": …}`).
Orders to a single unit are in `hil.dispatcher.web`, jobs in `hil.dispatcher.jobs_api`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Annotated, Protocol, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec

from agent.fleet.messages import MAX_MESSAGE_BYTES, MessageError, Remark
from hil.dispatcher.http_exchange import Answer, Exchange, RequestError, read_body, serve_operator
from hil.dispatcher.ledgers import HeldFault
from hil.dispatcher.paces import PaceOrder
from hil.dispatcher.service import Dispatcher
from hil.dispatcher.view import Counts

CANCEL = re.compile(r"/jobs/([A-Za-z0-9_-]{1,64})/cancel")
PACE = re.compile(r"/cells/([0-9a-f]{2}|all)/pace")
CLEAR = re.compile(r"/ledgers/([A-Za-z0-9_-]{1,64})/clear")
FAULTS = "/ledgers/faults"
PAGE_FAULTS = 64

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


class ClearOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The operator has looked into it; `why` is kept with the fault."""

    why: Remark = ""


class Cleared(msgspec.Struct, frozen=True, kw_only=True):
    """What stood against the unit's ledger; None: nothing did."""

    unit: str
    fault: HeldFault | None = None


class FaultsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Faults of units' ledgers, from number `first` on."""

    first: int
    faults: list[HeldFault]


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
        work = self._resource(request)
        if work is None:
            return False
        serve_operator(request, self._token, lambda: Answer(HTTPStatus.OK, work()))
        return True

    def _resource(self, request: Exchange) -> Callable[[], bytes] | None:
        """What answers the request; None for what is not ours."""
        if request.command == "GET":
            split = urlsplit(request.path)
            if split.path == FAULTS:
                return lambda: self._faults(split.query)
            return (lambda: msgspec.json.encode(self._on_dispatcher(_report))) if request.path == "/counts" else None
        orders: tuple[tuple[re.Pattern[str], Callable[[str, bytes], bytes]], ...] = (
            (CANCEL, self._cancel),
            (PACE, self._pace),
            (CLEAR, self._clear),
        )
        for pattern, work in orders if request.command == "POST" else ():
            found = pattern.fullmatch(request.path)
            if found is not None:
                return partial(_obey, work, found[1], request)
        return None

    def _faults(self, query: str) -> bytes:
        first = parse_qs(query).get("first", ["0"])[-1]
        if not re.fullmatch(r"[0-9]{1,9}", first):
            raise RequestError(HTTPStatus.BAD_REQUEST, "first is not the number of a fault")
        found = self._on_dispatcher(lambda dispatcher: dispatcher.ledger_faults(int(first), PAGE_FAULTS))
        return msgspec.json.encode(FaultsPage(first=int(first), faults=found))

    def _clear(self, unit: str, body: bytes) -> bytes:
        wanted = _read(body, ClearOrder)
        held = self._on_dispatcher(lambda dispatcher: dispatcher.clear_ledger_fault(unit, wanted.why))
        return msgspec.json.encode(Cleared(unit=unit, fault=held))

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


Order = TypeVar("Order", CancelOrder, PaceOrder, ClearOrder)


def _obey(work: Callable[[str, bytes], bytes], name: str, request: Exchange) -> bytes:
    """Carry out what is in the request's body."""
    return work(name, read_body(request, MAX_MESSAGE_BYTES, usual="0"))


def _report(dispatcher: Dispatcher) -> Report:
    return Report(book=dispatcher.book_counts(), replica=dict(dispatcher.counts))


def _read(body: bytes, kind: type[Order]) -> Order:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a {kind.__name__}: {error}") from error
