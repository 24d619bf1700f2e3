"""What must hold of a car: of its core's steps, of its disk after every commit, of its messages and of its work."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.core.asking import OUTBOX_MAX
from agent.core.effects import EffectType
from agent.core.events import EventType
from agent.core.model import JobKey, Verdict
from agent.core.state import State
from agent.fleet.messages import VERDICT_TYPE, VerdictMessage, decode
from agent.trust import dsse
from agent.trust.merkle import Tree, leaf_hash
from hil.sim.protocol.computer import Worked
from hil.sim.protocol.garage import Garage
from hil.sim.protocol.invariants import Invariant

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
MESSAGES_A_MINUTE = 60
"""One a second: the protocol's budget for a car."""
EFFECTS_A_MINUTE = 900
IN_FLIGHT_MAX = 4
"""What brokers take of anybody, whatever a link believes."""
TASKS_MAX = 64
LATE_MS = 1_200.0
"""How long after its end a lease may still be computed on: the ticker's longest wait, and the worker's drain."""
LETS_GO = frozenset({Verdict.SETTLED, Verdict.DUPLICATE, Verdict.STALE, Verdict.BAD})
Break = Callable[[Invariant, str], None]


class CarWatch:
    """The books kept about one car."""

    def __init__(
        self,
        garage: Garage,
        dispatcher_keys: Mapping[str, EllipticCurvePublicKey],
        now_ms: Callable[[], float],
        broken: Break,
        leased: Callable[[str, JobKey, float], None],
    ) -> None:
        self._garage, self._keys, self._now_ms, self._break, self._leased = (
            garage,
            dispatcher_keys,
            now_ms,
            broken,
            leased,
        )
        self._outbox: dict[JobKey, str] = {}
        self._slices: set[tuple[str, int, int]] = set()
        self._leaves = 0
        self._tree = Tree()
        self._messages: deque[float] = deque()
        self._effects: deque[tuple[float, int]] = deque()
        self._effect_count = 0
        self._ends_ms: dict[JobKey, float] = {}
        self.paid_micro: dict[JobKey, int] = {}
        self.messages = self.bytes = self.steps = 0

    # --- the core ----------------------------------------------------------------------------------------------

    def stepped(self, before: State, _event: EventType, after: State, effects: tuple[EffectType, ...]) -> None:
        """One step of the core."""
        self.steps += 1
        if effects:
            self._count_effects(len(effects))
        if after.outbox is not before.outbox and len(after.outbox) > OUTBOX_MAX + 1:
            self._break(Invariant.QUEUES_BOUNDED, f"{len(after.outbox)} hand-ins in the outbox")
        lease = after.lease
        if lease is not None and (before.lease is None or before.lease.expires_ms != lease.expires_ms):
            ends_ms = self._garage.clock.true_ms(lease.expires_ms)
            if not any(lease.key == one.key for one in before.left_over):
                self._ends_ms[lease.key] = ends_ms
                self._leased(self._garage.unit, lease.key, ends_ms)

    def _count_effects(self, count: int) -> None:
        now_ms = self._now_ms()
        self._effects.append((now_ms, count))
        self._effect_count += count
        while self._effects[0][0] < now_ms - MINUTE_MS:
            self._effect_count -= self._effects.popleft()[1]
        if self._effect_count > EFFECTS_A_MINUTE:
            self._break(Invariant.NO_TIGHT_LOOPS, f"{self._effect_count} effects in a minute")

    def published(self, topic: str, body: bytes) -> None:
        """One message left the car."""
        now_ms = self._now_ms()
        self.messages += 1
        self.bytes += len(body)
        self._messages.append(now_ms)
        while self._messages[0] < now_ms - MINUTE_MS:
            self._messages.popleft()
        if len(self._messages) > MESSAGES_A_MINUTE:
            self._break(Invariant.NO_TIGHT_LOOPS, f"{len(self._messages)} messages in a minute, the last on {topic}")
        run = self._garage.run
        if run is not None and run.link.in_flight > IN_FLIGHT_MAX:
            self._break(Invariant.QUEUES_BOUNDED, f"{run.link.in_flight} messages in flight")
        if run is not None and len(run.hands.tasks) > TASKS_MAX:  # type: ignore[attr-defined]
            self._break(Invariant.QUEUES_BOUNDED, f"{len(run.hands.tasks)} tasks under way")  # type: ignore[attr-defined]

    def worked(self, worked: Worked) -> None:
        """A slice was computed for a while."""
        ends_ms = self._ends_ms.get(worked.key)
        if ends_ms is None:
            self._break(Invariant.ENDS_FIRST, f"{worked.key} was computed, and never leased")
            return
        woke_ms = self._garage.woke_ms if self._garage.woke_ms > worked.began_ms else 0.0
        if worked.began_ms > ends_ms + LATE_MS or worked.ended_ms > max(ends_ms, woke_ms) + LATE_MS:
            late_ms = worked.ended_ms - ends_ms
            self._break(
                Invariant.ENDS_FIRST, f"slice {worked.index} of {worked.key} was computed {late_ms:.0f} ms late"
            )

    # --- the disk ----------------------------------------------------------------------------------------------

    def committed(self) -> None:
        """The store took a call: what is on disk now, against what was."""
        database = self._garage.disk.database
        count = database.total_changes
        if count == self._garage.seen_changes:
            return
        self._garage.seen_changes = count
        self._read_leaves()
        outbox = {
            JobKey(job, epoch): sha256
            for job, epoch, sha256 in database.execute("SELECT job, epoch, statement_sha256 FROM outbox")
        }
        for key in self._outbox.keys() - outbox.keys():
            self._judged(key, self._outbox[key])
        for key, sha256 in outbox.items():
            if self._outbox.get(key, sha256) != sha256:
                self._break(Invariant.LET_GO_FOR_A_VERDICT, f"the hand-in of {key} became another")
        self._outbox = outbox
        slices = set(database.execute("SELECT job, epoch, idx FROM slices"))
        for job, epoch, index in self._slices - slices:
            if JobKey(job, epoch) not in self.paid_micro:
                self._break(Invariant.LET_GO_FOR_A_VERDICT, f"slice {index} of {job}/{epoch} vanished from the disk")
        self._slices = slices

    def _read_leaves(self) -> None:
        """New leaves of the ledger; each verdict among them is verified, and what it paid noted."""
        rows = self._garage.disk.database.execute(
            "SELECT idx, kind, job, epoch, leaf FROM ledger WHERE idx >= ? ORDER BY idx", (self._leaves,)
        ).fetchall()
        for index, kind, job, epoch, leaf in rows:
            if index != self._leaves:
                self._break(Invariant.LEDGER, f"leaf {index} follows leaf {self._leaves - 1}")
            self._leaves += 1
            self._tree.append(leaf_hash(bytes(leaf)))
            if kind == "verdict":
                self._verdict(JobKey(job, epoch), bytes(leaf))

    def _verdict(self, key: JobKey, envelope: bytes) -> None:
        message = decode(dsse.verify(envelope, VERDICT_TYPE, self._keys), VerdictMessage)
        about = (message.unit, message.job, message.epoch)
        owed = self._outbox.get(key)
        if about != (self._garage.unit, *key_of(key)) or message.verdict not in LETS_GO:
            self._break(Invariant.LET_GO_FOR_A_VERDICT, f"{key} was let go for {message.verdict} on {about}")
        if owed is None or message.statement_sha256 != owed:
            said = message.statement_sha256[:12]
            self._break(Invariant.LET_GO_FOR_A_VERDICT, f"{key} ({owed}) was let go for a verdict on {said!r}")
        if message.verdict is Verdict.BAD:
            self._break(Invariant.HONEST_ACCEPTED, f"{key} was called bad: {message.reason}")
        if key in self.paid_micro:
            self._break(Invariant.PAID_ONCE, f"{key} has a second verdict in the ledger")
        self.paid_micro[key] = message.paid_micro

    def _judged(self, key: JobKey, sha256: str) -> None:
        if key not in self.paid_micro:
            self._break(Invariant.LET_GO_FOR_A_VERDICT, f"the hand-in {sha256[:12]} of {key} went without a verdict")

    def took_up(self) -> None:
        """Another life begins: the core knows of everything that is on the disk, and the ledger is whole."""
        self.audit()
        run = self._garage.run
        if run is None:
            return
        database = self._garage.disk.database
        rows = database.execute("SELECT job, epoch FROM leases WHERE state != 'closed'").fetchall()
        forgotten = {JobKey(job, epoch) for job, epoch in rows} - set(run.state.have)
        if forgotten:
            self._break(Invariant.LET_GO_FOR_A_VERDICT, f"{sorted(forgotten)} are on the disk, and not known")

    def audit(self) -> None:
        """The ledger from its first leaf on, and what the cars says it was paid."""
        database = self._garage.disk.database
        rows = database.execute("SELECT leaf, hash FROM ledger ORDER BY idx").fetchall()
        tree = Tree()
        for leaf, digest in rows:
            if leaf_hash(bytes(leaf)) != bytes(digest):
                self._break(Invariant.LEDGER, "a leaf has another hash than was kept with it")
            tree.append(leaf_hash(bytes(leaf)))
        if (tree.size, tree.root()) != (self._tree.size, self._tree.root()):
            self._break(Invariant.LEDGER, "leaves were changed or lost")
        run = self._garage.run
        if run is not None and run.store.head is not None:
            head, stored = run.store.head
            if (head.size, head.root) != (tree.size, tree.root().hex()) or stored != head:
                self._break(Invariant.LEDGER, f"the head {head.size}/{head.root[:12]} is not that of the leaves")
        paid = database.execute("SELECT coalesce(sum(paid_micro), 0) FROM leases").fetchone()[0]
        if paid != sum(self.paid_micro.values()):
            self._break(
                Invariant.MONEY, f"the leases say {paid} was paid, the verdicts {sum(self.paid_micro.values())}"
            )

    @property
    def owes(self) -> int:
        """Hand-ins without a verdict, and leases that nobody handed in."""
        database = self._garage.disk.database
        return int(database.execute("SELECT count(*) FROM leases WHERE state != 'closed'").fetchone()[0])

    @property
    def fingerprint(self) -> str:
        """Of everything that this car signed and was told."""
        return hashlib.sha256(self._tree.root()).hexdigest()


def key_of(key: JobKey) -> tuple[str, int]:
    """A token as a pair."""
    return key.job, key.epoch
