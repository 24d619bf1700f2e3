"""Every case of `kernel_cases` through kernels compiled with ASan and UBSan, in a process of their own.

    python -m tests.cuda.sanitized LIBRARY [FILE.cu …]      exit status 0: no fault and no difference

A fault ends the process with the sanitiser's report, which names the source line. `run` starts such a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hil.gpu.hard_cases import CASES
from tests.cuda.host_kernels import ROOT, SANITIZED, HostKernels
from tests.cuda.kernel_cases import ORDERS, difference

TIMEOUT_S = 300.0


def run(library: Path, *files: str) -> subprocess.CompletedProcess[str]:
    """Run the cases of these .cu files (none: all) in a sanitised process; subprocess.TimeoutExpired: it hangs."""
    return python("-m", "tests.cuda.sanitized", str(library), *files)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with libasan in it."""
    asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    options = {"ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(ROOT), "LD_PRELOAD": asan.stdout.strip()}
    command = [sys.executable, *arguments]
    variables = {**os.environ, **options}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=variables, timeout=TIMEOUT_S
    )


def main() -> int:
    """Run what the command line names; 1 when a result differs."""
    assert SANITIZED, "this process has no libasan in it"
    kernels = HostKernels(Path(sys.argv[1]))
    for file in sys.argv[2:] or CASES:
        for at, case in enumerate(CASES[file]):
            for order in ORDERS[:2]:
                found = difference(case, kernels, order)
                if found is not None:
                    sys.stderr.write(f"{file}, case {at}, order {order}: {found}\n")
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
