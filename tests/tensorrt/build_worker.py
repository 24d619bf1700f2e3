"""The real worker process, but that it builds for a device that is not here: `agent.worker` with one argument more.

Arguments: a compute capability (`8.6`, or `here`), a stack in KiB, then the worker's own.
"""

from __future__ import annotations

import resource
import sys
from functools import partial

from agent.worker.__main__ import main

if __name__ == "__main__":
    capability, stack_kib = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    resource.setrlimit(resource.RLIMIT_STACK, (stack_kib * 1024, resource.RLIM_INFINITY))
    if capability != "here":
        from agent.worker import building

        building.build = partial(building.build, compute_capability=capability)
    sys.exit(main())
