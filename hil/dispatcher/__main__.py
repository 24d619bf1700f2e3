"""The dispatcher as a process: `python -m hil.dispatcher --dir DIR --broker HOST:PORT [--broker HOST:PORT …]`.

DIR holds its key, its book, the objects, `dispatcher.pub` (what cars trust), `operator.token` (who may read it may give
orders) and, once cars can talk to it, `ready`. It runs until SIGTERM or SIGINT.

Several replicas may share the work: on one machine over one DIR, on several over a PostgreSQL (`--database`), the same
key and a shared folder of objects. Each gets a name (`--replica`), and keeps `ready` and `operator.token` in
DIR/replicas/NAME. They are one group of the broker's shared subscriptions, so each message reaches one of them; the
group's name is a secret in the book, since whoever may guess it on a broker without access lists can take messages
away. Any of them may be killed at any moment: what it had not answered, cars say again.

DIR is its owner's alone, for what is in it admits cars, proves who the dispatcher is and gives orders. Enrolment codes
and the database's address may come from files, since everybody on a machine can read a command line.

It serves HTTP to its own machine, and to cars where it is told to (`--listen`, see `hil.dispatcher.doors`).

While the database is locked by others, it waits to start, and says so once; a replica that loses it later leaves the
broker until it is back.

The link, the web server and the referee run on threads of their own; the book belongs to one more, `book`.

With `--referee` it decides by computing what units disagree about, and with `--known-permille` it puts in jobs whose
answers it knows (`hil.dispatcher.refereeing`). Say both to all replicas of a dispatcher, or to none.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from agent.errors import ConfigError, DrivewayError
from agent.fleet.link import Link
from agent.fleet.link_config import LinkConfig
from agent.fleet.messages import encode
from agent.fleet.tls import TlsFiles
from agent.trust.keys import FileSigner
from hil.dispatcher.book import Book
from hil.dispatcher.command_line import parse
from hil.dispatcher.database import ConflictError, Database, DatabaseLostError
from hil.dispatcher.doors import Doors, listening
from hil.dispatcher.enrolling import makers_in
from hil.dispatcher.jobs_api import JobsApi
from hil.dispatcher.objects import Objects
from hil.dispatcher.operator_api import OperatorApi
from hil.dispatcher.orders import TOKEN_FILE, read_order
from hil.dispatcher.pump import Intake, Outbox, pump
from hil.dispatcher.ramp import Ramp
from hil.dispatcher.referee import Referee, packages_in
from hil.dispatcher.refereeing import OnBook, Refereeing
from hil.dispatcher.replication import AdaptiveReplication, NoReplication
from hil.dispatcher.sealing import SECRET as SEALING_SECRET
from hil.dispatcher.sealing import InputSealing
from hil.dispatcher.service import Dispatcher
from hil.dispatcher.staging import Staging, StillOpen
from hil.dispatcher.steady_clock import open_steady
from hil.dispatcher.tolerance import tolerances_in
from hil.dispatcher.unwitnessed import Bound
from hil.dispatcher.upload_rights import UploadLease
from hil.dispatcher.web import WebServer
from hil.secret import write_secret

ANSWER_TIMEOUT_S = 10.0
SWEEP_EVERY_S = 600.0
MAX_IN_FLIGHT = 64
RECEIVE_MAXIMUM = 512
INBOX_MESSAGES = 4096
AGAIN_S = 0.5
"""Between two attempts to open a database that others keep locked."""

T = TypeVar("T")
log = structlog.get_logger("dispatcher")


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The file `ready`: written when the dispatcher hears its topics and serves its objects."""

    pid: int
    broker: str
    http_url: str
    """For this machine."""
    http_port: int
    public_url: str = ""
    """For cars; they enrol at `{public_url}/enrol`."""


def main() -> None:
    """Run until told to end; exit status 1 with one sentence when it cannot start."""
    arguments = parse(__doc__)
    try:
        folder: Path = arguments.dir / "replicas" / arguments.replica if arguments.replica else arguments.dir
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments.dir.chmod(0o700)
        asyncio.run(_serve(arguments, folder))
    except (DrivewayError, OSError) as error:
        sys.exit(f"dispatcher: {error}")


def _open(arguments: argparse.Namespace) -> Database:
    """The database that was asked for; raises StoreError, and ConfigError for a file that cannot be read."""
    url = arguments.database or " ".join(_lines(arguments.database_file))
    if not url:
        return open_steady(arguments.dir)
    from hil.dispatcher.postgres import PostgresDatabase  # noqa: PLC0415 - psycopg is loaded only where it is used

    return PostgresDatabase(url)


def _prepare(arguments: argparse.Namespace, database: Database) -> tuple[Book, str]:
    """The book, with the codes that are to be in it, and the share group's name. Raises as `_open` does."""
    replication = AdaptiveReplication() if arguments.replicate else NoReplication()
    known = {} if arguments.packages is None else tolerances_in(arguments.packages)
    objects = Objects(arguments.objects or arguments.dir / "objects")
    book = Book(
        database,
        replication=replication,
        tolerances=known.get,
        read_object=objects.read,
        has_referee=arguments.referee,
        known_permille=arguments.known_permille,
        max_failures=arguments.max_failures,
    )
    for code in arguments.enrol_code + _lines(arguments.enrol_code_file):
        book.units.add_code(code)
    return book, arguments.share_group or book.secret("share_group")


def _bound(arguments: argparse.Namespace) -> Bound | None:
    """How much of a unit's ledger may stand unwitnessed."""
    leaves, age_ms = arguments.unwitnessed_leaves, arguments.unwitnessed_h * 3_600_000
    return Bound(leaves=leaves, age_ms=age_ms) if leaves else None


def _lines(path: Path | None) -> list[str]:
    """What is in a file, line by line; raises ConfigError."""
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return [line for line in lines if line]


async def _when_free(call: Callable[[], T], ended: asyncio.Event) -> T | None:
    """What it returns, once whoever keeps the database locked lets go; None when told to end before."""
    told = False
    while not ended.is_set():
        try:
            return await asyncio.to_thread(call)
        except (DatabaseLostError, ConflictError) as error:
            if not told:
                told = True
                log.warning("waiting_for_the_database", detail=str(error))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), AGAIN_S)
    return None


def _told_to_end(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    return ended


async def _open_book(arguments: argparse.Namespace, ended: asyncio.Event) -> tuple[Book, str] | None:
    """The book and the share group's name, once the database is free; None if told to end. Raises as `_open` does."""
    database = await _when_free(partial(_open, arguments), ended)
    if database is None:
        return None
    with contextlib.ExitStack() as undo:
        undo.callback(database.close)
        prepared = await _when_free(partial(_prepare, arguments, database), ended)
        if prepared is not None:
            undo.pop_all()
    return prepared


async def _serve(arguments: argparse.Namespace, folder: Path) -> None:
    ready_file, cars = folder / "ready", listening(arguments)
    ready_file.unlink(missing_ok=True)
    key = FileSigner.open_or_create(arguments.key or arguments.dir / "dispatcher.key")
    (arguments.dir / "dispatcher.pub").write_text(key.public_key_pem(), "ascii")
    loop = asyncio.get_running_loop()
    ended = _told_to_end(loop)
    owner = ThreadPoolExecutor(1, thread_name_prefix="book")

    def on_book(question: Callable[[Book], T]) -> T:
        return _answer(owner.submit(question, book))

    def on_dispatcher(question: Callable[[Dispatcher], T]) -> T:
        return _answer(owner.submit(question, dispatcher))

    def on_state(connected: bool, broker: str, detail: str) -> None:  # noqa: FBT001 - the link's signature
        log.info("link", connected=connected, broker=broker, detail=detail)
        if connected:
            owner.submit(dispatcher.republish)
            _write_ready(ready_file, broker, doors)

    ek_roots = [] if arguments.ek_roots is None else makers_in(arguments.ek_roots)
    prepared = await _open_book(arguments, ended)
    if prepared is None:
        return
    book, group = prepared
    sealing = InputSealing(book.secret(SEALING_SECRET), every=arguments.seal_inputs)
    objects, token = Objects(arguments.objects or arguments.dir / "objects", sealing), _operator_token(folder)
    staging = Staging(objects)
    jobs, operator = JobsApi(objects, on_book, token, key), OperatorApi(on_dispatcher, token)

    def enrol(envelope: bytes) -> bytes:
        return on_dispatcher(lambda it: it.enrol(envelope))

    def rotate(body: bytes) -> bytes:
        return on_dispatcher(lambda it: it.rotate(body))

    def may_upload(bearer: str) -> UploadLease | None:
        return on_book(lambda it: it.upload_rights.of(bearer))

    inner = WebServer(
        arguments.http_port,
        objects,
        enrol,
        lambda unit, kind, body: on_dispatcher(lambda it: encode(it.order(unit, read_order(kind, body)))),
        token,
        more=lambda request: jobs(request) or operator(request),
        may_upload=may_upload,
        rotate=rotate,
    )
    doors = Doors(inner, cars, objects, enrol, may_upload, rotate=rotate)
    outbox, intake = Outbox(loop), Intake(loop.time)
    dispatcher = Dispatcher(
        book,
        key,
        publish=outbox.put,
        places=doors.places,
        retry_s=arguments.retry_s,
        brought=staging,
        ramp=Ramp(arguments.ramp_per_s),
        ek_roots=ek_roots,
        unwitnessed=_bound(arguments),
    )
    link = Link(
        _link_config(arguments, group),
        on_message=intake.offer,
        on_state=on_state,
        on_undelivered=outbox.undelivered,
    )
    outbox.link = link
    doors.start()
    link.start()
    pumping = loop.create_task(pump(dispatcher, intake, outbox, owner, link))
    sweeping = loop.create_task(_sweep(staging, lambda leases: on_book(lambda it: it.upload_rights.still_open(leases))))
    try:
        async with _refereeing(arguments, objects, on_book):
            await asyncio.wait({pumping, loop.create_task(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
            if pumping.done():
                pumping.result()  # it never ends by itself: let it be seen
    finally:
        pumping.cancel()
        sweeping.cancel()
        _forget_ready(ready_file)
        await link.close()
        await asyncio.to_thread(doors.close)
        await asyncio.to_thread(owner.shutdown)
        book.close()
        log.info("ended", **dispatcher.counts, dropped=dict(intake.dropped + outbox.dropped))


def _answer(asked: Future[T]) -> T:
    """What the book's thread says to it; one that is not answered in time is not asked any more."""
    try:
        return asked.result(ANSWER_TIMEOUT_S)
    except TimeoutError:
        asked.cancel()
        raise


@contextlib.asynccontextmanager
async def _refereeing(arguments: argparse.Namespace, objects: Objects, on_book: OnBook) -> AsyncIterator[None]:
    """The referee is at work meanwhile, where that was asked for. Raises PackageError."""
    if not arguments.referee:
        yield
        return
    refereeing = Refereeing(Referee(packages_in(arguments.packages)), objects, on_book)
    refereeing.start()
    try:
        yield
    finally:
        await asyncio.to_thread(refereeing.close)


async def _sweep(staging: Staging, still_open: StillOpen) -> None:
    """Until cancelled: drop, now and then, what cars brought and nobody will hand in."""
    while True:
        try:
            await asyncio.to_thread(staging.sweep, still_open)
        except (DrivewayError, OSError) as error:  # a TimeoutError is one
            log.warning("uploads_not_swept", error=str(error))
        await asyncio.sleep(SWEEP_EVERY_S)


def _link_config(arguments: argparse.Namespace, group: str) -> LinkConfig:
    """A dispatcher's link: one filter, and room for many cars at once."""
    tls = None
    if arguments.tls_ca:
        tls = TlsFiles(ca=arguments.tls_ca, certificate=arguments.tls_certificate, key=arguments.tls_key)
    return LinkConfig(
        brokers=tuple(arguments.broker),
        client_id=f"dispatcher-{arguments.replica[:32] or 'x'}-{secrets.token_hex(4)}",
        filters=(f"$share/{group}/dw/v1/u/+/+/+",),
        tls=tls,
        keepalive_s=arguments.keepalive_s,
        reconnect_max_s=arguments.reconnect_max_s,
        max_in_flight=MAX_IN_FLIGHT,
        receive_maximum=RECEIVE_MAXIMUM,
        inbox_messages=INBOX_MESSAGES,
    )


def _operator_token(folder: Path) -> str:
    """A new secret at each start, for those who may read the dispatcher's own folder."""
    token = secrets.token_hex(16)
    write_secret(folder / TOKEN_FILE, token)
    return token


def _write_ready(path: Path, broker: str, doors: Doors) -> None:
    port = int(doors.url.rpartition(":")[2])
    ready = Ready(pid=os.getpid(), broker=broker, http_url=doors.url, http_port=port, public_url=doors.public_url)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_bytes(msgspec.json.encode(ready))
    temporary.replace(path)


def _forget_ready(path: Path) -> None:
    """Nobody is to find this process any more; another replica's word, in the same folder, stays."""
    try:
        mine = msgspec.json.decode(path.read_bytes(), type=Ready).pid == os.getpid()
    except (OSError, msgspec.DecodeError):
        return
    if mine:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
