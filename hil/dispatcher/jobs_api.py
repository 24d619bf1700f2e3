"""Work in and answers out over HTTP, for the operator, while the dispatcher runs.

    PUT  /objects/{sha256}                  a job's input -> 201, or 200 when it was there
    POST /jobs                              a JobOrder -> 201 and a JobTaken; the same one again -> 200
    GET  /jobs/{job}                        a JobReport
    GET  /jobs/{job}/results                the settled slices, a list of SliceResult
    GET  /jobs/{job}/results/{slice}        that slice's answers: a JSON array, one an item
    GET  /jobs/{job}/verdict?first=N        what the dispatcher signs about slices N and up to 127 more of a job that is
                                            over: a DSSE envelope (`hil.dispatcher.job_verdict`)
    GET  /submissions/{submission}?first=N  up to 256 of its jobs from number N on: a SubmissionPage

All with the operator's token (`Authorization: Bearer …`). A job is named by whoever puts it up
(`{submission}-{number}`), so a request that is sent again, since its answer was lost, puts nothing up twice. Bodies are
capped before they are read, and an input goes to the disk as it comes. What is wrong is answered with one sentence
(`{"error": …}`): 400 not understood, 403 no operator, 404 not there, 409 another job of this name, 411, 413, 503 the
database does not answer, 507 the disk is full.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import threading
from collections.abc import Callable
from http import HTTPStatus
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, Protocol, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec

from agent.core.policy import WorkloadClass
from agent.fleet.messages import MAX_MESSAGE_BYTES, Count, Identifier, ObjectRef, PackageRef, Sha256
from agent.trust.dsse import SigningKey
from hil.dispatcher.book import Book, Terms
from hil.dispatcher.database import ConflictError
from hil.dispatcher.http_exchange import BULK_S, Answer, Exchange, RequestError, body_length, read_body, serve_operator
from hil.dispatcher.job_verdict import read_job_verdict, sign_job_verdict
from hil.dispatcher.objects import Objects
from hil.dispatcher.submissions import PAGE_JOBS, JobProgress, SliceResult, job_name
from hil.dispatcher.submit import job_grant

MAX_INPUT_BYTES = 64 * 1024**2
"""Of one job. A car keeps an input in memory, so jobs are cut rather than this raised."""
CHUNK_BYTES = 64 * 1024
MAX_JOBS = 1_000_000
JOB_NAME = re.compile(r"([a-z0-9]{4,32})-(0|[1-9][0-9]{0,6})")
JOBS = re.compile("/jobs")
OBJECT = re.compile(r"/objects/([0-9a-f]{64})")
JOB = re.compile(rf"/jobs/({JOB_NAME.pattern})")
RESULTS = re.compile(rf"/jobs/({JOB_NAME.pattern})/results")
SLICE = re.compile(rf"/jobs/({JOB_NAME.pattern})/results/(0|[1-9][0-9]{{0,6}})")
VERDICT = re.compile(rf"/jobs/({JOB_NAME.pattern})/verdict")
SUBMISSION = re.compile(r"/submissions/([a-z0-9]{4,32})")

T = TypeVar("T")


class OnBook(Protocol):
    """Runs a question on the thread that owns the book, and waits for its answer."""

    def __call__(self, question: Callable[[Book], T], /) -> T:
        """Its answer; raises what the question raises, and TimeoutError."""
        ...


class InputRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input that was put to `/objects/{sha256}` before."""

    sha256: Sha256
    bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_INPUT_BYTES)]


class JobOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator asks for: these items through this package, in slices, for a price.

    The price is in millionths of `currency` for each item that is answered; a lease of it lasts `ttl_s`. With `sealed`
    its input leaves the dispatcher only encrypted to the unit that has the lease.
    """

    job: Annotated[str, msgspec.Meta(pattern=f"^{JOB_NAME.pattern}$")]
    customer: Identifier
    package: PackageRef
    input: InputRef
    items: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    slice_items: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    price_micro_per_item: Count
    currency: str
    ttl_s: int
    workload_class: WorkloadClass | None = None
    sealed: bool = False


class JobTaken(msgspec.Struct, frozen=True, kw_only=True):
    """The job is in the book. `cars` is how many units have said that they hold its package: with none it waits."""

    job: str
    cars: int


class JobReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a job is getting on; `why` says what its last failed lease said, for a job that is not done."""

    progress: JobProgress
    why: str = ""


class SubmissionPage(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs of a submission, from number `first` on."""

    submission: str
    first: int
    jobs: tuple[JobProgress, ...]


class JobsApi:
    """Give it to `hil.dispatcher.web.WebServer` as `more`; called on its threads."""

    def __init__(self, objects: Objects, on_book: OnBook, token: str, key: SigningKey) -> None:
        """`key` is the dispatcher's, which may be used on any thread."""
        self._objects, self._on_book, self._token, self._key = objects, on_book, token, key

    def __call__(self, request: Exchange) -> bool:
        """Answer a request for one of the resources above; False for any other, of which nothing has been read."""
        split = urlsplit(request.path)
        work = self._resource(request, split.path, split.query)
        if work is None:
            return False
        serve_operator(request, self._token, work)
        return True

    def _resource(self, request: Exchange, path: str, query: str) -> Callable[[], Answer] | None:
        """What to do about a path; None for one that is not ours."""
        routes: tuple[tuple[str, re.Pattern[str], Callable[[re.Match[str]], Answer]], ...] = (
            ("POST", JOBS, lambda _found: self._take(request)),
            ("PUT", OBJECT, lambda found: self._store(request, found[1])),
            ("GET", JOB, lambda found: self._job(found[1])),
            ("GET", RESULTS, lambda found: self._results(found[1])),
            ("GET", SLICE, lambda found: self._answers(found[1], int(found[4]))),
            ("GET", VERDICT, lambda found: self._verdict(found[1], query)),
            ("GET", SUBMISSION, lambda found: self._submission(found[1], query)),
        )
        for method, pattern, work in routes:
            found = pattern.fullmatch(path)
            if request.command == method and found is not None:
                return functools.partial(work, found)
        return None

    # --- in -----------------------------------------------------------------------------------------------------

    def _store(self, request: Exchange, sha256: str) -> Answer:
        length = body_length(request, MAX_INPUT_BYTES)
        request.give_time(BULK_S)
        if self._objects.path(sha256) is not None:
            _read_away(request.rfile, length)
            return Answer(HTTPStatus.OK, b"{}")
        temporary = self._objects.folder / f"{sha256}.{os.getpid()}.{threading.get_ident()}.part"
        try:
            digest = _receive(request.rfile, length, temporary)
            if digest != sha256:
                raise RequestError(HTTPStatus.BAD_REQUEST, f"what came has the SHA-256 {digest}, not the one named")
            self._objects.adopt(temporary, sha256)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise RequestError(HTTPStatus.INSUFFICIENT_STORAGE, "the dispatcher's disk is full") from error
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "the input could not be taken") from error
        finally:
            temporary.unlink(missing_ok=True)
        return Answer(HTTPStatus.CREATED, b"{}")

    def _seal(self, sha256: str) -> None:
        if self._objects.sealing is None:
            raise RequestError(HTTPStatus.BAD_REQUEST, "this dispatcher seals no inputs")
        self._objects.only_sealed(sha256)

    def _take(self, request: Exchange) -> Answer:
        body = read_body(request, MAX_MESSAGE_BYTES)
        try:
            order = msgspec.json.decode(body, type=JobOrder)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"not a job: {error}") from error
        path = self._objects.path(order.input.sha256)
        if path is None or path.stat().st_size != order.input.bytes:
            raise RequestError(HTTPStatus.BAD_REQUEST, "the job's input was not put to /objects before")
        if _items_of(path) != order.items:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"the input is not a msgpack array of {order.items} items")
        if order.sealed:
            self._seal(order.input.sha256)
        grant = job_grant(
            job=order.job,
            customer=order.customer,
            package=order.package,
            input=ObjectRef(url="", sha256=order.input.sha256, bytes=order.input.bytes),
            items=order.items,
            slice_items=order.slice_items,
            price_micro_per_item=order.price_micro_per_item,
            currency=order.currency,
            ttl_s=order.ttl_s,
            workload_class=order.workload_class,
        )

        def put_up(book: Book) -> tuple[bool, int]:
            there = book.submissions.progress((order.job,))
            if not there:
                try:
                    book.add_job(grant, Terms(sealed=order.sealed))
                except ConflictError:  # another replica, or the same request twice
                    there = book.submissions.progress((order.job,))
            if there and not _same(there[0], order):
                raise RequestError(HTTPStatus.CONFLICT, f"there is another job {order.job}")
            return not there, book.submissions.cars_with(order.package.sha256)

        is_new, cars = self._on_book(put_up)
        taken = JobTaken(job=order.job, cars=cars)
        return Answer(HTTPStatus.CREATED if is_new else HTTPStatus.OK, msgspec.json.encode(taken))

    # --- out ----------------------------------------------------------------------------------------------------

    def _job(self, job: str) -> Answer:
        def look(book: Book) -> JobReport:
            progress = _only(book, job)
            return JobReport(progress=progress, why="" if progress.state == "done" else book.submissions.why_dead(job))

        return Answer(HTTPStatus.OK, msgspec.json.encode(self._on_book(look)))

    def _results(self, job: str) -> Answer:
        def look(book: Book) -> list[SliceResult]:
            _only(book, job)
            return book.submissions.slices(job)

        return Answer(HTTPStatus.OK, msgspec.json.encode(self._on_book(look)))

    def _answers(self, job: str, index: int) -> Answer:
        found = self._on_book(lambda book: book.submissions.answers(job, index))
        if found is None:
            raise RequestError(HTTPStatus.NOT_FOUND, f"slice {index} of {job} is not settled")
        if isinstance(found, bytes):
            return Answer(HTTPStatus.OK, found)
        path = self._objects.path(found)
        if path is None:
            raise RequestError(HTTPStatus.NOT_FOUND, f"the answers of slice {index} of {job} are gone")
        return Answer(HTTPStatus.OK, path.read_bytes())

    def _verdict(self, job: str, query: str) -> Answer:
        first = _first(query, "a slice")
        verdict = self._on_book(lambda book: read_job_verdict(book.database, job, first))
        if verdict is None:
            raise RequestError(HTTPStatus.NOT_FOUND, f"there is nothing to be said of {job} from slice {first} on")
        return Answer(HTTPStatus.OK, sign_job_verdict(verdict, self._key))

    def _submission(self, submission: str, query: str) -> Answer:
        first = _first(query, "a job")
        numbers = range(first, first + PAGE_JOBS)
        names = tuple(job_name(submission, number) for number in numbers)
        jobs = self._on_book(lambda book: book.submissions.progress(names))
        if not jobs:
            raise RequestError(HTTPStatus.NOT_FOUND, f"there is no job of {submission} from number {first} on")
        page = SubmissionPage(submission=submission, first=first, jobs=tuple(jobs))
        return Answer(HTTPStatus.OK, msgspec.json.encode(page))


def _first(query: str, what: str) -> int:
    first = parse_qs(query).get("first", ["0"])[-1]
    if not re.fullmatch(r"[0-9]{1,7}", first) or int(first) > MAX_JOBS:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"first is not the number of {what}")
    return int(first)


def _only(book: Book, job: str) -> JobProgress:
    found = book.submissions.progress((job,))
    if not found:
        raise RequestError(HTTPStatus.NOT_FOUND, f"there is no job {job}")
    return found[0]


def _same(there: JobProgress, order: JobOrder) -> bool:
    """Whether the book's job is the one that is put up."""
    return (there.package_sha256, there.input_sha256, there.items, there.slice_items) == (
        order.package.sha256,
        order.input.sha256,
        order.items,
        order.slice_items,
    )


def _receive(stream: BufferedIOBase, length: int, file: Path) -> str:
    """Write what comes to `file`, durably; its SHA-256, hex. Raises RequestError when the sender stops early."""
    digest = hashlib.sha256()
    with file.open("wb") as out:
        while length:
            chunk = stream.read(min(CHUNK_BYTES, length))
            if not chunk:
                raise RequestError(HTTPStatus.BAD_REQUEST, f"{length} bytes of the input did not come")
            digest.update(chunk)
            out.write(chunk)
            length -= len(chunk)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _read_away(stream: BufferedIOBase, length: int) -> None:
    """Take a body that nobody needs, so that the answer is heard."""
    while length and (chunk := stream.read(min(CHUNK_BYTES, length))):
        length -= len(chunk)


def _items_of(path: Path) -> int | None:
    """How many items an input says that it has: the head of its msgpack array; None for what is none."""
    with path.open("rb") as file:
        head = file.read(5)
    match head[:1]:
        case b"\xdc":
            return int.from_bytes(head[1:3], "big")
        case b"\xdd":
            return int.from_bytes(head[1:5], "big")
        case _:
            return head[0] & 0x0F if head and head[0] & 0xF0 == 0x90 else None
