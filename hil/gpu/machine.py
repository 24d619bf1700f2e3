"""The machine under test: its versions, and the kernels for it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import tempfile
from pathlib import Path

from agent import __version__
from agent.worker.cuda.context import DeviceFacts
from hil.bench.command import machine
from hil.gpu.figures import Facts
from kernels import build, fatbin
from kernels.compiler import BuildError, Nvcc, toolkit

_ENGINES = ("tensorrt", "tensorrt_rtx", "tensorrt_bindings", "tensorrt_rtx_bindings")


def facts_of(facts: DeviceFacts, kernels: fatbin.KernelImage | None) -> Facts:
    """This machine, and the kernels that run on it."""
    here = machine()
    engines = {name: _version(name) for name in _ENGINES}
    return Facts(
        device=facts.name,
        compute_capability=f"{facts.compute_capability[0]}.{facts.compute_capability[1]}",
        memory_mb=facts.memory_bytes // 1024**2,
        integrated=facts.integrated,
        driver=".".join(str(part) for part in facts.cuda_version),
        cuda_toolkit=_toolkit(),
        pycuda=_version("pycuda"),
        engine=", ".join(f"{name} {version}" for name, version in engines.items() if version),
        kernels_sha256="" if kernels is None else kernels.sha256,
        agent=__version__,
        python=platform.python_version(),
        system=here.system,
        processor=here.processor,
        cores=os.cpu_count() or 0,
    )


def _version(package: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""


def _toolkit() -> str:
    """The CUDA compiler's release, where there is one."""
    home = toolkit()
    with contextlib.suppress(BuildError):
        return "" if home is None else Nvcc(home).version
    return ""


def kernels_for(facts: DeviceFacts) -> fatbin.KernelImage:
    """The kernels for this device, built for it alone where nobody built them, or from other sources than these.

    Raises FatbinError or BuildError.
    """
    folder = fatbin.default_folder()
    if (folder / fatbin.MANIFEST).is_file():
        with contextlib.suppress(fatbin.StaleKernelsError):
            return fatbin.load(folder, facts.cuda_version, facts.compute_capability)
    major, minor = facts.compute_capability
    with tempfile.TemporaryDirectory(prefix="driveway-kernels-") as name:
        folder = Path(name) / "kernels"
        build.build(folder, architectures=(f"sm_{major}{minor}",), ptx=None, jetpack_6=False)
        return fatbin.load(folder, facts.cuda_version, facts.compute_capability)
