"""`driveway-hil submit`: from files to answers.

Answers go to standard output or a file, and beside that file what the dispatcher signs about them; what is going on,
and how to collect later, to standard error. Exit status: 0 every item has an answer (or, without --wait, is up), 1 some
have none, 130 after Ctrl-C, which ends this program only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import msgspec

from hil.output import check_writable
from hil.submit.client import Client
from hil.submit.collect import Collected, Collector, Failed
from hil.submit.endpoint import Endpoint
from hil.submit.packages import find_package
from hil.submit.record import Heading, Record, Writer, record_folder
from hil.submit.screen import Screen
from hil.submit.send import Terms, new_name, send, usual_slice_items
from hil.submit.sources import find_files, source_for
from hil.submit.verdicts import Verdicts

VERDICTS = ".verdicts.jsonl"
"""Ends the name of the file with the dispatcher's verdicts, beside that of the answers."""
NAMED = 5
"""Failed items named on the screen; the others are in the answers."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of `--json`: money in units of the currency, throughput from the first file to the last answer."""

    submission: str
    package: str
    items: int
    jobs: int
    answered: int
    failed: int
    failed_items: tuple[Failed, ...]
    complete: bool
    paid: float
    currency: str
    seconds: float
    items_per_s: float | None


def submit(options: Namespace) -> int:
    """Send, and collect if asked to. Raises DrivewayError with what is wrong."""
    check_writable(options.out, options.json)
    began_s = time.monotonic()
    with Screen() as screen:
        if options.collect is not None:
            record = Record(record_folder(), options.collect)
            endpoint = _endpoint(options) if options.dir or options.url else record.heading.endpoint
            return _collect(options, screen, endpoint, Client(endpoint), record, began_s)
        return _send(options, screen, began_s)


def _endpoint(options: Namespace) -> Endpoint:
    if options.dir is not None:
        return Endpoint(folder=str(options.dir.absolute()))
    key_file = "" if options.dispatcher_key is None else str(options.dispatcher_key.absolute())
    return Endpoint(url=options.url, token_file=str(options.token_file.absolute()), key_file=key_file)


def _send(options: Namespace, screen: Screen, began_s: float) -> int:
    endpoint = _endpoint(options)
    client = Client(endpoint)
    client.check()
    package = find_package(options.package, options.dir, dict(options.shape), options.files)
    source = source_for(package)
    files, others = find_files(options.files, source)
    if others:
        screen.tell(f"{_count(others, 'other file')} left out: not {' or '.join(source.suffixes)}")
    submission = new_name()
    heading = Heading(
        submission=submission,
        endpoint=endpoint,
        package=package.manifest.name,
        package_sha256=package.package_sha256,
        files=len(files),
        price_micro_per_item=options.price,
        currency=options.currency,
    )
    terms = Terms(
        slice_items=options.slice_items or usual_slice_items(package),
        price_micro_per_item=options.price,
        currency=options.currency,
        ttl_s=options.ttl,
        customer=options.customer,
        workload_class=options.workload_class,
        sealed=options.sealed,
    )
    with Writer(record_folder(), heading) as record:
        try:
            sent = send(
                client,
                record,
                submission=submission,
                files=files,
                source=source,
                package=package,
                terms=terms,
                on_sent=lambda count: screen.show("sent", count, len(files)),
            )
        except KeyboardInterrupt:
            screen.tell(f"broken off: what was sent goes on; {_how_to_collect(submission)}")
            return 130
    screen.tell(f"{_count(sent.items, 'item')} in {_count(sent.jobs, 'job')}: {submission}")
    if not sent.cars:
        screen.tell(f"no car has said yet that it holds {package.manifest.name}: the jobs wait for one that does")
    if options.wait:
        return _collect(options, screen, endpoint, client, Record(record_folder(), submission), began_s)
    screen.tell(_how_to_collect(submission))
    taken = Collected(
        jobs=sent.jobs, jobs_over=0, items=sent.items, answered=0, failed=0, failed_items=(), paid_micro=0
    )
    _write_report(options.json, heading, taken, time.monotonic() - began_s)
    return 0


def _collect(  # noqa: PLR0917 - all that a submission is made of
    options: Namespace, screen: Screen, endpoint: Endpoint, client: Client, record: Record, began_s: float
) -> int:
    """Fetch the answers; those of a submission that is not over are written as far as they are there."""
    heading = record.heading
    wait = bool(options.wait)
    try:
        with _answers_file(options.out) as out, _verdicts(options.out, client, endpoint) as verdicts:
            collected = Collector(client, record, out, verdicts).collect(
                wait=wait,
                on_progress=lambda done, failed, paid_micro: screen.show(
                    "computed", done, record.files, _more(failed, paid_micro, heading.currency)
                ),
            )
    except KeyboardInterrupt:
        screen.tell(f"the jobs go on; {_how_to_collect(heading.submission)}")
        return 130
    _tell_failed(screen, collected)
    if not record.complete:
        screen.tell(f"{heading.files - record.files} of {heading.files} files were never sent: it was broken off")
    if not collected.whole:
        over = collected.answered + collected.failed
        screen.tell(f"{over} of {collected.items} items are over so far; {_how_to_collect(heading.submission)}")
    _write_report(options.json, heading, collected, time.monotonic() - began_s)
    return 0 if collected.whole and not collected.failed and record.complete else 1


def _tell_failed(screen: Screen, collected: Collected) -> None:
    if not collected.failed:
        return
    screen.tell(f"{collected.failed} of {collected.items} items failed:")
    for failed in collected.failed_items[:NAMED]:
        screen.tell(f"  {failed.file}: {failed.error}")
    if collected.failed > NAMED:
        screen.tell(f"  and {collected.failed - NAMED} more, each with its reason among the answers")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _how_to_collect(submission: str) -> str:
    return f"collect with: driveway-hil submit --collect {submission} --wait --out FILE"


def _more(failed: int, paid_micro: int, currency: str) -> str:
    paid = f"{paid_micro / 1e6:.6f}".rstrip("0").rstrip(".")
    return f"{f'{failed} failed  ' if failed else ''}{f'{paid} {currency}' if paid_micro else ''}".strip()


@contextlib.contextmanager
def _answers_file(path: Path | None) -> Iterator[TextIO]:
    """Where answers go; a file is there only once it is whole as far as it was meant to be."""
    if path is None:
        yield sys.stdout
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _verdicts(out: Path | None, client: Client, endpoint: Endpoint) -> Iterator[Verdicts | None]:
    """What the dispatcher signs goes beside the file of answers; where there is none, it is not asked for."""
    if out is None:
        yield None
        return
    keys = endpoint.keys()
    with _answers_file(out.with_name(f"{out.name}{VERDICTS}")) as file:
        yield Verdicts(client, file, keys)


def _write_report(path: Path | None, heading: Heading, collected: Collected, seconds: float) -> None:
    if path is None:
        return
    report = Report(
        submission=heading.submission,
        package=heading.package,
        items=collected.items,
        jobs=collected.jobs,
        answered=collected.answered,
        failed=collected.failed,
        failed_items=collected.failed_items,
        complete=collected.whole,
        paid=collected.paid_micro / 1e6,
        currency=heading.currency,
        seconds=round(seconds, 3),
        items_per_s=round(collected.answered / seconds, 3) if collected.whole and seconds else None,
    )
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
