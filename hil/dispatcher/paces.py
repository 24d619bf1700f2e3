"""The pace of each cell, as the fleet's operator set it: whether its cars may work, and how far they spread.

A pace is published retained, so that a car hears it as soon as it connects, and kept here, because brokers forget:
every replica publishes what stands when its link comes up, and what changes when it sees that. `issued_wall_ms` rises
with every pace of a cell, so a car knows an old one that some broker kept.

The dispatcher obeys as well: a cell that is closed or stopped is granted nothing, whatever its cars ask. It obeys what
is committed, and nothing else. A row that cannot be read (a newer dispatcher's?) is told of once and stops nobody.
"""

from __future__ import annotations

from functools import partial

import msgspec
import structlog

from agent.core.model import PaceState
from agent.fleet.messages import MessageError, decode, encode
from agent.fleet.operator_messages import PaceMessage
from hil.dispatcher.database import ConflictError, Database, Row

ALL_CELLS = "all"
TRIES = 8
"""So often a pace is written down that others overtake."""

log = structlog.get_logger("dispatcher")


class PaceOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator asks for: see `agent.fleet.messages.PaceMessage`."""

    state: PaceState
    spread_s: int = 0
    interval_permille: int = 1000
    detail: str = ""


class Paces:
    """Part of the book; see there for threads and time. `of` is from memory, as fresh as the last `refresh`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, PaceMessage] = {}
        self._unreadable: dict[str, int] = {}

    def of(self, cell: str) -> PaceMessage | None:
        """The cell's pace, None where none was ever set (which is `open`)."""
        return self._known.get(cell)

    def known(self) -> list[PaceMessage]:
        """Every pace that stands."""
        return [self._known[cell] for cell in sorted(self._known)]

    def set(self, cell: str, wanted: PaceOrder) -> PaceMessage:
        """Write a pace down, to be published after the commit; raises MessageError for one that no car would take."""
        with self._database.transaction():
            for _ in range(TRIES):
                pace = self._next(cell, wanted)
                if self._write(pace):
                    self._database.on_commit(partial(self._learn, pace))
                    return pace
        raise ConflictError(f"others set the pace of the cell {cell} all the time")

    def _next(self, cell: str, wanted: PaceOrder) -> PaceMessage:
        newest = self._database.row("SELECT issued_ms FROM paces WHERE cell = :cell", cell=cell)
        issued_ms = max(self._database.now_ms(), 1 + (0 if newest is None else int(newest["issued_ms"])))
        return _checked(cell, issued_ms, wanted)

    def _write(self, pace: PaceMessage) -> bool:
        """False when another replica was first with a pace as new as this: its row stands, and is to be looked at."""
        written = self._database.execute(
            "INSERT INTO paces (cell, issued_ms, body) VALUES (:cell, :issued, :body) ON CONFLICT (cell)"
            " DO UPDATE SET issued_ms = excluded.issued_ms, body = excluded.body"
            " WHERE paces.issued_ms < excluded.issued_ms",
            cell=pace.cell,
            issued=pace.issued_wall_ms,
            body=encode(pace),
        )
        return written == 1

    def _learn(self, pace: PaceMessage) -> bool:
        """Whether it is news."""
        known = self._known.get(pace.cell)
        if known is not None and known.issued_wall_ms >= pace.issued_wall_ms:
            return False
        self._known[pace.cell] = pace
        return True

    def refresh(self) -> list[PaceMessage]:
        """Look what other replicas have set; the paces that are news here."""
        news = []
        for row in self._database.rows("SELECT cell, issued_ms, body FROM paces"):
            known = self._known.get(row["cell"])
            if known is None or known.issued_wall_ms < row["issued_ms"]:
                pace = self._read(row)
                if pace is not None and self._learn(pace):
                    news.append(pace)
        return news

    def _read(self, row: Row) -> PaceMessage | None:
        try:
            pace = decode(row["body"], PaceMessage)
        except MessageError as error:
            detail = str(error)
        else:
            if (pace.cell, pace.issued_wall_ms) == (row["cell"], row["issued_ms"]):
                return pace
            detail = "it is of another cell or time than its row"
        if self._unreadable.get(row["cell"]) != row["issued_ms"]:
            self._unreadable[row["cell"]] = row["issued_ms"]
            log.error("pace_unreadable", cell=row["cell"], detail=detail)
        return None


def _checked(cell: str, issued_ms: int, wanted: PaceOrder) -> PaceMessage:
    """The message as a car would read it; raises MessageError, which names what is wrong with it."""
    fields = {"cell": cell, "issued_wall_ms": issued_ms, **msgspec.to_builtins(wanted)}
    try:
        return msgspec.convert(fields, PaceMessage)
    except msgspec.ValidationError as error:
        raise MessageError(f"no such pace can be set: {error}") from error
