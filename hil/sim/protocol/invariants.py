"""What must hold after every event, told by books of its own: what was granted, settled, owed and paid.

Each invariant has a name; a broken one is a `Violation` with the true time and what was seen. The witness asks the
database and the cars' disks, never the code under test, about what is so.
"""

from __future__ import annotations

import enum

import msgspec


class Invariant(enum.StrEnum):
    """What must hold, whatever breaks."""

    SETTLED_STAYS = "settled_is_never_lost"
    """What was settled is in the database, unchanged, for good."""
    LET_GO_FOR_A_VERDICT = "nothing_let_go_without_its_verdict"
    """A car lets go of a hand-in, and of a finished slice, for a signed verdict on that very statement alone."""
    HONEST_ACCEPTED = "honest_work_is_never_called_bad"
    """The cars here are honest: no verdict on their work is `bad`, and the answers are what they computed."""
    PAID_ONCE = "nothing_is_settled_twice"
    """A slice is paid once, a lease has one hand-in, and what one verdict said the next repeats."""
    ONE_HOLDER = "one_holder_settles"
    """A lease has one holder; only that unit, in the row's present epoch, settles it."""
    EVERY_JOB_ENDS = "every_job_ends"
    """Once the faults have stopped, every job is done within bounded time, and nobody owes anything."""
    QUEUES_BOUNDED = "queues_are_bounded"
    """Outbox, messages in flight, tasks, and the dispatcher's queue."""
    NO_TIGHT_LOOPS = "no_tight_loops"
    """Messages and effects per time."""
    ENDS_FIRST = "the_cars_lease_ends_first"
    """No slice is computed after the car's lease has ended, and that ends before the dispatcher's."""
    MONEY = "money_adds_up"
    """Paid is the sum of the slices' prices, and what the cars' ledgers say."""
    LEDGER = "ledgers_verify"
    """A car's ledger has the size and root that its leaves have."""
    NOTHING_FAILS = "nothing_fails_unforeseen"
    """No handler raises what it does not expect."""


INVARIANTS = tuple(one.value for one in Invariant)


class Violation(msgspec.Struct, frozen=True):
    """What was broken, when (true time), and how."""

    name: str
    at_ms: int
    detail: str
