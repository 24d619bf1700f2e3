"""The units the dispatcher knows: enrolment with a one-time code, what each can run, and when it was last heard of.

A unit enrols by signing a message that holds its public key, with that key. A code admits one unit once; codes are
stored hashed. The same unit with the same key may enrol again (its answer may have been lost); another key for a known
unit, or a known key for another unit, is refused.

How a unit behaves is counted against it alone: one whose leases fail again and again is offered nothing for a while,
so that it spoils no more jobs, and one that finds leases too long is offered shorter ones.

A unit has one key at a time. When it handed over to the next (`Units.succeed`), what its sessions signed before counts
for a while longer. `Units.keys_of` is where a unit's keys come from for everything that is verified with them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.core.policy import WorkloadClass
from agent.errors import TrustError
from agent.fleet.enrolment_messages import Enrolment
from agent.fleet.messages import Capability, Status
from agent.trust.keys import load_public_key
from agent.trust.session import FIRST_KEY_EPOCH
from hil.dispatcher.database import ConflictError, Database, Row

SEEN_EVERY_MS = 60_000
"""A unit that says nothing new is written down as seen so often, since a write costs more than all the reading."""
FAULTS_BORNE = 3
BENCH_MS = 60_000
BENCH_MAX_MS = 3_600_000
SHORTS_MAX = 6
"""A sixty-fourth of what would be offered otherwise."""

T = TypeVar("T")


class EnrolmentRefusedError(TrustError):
    """The unit may not be enrolled like this."""


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """An enrolled unit: its name is a pseudonym, its cell a shard, its key what its statements are verified with.

    `shorts` and `faults`: leases in a row that it found too long, and that failed. Benched, it is offered nothing;
    nor while something stands against its ledger (`ledger_fault`, a `LedgerFault`'s value).
    """

    unit: str
    cell: str
    keyid: str
    public_key_pem: str
    key_protection: str
    key_epoch: int = FIRST_KEY_EPOCH
    key_endorsement: str = ""
    device_class: str = ""
    executor: str = ""
    packages: tuple[str, ...] = ()
    classes: tuple[WorkloadClass, ...] = ()
    seen_ms: int = 0
    shorts: int = 0
    faults: int = 0
    benched_until_ms: int = 0
    ledger_fault: str = ""


@dataclass(frozen=True, slots=True)
class UnitKey:
    """One of a unit's keys: of which epoch it is, and where it lives, as its statements have to say.

    `last_session` is None for the present key; a former one certified none after it, and counts no more once `is_over`.
    """

    key: EllipticCurvePublicKey
    epoch: int
    protection: str
    last_session: int | None = None
    is_over: bool = False


class FormerKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that a unit had. What its sessions up to `last_session` signed counts until `ends_ms`."""

    epoch: int
    keyid: str
    public_key_pem: str
    protection: str
    last_session: int
    ends_ms: int


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """The key to which a unit's present one handed over; `succession` is the envelope in which both said so."""

    keyid: str
    public_key_pem: str
    protection: str
    endorsement: str
    last_session: int
    overlap_ms: int
    succession: bytes


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

    def keys_of(self, unit: Unit) -> Mapping[str, UnitKey]:
        """The keys that the unit has and had, by keyid, the present one first."""
        keys = {unit.keyid: UnitKey(_public_key(unit.public_key_pem), unit.key_epoch, unit.key_protection)}
        if unit.key_epoch == FIRST_KEY_EPOCH:
            return keys
        now_ms = self._database.now_ms()
        for one in self.former_keys(unit):
            is_over = now_ms >= one.ends_ms
            keys[one.keyid] = UnitKey(
                _public_key(one.public_key_pem), one.epoch, one.protection, one.last_session, is_over
            )
        return keys

    def former_keys(self, unit: Unit) -> list[FormerKey]:
        """The keys that the unit had before, the newest first."""
        rows = self._database.rows(
            "SELECT epoch, keyid, public_key_pem, protection, last_session, ends_ms FROM former_keys"
            " WHERE unit = :unit ORDER BY epoch DESC",
            unit=unit.unit,
        )
        return [FormerKey(**dict(row)) for row in rows]

    def succeed(self, unit: Unit, new: NewKey) -> Unit:
        """The unit's key has handed over to `new`, whose possession was proven; the unit as it is now.

        Raises EnrolmentRefusedError for a key that some unit has or had, ConflictError where another replica was first.
        """
        with self._database.transaction():
            if self._is_known(new.keyid):
                raise EnrolmentRefusedError("this key is, or was, a unit's already", hint="make a new key")
            self._database.execute(
                "INSERT INTO former_keys (unit, epoch, keyid, public_key_pem, protection, endorsement, last_session,"
                " ends_ms, succession) VALUES (:unit, :epoch, :keyid, :pem, :protection, :endorsement, :last_session,"
                " :ends, :succession)",
                unit=unit.unit,
                epoch=unit.key_epoch,
                keyid=unit.keyid,
                pem=unit.public_key_pem,
                protection=unit.key_protection,
                endorsement=unit.key_endorsement,
                last_session=new.last_session,
                ends=self._database.now_ms() + new.overlap_ms,
                succession=new.succession,
            )
            moved = self._database.execute(
                "UPDATE units SET keyid = :keyid, public_key_pem = :pem, key_protection = :protection,"
                " key_endorsement = :endorsement, key_epoch = key_epoch + 1"
                " WHERE unit = :unit AND key_epoch = :epoch AND keyid = :old",
                unit=unit.unit,
                keyid=new.keyid,
                pem=new.public_key_pem,
                protection=new.protection,
                endorsement=new.endorsement,
                epoch=unit.key_epoch,
                old=unit.keyid,
            )
            if moved != 1:
                raise ConflictError(f"another replica has given {unit.unit} a new key")
            now = self.get(unit.unit)
        assert now is not None
        return now

    def note_last_session(self, unit: Unit, epoch: int, last_session: int) -> None:
        """The key of this epoch certified sessions up to this, say it and its successor: the answer had been lost."""
        self._database.execute(
            "UPDATE former_keys SET last_session = :last"
            " WHERE unit = :unit AND epoch = :epoch AND last_session < :last",
            unit=unit.unit,
            epoch=epoch,
            last=last_session,
        )

    def enrol(self, enrolment: Enrolment, keyid: str, endorsement: str = "") -> Unit:
        """Enrol a unit whose possession of the key `keyid` was proven; raises EnrolmentRefusedError with the reason."""
        with self._database.transaction():
            if self.check(enrolment, keyid) is None:
                self._admit(enrolment, keyid, endorsement)
            unit = self.get(enrolment.unit)
        assert unit is not None
        return unit

    def check(self, enrolment: Enrolment, keyid: str) -> Unit | None:
        """Whether a unit may be enrolled: None when it may, the unit when it is; raises EnrolmentRefusedError."""
        known = self.get(enrolment.unit)
        if known is not None:
            if known.keyid != keyid:
                raise EnrolmentRefusedError(f"unit {enrolment.unit} is enrolled with another key")
            return known
        code = _digest(enrolment.code)
        row = self._database.row("SELECT used_by FROM enrolment_codes WHERE code_sha256 = :code", code=code)
        if row is None:
            raise EnrolmentRefusedError("the enrolment code is not known", hint="ask the fleet operator for a new one")
        if row["used_by"] is not None:
            raise EnrolmentRefusedError("the enrolment code was used", hint="ask the fleet operator for a new one")
        if self._is_known(keyid):
            raise EnrolmentRefusedError(
                "this key is enrolled under another unit's name", hint="make a key for this unit"
            )
        return None

    def _is_known(self, keyid: str) -> bool:
        """Whether a unit has, or had, this key."""
        found = self._database.row(
            "SELECT unit FROM units WHERE keyid = :keyid UNION ALL SELECT unit FROM former_keys WHERE keyid = :keyid",
            keyid=keyid,
        )
        return found is not None

    def _admit(self, enrolment: Enrolment, keyid: str, endorsement: str) -> None:
        self._database.execute(
            "INSERT INTO units (unit, cell, keyid, public_key_pem, key_protection, key_endorsement, seen_ms)"
            " VALUES (:unit, :cell, :keyid, :pem, :protection, :endorsement, :now)",
            unit=enrolment.unit,
            cell=_digest(enrolment.unit)[:2],
            keyid=keyid,
            pem=enrolment.public_key_pem,
            protection=enrolment.key_protection,
            endorsement=endorsement,
            now=self._database.now_ms(),
        )
        used = self._database.execute(
            "UPDATE enrolment_codes SET used_by = :unit WHERE code_sha256 = :code AND used_by IS NULL",
            unit=enrolment.unit,
            code=_digest(enrolment.code),
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
        key_epoch=row["key_epoch"],
        key_endorsement=row["key_endorsement"],
        device_class=row["device_class"],
        executor=row["executor"],
        packages=msgspec.json.decode(row["packages"], type=tuple[str, ...]),
        classes=msgspec.json.decode(row["classes"], type=tuple[str, ...]),
        seen_ms=row["seen_ms"],
        shorts=row["shorts"],
        faults=row["faults"],
        benched_until_ms=row["benched_until_ms"],
        ledger_fault=row["ledger_fault"],
    )


def verified_by(
    keys: Mapping[str, UnitKey], verify: Callable[[Mapping[str, EllipticCurvePublicKey]], T]
) -> tuple[str, T]:
    """The keyid of the unit's key under which `verify` holds, and what it found; raises the last key's TrustError."""
    refused = TrustError("the unit has no key")
    for keyid, one in keys.items():
        try:
            return keyid, verify({keyid: one.key})
        except TrustError as error:
            refused = error
    raise refused


@functools.lru_cache(maxsize=4096)
def _public_key(pem: str) -> EllipticCurvePublicKey:
    """Parsing a key costs a fifth of using it, and a unit keeps its own."""
    return load_public_key(pem)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
