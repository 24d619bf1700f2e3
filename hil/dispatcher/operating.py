"""What the dispatcher does because an operator says so: admit units, order, cancel, set the pace, end a dispute.

Each is written down before it is said. What is said once may get lost, so all of it is said again: orders and cancels
when the car is heard of, paces when a link comes up.
"""

from __future__ import annotations

import re

import msgspec
import structlog

from agent.fleet.messages import MessageError
from agent.fleet.operator_messages import CancelMessage, PaceMessage
from hil.dispatcher.answers import Answers
from hil.dispatcher.book import Book
from hil.dispatcher.enrolling import Enrolling
from hil.dispatcher.ledgers import HeldFault
from hil.dispatcher.orders import DemandOrder, Order, PricesOrder
from hil.dispatcher.paces import ALL_CELLS, PaceOrder
from hil.dispatcher.view import Counts, counts

CELL = re.compile(r"[0-9a-f]{2}")
CELLS = tuple(f"{number:02x}" for number in range(256))

log = structlog.get_logger("dispatcher")


class Operating:
    """The operator's side of a dispatcher. Use from the thread that owns the book.

    Every method raises StoreError when the database does not answer; then nothing was done.
    """

    def __init__(self, book: Book, answers: Answers, enrolling: Enrolling) -> None:
        self._book, self.answers, self._enrolling = book, answers, enrolling

    def enrol(self, envelope: bytes) -> bytes:
        """See `Enrolling.enrol`."""
        return self._enrolling.enrol(envelope)

    def rotate(self, body: bytes) -> bytes:
        """See `Enrolling.rotate`."""
        return self._enrolling.rotate(body)

    def order(self, unit: str, wanted: PricesOrder | DemandOrder) -> Order:
        """Give an order to a unit, now if it is there, else when its link comes up.

        Raises MessageError for a unit that never enrolled and for an order that no car would take.
        """
        if self._book.units.get(unit) is None:
            raise MessageError(f"no unit {unit!r} is enrolled")
        order = self._book.orders.issue(unit, wanted)
        log.info("ordered", unit=unit, order=type(order).__name__, issued_wall_ms=order.issued_wall_ms)
        self.answers.order(order)
        self.answers.flush()
        return order

    def cancel(self, job: str, grace_s: int = 0, why: str = "", *, withdraw: bool = False) -> CancelMessage | None:
        """Take a job's lease back within `grace_s`; the message that says so, None when nobody has one.

        The job is granted again, to others first, unless it is withdrawn with it. Finished slices count in any case.
        Raises MessageError for a job that there is not, and for what no car would take.
        """
        if self._book.leases.row(job) is None:
            raise MessageError(f"there is no job {job!r}")
        try:
            msgspec.convert({"unit": "x", "job": "x", "epoch": 0, "grace_s": grace_s, "why": why}, CancelMessage)
        except msgspec.ValidationError as error:
            raise MessageError(f"no lease can be cancelled like this: {error}") from error
        with self._book.database.transaction():
            lease = self._book.leases.cancel(job, grace_s, why, self._book.now_ms(), withdraw=withdraw)
        if lease is None:
            return None
        left_s = min(grace_s, max(0, -(-(lease["cancel_ends_ms"] - self._book.now_ms()) // 1000)))
        message = CancelMessage(unit=lease["holder"], job=job, epoch=lease["epoch"], grace_s=left_s, why=why)
        log.info("cancelled", unit=message.unit, job=f"{job}/{message.epoch}", grace_s=grace_s, why=why)
        self.answers.cancel(message)
        self.answers.flush()
        return message

    def pace(self, cell: str, wanted: PaceOrder) -> list[PaceMessage]:
        """Set the pace of a cell, or of `all`; what was published.

        Raises MessageError for what is no cell, and for a pace that no car would take.
        """
        if cell != ALL_CELLS and CELL.fullmatch(cell) is None:
            raise MessageError(f"{cell!r} is no cell: two hex digits, or {ALL_CELLS!r}")
        with self._book.database.transaction():
            paces = [self._book.paces.set(one, wanted) for one in (CELLS if cell == ALL_CELLS else (cell,))]
        log.info("paced", cell=cell, state=wanted.state, spread_s=wanted.spread_s)
        for pace in paces:
            self.answers.pace(pace)
        self.answers.flush()
        return paces

    def ledger_faults(self, first: int, most: int) -> list[HeldFault]:
        """What stands, and what ever stood, against units' ledgers: see `Ledgers.faults`."""
        return self._book.ledgers.faults(first, most)

    def clear_ledger_fault(self, unit: str, why: str) -> HeldFault | None:
        """Grant a unit work again whose ledger was in dispute; what stood against it, None when nothing did.

        Raises MessageError for a unit that never enrolled.
        """
        if self._book.units.get(unit) is None:
            raise MessageError(f"no unit {unit!r} is enrolled")
        held = self._book.ledgers.clear(unit, why, self._book.now_ms())
        if held is not None:
            log.info("ledger_dispute_ended", unit=unit, fault=held.fault.value, detail=held.detail, why=why)
        return held

    def book_counts(self) -> Counts:
        """How many of everything the book has."""
        return counts(self._book.database, self._book.now_ms())
