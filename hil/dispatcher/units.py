"""The units the dispatcher knows: enrolment with a one-time code, what each can run, and when it was last heard of.

A unit enrols by signing a message that holds its public key, with that key. A code admits one unit once; codes are
stored hashed. The same unit with the same key may enrol again (its answer may have been lost); another key for a known
unit, or a known key for another unit, is refused.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable

import msgspec

from agent.errors import TrustError
from agent.fleet.messages import Capability, Enrolment, Status
from hil.dispatcher.database import transaction


class EnrolmentRefusedError(TrustError):
    """The unit may not be enrolled like this."""


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """An enrolled unit: its name is a pseudonym, its cell a shard, its key what its statements are verified with."""

    unit: str
    cell: str
    keyid: str
    public_key_pem: str
    key_protection: str


class Units:
    """Part of the book; see there for threads and time."""

    def __init__(self, database: sqlite3.Connection, now_ms: Callable[[], int]) -> None:
        self._database = database
        self._now_ms = now_ms

    def add_code(self, code: str) -> None:
        """Let one unit enrol with `code`."""
        self._database.execute("INSERT OR IGNORE INTO enrolment_codes (code_sha256) VALUES (?)", (_digest(code),))

    def get(self, unit: str) -> Unit | None:
        """The unit of this name, None when it never enrolled."""
        row = self._database.execute(
            "SELECT unit, cell, keyid, public_key_pem, key_protection FROM units WHERE unit = ?", (unit,)
        ).fetchone()
        return None if row is None else Unit(**dict(row))

    def enrol(self, enrolment: Enrolment, keyid: str) -> Unit:
        """Enrol a unit whose possession of the key `keyid` was proven; raises EnrolmentRefusedError with the reason."""
        with transaction(self._database):
            known = self.get(enrolment.unit)
            if known is None:
                self._admit(enrolment, keyid)
            elif known.keyid != keyid:
                raise EnrolmentRefusedError(f"unit {enrolment.unit} is enrolled with another key")
        unit = self.get(enrolment.unit)
        assert unit is not None
        return unit

    def _admit(self, enrolment: Enrolment, keyid: str) -> None:
        code = _digest(enrolment.code)
        row = self._database.execute("SELECT used_by FROM enrolment_codes WHERE code_sha256 = ?", (code,)).fetchone()
        if row is None:
            raise EnrolmentRefusedError("the enrolment code is not known", hint="ask the fleet operator for a new one")
        if row["used_by"] is not None:
            raise EnrolmentRefusedError("the enrolment code was used", hint="ask the fleet operator for a new one")
        if self._database.execute("SELECT 1 FROM units WHERE keyid = ?", (keyid,)).fetchone():
            raise EnrolmentRefusedError(
                "this key is enrolled under another unit's name", hint="make a key for this unit"
            )
        self._database.execute(
            "INSERT INTO units (unit, cell, keyid, public_key_pem, key_protection, seen_ms) VALUES (?, ?, ?, ?, ?, ?)",
            (
                enrolment.unit,
                _digest(enrolment.unit)[:2],
                keyid,
                enrolment.public_key_pem,
                enrolment.key_protection,
                self._now_ms(),
            ),
        )
        self._database.execute("UPDATE enrolment_codes SET used_by = ? WHERE code_sha256 = ?", (enrolment.unit, code))

    def note_capability(self, unit: str, capability: Capability) -> None:
        """What the unit says that it can run: the next grant is chosen by it."""
        self._database.execute(
            "UPDATE units SET device_class = ?, executor = ?, packages = ?, classes = ?, seen_ms = ? WHERE unit = ?",
            (
                capability.device_class,
                capability.executor,
                msgspec.json.encode(capability.packages).decode("ascii"),
                msgspec.json.encode(capability.classes).decode("ascii"),
                self._now_ms(),
                unit,
            ),
        )

    def note_status(self, unit: str, status: Status) -> None:
        """The unit's link came or went; a late will of an earlier connection of the same boot is ignored."""
        self._database.execute(
            "UPDATE units SET link = :link, boot = :boot, conn = :conn, seen_ms = :now"
            " WHERE unit = :unit AND NOT (boot = :boot AND conn > :conn)",
            {"link": status.state, "boot": status.boot, "conn": status.conn, "now": self._now_ms(), "unit": unit},
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
