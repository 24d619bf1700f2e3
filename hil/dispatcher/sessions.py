"""The session keys that units' keys have certified: kept once each, for whoever verifies a statement later.

A number stands for one key. A unit whose disk shows an older state, or whose key somebody copied, gives a number a
second time: two certificates of one number contradict each other, whoever looks at them (`hil.dispatcher.judge`). So do
two of different numbers between which the clock of the key's TPM ran back; that order is one of all, so each session is
held against those next to it (`beside`).
"""

from __future__ import annotations

import msgspec

from hil.dispatcher.database import ConflictError, Database


class UsedSession(msgspec.Struct, frozen=True):
    """A session that signed something: its number, its key's id, and the envelope of its certificate."""

    number: int
    keyid: str
    certificate: bytes


class Sessions:
    """Part of the book; see there for threads and errors."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, unit_keyid: str, number: int) -> UsedSession | None:
        """The session of this number that the unit's key certified, as it came first; None: none did."""
        row = self._database.row(
            "SELECT session_keyid, certificate FROM sessions WHERE keyid = :keyid AND session = :session",
            keyid=unit_keyid,
            session=number,
        )
        return None if row is None else UsedSession(number, row["session_keyid"], bytes(row["certificate"]))

    def beside(self, unit_keyid: str, number: int) -> list[UsedSession]:
        """The sessions next to this number, below and above, that the unit's key certified and that came already."""
        below = self._database.row(
            "SELECT * FROM sessions WHERE keyid = :keyid AND session < :session ORDER BY session DESC LIMIT 1",
            keyid=unit_keyid,
            session=number,
        )
        above = self._database.row(
            "SELECT * FROM sessions WHERE keyid = :keyid AND session > :session ORDER BY session LIMIT 1",
            keyid=unit_keyid,
            session=number,
        )
        return [
            UsedSession(row["session"], row["session_keyid"], bytes(row["certificate"]))
            for row in (below, above)
            if row is not None
        ]

    def note(self, unit_keyid: str, used: UsedSession) -> None:
        """Keep it, unless it is there; raises ConflictError where another replica has just kept another key's."""
        self._database.execute(
            "INSERT INTO sessions (keyid, session, session_keyid, certificate)"
            " VALUES (:keyid, :session, :session_keyid, :certificate) ON CONFLICT DO NOTHING",
            keyid=unit_keyid,
            session=used.number,
            session_keyid=used.keyid,
            certificate=used.certificate,
        )
        kept = self.of(unit_keyid, used.number)
        if kept is None or kept.keyid != used.keyid:
            raise ConflictError(f"session {used.number} was used with another key a moment ago")
