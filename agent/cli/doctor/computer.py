"""Offline: this computer, as far as the daemon and its workers need something of it."""

from __future__ import annotations

import datetime as dt
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from agent.cli.doctor.model import Finding, fail, missing, ok, warn
from agent.config import Config

NOT_BEFORE = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
"""No release of this program is older: a clock that says so was not set."""
SYNCHRONISED = (Path("/run/systemd/timesync/synchronized"), Path("/run/chrony"))
NODES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu/igpu0/ctrl")
"""An NVIDIA card, and the two kinds of Jetson."""
IMPORT_S = 60.0
_LOOK = """
import importlib.util, sys
missing = [one for one in sys.argv[1:] if importlib.util.find_spec(one) is None]
def version(one):
    from importlib import metadata
    try:
        return one + " " + metadata.version(one)
    except metadata.PackageNotFoundError:
        return one
print(" ".join(missing)); print(sys.version.split()[0])
print(", ".join(version(one) for one in sys.argv[1:] if one not in missing))
"""


def clock() -> Finding:
    """Boot time runs, and the wall clock is plausible. The daemon trusts it no further than it has to."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    time.sleep(0.01)
    if time.clock_gettime_ns(time.CLOCK_BOOTTIME) <= before:
        return fail("clock", "boot time does not advance", "restart the computer")
    now = dt.datetime.now(dt.UTC)
    if now < NOT_BEFORE:
        return warn("clock", f"the wall clock says {now:%Y-%m-%d %H:%M} UTC", "set it: certificates are judged by it")
    if not any(one.exists() for one in SYNCHRONISED):
        return ok("clock", f"{now:%Y-%m-%d %H:%M} UTC; whether it is synchronised is not known here")
    return ok("clock", f"{now:%Y-%m-%d %H:%M} UTC, synchronised")


def kernel() -> Finding:
    """What workers are watched and fed with."""
    import os  # noqa: PLC0415 - with what it is about

    try:
        os.close(os.pidfd_open(os.getpid()))
        os.close(os.memfd_create("doctor"))
    except OSError as error:
        return fail(
            "kernel", f"a worker cannot be watched or fed: {error.strerror}", "the kernel must allow pidfd and memfd"
        )
    return ok("kernel", f"Linux {os.uname().release}")


def engine(config: Config) -> Iterator[Finding]:
    """The engine's bindings are where workers look for them, and there is an accelerator where one is configured."""
    inference = config.inference
    modules = {"onnxruntime": ("onnxruntime", "numpy"), "tensorrt": ("tensorrt", "pycuda", "numpy")}
    wanted = modules.get(inference.executor, ("tensorrt_rtx", "pycuda", "numpy"))
    yield _bindings(inference.worker_python or sys.executable, wanted)
    if inference.executor == "onnxruntime":
        yield missing("engine.device", "no accelerator is configured: engines run on the processor")
        return
    yield _kernels()
    if found := next((node for node in NODES if Path(node).exists()), None):
        yield ok("engine.device", found)
    else:
        mend = (
            "install the driver and load it before the daemon starts; an accelerator that is absent is never replaced"
        )
        yield fail(
            "engine.device", f"{inference.executor} is configured, and there is none of {', '.join(NODES)}", mend
        )


def _kernels(folder: Path | None = None) -> Finding:
    """The compiled kernels are those of the manifest, byte for byte; which suits the device, the worker finds."""
    from kernels import fatbin  # noqa: PLC0415 - with what it is about

    name = "engine.kernels"
    folder = folder or fatbin.default_folder()
    try:
        manifest = fatbin.read_manifest(folder)
        for one in manifest.files:
            if hashlib.sha256((folder / one.name).read_bytes()).hexdigest() != one.sha256:
                return fail(name, f"{folder / one.name} is damaged", "install the package again")
    except (fatbin.FatbinError, OSError) as error:
        return fail(name, f"the compiled kernels cannot be read: {error}", "install the package again (make kernels)")
    has = ", ".join(f"CUDA {one.cuda}: {' '.join(one.architectures)}" for one in manifest.files)
    return ok(name, has)


def _bindings(python: str, wanted: tuple[str, ...]) -> Finding:
    name = "engine.bindings"
    try:
        said = subprocess.run(
            [python, "-I", "-c", _LOOK, *wanted], capture_output=True, text=True, timeout=IMPORT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return fail(name, f"the workers' interpreter {python} cannot be run: {error}", "set inference.worker_python")
    if said.returncode:
        return fail(name, f"{python} fails: {said.stderr.strip()[-200:]}", "set inference.worker_python")
    lacking, version, has = [*said.stdout.splitlines(), "", "", ""][:3]
    if lacking:
        return fail(name, f"Python {version} at {python} lacks {lacking}", "install the executor's packages for it")
    return ok(name, f"Python {version} at {python} has {has}")
