"""Binds the profiles in a short-lived process of its own, so that no DBC library stays in the daemon.

Reading a DBC takes cantools, python-can beneath it and some 8 MB; watching the car takes only where the bits are. So
the daemon starts `python -m agent.vehicle.apart PROFILE… -- BUS…`, takes `agent.vehicle.layout` values from it as
MessagePack, and never imports what it needed. It costs half a second at start.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import msgspec

from agent.errors import ConfigError, DrivewayError
from agent.vehicle.layout import BoundMessage
from agent.vehicle.profile import Profile

TIMEOUT_S = 60.0


class Answer(msgspec.Struct, frozen=True):
    """What the process says: the buses, or what is wrong."""

    buses: dict[str, tuple[BoundMessage, ...]] = {}
    what: str = ""
    hint: str = ""


def bind_apart(profiles: Sequence[Profile], names: Sequence[str]) -> dict[str, tuple[BoundMessage, ...]]:
    """As `agent.vehicle.binding.bind_buses`, in another process. Raises ConfigError."""
    command = [sys.executable, "-m", "agent.vehicle.apart"]
    question = msgspec.msgpack.encode((profiles, names), enc_hook=str)
    try:
        done = subprocess.run(command, input=question, stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=True)
        answer = msgspec.msgpack.decode(done.stdout, type=Answer)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"the vehicle profiles cannot be bound to their DBCs: {error}", hint="is the extra `can` installed?"
        ) from error
    if answer.what:
        raise ConfigError(answer.what, hint=answer.hint)
    return answer.buses


def main() -> None:
    """Read the question from standard input, write the answer to standard output."""
    from agent.vehicle.binding import bind_buses  # noqa: PLC0415 - what the daemon shall not import

    profiles, names = msgspec.msgpack.decode(
        sys.stdin.buffer.read(),
        type=tuple[tuple[Profile, ...], tuple[str, ...]],
        dec_hook=lambda kind, path: kind(path),
    )
    try:
        answer = Answer(bind_buses(profiles, names))
    except DrivewayError as error:
        answer = Answer(what=error.what, hint=error.hint)
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))


if __name__ == "__main__":
    main()
