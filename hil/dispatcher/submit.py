"""Putting a job up: its items become one input object, and the job a row in the book.

The input is `msgpack` of the list of items, so that a worker splits it without knowing what the items are. What a car
could not be granted in one message (16 KiB) is refused here.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

import msgspec

from agent.errors import FleetError
from agent.fleet.messages import JobGrant, ObjectRef, PackageRef
from hil.dispatcher.book import Book, Terms
from hil.dispatcher.objects import Objects


def add_job(
    book: Book,
    objects: Objects,
    *,
    package: PackageRef,
    items: Sequence[bytes],
    slice_items: int,
    customer: str,
    price_micro_per_item: int,
    currency: str,
    ttl_s: int,
    workload_class: str | None = None,
    expected_s: int = 0,
    terms: Terms | None = None,
) -> str:
    """Put `items` up to be run through `package`, `slice_items` at a time; the new job's name.

    The price is in millionths of `currency` for each item that is answered; `ttl_s` is how long a lease of it lasts,
    `expected_s` how long the whole job should take a car (0: unknown). Raises FleetError for what `dw/v1` cannot carry.
    """
    if not items or slice_items < 1:
        raise FleetError("a job needs at least one item, and slices of at least one item")
    body = msgspec.msgpack.encode(list(items))
    if terms is not None and terms.sealed:
        objects.only_sealed(hashlib.sha256(body).hexdigest())  # before it is there
    grant = job_grant(
        job=f"job-{secrets.token_hex(6)}",
        customer=customer,
        package=package,
        input=ObjectRef(url="", sha256=objects.put(body), bytes=len(body)),
        items=len(items),
        slice_items=slice_items,
        price_micro_per_item=price_micro_per_item,
        currency=currency,
        ttl_s=ttl_s,
        workload_class=workload_class,
        expected_s=expected_s,
    )
    book.add_job(grant, terms)
    return grant.job


def job_grant(
    *,
    job: str,
    customer: str,
    package: PackageRef,
    input: ObjectRef,  # noqa: A002 - the message's own name for it
    items: int,
    slice_items: int,
    price_micro_per_item: int,
    currency: str,
    ttl_s: int,
    workload_class: str | None = None,
    expected_s: int = 0,
) -> JobGrant:
    """The job as it will be granted, for `Book.add_job`; raises FleetError for what `dw/v1` cannot carry."""
    grant = JobGrant(
        job=job,
        epoch=0,
        nonce="0" * 32,
        customer=customer,
        package=package,
        input=input,
        items=items,
        slice_items=slice_items,
        slices=tuple(range(-(-items // slice_items))),
        ttl_s=ttl_s,
        price_micro_per_item=price_micro_per_item,
        currency=currency,
        workload_class=workload_class,
        expected_s=expected_s,
    )
    try:
        return msgspec.json.decode(msgspec.json.encode(grant), type=JobGrant)
    except msgspec.ValidationError as error:
        raise FleetError(f"the job cannot be granted: {error}") from error
