"""Collecting: the answers in the order of the items, each with its file's name, as jobs end.

A job's answers are fetched a slice at a time once it is done (or given up) and every job before it is written, so
memory is bounded and the file is always a beginning of the whole. An item without an answer says why: the package's own
words (not a readable image), or that its job was given up.
"""

from __future__ import annotations

from collections.abc import Callable
from time import sleep
from typing import Any, TextIO

import msgspec

from agent.errors import FleetError
from agent.printable import printable
from hil.dispatcher.item_errors import error_of
from hil.dispatcher.submissions import JobProgress, job_name
from hil.submit.client import Client
from hil.submit.record import JobFiles, Record
from hil.submit.verdicts import Verdicts

POLL_S = 0.5
POLL_MAX_S = 5.0
UNSENT = "unsent"
"""Noted, and never put up: the submission was broken off."""
OVER = {"done", "dead", "cancelled", UNSENT}
FAILED_NAMED = 1000
"""More failed items are counted, not named: a million of them would fill the memory."""


class Failed(msgspec.Struct, frozen=True):
    """An item without an answer."""

    file: str
    error: str


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a submission so far."""

    jobs: int
    jobs_over: int
    items: int
    answered: int
    failed: int
    failed_items: tuple[Failed, ...]
    paid_micro: int

    @property
    def whole(self) -> bool:
        """Whether every item has its answer, or an error in place of it."""
        return self.answered + self.failed == self.items


class Collector:
    """Writes answers to `out` as JSON lines: `{"file", "answer"}` or `{"file", "error"}`; `verdicts` keeps its own."""

    def __init__(self, client: Client, record: Record, out: TextIO | None, verdicts: Verdicts | None = None) -> None:
        self._client, self._record, self._out, self._verdicts = client, record, out, verdicts
        self._jobs = record.job_files()
        self._answered = self._failed = self._paid_micro = self._over = 0
        self._failures: list[Failed] = []

    def collect(self, *, wait: bool, on_progress: Callable[[int, int, int], None]) -> Collected:
        """Take what is there, and with `wait` go on until every job is over. Raises FleetError.

        `on_progress` hears how many items are computed, how many of these failed, and what was paid in millionths.
        """
        current = next(self._jobs, None)
        pause_s = POLL_S
        while current is not None:
            page = self._page(current.number)
            began = current.number
            for job in page:
                if current is None or job.job != self._name(current) or job.state not in OVER:
                    break
                self._take(current, job)
                current = next(self._jobs, None)
            self._tell(page[(len(page) if current is None else current.number - began) :], on_progress)
            if current is None or (not wait and current.number == began):
                break
            if current.number == began:
                sleep(pause_s)
                pause_s = min(POLL_MAX_S, pause_s * 1.2)
            else:
                pause_s = POLL_S
        return Collected(
            jobs=self._record.jobs,
            jobs_over=self._over,
            items=self._record.files,
            answered=self._answered,
            failed=self._failed,
            failed_items=tuple(self._failures),
            paid_micro=self._paid_micro,
        )

    def _name(self, job: JobFiles) -> str:
        return job_name(self._record.heading.submission, job.number)

    def _page(self, first: int) -> tuple[JobProgress, ...]:
        page = self._client.page(self._record.heading.submission, first)
        if page is not None and page.jobs and page.jobs[0].job == job_name(page.submission, first):
            return page.jobs
        if not self._record.complete and first == self._record.jobs - 1:  # noted, and never put up
            return (_never_put_up(job_name(self._record.heading.submission, first)),)
        raise FleetError(
            f"the dispatcher does not have job {first} of {self._record.heading.submission}",
            hint="is it the one that was submitted to?",
        )

    def _tell(self, rest: tuple[JobProgress, ...], on_progress: Callable[[int, int, int], None]) -> None:
        done = self._answered + self._failed + sum(job.items_done for job in rest)
        failed = self._failed + sum(job.items_failed for job in rest)
        on_progress(done, failed, self._paid_micro + sum(job.paid_micro for job in rest))

    def _take(self, files: JobFiles, job: JobProgress) -> None:
        """Write every item of a job that is over."""
        self._over += 1
        self._paid_micro += job.paid_micro
        whole = job.state == "done"
        reason = "" if whole else self._why_not(job)
        place = 0
        if job.slices_done:
            slices = self._client.slices(job.job)
            if self._verdicts is not None:
                self._verdicts.take(job.job, slices)
            for result in slices:
                first = result.slice * job.slice_items
                self._none(files.files[place:first], reason)
                answers = self._client.answers(job.job, result)
                place = first + len(answers)
                for file, answer in zip(files.files[first:place], answers, strict=True):
                    self._one(file, answer)
        self._none(files.files[place:], reason or "its slice has no answer")

    def _why_not(self, job: JobProgress) -> str:
        if job.state == UNSENT:
            return "the submission was broken off before it was put up"
        why = printable(self._client.report(job.job).why)
        return f"its job is {job.state}{': ' if why else ''}{why}"

    def _none(self, files: tuple[str, ...], reason: str) -> None:
        for file in files:
            self._one(file, {"error": reason})

    def _one(self, file: str, answer: Any) -> None:
        """One line. What is not an object with an `error` is an answer, whatever the package says."""
        error = error_of(answer)
        if error is not None:
            self._failed += 1
            if len(self._failures) < FAILED_NAMED:
                self._failures.append(Failed(file, printable(error)))
            line = {"file": file, "error": error}
        else:
            self._answered += 1
            line = {"file": file, "answer": answer}
        if self._out is not None:
            self._out.write(msgspec.json.encode(line).decode("utf-8") + "\n")


def _never_put_up(job: str) -> JobProgress:
    return JobProgress(
        job=job,
        state=UNSENT,
        package_sha256="",
        input_sha256="",
        items=0,
        slice_items=1,
        slices_done=0,
        items_done=0,
        items_failed=0,
        paid_micro=0,
        currency="",
    )
