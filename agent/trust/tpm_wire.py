"""TPM 2.0 commands and replies as bytes (TPM 2.0 Library, Part 2 "Structures" and Part 3 "Commands").

Everything is big-endian; a `TPM2B` is a 16-bit length and that many bytes. What a TPM answers is read as if a stranger
had sent it: every length is checked before it is used, nothing is left over, and all that is wrong is a `TrustError`.
A reply that says no is a `TpmError`, which explains its code: the codes carry which handle, session or parameter was at
fault in their upper bits (Part 2, 6.6).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from agent.errors import TrustError

NO_SESSIONS, SESSIONS = 0x8001, 0x8002
PASSWORD_SESSION = 0x40000009
HEADER = struct.Struct(">HII")
MAX_BLOCK_BYTES = 2048

RETRY_CODES = {0x908: "yielded", 0x90A: "testing itself", 0x920: "its memory's writes are rationed", 0x922: "busy"}
"""Warnings after which the same command is to be sent again."""
MEMORY_CODES = (0x902, 0x903, 0x904, 0x905)

_EXPLAINED = {
    0x100: ("it was not started", "TPM2_Startup is the firmware's work: look at the boot log"),
    0x101: ("it is in failure mode", "restart the computer; if it stays so, the chip is broken"),
    0x120: ("the command is disabled", "the firmware's settings disable the hierarchy"),
    0x12F: ("the authorisation is missing", ""),
    0x143: ("it does not know the command", ""),
    0x14B: ("no room in its NV memory", "free persistent handles or NV indexes: tpm2_getcap handles-persistent"),
    0x14C: ("the handle is taken", ""),
    0x902: ("no memory for another object", "use /dev/tpmrm0, whose resource manager makes room"),
    0x903: ("no memory for another session", "use /dev/tpmrm0, whose resource manager makes room"),
    0x904: ("no memory for an object", "use /dev/tpmrm0, whose resource manager makes room"),
    0x905: ("no session handle is left", "use /dev/tpmrm0, whose resource manager makes room"),
    0x921: ("it is locked after wrong passwords", "wait, or tpm2_dictionarylockout --clear-lockout with lockout auth"),
    0x923: ("its NV memory cannot be read", ""),
}
"""Codes of format zero and warnings, whole: what they mean, and what to do."""
_EXPLAINED_OF_ONE = {
    0x02: ("an attribute does not fit", ""),
    0x03: ("it does not have the hash algorithm", ""),
    0x04: ("a value is out of range", ""),
    0x05: ("the hierarchy is disabled or not the right one", "look at the firmware's settings"),
    0x0A: ("it has no such object type", ""),
    0x0B: ("there is no such handle", ""),
    0x0E: ("the password is wrong, and was counted", "give the right one in owner_auth_file"),
    0x12: ("it does not have the signature scheme", ""),
    0x15: ("a length is not allowed", ""),
    0x1D: ("a policy does not hold", ""),
    0x1F: ("an integrity check failed: what was given was not made for this TPM and key", ""),
    0x22: ("the password is wrong", "give the right one in owner_auth_file"),
    0x26: ("it does not have the curve", "this TPM has no P-256: use another backend"),
}
"""Codes of format one, their lower six bits: what they mean, and what to do."""


class TpmError(TrustError):
    """The TPM answered with an error; `code` is the response code as it came."""

    def __init__(self, command: str, code: int) -> None:
        meaning, hint = _explain(code)
        super().__init__(f"the TPM refused {command}: {meaning} (code 0x{code:03x})", hint=hint)
        self.code = code

    def is_about(self, number: int) -> bool:
        """Whether this is that error of format one (its lower six bits), whatever it is about."""
        return bool(self.code & 0x80) and self.code & 0x3F == number


NO_HANDLE = 0x0B
"""Of format one: there is nothing at the handle."""


class Reader:
    """Takes a reply apart from the front; every method raises TrustError when the bytes do not allow it."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def take(self, size: int) -> bytes:
        """So many bytes."""
        if not 0 <= size <= len(self._data) - self._at:
            raise TrustError(f"{self._what}: ends after {len(self._data)} bytes, in the middle of a field")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        """An unsigned number of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def block(self) -> bytes:
        """A TPM2B: a length and that many bytes."""
        size = self.number(2)
        if size > MAX_BLOCK_BYTES:
            raise TrustError(f"{self._what}: a field of {size} bytes")
        return self.take(size)

    def expect(self, size: int, value: int, name: str) -> None:
        """A number that can only be this one."""
        found = self.number(size)
        if found != value:
            raise TrustError(f"{self._what}: {name} is 0x{found:x}, expected 0x{value:x}")

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._data):
            raise TrustError(f"{self._what}: {len(self._data) - self._at} bytes too many")


def block(data: bytes) -> bytes:
    """`data` as a TPM2B."""
    return struct.pack(">H", len(data)) + data


def password(secret: bytes = b"") -> bytes:
    """An authorisation by password; the empty one is that of a key or hierarchy that has none."""
    return session(PASSWORD_SESSION, secret)


def session(handle: int, secret: bytes = b"") -> bytes:
    """An authorisation by the session `handle`, which goes on after the command unless it is the password's."""
    attributes = 0 if handle == PASSWORD_SESSION else 1
    return struct.pack(">IHB", handle, 0, attributes) + block(secret)


def command(code: int, handles: Sequence[int] = (), auths: Sequence[bytes] = (), parameters: bytes = b"") -> bytes:
    """A whole command: its handles, one authorisation for each that needs one, and its parameters."""
    body = b"".join(struct.pack(">I", handle) for handle in handles)
    if auths:
        area = b"".join(auths)
        body += struct.pack(">I", len(area)) + area
    body += parameters
    tag = SESSIONS if auths else NO_SESSIONS
    return HEADER.pack(tag, HEADER.size + len(body), code) + body


def response_code(reply: bytes, name: str) -> int:
    """The reply's response code, once its header fits its length; raises TrustError."""
    if len(reply) < HEADER.size:
        raise TrustError(f"the TPM's reply to {name}: {len(reply)} bytes, fewer than a header")
    tag, size, code = HEADER.unpack_from(reply)
    if tag not in (NO_SESSIONS, SESSIONS) or size != len(reply):
        raise TrustError(f"the TPM's reply to {name}: tag 0x{tag:x} and {size} bytes announced, {len(reply)} came")
    return int(code)


def parameters_of(reply: bytes, name: str, *, handles: int, has_sessions: bool) -> tuple[tuple[int, ...], Reader]:
    """The handles and the parameters of a reply; raises TpmError when it says no, TrustError when it is malformed."""
    code = response_code(reply, name)
    if code:
        raise TpmError(name, code)
    what = f"the TPM's reply to {name}"
    reader = Reader(reply, what)
    reader.expect(2, SESSIONS if has_sessions else NO_SESSIONS, "its tag")
    reader.take(HEADER.size - 2)
    found = tuple(reader.number(4) for _ in range(handles))
    parameters = reader.take(reader.number(4)) if has_sessions else reader.rest()
    return found, Reader(parameters, what)


def _explain(code: int) -> tuple[str, str]:
    if code & 0x80:
        meaning, hint = _EXPLAINED_OF_ONE.get(code & 0x3F, ("it gave no known reason", ""))
        number, kind = code >> 8 & 0xF, "parameter"
        if not code & 0x40:
            kind, number = ("session", number & 7) if number & 8 else ("handle", number)
        return (f"{meaning} ({kind} {number})" if number else meaning), hint
    return _EXPLAINED.get(code & 0xFFF, ("it gave no known reason", ""))
