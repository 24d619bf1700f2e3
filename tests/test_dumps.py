"""The daemon's memory is in no core dump, and a program that it starts may write none either."""

from __future__ import annotations

import subprocess
import sys

PROBE = """
import ctypes, resource, subprocess, sys
from agent.dumps import stay_out_of_dumps
libc = ctypes.CDLL(None)
before = libc.prctl(3, 0, 0, 0, 0)
stay_out_of_dumps()
child = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))"
print(before, libc.prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE), flush=True)
subprocess.run([sys.executable, "-c", child], check=True)
"""


def test_no_core_dump_and_nobody_attaches() -> None:
    said = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["1 0 (0, 0)", "(0, 0)"]
