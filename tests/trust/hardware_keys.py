"""What the tests of hardware keys share: emulators where they are installed, and a TPM that answers what it is told."""

from __future__ import annotations

import shutil

from agent.trust.tpm_commands import Tpm
from agent.trust.tpm_transport import Deadline
from hil.emulated_keys import softhsm_module
from tests.tools import needs

needs_swtpm = needs(shutil.which("swtpm"), "swtpm is not installed")
needs_swtpm_setup = needs(
    shutil.which("swtpm_setup") and shutil.which("swtpm_localca"), "swtpm-tools are not installed"
)
needs_tpm2_tools = needs(shutil.which("tpm2_getcap"), "tpm2-tools are not installed")
needs_softhsm = needs(softhsm_module(), "softhsm2 is not installed")


class ScriptedTransport:
    """Answers each command with the next reply, and the last one for ever; keeps what it was sent."""

    def __init__(self, *replies: bytes) -> None:
        self.replies, self.sent, self.closed = list(replies), list[bytes](), False

    def exchange(self, command: bytes, deadline: Deadline) -> bytes:
        self.sent.append(command)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def close(self) -> None:
        self.closed = True


def scripted(*replies: bytes, limit_s: float = 0.2) -> Tpm:
    """A TPM that answers these."""
    return Tpm(lambda _deadline: ScriptedTransport(*replies), limit_s)


def reply(body: bytes, *, code: int = 0, tag: int = 0x8001) -> bytes:
    """A reply with a header that fits it."""
    return tag.to_bytes(2, "big") + (10 + len(body)).to_bytes(4, "big") + code.to_bytes(4, "big") + body
