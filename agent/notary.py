"""The notary: has session keys certified and checkpoints signed by the unit's own key, and has them witnessed.

The unit's key may be slow, or away: it is used here alone, never in the way of a lease. A session key is made at the
start, and anew whenever a parking ends, so that the next one has its own; while the unit's key does not answer, the
session before goes on, and that is told once. Its certificate is a leaf of the ledger before anything it signs.

A checkpoint is signed when enough leaves have come, or some time after the first, and with each new session. It goes to
the dispatcher until that answers with its own signature on it (`agent.trust.checkpoint`). Where the dispatcher judges
no hand-in before more is witnessed, one is signed and sent at once. What the dispatcher witnessed and this ledger does
not show is a fault: it is remembered, told, and shuts the gate until somebody has looked into it. So does a ledger that
was damaged on the disk, until it is restored. What does not bear both signatures proves nothing, and changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import msgspec

from agent import store_ledger
from agent.core.events import SelfTested
from agent.errors import LedgerDamagedError, StoreError, TrustError
from agent.fleet.messages import CheckpointMessage, Envelope, LedgerFault, WitnessMessage
from agent.log import logger
from agent.ports import Clock, Emit, Signer
from agent.store import Store, StoreThread
from agent.tasks import finished
from agent.trust import checkpoint, dsse, session
from agent.trust.dsse import VerifyingKey
from agent.trust.hardware import FormerKey, HardwareSigner
from agent.trust.keys import KeyAbsentError, keyid, load_public_key

CHECKPOINT_LEAVES = 64
CHECKPOINT_AFTER_MS = 600_000
RESEND_MS = 300_000
LOOK_S = 30.0
RETRY_S = (5.0, 300.0)
CLOSE_S = 2.0
BRING_IT_BACK = "bring its device back, or let the agent's user open it (`driveway keys`); it is tried again by itself"
ENROL_ANEW = "ask the fleet operator: this unit has to be enrolled anew"


SIGN_S = 30.0
WANTED_EVERY_MS = 30_000
"""Each hand-in that waits for the witness says so, and one checkpoint serves them all."""


class UnitKey(Protocol):
    """The unit's own key, wherever it lives; one command at a time, each with a limit."""

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key's SubjectPublicKeyInfo, as hex."""
        ...

    @property
    def protection(self) -> str:
        """Where the key lives: `tpm`, `ftpm`, `pkcs11` or `file`."""
        ...

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        ...

    async def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER; raises TrustError when the key does not answer in time."""
        ...

    async def tpm_clock(self) -> session.TpmClock | None:
        """What the clock of the key's TPM shows now, None where it is in none; raises TrustError as `sign` does."""
        ...


class Notary:
    """Use from the event loop's thread. `send` hands a checkpoint to the link; False when it cannot be taken now."""

    def __init__(
        self,
        *,
        unit: str,
        key_epoch: int,
        boot: str,
        key: UnitKey,
        witnesses: Mapping[str, VerifyingKey],
        clock: Clock,
        store: StoreThread,
        send: Callable[[CheckpointMessage], bool],
        former: tuple[FormerKey, ...] = (),
    ) -> None:
        """`former` are the unit's keys before this one: what was countersigned last may be signed by one of them."""
        self._former = former
        self._unit, self._key_epoch, self._boot, self._key = unit, key_epoch, boot, key
        self._witnesses, self._clock, self._store, self._send = witnesses, clock, store, send
        self._session: session.Session | None = None
        self._look, self._renew = asyncio.Event(), asyncio.Event()
        self._certifying = asyncio.Lock()
        self._parked = False
        self._sent: tuple[int, int] | None = None
        self._from_size: int | None = None
        """What the dispatcher said last that it has witnessed; None: nothing was heard of it since the start."""
        self._wanted, self._wanted_ms = False, -WANTED_EVERY_MS
        self._emit: Emit | None = None
        self._told = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def session(self) -> session.Session:
        """The session in use; raises TrustError before the first was certified."""
        if self._session is None:
            raise TrustError("no session key was certified yet", hint="see `driveway keys`")
        return self._session

    @property
    def certificate(self) -> bytes | None:
        """The certificate of the session in use; None before the first."""
        return None if self._session is None else self._session.certificate

    async def begin(self) -> None:
        """Have the first session certified, unless one is; raises TrustError or StoreError. The self-test asks this."""
        fault = await self._store.call(Store.ledger_fault)
        if fault is not None:
            raise TrustError(f"the ledger is in dispute: {fault.detail}", hint=ENROL_ANEW)
        if self._session is not None:
            return
        try:
            await self._new_session()
        except StoreError:
            raise
        except KeyAbsentError as error:
            raise TrustError(
                f"the signing key ({self._key.protection}) is absent: {error.what}", hint=error.hint or BRING_IT_BACK
            ) from error
        except Exception as error:
            raise TrustError(
                f"the signing key ({self._key.protection}) does not work: {error}",
                hint="restore the key, or enrol this unit with a new one",
            ) from error

    def parked(self, *, is_parked: bool) -> None:
        """The vehicle was found parked, or not any more: then this session is over."""
        if self._parked and not is_parked:
            self._renew.set()
            self._look.set()
        self._parked = is_parked

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """While this is held no session is certified: the one in use goes on."""
        async with self._certifying:
            yield

    def succeeded(self, key: HardwareSigner) -> None:
        """The unit has another key now (`agent.rotation`): the next session and checkpoints are its."""
        self._key, self._key_epoch, self._former = key, key.known.epoch, key.known.former
        if self._session is not None:
            self._renew.set()
            self._look.set()

    async def run(self, emit: Emit) -> None:
        """Certify, sign and send what is due until cancelled; a key or a disk that fails is tried again later."""
        self._emit = emit
        wait_s = RETRY_S[0]
        while True:
            self._look.clear()
            try:
                await self._do_what_is_due()
                self._tell("")
                wait_s = RETRY_S[0]
                await self._until_asked(LOOK_S)
            except (TrustError, StoreError) as error:
                if isinstance(error, LedgerDamagedError) and not self._told:
                    emit(SelfTested(at_ms=self._clock.boot_ms(), problem=str(error)))
                self._tell(str(error))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S[1])

    def witnessed(self, message: WitnessMessage) -> None:
        """The dispatcher's answer; its envelope's signature was verified."""
        task = asyncio.get_running_loop().create_task(self._take(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def wanted(self) -> None:
        """The dispatcher judges no hand-in before more of the ledger is witnessed: say all of it now."""
        now_ms = self._clock.boot_ms()
        if now_ms - self._wanted_ms >= WANTED_EVERY_MS:
            self._wanted, self._wanted_ms = True, now_ms
            self._look.set()

    async def close(self) -> None:
        """Wait for what is being written, though not for a broken disk."""
        await finished(self._tasks, CLOSE_S)

    # --- what is due --------------------------------------------------------------------------------------------

    async def _do_what_is_due(self) -> None:
        if self._session is None:
            return  # the self-test begins it, and says why where it cannot
        if self._renew.is_set():
            await self._new_session()
            self._renew.clear()
        await self._checkpoint_if_due()
        await self._send_if_due()

    async def _new_session(self) -> None:
        async with self._certifying:
            await self._certify()
            await self._new_checkpoint()

    async def _certify(self) -> None:
        number = await self._store.call(Store.next_session, self._key_epoch)
        key = session.SessionKey(self._key.protection)
        certificate = session.certificate_of(
            key,
            unit=self._unit,
            key_epoch=self._key_epoch,
            number=number,
            boot_id=self._boot,
            boot_ms=self._clock.boot_ms(),
            wall_ms=self._clock.wall_ms(),
            tpm_clock=await self._key.tpm_clock(),
        )
        envelope = await self._signed(session.SESSION_TYPE, certificate.to_bytes())
        session.verify_session(envelope, self._unit_keys(self._key_epoch))  # one that signs nonsense is found out here
        await self._store.call(Store.add_session, number, envelope)
        self._session = session.Session(number, key, envelope)
        logger().info("session_certified", session=number, keyid=key.keyid, protection=self._key.protection)

    async def _checkpoint_if_due(self) -> None:
        head = await self._store.call(Store.ledger_head)
        newest = await self._store.call(Store.checkpoint)
        size, at_ms = (newest.size, newest.wall_ms) if newest is not None else (0, 0)
        fresh, is_due = head.size - size, abs(self._clock.wall_ms() - at_ms) >= CHECKPOINT_AFTER_MS
        says_all = newest is not None and newest.witnessed and not fresh
        if self._wanted and says_all:
            self._wanted = False  # the witness came while the dispatcher's wish was on its way
        elif self._wanted:
            self._wanted, self._sent, is_due = False, None, True
            if await self._store.call(Store.want_witness, self._clock.wall_ms()):
                logger().warning("hand_ins_wait_for_witness", leaves=head.size)
        if fresh >= CHECKPOINT_LEAVES or (fresh and is_due):
            await self._new_checkpoint()

    async def _witnessed_size(self) -> int:
        """How much of the ledger is witnessed, by the dispatcher's newest word."""
        before = await self._store.call(Store.checkpoint, witnessed=True)
        return (0 if before is None else before.size) if self._from_size is None else self._from_size

    async def _continues(self, size: int) -> checkpoint.Earlier | None:
        """This ledger's root where it was witnessed last, which a checkpoint of `size` leaves says besides its own."""
        before = await self._witnessed_size()
        if not 0 < before < size:
            return None
        return checkpoint.Earlier(size=before, root=await self._store.call(Store.root_at, before))

    async def _new_checkpoint(self) -> None:
        head, wall_ms = await self._store.call(Store.ledger_head), self._clock.wall_ms()
        said = checkpoint.Checkpoint(
            v=checkpoint.VERSION,
            unit=self._unit,
            key_epoch=self._key_epoch,
            size=head.size,
            root=head.root,
            session=self.session.number,
            boot_id=self._boot,
            issued_boot_ms=self._clock.boot_ms(),
            issued_wall_ms=wall_ms,
            continues=await self._continues(head.size),
        )
        envelope = await self._signed(checkpoint.CHECKPOINT_TYPE, said.to_bytes())
        await self._store.call(Store.add_checkpoint, said, envelope, wall_ms)

    async def _send_if_due(self) -> None:
        newest = await self._store.call(Store.checkpoint)
        now_ms = self._clock.boot_ms()
        if newest is None or newest.witnessed:
            return
        if self._sent is not None and self._sent[0] == newest.size and now_ms - self._sent[1] < RESEND_MS:
            return
        size = await self._witnessed_size()
        proof = await self._store.call(Store.consistency, size, newest.size)
        message = CheckpointMessage(
            rid=secrets.token_hex(8),
            checkpoint=msgspec.json.decode(newest.envelope, type=Envelope),
            from_size=size,
            proof=tuple(one.hex() for one in proof),
        )
        if self._send(message):
            self._sent = newest.size, now_ms

    async def _signed(self, payload_type: str, payload: bytes) -> bytes:
        signature = await self._key.sign(dsse.pae(payload_type, payload))
        return dsse.wrap(payload_type, payload, (dsse.Signature(self._key.keyid, signature),))

    def _unit_keys(self, epoch: int) -> dict[str, VerifyingKey]:
        """The unit's key of this epoch; none where it is not known."""
        known = {one.epoch: one.public_key_pem for one in self._former}
        pem = {**known, self._key_epoch: self._key.public_key_pem()}.get(epoch)
        keys = [] if pem is None else [load_public_key(pem)]
        return {keyid(key): key for key in keys}

    async def _until_asked(self, limit_s: float) -> None:
        waiting = asyncio.ensure_future(self._look.wait())
        try:
            await asyncio.wait((waiting,), timeout=limit_s)
        finally:
            waiting.cancel()

    # --- what the dispatcher says -------------------------------------------------------------------------------

    async def _take(self, message: WitnessMessage) -> None:
        fault = None
        try:
            if message.checkpoint is not None:
                fault = await self._countersigned(msgspec.json.encode(message.checkpoint))
            if message.fault is not LedgerFault.NONE:
                said = f"the dispatcher says {message.fault.value}: {message.detail}"
                fault = await self._store.call(Store.hold_against, said)
        except (TrustError, StoreError) as error:
            logger().warning("witness_not_taken", error=str(error))
            return
        if fault is not None:
            logger().error("ledger_in_dispute", detail=fault.detail)
            if self._emit is not None:
                problem = f"the ledger is in dispute: {fault.detail} ({ENROL_ANEW})"
                self._emit(SelfTested(at_ms=self._clock.boot_ms(), problem=problem))
        self._look.set()

    async def _countersigned(self, envelope: bytes) -> store_ledger.LedgerFault | None:
        said = checkpoint.parse_checkpoint(dsse.parse(envelope).payload)
        keys = self._unit_keys(said.key_epoch)
        if said.unit != self._unit or not keys:
            raise TrustError(f"a checkpoint of {said.unit!r} in key epoch {said.key_epoch}, not of this unit")
        checkpoint.verify_countersigned(envelope, keys, self._witnesses)
        waited = await self._store.call(Store.witness_wanted)
        fault = await self._store.call(Store.take_witness, said, envelope, self._clock.wall_ms())
        if waited is not None and await self._store.call(Store.witness_wanted) is None:
            logger().info("witness_came", leaves=said.size)
        if fault is None:
            self._wanted = False  # what was wished before this; the next hand-in says whether it is enough
        if fault is None and said.size != self._from_size:
            self._from_size, self._sent = said.size, None  # what was sent may have been proven from somewhere else
        return fault

    def _tell(self, problem: str) -> None:
        """Once when it begins, once when it is over."""
        if problem and not self._told:
            logger().warning("notary_waits", error=problem)
        elif self._told and not problem:
            logger().info("notary_goes_on")
        self._told = problem


class ThreadedKey:
    """A key that signs when asked and may block (`agent.ports.Signer`), as a UnitKey: on a thread, with a limit."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.keyid, self.protection = signer.keyid, signer.protection

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        return self._signer.public_key_pem()

    async def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER; raises TrustError when the key does not answer in time."""
        try:
            async with asyncio.timeout(SIGN_S):
                return await asyncio.to_thread(self._signer.sign, message)
        except TimeoutError as error:
            raise TrustError(f"the key did not answer within {SIGN_S:.0f} s") from error

    async def tpm_clock(self) -> None:
        """It is in no TPM."""
