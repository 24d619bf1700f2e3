"""`python -m agent.worker [--read DIR…] [--accelerator] [--require MEASURE…] --fd N`: the inference worker,
on the socket that the daemon left open as descriptor N.

DIR is a directory that the worker will have to read (its package); with --accelerator it may use one. Neither can be
widened once the process is shut in, and so they are no matter of a frame. Where a required MEASURE of the cage does not
stand, every order is refused before anything of it is looked at. Started by systemd on a connection (N is 3 then), the
process is tied to the daemon by other means (`agent.worker.sandbox.activation`), and says its exit status itself.

Exit status: 0 after Stop, 3 when the package was refused, 4 when the daemon broke the protocol or left, 5 when the
accelerator was lost, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from typing import get_args

from agent.errors import WorkerError
from agent.wire import EXIT_LOST, EXIT_PROTOCOL, EXIT_REFUSED, Ending, Idle, Measure, encode
from agent.worker.channel import Channel, ChannelClosedError
from agent.worker.ending import end_after_idle, end_on_sigterm, say_status, say_status_by
from agent.worker.sandbox import confine, lacking
from agent.worker.sandbox.activation import Ties, is_activated


def main() -> int:
    """Shut the process in, then serve; the engine's libraries are loaded only after the cage stands."""
    parser = argparse.ArgumentParser(prog="python -m agent.worker", description=__doc__)
    parser.add_argument("--read", action="append", default=[], metavar="DIR", help="a directory that may be read")
    parser.add_argument("--accelerator", action="store_true", help="an accelerator may be used")
    parser.add_argument("--require", action="append", default=[], choices=get_args(Measure), help="what must stand")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the daemon")
    arguments = parser.parse_args()
    with socket.socket(fileno=arguments.fd) as connection:
        connection.set_inheritable(False)
        connection.setblocking(True)
        status = 1  # the interpreter's own, for an exception that nobody expected
        try:
            status = _serve(connection, arguments)
        finally:
            say_status(status)
        return status


def _serve(connection: socket.socket, arguments: argparse.Namespace) -> int:
    """The process's exit status, unless it ends by itself."""
    try:
        ties = Ties() if is_activated() else None
        confinement = confine(connection, arguments.read, accelerator=arguments.accelerator, activated=ties is not None)
        channel, idle = Channel(connection, () if ties is None else ties.riding), encode(Idle())
        end_on_sigterm(lambda: channel.send_at_once(idle))
        from agent.worker.executor import LostError  # noqa: PLC0415 - see main
        from agent.worker.session import RefusedError, Session  # noqa: PLC0415 - see main

        if ties is not None:
            say_status_by(lambda status: channel.send_at_once(encode(Ending(status=status))))
            ties.words_to_the_daemon()
        try:
            Session(channel, confinement, lacking(confinement, arguments.require)).serve()
            end_after_idle()
        except LostError as error:
            sys.stderr.write(f"the accelerator was lost: {error}\n")
            sys.stderr.flush()
            say_status(EXIT_LOST)
            os._exit(EXIT_LOST)  # nothing of a lost context can be freed, and trying may hang
        except RefusedError:
            return EXIT_REFUSED
    except ChannelClosedError:
        return EXIT_PROTOCOL
    except WorkerError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_PROTOCOL


if __name__ == "__main__":
    sys.exit(main())
