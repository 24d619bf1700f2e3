"""The TPM 2.0 commands that keys need, each a method (TPM 2.0 Library, Part 3), with one time limit for all of a use.

`Tpm` is opened for one use and closed after it, so that a driver that was loaded again, or a socket that was restarted,
is found anew. Commands that the TPM is too busy for are sent again until the limit is over. What was loaded is flushed,
whatever happens (`Tpm.transient`): without a resource manager three objects fill a chip.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Self

from agent.trust.keys import KeySlowError
from agent.trust.tpm_structures import (
    ECDSA,
    NULL,
    SHA256,
    Clock,
    Public,
    parse_clock,
    parse_public,
    parse_signature,
)
from agent.trust.tpm_transport import Deadline, Opener
from agent.trust.tpm_wire import (
    NO_HANDLE,
    RETRY_CODES,
    Reader,
    TpmError,
    block,
    command,
    parameters_of,
    password,
    response_code,
    session,
)

OWNER, ENDORSEMENT, NO_HIERARCHY = 0x40000001, 0x4000000B, 0x40000007
RETRY_S = (0.02, 0.5)
NV_CHUNK_BYTES = 512
_PROPERTIES = 6
_SHA256_SELECTION_BYTES = 3


class Tpm:
    """An open TPM. Use from one thread, as a context manager."""

    def __init__(self, opener: Opener, limit_s: float, *, owner_auth: bytes = b"") -> None:
        """All that is done with it has to be over within `limit_s`; raises KeyAbsentError."""
        self._deadline = Deadline(limit_s)
        self._transport = opener(self._deadline)
        self._owner = password(owner_auth)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._transport.close()

    # --- keys ---------------------------------------------------------------------------------------------------

    def read_public(self, handle: int) -> Public | None:
        """The key at a handle, None when there is none (TPM2_ReadPublic)."""
        try:
            _, reply = self._do("TPM2_ReadPublic", 0x173, (handle,))
        except TpmError as error:
            if error.is_about(NO_HANDLE):
                return None
            raise
        public = parse_public(reply.block())
        reply.block()  # its name, which follows from it
        reply.block()  # its qualified name
        reply.end()
        return public

    def sign(self, handle: int, digest: bytes) -> bytes:
        """The key's ECDSA signature of a SHA-256 digest, in DER (TPM2_Sign)."""
        scheme, no_ticket = struct.pack(">HH", ECDSA, SHA256), struct.pack(">HIH", 0x8024, NO_HIERARCHY, 0)
        _, reply = self._do("TPM2_Sign", 0x15D, (handle,), (password(),), block(digest) + scheme + no_ticket)
        signature = parse_signature(reply)
        reply.end()
        return signature

    @contextlib.contextmanager
    def primary(self, hierarchy: int, template: bytes) -> Iterator[tuple[int, Public]]:
        """The primary key of a template: the same each time until the hierarchy is cleared (TPM2_CreatePrimary)."""
        parameters = block(_NO_SECRET) + block(template) + _NO_OUTSIDE_INFO + _NO_PCRS
        auth = self._owner if hierarchy == OWNER else password()
        (handle,), reply = self._do("TPM2_CreatePrimary", 0x131, (hierarchy,), (auth,), parameters, handles_out=1)
        with self._flushed(handle):
            yield handle, parse_public(reply.block())

    def create(self, parent: int, template: bytes) -> tuple[bytes, bytes]:
        """(private, public) of a new key that only this parent can load (TPM2_Create)."""
        parameters = block(_NO_SECRET) + block(template) + _NO_OUTSIDE_INFO + _NO_PCRS
        _, reply = self._do("TPM2_Create", 0x153, (parent,), (password(),), parameters)
        return reply.block(), reply.block()

    @contextlib.contextmanager
    def loaded(self, parent: int, private: bytes, public: bytes) -> Iterator[int]:
        """The handle of a key while it is loaded (TPM2_Load)."""
        parameters = block(private) + block(public)
        (handle,), _ = self._do("TPM2_Load", 0x157, (parent,), (password(),), parameters, handles_out=1)
        with self._flushed(handle):
            yield handle

    def persist(self, handle: int, at: int) -> None:
        """Keep a loaded key for good (TPM2_EvictControl)."""
        self._do("TPM2_EvictControl", 0x120, (OWNER, handle), (self._owner,), struct.pack(">I", at))

    def evict(self, handle: int) -> None:
        """Remove a key that was kept: the same command, given the handle at which it is persistent."""
        self.persist(handle, handle)

    # --- attestation --------------------------------------------------------------------------------------------

    def certify(self, handle: int, attestation_key: int, qualifying: bytes) -> tuple[bytes, bytes]:
        """(attestation, signature in DER): the attestation key's word on the key at `handle` (TPM2_Certify)."""
        parameters = block(qualifying) + struct.pack(">H", NULL)
        return self._attested("TPM2_Certify", 0x148, (handle, attestation_key), parameters)

    def quote(self, attestation_key: int, registers: Sequence[int], qualifying: bytes) -> tuple[bytes, bytes]:
        """(attestation, signature in DER): the attestation key's word on PCRs of the SHA-256 bank (TPM2_Quote)."""
        bits = sum(1 << register for register in registers).to_bytes(_SHA256_SELECTION_BYTES, "little")
        selection = struct.pack(">IHB", 1, SHA256, len(bits)) + bits
        parameters = block(qualifying) + struct.pack(">H", NULL) + selection
        return self._attested("TPM2_Quote", 0x158, (attestation_key,), parameters)

    def activate_credential(self, attestation_key: int, endorsement_key: int, blob: bytes, secret: bytes) -> bytes:
        """What was sealed for this attestation key in the TPM of this endorsement key (TPM2_ActivateCredential)."""
        with self._endorsement_policy() as policy:
            handles, auths = (attestation_key, endorsement_key), (password(), session(policy))
            _, reply = self._do("TPM2_ActivateCredential", 0x147, handles, auths, block(blob) + block(secret))
        credential = reply.block()
        reply.end()
        return credential

    # --- what it is ---------------------------------------------------------------------------------------------

    def properties(self, first: int, count: int) -> dict[int, int]:
        """Fixed properties by their number (TPM2_GetCapability)."""
        parameters = struct.pack(">III", _PROPERTIES, first, count)
        _, reply = self._do("TPM2_GetCapability", 0x17A, parameters=parameters)
        reply.number(1)  # whether there are more
        reply.expect(4, _PROPERTIES, "the capability")
        found = {reply.number(4): reply.number(4) for _ in range(min(reply.number(4), count))}
        reply.end()
        return found

    def read_clock(self) -> Clock:
        """The TPM's own time (TPM2_ReadClock)."""
        _, reply = self._do("TPM2_ReadClock", 0x181)
        reply.number(8)  # milliseconds since its last reset, which `clock` tells better
        clock = parse_clock(reply)
        reply.end()
        return clock

    def read_nv(self, index: int) -> bytes | None:
        """What the owner may read at an NV index, None when there is no such index (TPM2_NV_ReadPublic, NV_Read)."""
        try:
            _, reply = self._do("TPM2_NV_ReadPublic", 0x169, (index,))
        except TpmError as error:
            if error.is_about(NO_HANDLE):
                return None
            raise
        public = Reader(reply.block(), "an NV index's public area")
        public.take(10)  # its number, hash algorithm and attributes
        public.block()
        size, data = public.number(2), b""
        while len(data) < size:
            wanted = struct.pack(">HH", min(NV_CHUNK_BYTES, size - len(data)), len(data))
            _, reply = self._do("TPM2_NV_Read", 0x14E, (OWNER, index), (self._owner,), wanted)
            part = reply.block()
            if not part:
                break
            data += part
        return data

    # --- how they are sent --------------------------------------------------------------------------------------

    def _attested(self, name: str, code: int, handles: Sequence[int], parameters: bytes) -> tuple[bytes, bytes]:
        _, reply = self._do(name, code, handles, [password()] * len(handles), parameters)
        attestation, signature = reply.block(), parse_signature(reply)
        reply.end()
        return attestation, signature

    @contextlib.contextmanager
    def _endorsement_policy(self) -> Iterator[int]:
        """A session that shows the endorsement hierarchy's (empty) password, which the endorsement key's policy asks.

        TPM2_StartAuthSession with a nonce of the least length, no salt and no encryption: the chip is our own, and what
        comes back is secret only until it was sent.
        """
        parameters = block(bytes(16)) + block(b"") + struct.pack(">BHH", 1, NULL, SHA256)
        handles = (NO_HIERARCHY, NO_HIERARCHY)
        (policy,), _ = self._do("TPM2_StartAuthSession", 0x176, handles, parameters=parameters, handles_out=1)
        with self._flushed(policy):
            empty = block(b"") * 3 + struct.pack(">I", 0)
            self._do("TPM2_PolicySecret", 0x151, (ENDORSEMENT, policy), (password(),), empty)
            yield policy

    @contextlib.contextmanager
    def _flushed(self, handle: int) -> Iterator[None]:
        """Flush the object or session afterwards; one that a failed use leaves is not worth a second error."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                self._flush(handle)
            raise
        self._flush(handle)

    def _flush(self, handle: int) -> None:
        self._do("TPM2_FlushContext", 0x165, parameters=struct.pack(">I", handle))

    def _do(
        self,
        name: str,
        code: int,
        handles: Sequence[int] = (),
        auths: Sequence[bytes] = (),
        parameters: bytes = b"",
        *,
        handles_out: int = 0,
    ) -> tuple[tuple[int, ...], Reader]:
        """Send a command, again where the TPM asks for that, and take its reply apart; raises TrustError."""
        sent, wait_s = command(code, handles, auths, parameters), RETRY_S[0]
        while True:
            reply = self._transport.exchange(sent, self._deadline)
            busy = RETRY_CODES.get(response_code(reply, name))
            if busy is None:
                return parameters_of(reply, name, handles=handles_out, has_sessions=bool(auths))
            if self._deadline.left_s() <= wait_s:
                raise KeySlowError(f"the TPM is {busy}: {name} was not done within {self._deadline.limit_s:g} s")
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_S[1])


_NO_SECRET = block(b"") + block(b"")
"""TPMS_SENSITIVE_CREATE: no password, and no data from outside."""
_NO_OUTSIDE_INFO = block(b"")
_NO_PCRS = struct.pack(">I", 0)
