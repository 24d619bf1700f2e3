"""Sending: files become items, items jobs of bounded size, and each job is up before the next is read.

Memory is bounded by one job's items, however many files there are. A submission that ends halfway (a signal, a
dispatcher that is gone) has put up whole jobs only, and its record says which.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from agent.fleet.messages import PackageRef
from agent.inference.slices import fitting_items
from agent.package import Package
from agent.wire import encode_input
from hil.dispatcher.jobs_api import InputRef, JobOrder
from hil.dispatcher.submissions import job_name
from hil.submit.client import Client
from hil.submit.record import Complete, JobFiles, Writer
from hil.submit.sources import Source, read_items

JOB_ITEMS = 256
JOB_BYTES = 16 * 1024**2
"""A car keeps a job's input in memory."""
MAX_SLICES = 1024
IMAGE_SLICE_ITEMS = 16
TENSOR_SLICE_ITEMS = 64


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What every job of a submission is put up with."""

    slice_items: int
    price_micro_per_item: int
    currency: str
    ttl_s: int
    customer: str
    workload_class: str | None = None
    sealed: bool = False


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What was put up; `cars` is how many hold the package."""

    jobs: int
    items: int
    cars: int


def new_name() -> str:
    """A new submission's name."""
    return f"sub{secrets.token_hex(6)}"


def usual_slice_items(package: Package) -> int:
    """Items of a slice where nobody says: fewer where the golden answers show that answers are long."""
    return fitting_items(package, IMAGE_SLICE_ITEMS if package.manifest.input == "image" else TENSOR_SLICE_ITEMS)


def send(
    client: Client,
    record: Writer,
    *,
    submission: str,
    files: Sequence[Path],
    source: Source,
    package: Package,
    terms: Terms,
    on_sent: Callable[[int], None],
) -> Sent:
    """Put up every file; `on_sent` hears how many have been so far. Raises ConfigError or FleetError."""
    reference = PackageRef(name=package.manifest.name, sha256=package.package_sha256)
    number = items = cars = 0
    for number, batch in enumerate(_batches(files, source, min(JOB_ITEMS, MAX_SLICES * terms.slice_items)), 1):
        body = encode_input([item for _, item in batch])
        sha256 = client.put_input(body)
        record.add(JobFiles(number=number - 1, files=tuple(str(path) for path, _ in batch)))
        order = JobOrder(
            job=job_name(submission, number - 1),
            customer=terms.customer,
            package=reference,
            input=InputRef(sha256=sha256, bytes=len(body)),
            items=len(batch),
            slice_items=min(terms.slice_items, len(batch)),
            price_micro_per_item=terms.price_micro_per_item,
            currency=terms.currency,
            ttl_s=terms.ttl_s,
            workload_class=terms.workload_class,
            sealed=terms.sealed,
        )
        cars = client.put_up(order).cars
        items += len(batch)
        on_sent(items)
    record.add(Complete(jobs=number, files=items))
    return Sent(jobs=number, items=items, cars=cars)


def _batches(files: Sequence[Path], source: Source, most_items: int) -> Iterator[list[tuple[Path, bytes]]]:
    """Files with their items, as many at a time as make one job."""
    batch: list[tuple[Path, bytes]] = []
    size = 0
    for path, item in read_items(files, source):
        if batch and (len(batch) == most_items or size + len(item) > JOB_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((path, item))
        size += len(item)
    if batch:
        yield batch
