"""The unit's key as the daemon uses it: on one thread of its own, each use with a time limit, and honest about itself.

A key in hardware may be slow, hang, or not be there: a firmware TPM waits for another world, a driver comes up late, a
token is pulled out. None of that may hold up the event loop, or keep the agent from starting. So `HardwareSigner` knows
the key that this unit was enrolled with, whether or not its hardware is there; opens the hardware when it is first
asked to sign; and after a failure says no at once until it is time to try again (1 s, then twice as long, up to a
minute). What the hardware answered last is its `state`.

What opens must be the known key. Hardware that refuses (a wrong PIN) is not asked again by this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from agent.errors import TrustError
from agent.trust.keys import KeyAbsentError, KeyRefusedError, KeySlowError
from agent.trust.session import TpmClock
from agent.trust.tpm_structures import Clock

BACKOFF_S = (1.0, 60.0)
IN_TPM = ("tpm", "ftpm")
"""The protections of keys that live in a TPM, which has to be proven (`agent.trust.tpm_enrolment`)."""

Result = TypeVar("Result")


class OpenKey(Protocol):
    """A key whose hardware answered: `agent.ports.Signer`, and it can be closed."""

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key's SubjectPublicKeyInfo, as hex."""
        ...

    @property
    def protection(self) -> str:
        """Where the key lives."""
        ...

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        ...

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER."""
        ...

    def close(self) -> None:
        """Let go of the hardware."""
        ...


@dataclass(frozen=True, slots=True)
class FormerKey:
    """A key that this unit had: what it signed, such as a checkpoint, is still to be verified."""

    epoch: int
    public_key_pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """The key that this unit has, whether or not its hardware is there.

    `epoch` counts the unit's keys from 1: a later one succeeds the one before (`agent.trust.succession`). `former` are
    those before it, as far as they are remembered.
    """

    backend: str
    epoch: int
    keyid: str
    protection: str
    public_key_pem: str
    former: tuple[FormerKey, ...] = ()


@runtime_checkable
class Clocked(Protocol):
    """A key whose hardware has a clock of its own, as a TPM has."""

    def clock(self) -> Clock:
        """What it shows now; raises TrustError."""
        ...


class KeyState(enum.StrEnum):
    """What the hardware did when it was last asked."""

    UNTRIED = "untried"
    READY = "ready"
    ABSENT = "absent"
    SLOW = "slow"
    FAILED = "failed"
    """It said no, or it holds another key: somebody has to look into it."""


@dataclass(frozen=True, slots=True)
class Health:
    """The state, why it is so (empty when ready), and when the hardware may be tried again (None: by a new process)."""

    state: KeyState
    reason: str = ""
    retry_in_s: float | None = 0.0


class HardwareSigner:
    """The unit's key (`agent.notary.UnitKey`). Use from any thread, or with `await` from the event loop's."""

    def __init__(
        self,
        opener: Callable[[], OpenKey],
        known: KnownKey,
        *,
        limit_s: float,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`opener` is called on the key's thread, and raises TrustError; each use has to be over within `limit_s`."""
        self._opener, self._known, self._limit_s = opener, known, limit_s
        self._clock_s = clock_s
        self._thread = KeyThread("unit-key")
        self._lock = threading.Lock()
        self._open: OpenKey | None = None
        self._state, self._reason = KeyState.UNTRIED, ""
        self._wait_s, self._next_try_s = 0.0, 0.0
        self._has_refused = False

    @property
    def known(self) -> KnownKey:
        """All that is known of the key without its hardware."""
        return self._known

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key's SubjectPublicKeyInfo, as hex."""
        return self._known.keyid

    @property
    def protection(self) -> str:
        """Where the key lives: `tpm`, `ftpm`, `pkcs11` or `file`."""
        return self._known.protection

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        return self._known.public_key_pem

    @property
    def health(self) -> Health:
        """What the hardware did when it was last asked."""
        with self._lock:
            retry_in_s = None if self._has_refused else max(0.0, self._next_try_s - self._clock_s())
            return Health(self._state, self._reason, retry_in_s)

    async def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER; raises TrustError within the limit."""
        return await self.use(lambda key: key.sign(message))

    async def tpm_clock(self) -> TpmClock | None:
        """What the clock of the key's TPM shows now, None where it is in none; raises TrustError within the limit."""
        if self.protection not in IN_TPM:
            return None
        found = await self.use(lambda key: key.clock() if isinstance(key, Clocked) else None)
        if found is None:
            return None
        return TpmClock(
            clock_ms=found.clock_ms,
            reset_count=found.reset_count,
            restart_count=found.restart_count,
            safe=found.is_safe,
        )

    async def use(self, what: Callable[[OpenKey], Result], *, limit_s: float | None = None) -> Result:
        """What `what` makes of the open key, on the key's thread; raises TrustError within the limit."""
        future, limit_s = self._submitted(what), limit_s or self._limit_s
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise self._late(limit_s) from error

    async def apart(self, work: Callable[[], Result], *, limit_s: float) -> Result:
        """What `work` makes, on the key's thread, while the key is closed: it may use the hardware as it likes.

        Raises TrustError, as when it is not done within the limit.
        """

        def alone() -> Result:
            self._drop()
            return work()

        future = self._thread.submit(alone)
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise KeySlowError(f"the unit's key ({self.protection}) was not done within {limit_s:g} s") from error

    def sign_blocking(self, message: bytes) -> bytes:
        """The same for a thread that may wait; never from the event loop's."""
        future = self._submitted(lambda key: key.sign(message))
        try:
            return future.result(self._limit_s)
        except TimeoutError as error:
            future.cancel()
            raise self._late(self._limit_s) from error

    def close(self) -> None:
        """Let go of the hardware, and let the thread end; one that hangs is left behind."""
        self._thread.submit(self._drop)
        self._thread.close()

    def _submitted(self, what: Callable[[OpenKey], Result]) -> Future[Result]:
        self._refuse_if_too_early()
        return self._thread.submit(lambda: self._done(what))

    def _refuse_if_too_early(self) -> None:
        health = self.health
        if health.retry_in_s is None:
            raise KeyRefusedError(health.reason)
        if health.retry_in_s > 0:
            raise KeyAbsentError(f"{health.reason} (tried again in {health.retry_in_s:.0f} s)")

    def _done(self, what: Callable[[OpenKey], Result]) -> Result:
        """On the key's thread: open the key if it is not, use it, and remember what came of it."""
        try:
            if self._open is None:
                self._open = self._opener()
                self._check(self._open)
            result = what(self._open)
        except Exception as error:
            self._drop()
            self._note(error)
            if isinstance(error, TrustError):
                raise
            raise TrustError(f"the unit's key broke off: {error!r}") from error
        self._note(None)
        return result

    def _check(self, key: OpenKey) -> None:
        if key.keyid != self._known.keyid:
            raise TrustError(
                f"the hardware holds the key {key.keyid[:16]}…, and this unit's is {self._known.keyid[:16]}…",
                hint="was the computer or its TPM replaced? enrol this unit anew",
            )

    def _drop(self) -> None:
        """On the key's thread: begin anew with the next use."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _late(self, limit_s: float) -> KeySlowError:
        error = KeySlowError(f"the unit's key ({self.protection}) did not answer within {limit_s:g} s")
        self._note(error)
        return error

    def _note(self, error: Exception | None) -> None:
        """Remember the state, and when to try again."""
        with self._lock:
            if error is None:
                self._state, self._reason, self._wait_s, self._next_try_s = KeyState.READY, "", 0.0, 0.0
                return
            self._reason = str(error)
            match error:
                case KeySlowError():
                    self._state = KeyState.SLOW
                case KeyAbsentError():
                    self._state = KeyState.ABSENT
                case _:
                    self._state = KeyState.FAILED
            self._has_refused = isinstance(error, KeyRefusedError)
            self._wait_s = min(max(BACKOFF_S[0], 2 * self._wait_s), BACKOFF_S[1])
            self._next_try_s = self._clock_s() + self._wait_s


class BlockingSigner:
    """The same key as `agent.ports.Signer`, for code on a thread that may wait, such as enrolment."""

    def __init__(self, key: HardwareSigner) -> None:
        self._key = key
        self.keyid, self.protection = key.keyid, key.protection

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        return self._key.public_key_pem()

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER; raises TrustError within the limit."""
        return self._key.sign_blocking(message)


class KeyThread:
    """One thread that does one thing after the other. What was not begun in time can be cancelled by its future."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._name = name
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """The future of `work`."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the future is whose it is
                future.set_exception(error)

        self._queue.put(run)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        return future

    def close(self) -> None:
        """End it once it has nothing to do."""
        self._queue.put(None)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            with contextlib.suppress(Exception):
                work()
