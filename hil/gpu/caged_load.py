"""`hil.gpu.load` in the cage that the worker has on a vehicle, so that what is measured is what would run there.

    python -m hil.gpu.caged_load --fd N ARGUMENTS-OF-hil.gpu.load

N is a socket to the parent, with whom this process ends. The cage (`agent.worker.sandbox`) goes up before anything else
is loaded: it takes a process of one thread, and libraries make more. Before the words of `hil.gpu.load` comes a line
with `caged`, and behind it what of the cage does not stand on this machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from agent.worker.sandbox import ENFORCED, confine, limit_memory


def main() -> int:
    """Shut the process in, say how well, and go to work."""
    parser = argparse.ArgumentParser(prog="python -m hil.gpu.caged_load", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the socket to the parent")
    parser.add_argument("--image", type=Path, required=True, help="the compiled stand-in engine")
    options, rest = parser.parse_known_args()
    with socket.socket(fileno=options.fd) as parent:
        cage = confine(parent, list(readable(options.image)), accelerator=True)
        print("caged", ", ".join(f"{one.name} {one.state}" for one in cage if one.state != ENFORCED), flush=True)
        from agent.worker.executors import host_memory_mb  # noqa: PLC0415 - see above
        from hil.gpu import load  # noqa: PLC0415 - see above

        limit_memory(host_memory_mb("tensorrt", load.MEMORY_MB))
        return load.main([*rest, "--image", str(options.image)])


def readable(image: Path) -> Iterator[str]:
    """What a worker does not need: our code, the engine, pycuda where it is not installed, a driver elsewhere."""
    yield str(Path(__file__).parents[1])
    yield str(image.resolve().parent)
    found = importlib.util.find_spec("pycuda")
    if found is not None and found.origin is not None:
        yield str(Path(found.origin).parents[1])
    yield from (folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder)


if __name__ == "__main__":
    sys.exit(main())
