"""`python -m agent.worker --fd N`: the inference worker, on the socket that the daemon left open as descriptor N.

Exit status: 0 after Stop, 3 when the package was refused, 4 when the daemon broke the protocol or left.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

from agent.errors import WorkerError
from agent.worker.channel import Channel, ChannelClosedError
from agent.worker.guard import guard_process

EXIT_REFUSED = 3
EXIT_PROTOCOL = 4


def main() -> int:
    """Guard the process, then serve; the engine's libraries are loaded only after the guard stands."""
    parser = argparse.ArgumentParser(prog="python -m agent.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the socket to the daemon")
    with socket.socket(fileno=parser.parse_args().fd) as connection:
        connection.set_inheritable(False)
        connection.setblocking(True)
        try:
            guard_process(connection)
            from agent.worker.session import RefusedError, Session  # noqa: PLC0415 - see above

            Session(Channel(connection)).serve()
            os._exit(0)  # told to stop: the kernel frees the engine's memory faster than the interpreter would
        except RefusedError:
            return EXIT_REFUSED
        except ChannelClosedError:
            return EXIT_PROTOCOL
        except WorkerError as error:
            sys.stderr.write(f"{error}\n")
            return EXIT_PROTOCOL


if __name__ == "__main__":
    sys.exit(main())
