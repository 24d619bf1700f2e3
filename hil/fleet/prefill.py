"""What stands in the dispatcher's book before a fleet comes: its cars, enrolled with their keys, and its jobs.

Written through the book's own doors, in a few large transactions. All cars are of one cell, since one machine is no
more than a small part of one; a cell follows from a unit's name, so the names are chosen for it (`hil.fleet.keys`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from agent.errors import FleetError
from agent.fleet.enrolment_messages import Enrolment
from agent.fleet.messages import ObjectRef, PackageRef
from hil.dispatcher.book import Book, Terms
from hil.dispatcher.submit import job_grant
from hil.fleet.keys import signer, unit_name
from hil.fleet.plan import FleetPlan
from hil.fleet.shells import PACKAGE, PACKAGE_SHA256

AT_ONCE = 1_000
SHORT_TTL_S = 900
"""Up to this a lease needs no renewal."""
LONG_TTL_S = 1_800
LONG_LEASES = 3
"""A long lease has the work of so many others."""
INPUT_SHA256 = "4" * 64
"""Of an input that nobody fetches."""
PRICE_MICRO = 10


def enrol(book: Book, plan: FleetPlan, seed: str) -> str:
    """Enrol all cars of the plan; their cell."""
    cells: set[str] = set()
    for batch in _batches(range(plan.cars)):
        with book.database.transaction():
            for number in batch:
                key, code = signer(seed, number), secrets.token_hex(8)
                book.units.add_code(code)
                enrolment = Enrolment(
                    code=code,
                    unit=unit_name(number),
                    public_key_pem=key.public_key_pem(),
                    key_protection=key.protection,
                )
                cells.add(book.units.enrol(enrolment, key.keyid).cell)
    if len(cells) != 1:
        raise FleetError(f"the cars are in {len(cells)} cells", hint="the dispatcher finds cells in another way now")
    return cells.pop()


def add_jobs(book: Book, plan: FleetPlan, count: int) -> None:
    """Put `count` jobs up; every so many of them has a long lease."""
    for batch in _batches(range(count)):
        with book.database.transaction():
            for number in batch:
                is_long = int(number * plan.long_share) != int((number + 1) * plan.long_share)
                grant = job_grant(
                    job=f"job-{number:07d}",
                    customer="acme",
                    package=PackageRef(name=PACKAGE, sha256=PACKAGE_SHA256),
                    input=ObjectRef(url="", sha256=INPUT_SHA256, bytes=1),
                    items=plan.lease_items * (LONG_LEASES if is_long else 1),
                    slice_items=plan.slice_items,
                    price_micro_per_item=PRICE_MICRO,
                    currency="USD",
                    ttl_s=LONG_TTL_S if is_long else SHORT_TTL_S,
                )
                book.add_job(grant, Terms())


def _batches(numbers: range) -> Iterable[range]:
    return (numbers[start : start + AT_ONCE] for start in range(0, len(numbers), AT_ONCE))
