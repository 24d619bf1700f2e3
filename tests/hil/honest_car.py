"""An honest car for the dispatcher's tests, and a dispatcher without a broker whose clock the test turns."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey, generate_private_key
from cryptography.x509 import Certificate

from agent.core.model import JobKey, Outlook, YieldReason
from agent.fleet.enrolment_messages import ENROLMENT_TYPE, Enrolled, Enrolment
from agent.fleet.messages import (
    GRANT_TYPE,
    VERDICT_TYPE,
    Capability,
    Envelope,
    GrantMessage,
    JobGrant,
    PackageRef,
    Renew,
    Request,
    Result,
    SliceOutput,
    UploadedObject,
    UploadRef,
    VerdictMessage,
    Yield,
    decode,
    encode,
)
from agent.fleet.operator_messages import CANCEL_TYPE, CancelMessage
from agent.trust import dsse
from agent.trust.keys import FileSigner
from agent.trust.session import begin
from agent.trust.statement import (
    PAYLOAD_TYPE,
    Agent,
    Device,
    Energy,
    Engine,
    Gate,
    Lease,
    Package,
    Slice,
    Statement,
    Times,
    equivalence_class,
)
from hil.dispatcher.book import Book, Terms
from hil.dispatcher.copies import Tolerances
from hil.dispatcher.database import Database, SqliteDatabase
from hil.dispatcher.leases import Places
from hil.dispatcher.objects import Objects
from hil.dispatcher.pay import HoldBack
from hil.dispatcher.ramp import Ramp
from hil.dispatcher.ranges import Span
from hil.dispatcher.replication import Replication
from hil.dispatcher.service import Dispatcher
from hil.dispatcher.staging import Staging
from hil.dispatcher.submit import add_job
from hil.dispatcher.tolerance import Tolerance
from hil.dispatcher.unwitnessed import Bound
from hil.dispatcher.uploads import Uploads
from hil.dispatcher.view import View

ENGINE = Engine(executor="onnxruntime", version="1.24.1", plan_sha256="", kernels_sha256="0b" * 32)
DEVICE = Device(class_="cpu-x86_64", driver="")

PACKAGE = PackageRef(name="ocr", sha256="ab" * 32)
PRICE = 250
TTL_S = 600
NO_OUTLOOK = Outlook()
EXACT_VALUES: Tolerances = {PACKAGE.sha256: Tolerance()}.get
"""The package's answers are the same everywhere, whatever the bits."""


def new_signer() -> FileSigner:
    return FileSigner(generate_private_key(SECP256R1()))


def answer_to(number: int) -> dict[str, object]:
    """What the package says of item `number`: item 3 is unreadable."""
    return {"error": "unreadable"} if number == 3 else {"item": number}


class Peer(Protocol):
    """How a car reaches a dispatcher: in memory or over a broker."""

    def tell(self, topic: str, payload: bytes) -> None: ...

    def hear(self) -> tuple[str, bytes]: ...

    def enrol(self, envelope: bytes) -> bytes: ...

    def bring(self, upload: UploadRef, body: bytes) -> str: ...

    def trusted(self) -> Mapping[str, EllipticCurvePublicKey]: ...


class Desk:
    """A dispatcher over a real book; what it publishes lies in `sent` until a car reads it. `now_ms` is its clock.

    `database` is given the clock; without it, the book is where `open_database` puts that of `folder`: a SQLite file,
    unless the test runs over both kinds (the fixture `each_database`). Cars here keep no ledger, so that nothing has to
    be witnessed unless `unwitnessed` says so.
    """

    open_database: ClassVar[Callable[[Path, Callable[[], int]], Database]] = SqliteDatabase

    def __init__(
        self,
        folder: Path,
        *,
        key: FileSigner | None = None,
        database: Callable[[Callable[[], int]], Database] | None = None,
        replication: Replication | None = None,
        tolerances: Tolerances = EXACT_VALUES,
        has_referee: bool = False,
        known_permille: int = 0,
        hold_back: HoldBack | None = None,
        max_failures: int = 10,
        ramp_per_s: float = 0.0,
        ek_roots: Sequence[Certificate] = (),
        unwitnessed: Bound | None = None,
    ) -> None:
        self.now_ms = 1_000_000
        self.folder = folder
        self.key = key or new_signer()
        opened = type(self).open_database(folder, self._clock) if database is None else database(self._clock)
        self.objects = Objects(folder / "objects")
        self.book = Book(
            opened,
            replication=replication,
            tolerances=tolerances,
            read_object=self.objects.read,
            has_referee=has_referee,
            known_permille=known_permille,
            hold_back=hold_back,
            max_failures=max_failures,
        )
        self.staging = Staging(self.objects)
        self.uploads = Uploads(self.staging, self.book.upload_rights.of)
        self.sent: list[tuple[str, bytes]] = []
        self.service = Dispatcher(
            self.book,
            self.key,
            publish=self._publish,
            places=Places(object_url=lambda name: f"http://here/{name}", upload_url="http://here/up"),
            retry_s=7,
            brought=self.staging,
            ramp=Ramp(ramp_per_s),
            ek_roots=ek_roots,
            unwitnessed=unwitnessed,
        )

    @contextlib.contextmanager
    def viewing(self) -> Iterator[View]:
        """What an operator would see, through the dispatcher's own connection (so it is not closed)."""
        yield View(self.folder, reading=self.book.database)

    def _clock(self) -> int:
        return self.now_ms

    def _publish(self, topic: str, payload: bytes, expiry_s: int | None, *, retain: bool = False) -> bool:
        assert (expiry_s is None) == retain
        assert expiry_s is None or expiry_s > 0
        assert len(payload) <= 16 * 1024
        self.sent.append((topic, payload))
        return True

    def tell(self, topic: str, payload: bytes) -> None:
        self.service.on_message(topic, payload)

    def hear(self) -> tuple[str, bytes]:
        return self.sent.pop(0)

    def enrol(self, envelope: bytes) -> bytes:
        return self.service.enrol(envelope)

    def bring(self, upload: UploadRef, body: bytes) -> str:
        name, left = hashlib.sha256(body).hexdigest(), bytearray(body)

        def read(most: int) -> bytes:
            piece = bytes(left[:most])
            del left[:most]
            return piece

        self.uploads.receive(upload.token, name, Span(0, len(body) - 1, len(body)), read)
        return name

    def trusted(self) -> Mapping[str, EllipticCurvePublicKey]:
        return {self.key.keyid: self.key.public_key()}

    def new_car(self, unit: str) -> Car:
        self.book.units.add_code(f"code of {unit}")
        return Car(self, unit, f"code of {unit}")

    def add_job(
        self,
        items: int = 10,
        slice_items: int = 4,
        ttl_s: int = TTL_S,
        expected_s: int = 0,
        terms: Terms | None = None,
    ) -> str:
        return add_job(
            self.book,
            self.objects,
            package=PACKAGE,
            items=[b"item %d" % number for number in range(items)],
            slice_items=slice_items,
            customer="customer-1",
            price_micro_per_item=PRICE,
            currency="EUR",
            ttl_s=ttl_s,
            expected_s=expected_s,
            terms=terms,
        )


class Car:
    """Says what an honest car says; `build` lets a test bend one thing before it is signed."""

    def __init__(self, peer: Peer, unit: str, code: str) -> None:
        self.peer = peer
        self.unit = unit
        self.signer = new_signer()
        self.session = begin(self.signer, "file", unit=unit, number=1)
        self.tickets: dict[JobKey, str] = {}
        self.cancelled: list[CancelMessage] = []
        self.last_request = b""
        self._counter = itertools.count(1)
        self._rid = itertools.count(1)
        answer = peer.enrol(self.enrolment(code))
        self.cell = decode(self._open(answer, ENROLMENT_TYPE), Enrolled).cell

    def enrolment(self, code: str) -> bytes:
        message = Enrolment(
            code=code, unit=self.unit, public_key_pem=self.signer.public_key_pem(), key_protection="file"
        )
        return dsse.sign(ENROLMENT_TYPE, encode(message), self.signer)

    def request(
        self,
        *have: JobKey,
        credit: int = 1,
        packages: tuple[str, ...] = (PACKAGE.sha256,),
        executor: str = "onnxruntime",
        outlook: Outlook = NO_OUTLOOK,
    ) -> JobGrant | None:
        capability = Capability(device_class="cpu-x86_64", executor=executor, packages=packages)
        rid = f"rq{next(self._rid)}"
        self.last_request = encode(Request(rid=rid, have=have, credit=credit, cap=capability, outlook=outlook))
        self.say("request", self.last_request)
        message = self.hear_grant()
        assert message.rid == rid
        assert (message.retry_s > 0) == (message.job is None)
        return message.job

    def must_request(self, *have: JobKey) -> JobGrant:
        grant = self.request(*have)
        assert grant is not None
        return grant

    def renew(self, grant: JobGrant) -> JobGrant | CancelMessage:
        """More time: the lease again, or that it is over."""
        rid = f"rn{next(self._rid)}"
        self.say("renew", encode(Renew(rid=rid, job=grant.job, epoch=grant.epoch, done=0)))
        topic, envelope = self.peer.hear()
        if topic.endswith("/cancel"):
            return decode(self._open(envelope, CANCEL_TYPE), CancelMessage)
        payload = self._open(envelope, GRANT_TYPE)
        message = decode(payload, GrantMessage)
        assert (message.rid, message.retry_s) == (rid, 0)
        assert message.job is not None
        self._keep_ticket(message.job, payload)
        return message.job

    def bulky(self, message: Result, grant: JobGrant) -> Result:
        """The same result, with its answers still to be brought to where the grant says."""
        outputs = []
        for output in message.outputs:
            body = base64.b64decode(output.body)
            ref = UploadedObject(sha256=hashlib.sha256(body).hexdigest(), bytes=len(body))
            outputs.append(SliceOutput(index=output.index, uploaded=ref))
        assert grant.upload is not None
        return msgspec.structs.replace(message, outputs=tuple(outputs))

    def bring(self, message: Result, grant: JobGrant) -> None:
        """Upload a result's answers."""
        assert grant.upload is not None
        for output in message.outputs:
            self.peer.bring(grant.upload, base64.b64decode(output.body))

    def hand_in(self, message: Result | Yield) -> VerdictMessage:
        self.say("result" if isinstance(message, Result) else "yield", encode(message))
        return self.hear_verdict()

    def result(
        self,
        grant: JobGrant,
        *,
        bend: Callable[[Statement], Statement] = lambda statement: statement,
        signer: dsse.SigningKey | None = None,
        have: tuple[JobKey, ...] = (),
        credit: int = 0,
    ) -> Result:
        """The finished lease; `bend` changes the statement before it is signed by `signer` (the session's key)."""
        statement, outputs = self.work(grant, grant.slices, "result")
        return Result(
            rid=f"rs{next(self._rid)}",
            job=grant.job,
            epoch=grant.epoch,
            statement=self.sign(bend(statement), signer or self.session.key),
            outputs=outputs,
            have=have,
            credit=credit,
            session=self.certificate(),
        )

    def yielded(
        self, grant: JobGrant, slices: tuple[int, ...] = (), why: YieldReason = YieldReason.DRIVER, detail: str = ""
    ) -> Yield:
        """The lease given back with `slices` done."""
        envelope: Envelope | None = None
        outputs: tuple[SliceOutput, ...] = ()
        if slices:
            statement, outputs = self.work(grant, slices, "yield")
            envelope = self.sign(statement, self.session.key)
        rid = f"ye{next(self._rid)}"
        return Yield(
            rid=rid,
            job=grant.job,
            epoch=grant.epoch,
            why=why,
            detail=detail,
            statement=envelope,
            outputs=outputs,
            session=None if envelope is None else self.certificate(),
        )

    def certificate(self) -> Envelope:
        """The session's, as a message carries it."""
        return msgspec.json.decode(self.session.certificate, type=Envelope)

    def work(self, grant: JobGrant, slices: tuple[int, ...], outcome: str) -> tuple[Statement, tuple[SliceOutput, ...]]:
        bodies = {index: self.answers(grant, index) for index in slices}
        statement = Statement(
            outcome=outcome,
            lease=Lease(
                job=grant.job,
                epoch=grant.epoch,
                nonce=grant.nonce,
                ticket_sha256=self.tickets[JobKey(grant.job, grant.epoch)],
            ),
            unit=self.unit,
            package=Package(name=grant.package.name, sha256=grant.package.sha256),
            model_sha256="0a" * 32,
            engine=ENGINE,
            device=DEVICE,
            equivalence_class=equivalence_class("0a" * 32, ENGINE, DEVICE),
            agent=Agent(version="0.1.0", sha256="0c" * 32),
            input_sha256=grant.input.sha256,
            slices=tuple(
                Slice(
                    index=index,
                    items=len(msgspec.json.decode(body)),
                    failed_items=body.count(b'"error"'),
                    output_sha256=hashlib.sha256(body).hexdigest(),
                    raw_sha256="0d" * 32,
                    raw_form="float32[2]",
                    compute_ms=40,
                )
                for index, body in bodies.items()
            ),
            times=Times(started_boot_ms=5000, finished_boot_ms=5200, boot_id="b" * 32, finished_wall_ms=1),
            energy=Energy(micro_wh=900, sensor="simulated"),
            gate=Gate(state="open", policy_sha256="0e" * 32),
            key_protection="file",
            session=self.session.number,
            log_index=0,
            counter=next(self._counter),
        )
        return statement, tuple(
            SliceOutput(index=index, body=base64.b64encode(body).decode()) for index, body in bodies.items()
        )

    def answers(self, grant: JobGrant, index: int) -> bytes:
        """One answer an item: its number, with item 3 failing."""
        first = index * grant.slice_items
        numbers = range(first, min(first + grant.slice_items, grant.items))
        return msgspec.json.encode([answer_to(number) for number in numbers])

    def sign(self, statement: Statement, signer: dsse.SigningKey) -> Envelope:
        return msgspec.json.decode(dsse.sign(PAYLOAD_TYPE, statement.to_bytes(), signer), type=Envelope)

    def say(self, verb: str, payload: bytes) -> None:
        self.peer.tell(f"dw/v1/u/{self.cell}/{self.unit}/{verb}", payload)

    def hear_grant(self) -> GrantMessage:
        payload = self._hear("grant", GRANT_TYPE)
        message = decode(payload, GrantMessage)
        self._keep_ticket(message.job, payload)
        return message

    def hear_verdict(self) -> VerdictMessage:
        payload = self._hear("verdict", VERDICT_TYPE)
        message = decode(payload, VerdictMessage)
        self._keep_ticket(message.next_grant, payload)
        return message

    def _keep_ticket(self, grant: JobGrant | None, payload: bytes) -> None:
        if grant is not None:
            self.tickets[JobKey(grant.job, grant.epoch)] = hashlib.sha256(payload).hexdigest()

    def hear_cancel(self) -> CancelMessage:
        return decode(self._hear("cancel", CANCEL_TYPE), CancelMessage)

    def _hear(self, verb: str, payload_type: str) -> bytes:
        topic, envelope = self.peer.hear()
        while verb != "cancel" and topic == f"dw/v1/d/{self.unit}/cancel":  # said before the answer
            self.cancelled.append(decode(self._open(envelope, CANCEL_TYPE), CancelMessage))
            topic, envelope = self.peer.hear()
        assert topic == f"dw/v1/d/{self.unit}/{verb}"
        return self._open(envelope, payload_type)

    def _open(self, envelope: bytes, payload_type: str) -> bytes:
        return dsse.verify(envelope, payload_type, self.peer.trusted())


def bent(**change: Any) -> Callable[[Statement], Statement]:
    """A statement with other fields; `lease__nonce=...` reaches into a part."""

    def bend(statement: Statement) -> Statement:
        for name, value in change.items():
            part, _, field = name.partition("__")
            new = replace(getattr(statement, part), **{field: value}) if field else value
            statement = replace(statement, **{part: new})
        return statement

    return bend
