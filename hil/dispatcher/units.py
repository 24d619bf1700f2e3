"""The units the dispatcher knows: enrolment with a one-time code, what each can run, and when it was last heard of.

A unit enrols by signing a message that holds its public key, with that key. A code admits one unit once; codes are
stored hashed. The same unit with the same key may enrol again (its answer may have been lost); another key for a known
unit, or a known key for another unit, is refused.

How a unit behaves is counted against it alone: one whose leases fail again and again is offered nothing for a while,
so that it spoils no more jobs, and one that finds leases too long is offered shorter ones.
"""

from __future__ import annotations

import hashlib

import msgspec

from agent.core.policy import WorkloadClass
from agent.errors import TrustError
from agent.fleet.messages import Capability, Enrolment, Status
from hil.dispatcher.database import Database, Row

SEEN_EVERY_MS = 60_000
"""A unit that says nothing new is written down as seen so often, since a write costs more than all the reading."""
FAULTS_BORNE = 3
BENCH_MS = 60_000
BENCH_MAX_MS = 3_600_000
SHORTS_MAX = 6
"""A sixty-fourth of what would be offered otherwise."""


class EnrolmentRefusedError(TrustError):
    """The unit may not be enrolled like this."""


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """An enrolled unit: its name is a pseudonym, its cell a shard, its key what its statements are verified with.

    `shorts` and `faults`: leases in a row that it found too long, and that failed. Benched, it is offered nothing.
    """

    unit: str
    cell: str
    keyid: str
    public_key_pem: str
    key_protection: str
    device_class: str = ""
    executor: str = ""
    packages: tuple[str, ...] = ()
    classes: tuple[WorkloadClass, ...] = ()
    seen_ms: int = 0
    shorts: int = 0
    faults: int = 0
    benched_until_ms: int = 0


class Units:
    """Part of the book; see there for threads and time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_code(self, code: str) -> None:
        """Let one unit enrol with `code`."""
        self._database.execute(
            "INSERT INTO enrolment_codes (code_sha256) VALUES (:code) ON CONFLICT DO NOTHING", code=_digest(code)
        )

    def get(self, unit: str) -> Unit | None:
        """The unit of this name, None when it never enrolled."""
        row = self._database.row("SELECT * FROM units WHERE unit = :unit", unit=unit)
        return None if row is None else _unit(row)

    def enrol(self, enrolment: Enrolment, keyid: str) -> Unit:
        """Enrol a unit whose possession of the key `keyid` was proven; raises EnrolmentRefusedError with the reason."""
        with self._database.transaction():
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
        row = self._database.row("SELECT used_by FROM enrolment_codes WHERE code_sha256 = :code", code=code)
        if row is None:
            raise EnrolmentRefusedError("the enrolment code is not known", hint="ask the fleet operator for a new one")
        if row["used_by"] is not None:
            raise EnrolmentRefusedError("the enrolment code was used", hint="ask the fleet operator for a new one")
        if self._database.row("SELECT unit FROM units WHERE keyid = :keyid", keyid=keyid):
            raise EnrolmentRefusedError(
                "this key is enrolled under another unit's name", hint="make a key for this unit"
            )
        self._database.execute(
            "INSERT INTO units (unit, cell, keyid, public_key_pem, key_protection, seen_ms)"
            " VALUES (:unit, :cell, :keyid, :pem, :protection, :now)",
            unit=enrolment.unit,
            cell=_digest(enrolment.unit)[:2],
            keyid=keyid,
            pem=enrolment.public_key_pem,
            protection=enrolment.key_protection,
            now=self._database.now_ms(),
        )
        used = self._database.execute(
            "UPDATE enrolment_codes SET used_by = :unit WHERE code_sha256 = :code AND used_by IS NULL",
            unit=enrolment.unit,
            code=code,
        )
        if not used:  # another replica admitted somebody with it a moment ago
            raise EnrolmentRefusedError("the enrolment code was used", hint="ask the fleet operator for a new one")

    def note_capability(self, unit: Unit, capability: Capability, now_ms: int) -> Unit:
        """What the unit says that it can run, by which the next grant is chosen; the unit as it is then."""
        said = msgspec.structs.replace(
            unit,
            device_class=capability.device_class,
            executor=capability.executor,
            packages=capability.packages,
            classes=capability.classes,
        )
        if said == unit and now_ms - unit.seen_ms < SEEN_EVERY_MS:
            return unit
        self._database.execute(
            "UPDATE units SET device_class = :device_class, executor = :executor, packages = :packages,"
            " classes = :classes, seen_ms = :now WHERE unit = :unit",
            unit=unit.unit,
            device_class=capability.device_class,
            executor=capability.executor,
            packages=msgspec.json.encode(capability.packages).decode("ascii"),
            classes=msgspec.json.encode(capability.classes).decode("ascii"),
            now=now_ms,
        )
        return said

    def note_status(self, unit: str, status: Status) -> None:
        """The unit's link came or went; a late will of an earlier connection of the same agent run is ignored."""
        self._database.execute(
            "UPDATE units SET link = :link, boot = :boot, conn = :conn, seen_ms = :now"
            " WHERE unit = :unit AND NOT (boot = :boot AND conn > :conn)",
            link=status.state,
            boot=status.boot,
            conn=status.conn,
            now=self._database.now_ms(),
            unit=unit,
        )

    def note_fault(self, unit: str, now_ms: int) -> None:
        """A lease of the unit failed: the third in a row, and each one after, benches it for longer."""
        self._database.execute(
            "UPDATE units SET faults = faults + 1, benched_until_ms = CASE WHEN faults + 1 < :borne THEN 0"
            " WHEN faults + 1 >= :borne + 6 THEN :now + :longest"
            " ELSE :now + :bench * (1 << CAST(faults + 1 - :borne AS INTEGER)) END WHERE unit = :unit",
            unit=unit,
            now=now_ms,
            borne=FAULTS_BORNE,
            bench=BENCH_MS,
            longest=BENCH_MAX_MS,
        )

    def note_short(self, unit: str) -> None:
        """The unit found a lease too long: the next is half of what it would be."""
        self._database.execute(
            "UPDATE units SET shorts = CASE WHEN shorts < :most THEN shorts + 1 ELSE shorts END WHERE unit = :unit",
            unit=unit,
            most=SHORTS_MAX,
        )

    def note_settled(self, unit: Unit) -> None:
        """A lease of the unit was settled: its faults are forgiven, and its leases may grow again."""
        if unit.faults or unit.shorts:
            self._database.execute(
                "UPDATE units SET faults = 0, benched_until_ms = 0,"
                " shorts = CASE WHEN shorts > 0 THEN shorts - 1 ELSE 0 END WHERE unit = :unit",
                unit=unit.unit,
            )


def _unit(row: Row) -> Unit:
    return Unit(
        unit=row["unit"],
        cell=row["cell"],
        keyid=row["keyid"],
        public_key_pem=row["public_key_pem"],
        key_protection=row["key_protection"],
        device_class=row["device_class"],
        executor=row["executor"],
        packages=msgspec.json.decode(row["packages"], type=tuple[str, ...]),
        classes=msgspec.json.decode(row["classes"], type=tuple[str, ...]),
        seen_ms=row["seen_ms"],
        shorts=row["shorts"],
        faults=row["faults"],
        benched_until_ms=row["benched_until_ms"],
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
