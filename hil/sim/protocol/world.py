"""Cars, replicas, one database and a broker, all from one seed and under one list of faults; see `Plan`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import msgspec

from agent.core.effects import EffectType
from agent.core.events import EventType
from agent.core.state import State
from agent.fleet.enrolment_messages import ENROLMENT_TYPE, Enrolled, Enrolment
from agent.fleet.messages import JobGrant, ObjectRef, PackageRef, VerdictMessage, decode, encode
from agent.trust import dsse
from hil.dispatcher.service import Dispatcher
from hil.sim.protocol.agent_run import AgentRun
from hil.sim.protocol.book_watch import BookWatch, Job
from hil.sim.protocol.broker import Broker
from hil.sim.protocol.car_watch import CarWatch
from hil.sim.protocol.clocks import CarClock, DatabaseClock
from hil.sim.protocol.computer import Worked
from hil.sim.protocol.counter import Counterpart
from hil.sim.protocol.garage import Garage
from hil.sim.protocol.invariants import Invariant, Violation
from hil.sim.protocol.keys import SeededSigner
from hil.sim.protocol.plan import PACKAGES, Plan, jobs_of
from hil.sim.protocol.replica import INTAKE_MESSAGES, Replica
from hil.sim.protocol.timeloop import VirtualLoop
from hil.sim.protocol.web import ObjectStore

CURRENCY = "EUR"
CRYSTAL_PPM = 200.0


class World:
    """Everything there is. `violation` is the first invariant that broke (or the one looked for), and ends it."""

    def __init__(self, plan: Plan, looking_for: str = "") -> None:
        self.plan, self._looking_for = plan, looking_for
        self.loop = VirtualLoop()
        self.chance = random.Random(f"{plan.seed}/world")
        self.violation: Violation | None = None
        self.faults_seen: Counter[str] = Counter()
        self.clock = DatabaseClock(self.loop, self._ppm())
        self.key = SeededSigner(plan.seed, "dispatcher")
        self.dispatcher_keys = {self.key.keyid: self.key.public_key()}
        self.broker = Broker(self.loop, self._dice("broker"), self.chance.choice((2, 4, 10)))
        self.counter = Counterpart(self.clock, self.key, random.Random(f"{plan.seed}/nonces"))
        self.objects = ObjectStore(self.counter.uploads)
        self.jobs = {job.name: job for _, job in jobs_of(plan)}
        self.book_watch = BookWatch(self.counter.connection, self.clock, self.jobs, self._break)
        self.replicas = [self._replica(number) for number in range(plan.dispatchers)]
        self.cars = [self._car(number) for number in range(plan.cars)]
        self.car_watches = {
            car.unit: CarWatch(car, self.dispatcher_keys, self.now_ms, self._break, self.book_watch.leased)
            for car in self.cars
        }

    def now_ms(self) -> float:
        """True time since the beginning."""
        return self.loop.now_s * 1000

    @property
    def units(self) -> tuple[str, ...]:
        """All cars, by name."""
        return tuple(car.unit for car in self.cars)

    @property
    def work_ms(self) -> int:
        """How long one car would compute on all jobs."""
        return sum(len(job.items) * job.package.item_ms for job in self.jobs.values())

    @property
    def at_rest(self) -> bool:
        """Every job is done, and no car owes anything or works."""
        if self.book_watch.unfinished:
            return False
        return not any(watch.owes for watch in self.car_watches.values())

    def start(self) -> None:
        """Everything is switched on, and the jobs are put up when they come."""
        for replica in self.replicas:
            replica.start()
        for car in self.cars:
            self.loop.after(self.chance.uniform(0, 5_000), car.start)
        for at_ms, job in jobs_of(self.plan):
            self.loop.after(at_ms, lambda job=job: self._put_up(job))  # type: ignore[misc]

    def operate(self, action: Callable[[Dispatcher], object]) -> bool:
        """An operator's order, by way of the first replica that is there; whether it was carried out."""
        return any(replica.operate(action) for replica in self.replicas)

    def audit(self) -> None:
        """What can only be seen of the whole."""
        self.book_watch.audit()
        for watch in self.car_watches.values():
            watch.audit()

    def audit_payment(self) -> None:
        """Once every verdict has arrived: what the cars were told they were paid is what the book paid them."""
        for unit, watch in self.car_watches.items():
            told, paid = sum(watch.paid_micro.values()), self.book_watch.paid_to(unit)
            if told != paid:
                self._break(Invariant.MONEY, f"{unit} was told of {told}, the book paid {paid}")

    def close(self) -> None:
        """Let go of everything."""
        for car in self.cars:
            car.stop()
            car.disk.close()
        self.counter.close()

    # --- what is looked at --------------------------------------------------------------------------------------

    def stepped(
        self, garage: Garage, before: State, event: EventType, after: State, effects: tuple[EffectType, ...]
    ) -> None:
        """See `garage.Watch`."""
        self.car_watches[garage.unit].stepped(before, event, after, effects)

    def took_up(self, garage: Garage) -> None:
        """See `garage.Watch`."""
        self.car_watches[garage.unit].took_up()

    def committed(self, garage: Garage) -> None:
        """See `garage.Watch`."""
        self.car_watches[garage.unit].committed()

    def worked(self, garage: Garage, worked: Worked) -> None:
        """See `garage.Watch`."""
        self.car_watches[garage.unit].worked(worked)

    def published(self, garage: Garage, topic: str, body: bytes) -> None:
        """See `garage.Watch`."""
        self.car_watches[garage.unit].published(topic, body)

    def booked(self, replica: Replica) -> None:
        """See `replica.Watch`."""
        self.book_watch.booked()
        if replica.waiting > INTAKE_MESSAGES:
            self._break(Invariant.QUEUES_BOUNDED, f"{replica.waiting} messages wait for {replica.name}")

    def answered(self, _replica: Replica, topic: str, body: bytes) -> None:
        """See `replica.Watch`."""
        if topic.endswith("/verdict"):
            self.book_watch.said(decode(dsse.parse(body).payload, VerdictMessage))

    def failed(self, what: str) -> None:
        """Something was logged as a failure that nobody foresees."""
        self._break(Invariant.NOTHING_FAILS, what)

    def overdue(self) -> None:
        """The time for all jobs to end is over."""
        left = [name for name in self.jobs if not self.book_watch.has_ended(name)]
        owing = [unit for unit, watch in self.car_watches.items() if watch.owes]
        self._break(Invariant.EVERY_JOB_ENDS, f"not ended: {left[:5]} ({len(left)}); owing: {owing[:5]}")

    def _break(self, invariant: Invariant, detail: str) -> None:
        if self._looking_for in {"", invariant.value} and self.violation is None:
            self.violation = Violation(invariant.value, round(self.now_ms()), detail)
            self.loop.stop()

    # --- how it is built ----------------------------------------------------------------------------------------

    def _ppm(self) -> float:
        return self.chance.uniform(-CRYSTAL_PPM, CRYSTAL_PPM)

    def _dice(self, name: str) -> random.Random:
        return random.Random(f"{self.plan.seed}/{name}")

    def _replica(self, number: int) -> Replica:
        replica = Replica(
            f"replica-{number}",
            loop=self.loop,
            chance=self._dice(f"replica-{number}"),
            broker=self.broker,
            watch=self,
            counter=self.counter,
        )
        self.broker.members.append(replica)
        replica.others = self.broker.members  # type: ignore[assignment]
        return replica

    def _car(self, number: int) -> Garage:
        unit = f"car-{number:04d}"
        signer = SeededSigner(self.plan.seed, unit)
        return Garage(
            unit,
            self._enrol(unit, signer),
            loop=self.loop,
            chance=self._dice(unit),
            clock=CarClock(self.loop, self._ppm(), round(self.chance.uniform(-5_000, 5_000))),
            signer=signer,
            broker=self.broker,
            watch=self,
            objects=self.objects,
            packages=tuple((one.name, one.sha256) for one in PACKAGES),
            dispatcher_keys=self.dispatcher_keys,
            item_ms=lambda job: self.jobs[job].package.item_ms,
            answer_bytes=lambda job: self.jobs[job].package.answer_bytes,
            make=AgentRun,
        )

    def _enrol(self, unit: str, signer: SeededSigner) -> str:
        """As every car is enrolled, once; the cell it gets."""
        service = self.counter.service(lambda *_rest, **_more: True, None)
        self.counter.admit(f"code of {unit}")
        pem = signer.public_key_pem()
        asked = Enrolment(code=f"code of {unit}", unit=unit, public_key_pem=pem, key_protection=signer.protection)
        answer = service.enrol(dsse.sign(ENROLMENT_TYPE, encode(asked), signer))
        return decode(dsse.verify(answer, ENROLMENT_TYPE, self.dispatcher_keys), Enrolled).cell

    def _put_up(self, job: Job) -> None:
        body = msgspec.msgpack.encode(list(job.items))
        self.counter.put_up(
            JobGrant(
                job=job.name,
                epoch=0,
                nonce="0" * 32,
                customer=job.customer,
                package=PackageRef(name=job.package.name, sha256=job.package.sha256),
                input=ObjectRef(url="", sha256=self.objects.put(body), bytes=len(body)),
                items=len(job.items),
                slice_items=job.slice_items,
                slices=(0,),
                ttl_s=job.ttl_s,
                price_micro_per_item=job.price_micro_per_item,
                currency=CURRENCY,
            ),
            body if job.package.inline else None,
        )
        self.book_watch.booked()
