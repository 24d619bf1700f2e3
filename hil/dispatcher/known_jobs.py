"""Jobs whose answers the operator knows, among those of customers: a car cannot tell one from another.

Such a job is made after the pattern of one that was just finished. Customer, package, price, priority, sizes, slices
and the form of its name are the pattern's; its items are drawn from the pattern's and from earlier inputs of the same
customer and package, in an order of their own. So no answer can be looked up by the digest of an input, and no
customer's items get into another's worker. Sealed inputs are mixed with sealed ones only, into one that is sealed.

What is right is computed by the operator's own worker (`hil.dispatcher.referee`) before the job is put up, and by
nobody else: a known answer needs no majority, so one that cars had only agreed upon would let those who agreed on
a wrong one condemn the honest. Nor are a package's golden items any good: every car has their answers.

Such a job is settled and paid like any other, and is on nobody's bill (`known_jobs`). It is put among the first that
wait, and not at their end: where there is always work, it would come too late.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence

import msgspec

from agent.wire import decode_input, encode_input
from hil.dispatcher.copies import Copies
from hil.dispatcher.database import Database
from hil.dispatcher.job_names import name_like

MOST_SOURCES = 8
SOURCE_BYTES = 64 * 1024**2
"""Of inputs that are mixed: so much is in memory at a time, besides the pattern's own."""
LOOK_BACK = 2_000
"""Jobs before the pattern that are looked at for inputs."""
AMONG_FIRST = 32
DRAWS = 8
"""How often the items are drawn anew where their input was there before: short jobs have few orders."""


class Mixed(msgspec.Struct, frozen=True, kw_only=True):
    """A new input, and what is right for each of its slices."""

    body: bytes
    answers: dict[int, bytes]

    @property
    def sha256(self) -> str:
        """Its name."""
        return hashlib.sha256(self.body).hexdigest()


class KnownJobs:
    """Part of the book; see there for threads and errors. Call inside a transaction."""

    def __init__(self, database: Database, copies: Copies) -> None:
        self._database, self._copies = database, copies

    def sources(self, pattern: str) -> list[str]:
        """Digests of inputs to draw from, the pattern's own first; together they are not large."""
        # By age, and by no other index: that of states or of originals has most of the table under one key.
        rows = self._database.rows(
            "SELECT jobs.input_sha256, jobs.input_bytes FROM jobs JOIN jobs AS pattern ON pattern.job = :pattern"
            " WHERE jobs.seq <= pattern.seq AND jobs.seq > pattern.seq - :back AND jobs.state || '' = 'done'"
            " AND jobs.customer = pattern.customer AND jobs.package_sha256 = pattern.package_sha256"
            " AND jobs.sealed = pattern.sealed AND coalesce(jobs.replica_of, '') = ''"
            " AND jobs.input_sha256 != pattern.input_sha256"
            " AND NOT EXISTS (SELECT 1 FROM known_jobs WHERE known_jobs.job = jobs.job) ORDER BY jobs.seq DESC",
            pattern=pattern,
            back=LOOK_BACK,
        )
        own = self._database.row("SELECT input_sha256 FROM jobs WHERE job = :pattern", pattern=pattern)
        sources: dict[str, int] = {} if own is None else {own["input_sha256"]: 0}
        for row in rows:
            if len(sources) < MOST_SOURCES and sum(sources.values()) + row["input_bytes"] <= SOURCE_BYTES:
                sources.setdefault(row["input_sha256"], row["input_bytes"])
        return list(sources)

    def is_new(self, input_sha256: str) -> bool:
        """Whether no job ever had this input."""
        found = "SELECT 1 AS it FROM jobs WHERE input_sha256 = :input LIMIT 1"
        return self._database.row(found, input=input_sha256) is None

    def put_up(self, pattern: str, mixed: Mixed, now_ms: int) -> str:
        """The new job, FREE, with its answers known; its name. The input's object has to be there.

        Raises ConflictError where the name is taken, or the pattern was imitated already.
        """
        job = name_like(pattern)
        self._database.execute(
            "INSERT INTO jobs (job, seq, customer, package, package_sha256, input_sha256, input_bytes, items,"
            " slice_items, price_micro_per_item, currency, ttl_s, workload_class, executor, device_class, sealed,"
            " priority, estimate_us_per_item)"
            " SELECT :job, coalesce((SELECT ahead.seq FROM jobs AS ahead WHERE ahead.state = 'free'"
            " AND ahead.priority = pattern.priority ORDER BY ahead.seq LIMIT 1 OFFSET :ahead),"
            " (SELECT max(seq) + 1 FROM jobs)), customer, package, package_sha256, :input, :bytes, items, slice_items,"
            " price_micro_per_item, currency, ttl_s, workload_class, executor, device_class, sealed, priority,"
            " estimate_us_per_item FROM jobs AS pattern WHERE pattern.job = :pattern",
            job=job,
            ahead=random.SystemRandom().randrange(AMONG_FIRST),
            input=mixed.sha256,
            bytes=len(mixed.body),
            pattern=pattern,
        )
        sql = "INSERT INTO known_jobs (job, pattern, made_ms) VALUES (:job, :pattern, :now)"
        self._database.execute(sql, job=job, pattern=pattern, now=now_ms)
        self._copies.know(job, mixed.answers, now_ms)
        return job


def mix(
    own: bytes, others: Sequence[bytes], is_new: Callable[[str], bool], dice: random.Random | None = None
) -> bytes | None:
    """An input of as many items as `own` has, drawn from it and from `others`; None: there is none that is new.

    Raises WireError for what is no input. `is_new` says whether no job had an input of this digest.
    """
    dice = dice or random.SystemRandom()
    mine = decode_input(own)
    pool = mine + [item for body in others for item in decode_input(body)]
    for _ in range(DRAWS):
        body = encode_input(dice.sample(pool, len(mine)))
        if is_new(hashlib.sha256(body).hexdigest()):
            return bytes(body)
    return None
