"""The real worker process, but that it builds for a device that is not here: `agent.worker` with one argument more.

Arguments: a compute capability (`8.6`, or `here`), a stack in KiB, the private memory it is started with in MiB (0: as
much as it likes), then the worker's own.
"""

from __future__ import annotations

import resource
import sys
from functools import partial

from agent.worker.__main__ import main

if __name__ == "__main__":
    capability, stack_kib, data_mb = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    del sys.argv[1:4]
    if data_mb:
        resource.setrlimit(resource.RLIMIT_DATA, (data_mb * 1024**2,) * 2)
    resource.setrlimit(resource.RLIMIT_STACK, (stack_kib * 1024, resource.RLIM_INFINITY))
    if capability != "here":
        from agent.worker import building

        building.build = partial(building.build, compute_capability=capability)
    sys.exit(main())
