"""The pace of each cell, as the fleet's operator set it: whether its cars may work, and how far they spread.

A pace is published retained, so that a car hears it as soon as it connects, and kept here, because brokers forget:
every replica publishes what stands when its link comes up, and what changes when it sees that. `issued_wall_ms` rises
with every pace of a cell, so a car knows an old one that some broker kept.

The dispatcher obeys as well: a cell that is closed or stopped is granted nothing, whatever its cars ask.
"""

from __future__ import annotations

import msgspec

from agent.core.model import PaceState
from agent.fleet.messages import MessageError, PaceMessage, decode, encode
from hil.dispatcher.database import Database

ALL_CELLS = "all"


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

    def of(self, cell: str) -> PaceMessage | None:
        """The cell's pace, None where none was ever set (which is `open`)."""
        return self._known.get(cell)

    def known(self) -> list[PaceMessage]:
        """Every pace that stands."""
        return [self._known[cell] for cell in sorted(self._known)]

    def set(self, cell: str, wanted: PaceOrder) -> PaceMessage:
        """Write a pace down, to be published; raises MessageError for one that no car would take."""
        with self._database.transaction():
            newest = self._database.row("SELECT issued_ms FROM paces WHERE cell = :cell", cell=cell)
            issued_ms = max(self._database.now_ms(), 1 + (0 if newest is None else int(newest["issued_ms"])))
            pace = _checked(cell, issued_ms, wanted)
            self._database.execute(
                "INSERT INTO paces (cell, issued_ms, body) VALUES (:cell, :issued, :body) ON CONFLICT (cell)"
                " DO UPDATE SET issued_ms = excluded.issued_ms, body = excluded.body"
                " WHERE paces.issued_ms < excluded.issued_ms",
                cell=cell,
                issued=issued_ms,
                body=encode(pace),
            )
        self._known[cell] = pace
        return pace

    def refresh(self) -> list[PaceMessage]:
        """Look what other replicas have set; the paces that are news here."""
        news = []
        for row in self._database.rows("SELECT cell, issued_ms, body FROM paces"):
            known = self._known.get(row["cell"])
            if known is None or known.issued_wall_ms < row["issued_ms"]:
                pace = decode(row["body"], PaceMessage)
                self._known[pace.cell] = pace
                news.append(pace)
        return news


def _checked(cell: str, issued_ms: int, wanted: PaceOrder) -> PaceMessage:
    """The message as a car would read it; raises MessageError, which names what is wrong with it."""
    fields = {"cell": cell, "issued_wall_ms": issued_ms, **msgspec.to_builtins(wanted)}
    try:
        return msgspec.convert(fields, PaceMessage)
    except msgspec.ValidationError as error:
        raise MessageError(f"no such pace can be set: {error}") from error
