"""The referee at work in a dispatcher's process: it takes a task from the book, computes it, and tells what is right.

It has a thread and an event loop of its own, since opening a package reads all of it; the book is asked on its own
thread, a short question at a time, so no car waits for the referee. One job at a time, by a worker with low priority.
Several replicas may do this at once: `hil.dispatcher.referee_tasks` sees to it that each task is one replica's.

What cannot be computed waits in the book and is tried again. The log says once that a job is unfit, or that the worker
fails, and once that it works again; how much waits is in `GET /counts`. A replica that is killed leaves a claim behind
that runs out; one that ends lets go of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

import structlog

from agent.errors import DrivewayError
from hil.dispatcher.book import Book
from hil.dispatcher.known_jobs import Mixed, mix
from hil.dispatcher.objects import Objects
from hil.dispatcher.referee import Referee, UnfitJobError, Work
from hil.dispatcher.referee_tasks import CLAIM_MS, Claimed, Task

IDLE_S = 2.0
"""Between two looks into the book, where there was nothing to do, or something failed."""
KEEP_S = CLAIM_MS / 3000
"""A replica says so often that it is still at it: two of three times may fail."""
LONGEST_S = 3_600.0
"""A job that takes longer is not computed here: nobody knows whether it ever ends."""

T = TypeVar("T")
log = structlog.get_logger("dispatcher")


class OnBook(Protocol):
    """Runs a question on the thread that owns the book, and waits for its answer."""

    def __call__(self, question: Callable[[Book], T], /) -> T:
        """Its answer; raises what the question raises, and TimeoutError."""
        ...


class _OthersTaskError(DrivewayError):
    """The claim ran out, and another replica has the task."""


class Refereeing:
    """`start` it once the book can be asked, and `close` it before the book is closed."""

    def __init__(self, referee: Referee, objects: Objects, on_book: OnBook, *, idle_s: float = IDLE_S) -> None:
        self._referee, self._objects, self._on_book, self._idle_s = referee, objects, on_book, idle_s
        self._name = secrets.token_hex(8)
        self._failing = ""
        self._thread = threading.Thread(target=self._run, name="referee")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._began = threading.Event()

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._began.wait()

    def close(self) -> None:
        """Stop, in the middle of a job if need be: its worker is killed, and another replica may have it. Blocks."""
        if self._loop is not None and self._ended is not None:
            with contextlib.suppress(RuntimeError):  # it ended by itself
                self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._until_closed())

    async def _until_closed(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._began.set()
        working = asyncio.create_task(self._work())
        await self._ended.wait()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working

    async def _work(self) -> None:
        while True:
            try:
                worked = await self.step()
            except (DrivewayError, OSError) as error:  # the book or the disk does not answer; a TimeoutError is one
                self._note_failing(f"{type(error).__name__}: {error}")
                worked = False
            if not worked:
                await asyncio.sleep(self._idle_s)

    async def step(self) -> bool:
        """Do one task; False when there is none, or it failed. Raises StoreError and OSError: nothing was decided."""
        claimed = await self._ask(self._claim)
        if claimed is None:
            return False
        try:
            match claimed.task:
                case Task.DECIDE:
                    await self._decide(claimed)
                case Task.KNOWN:
                    await self._imitate(claimed)
        except asyncio.CancelledError:
            with contextlib.suppress(DrivewayError, OSError):
                await self._ask(lambda book: book.referee_tasks.let_go(claimed))
            raise
        except _OthersTaskError:
            log.info("referee_was_overtaken", job=claimed.job, task=claimed.task.value)
        except (DrivewayError, OSError) as error:
            await self._failed(claimed, error)
            return False
        except Exception as error:
            log.exception("referee_crashed", job=claimed.job, task=claimed.task.value)
            await self._failed(claimed, error)
            return False
        self._note_works()
        return True

    # --- tasks ---------------------------------------------------------------------------------------------------

    async def _decide(self, claimed: Claimed) -> None:
        """What units disagree about."""
        body = await asyncio.to_thread(self._objects.read, claimed.input_sha256)
        answers = await self._computed(claimed, body)

        def settle(book: Book) -> bool:
            with book.database.transaction():
                if not book.referee_tasks.finish(claimed):
                    return False
                book.know(claimed.job, answers)
            return True

        if not await self._ask(settle):
            raise _overtaken(claimed)
        log.info("dispute_decided", job=claimed.job, slices=len(answers))

    async def _imitate(self, claimed: Claimed) -> None:
        """A job with known answers, after the pattern of this one."""
        own = await asyncio.to_thread(self._objects.read, claimed.input_sha256)
        sources = await self._ask(lambda book: book.known_jobs.sources(claimed.job))
        others = [await asyncio.to_thread(self._objects.read, one) for one in sources if one != claimed.input_sha256]
        if own is None:
            raise UnfitJobError(f"the input of job {claimed.job} is not here")
        body = await asyncio.to_thread(self._mixed, own, [one for one in others if one is not None])
        if body is None:
            raise UnfitJobError(f"job {claimed.job} is too short for another order of its items")
        mixed = Mixed(body=body, answers=await self._computed(claimed, body))
        await asyncio.to_thread(self._store, mixed, sealed=claimed.sealed)

        def put_up(book: Book) -> bool:
            with book.database.transaction():
                if not book.referee_tasks.finish(claimed):
                    return False
                book.known_jobs.put_up(claimed.job, mixed, book.now_ms())
            return True

        if not await self._ask(put_up):
            raise _overtaken(claimed)

    def _mixed(self, own: bytes, others: list[bytes]) -> bytes | None:
        return mix(own, others, lambda sha256: self._on_book(lambda book: book.known_jobs.is_new(sha256)))

    def _store(self, mixed: Mixed, *, sealed: bool) -> None:
        if sealed:
            self._objects.only_sealed(mixed.sha256)  # before it is there
        self._objects.put(mixed.body)

    async def _computed(self, claimed: Claimed, body: bytes | None) -> dict[int, bytes]:
        """The answers, slice by slice; the claim is kept meanwhile. Raises as `Referee.answers`, and TimeoutError."""
        work = Work(
            job=claimed.job,
            package_sha256=claimed.package_sha256,
            items=claimed.items,
            slice_items=claimed.slice_items,
        )
        computing = asyncio.create_task(self._referee.answers(work, body))
        try:
            async with asyncio.timeout(LONGEST_S):
                while not (await asyncio.wait({computing}, timeout=KEEP_S))[0]:
                    await self._keep(claimed)
            return computing.result()
        finally:
            computing.cancel()
            await asyncio.wait({computing})

    async def _keep(self, claimed: Claimed) -> None:
        def keep(book: Book) -> bool:
            with book.database.transaction():
                return book.referee_tasks.keep(claimed, book.now_ms())

        kept = True
        with contextlib.suppress(DrivewayError, OSError):  # whose it is shows at the end
            kept = await self._ask(keep)
        if not kept:
            raise _overtaken(claimed)

    # --- the book ------------------------------------------------------------------------------------------------

    def _claim(self, book: Book) -> Claimed | None:
        with book.database.transaction():
            return book.referee_tasks.claim(self._referee.packages, self._name, book.now_ms())

    async def _failed(self, claimed: Claimed, error: Exception) -> None:
        """Write it down, and say so once. Raises as `step` does."""
        unfit = isinstance(error, UnfitJobError)
        why = str(error) or type(error).__name__
        if claimed.tries == 0:
            if not unfit:
                self._note_failing(why)
            elif claimed.task is Task.DECIDE:
                log.warning("dispute_not_decided", job=claimed.job, reason=why)

        def note(book: Book) -> None:
            with book.database.transaction():
                for_good = unfit and claimed.task is Task.KNOWN
                book.referee_tasks.fail(claimed, why, book.now_ms(), for_good=for_good)

        await self._ask(note)

    def _note_failing(self, why: str) -> None:
        if not self._failing:
            log.warning("referee_fails", reason=why)
        self._failing = why

    def _note_works(self) -> None:
        if self._failing:
            log.info("referee_works_again")
        self._failing = ""

    async def _ask(self, question: Callable[[Book], T]) -> T:
        return await asyncio.to_thread(self._on_book, question)


def _overtaken(claimed: Claimed) -> _OthersTaskError:
    return _OthersTaskError(f"job {claimed.job} is another replica's by now")
