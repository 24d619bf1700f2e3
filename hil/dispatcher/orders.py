"""The fleet's standing orders to cars: a price curve and a stop for the grid, the newest of each kind for each unit.

An order is issued under a time that rises with every order to the unit, whatever the clock does; a car takes nothing
older than what it knows. Each order is sent when it is issued, and again whenever the unit's link comes up, so that a
car that was away learns of it; a stop then names what is left of it.
"""

from __future__ import annotations

import msgspec

from agent.fleet.messages import MessageError, decode, encode
from agent.fleet.operator_messages import DemandMessage, PricesMessage, PricesSlot
from hil.dispatcher.database import ConflictError, Database

TOKEN_FILE = "operator.token"  # noqa: S105 - a file's name
PRICES, DEMAND = "prices", "demand"
TRIES = 8
"""So often an order is written down that others overtake."""
Order = PricesMessage | DemandMessage


class PricesOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator asks for: these prices, for so long from now."""

    valid_for_s: int
    slots: tuple[PricesSlot, ...]


class DemandOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator asks for: stop for so long from now; 0 takes it back."""

    stop_for_s: int
    detail: str = ""


class Orders:
    """Part of the book; see there for threads and time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def issue(self, unit: str, wanted: PricesOrder | DemandOrder) -> Order:
        """Write an order down, to be sent; raises MessageError for one that no car would take."""
        with self._database.transaction():
            now_ms = self._database.now_ms()
            for _ in range(TRIES):
                issued_ms = max(now_ms, self._newest(unit) + 1)
                order = _made(unit, issued_ms, wanted)
                if self._write(order, now_ms):
                    return order
        raise ConflictError(f"others order the unit {unit} all the time")

    def _write(self, order: Order, now_ms: int) -> bool:
        """False when another replica was first with an order as new as this: a car would take it for the same."""
        if isinstance(order, PricesMessage):
            kind, ends_ms = PRICES, order.expires_wall_ms
        else:
            kind, ends_ms = DEMAND, now_ms + 1000 * order.stop_for_s
        written = self._database.execute(
            "INSERT INTO orders (unit, kind, issued_ms, ends_ms, body) VALUES (:unit, :kind, :issued, :ends, :body)"
            " ON CONFLICT (unit, kind) DO UPDATE SET issued_ms = excluded.issued_ms, ends_ms = excluded.ends_ms,"
            " body = excluded.body WHERE orders.issued_ms < excluded.issued_ms",
            unit=order.unit,
            kind=kind,
            issued=order.issued_wall_ms,
            ends=ends_ms,
            body=encode(order),
        )
        return written == 1

    def standing(self, unit: str) -> list[Order]:
        """What the unit should know now: the newest of each kind, a stop with what is left of it."""
        rows = self._database.rows("SELECT kind, ends_ms, body FROM orders WHERE unit = :unit ORDER BY kind", unit=unit)
        found: list[Order] = []
        for row in rows:
            left_s = max(0, row["ends_ms"] - self._database.now_ms()) // 1000
            if row["kind"] == DEMAND:
                found.append(msgspec.structs.replace(decode(row["body"], DemandMessage), stop_for_s=left_s))
            elif left_s:
                found.append(decode(row["body"], PricesMessage))
        return found

    def _newest(self, unit: str) -> int:
        row = self._database.row("SELECT max(issued_ms) AS newest FROM orders WHERE unit = :unit", unit=unit)
        return 0 if row is None else int(row["newest"] or 0)


def read_order(kind: str, body: bytes) -> PricesOrder | DemandOrder:
    """An operator's request; raises MessageError, which names the field at fault."""
    try:
        if kind == PRICES:
            return msgspec.json.decode(body, type=PricesOrder)
        return msgspec.json.decode(body, type=DemandOrder)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not an order of {kind}: {error}") from error


def _made(unit: str, issued_ms: int, wanted: PricesOrder | DemandOrder) -> Order:
    if isinstance(wanted, PricesOrder):
        expires_ms = issued_ms + 1000 * wanted.valid_for_s
        return _checked(
            PricesMessage, unit=unit, issued_wall_ms=issued_ms, expires_wall_ms=expires_ms, slots=wanted.slots
        )
    return _checked(
        DemandMessage, unit=unit, issued_wall_ms=issued_ms, stop_for_s=wanted.stop_for_s, detail=wanted.detail
    )


def _checked(kind: type[Order], **fields: object) -> Order:
    """The message as a car would read it; raises MessageError, which names what is wrong with it."""
    try:
        return msgspec.convert({name: msgspec.to_builtins(value) for name, value in fields.items()}, kind)
    except msgspec.ValidationError as error:
        raise MessageError(f"no such order can be given: {error}") from error
