"""The stand-in for `libcuda.so.1`: built from tests/cuda/driver, and the environment in which a process meets it.

Real pycuda, in a process of its own, finds the stand-in where it looks for the driver. `environment` names the device
and what goes wrong on it; keys and values are the settings in driver/standin.h (struct Settings). A few in one place:

    capability="9.0"  integrated=0  memory_bytes=1 << 20  driver_version=12060
    fail="cuMemAlloc_v2@3:2"             the third allocation is out of memory (2); `@3+` the third and all later
    kernel_fails="top_k@2:719"           the second run of `top_k` fails, and the context is lost; "@1:700": any kernel
    kernel_hangs="@1:1"  kernel_ms=50    the first kernel never ends; each kernel takes 50 ms more
    kernels_held=1                       no kernel begins before this is taken back, through the control file
    lost=201                             every call gives this result

`control` names a file with the same settings, one `key=value` a line, that is read again whenever it changes (write it
with `Path.replace`). `report` names the file that the process leaves at exit, which `read_report` reads.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from kernels.compiler import toolkit
from tests.cuda.driver.entry_points import entry_points, error_names, headers, unsupported

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).parent / "driver"
CACHE = ROOT / "build" / "cuda" / "driver"
SITE = ROOT / "build" / "cuda" / f"site-{sys.version_info[0]}.{sys.version_info[1]}"
_FLAGS = ("-std=c++17", "-O1", "-g1", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-cast-function-type")


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a process left: calls by entry point, what it did wrong, bytes in use, at most, and never freed."""

    calls: dict[str, int]
    unsupported: tuple[str, ...]
    violations: tuple[str, ...]
    used_bytes: int
    peak_bytes: int
    pinned_bytes: int
    left_behind: tuple[int, ...]


class DriverBuildError(Exception):
    """The stand-in could not be built."""


def cuda_include() -> Path | None:
    """Where `cuda.h` is."""
    home = toolkit()
    return home / "include" if home is not None else None


def driver() -> Path:
    """The folder with the stand-in `libcuda.so.1`, built if need be; raises DriverBuildError."""
    include = cuda_include()
    if include is None:
        raise DriverBuildError("there is no cuda.h")
    sources = sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), *SOURCES.glob("*.py")))
    digest = hashlib.sha256(repr((_FLAGS, *(path.read_bytes() for path in sources))).encode())
    digest.update((include / "cuda.h").read_bytes())
    folder = CACHE / digest.hexdigest()[:20]
    if not (folder / "libcuda.so.1").exists():
        _build(include, folder)
    return folder


def environment(
    *,
    control: Path | None = None,
    report: Path | None = None,
    kernels: Path | None = None,
    **settings: object,
) -> dict[str, str]:
    """The environment of a process that meets the stand-in, with pycuda; `kernels`: the library behind real images."""
    if kernels is not None:
        settings["kernels"] = kernels
    path = [str(ROOT), str(SITE), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    variables = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join([str(driver()), *filter(None, [os.environ.get("LD_LIBRARY_PATH", "")])]),
        "PYTHONPATH": ":".join(path),
        "STANDIN": ";".join(f"{key}={_text(value)}" for key, value in settings.items()),
    }
    if control is not None:
        variables["STANDIN_CONTROL"] = str(control)
    if report is not None:
        variables["STANDIN_REPORT"] = str(report)
    return variables


def write_control(path: Path, settings: Mapping[str, object]) -> None:
    """Change the settings of the processes that were given this control file."""
    part = path.with_suffix(".part")
    part.write_text("".join(f"{key}={_text(value)}\n" for key, value in settings.items()), "utf-8")
    part.replace(path)


def read_report(path: Path) -> Report:
    """The report that a process left."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _build(include: Path, folder: Path) -> None:
    """Compile the stand-in; every entry point of cuda.h that it does not define is generated."""
    work = folder.with_name(f"{folder.name}.{os.getpid()}")
    work.mkdir(parents=True)
    text = headers(include)
    (work / "error_names.inc").write_text(error_names(text))
    compile_one = ["g++", *_FLAGS, f"-I{include}", f"-I{work}", "-c"]
    units = [[*compile_one, str(path), "-o", str(work / f"{path.stem}.o")] for path in sorted(SOURCES.glob("*.cpp"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, units))
    objects = [str(path) for path in sorted(work.glob("*.o"))]
    symbols = _run(["nm", "--defined-only", "--extern-only", "--format=posix", *objects])
    defined = {line.split()[0] for line in symbols.splitlines() if " T " in line}
    rest = work / "rest.c"
    rest.write_text(unsupported(name for name in entry_points(text) if name not in defined))
    _run(["gcc", "-O1", "-fPIC", "-c", str(rest), "-o", str(work / "rest.o")])
    link = ["g++", "-shared", "-pthread", "-Wl,-soname,libcuda.so.1", "-Wl,-z,nodelete"]
    _run([*link, *objects, str(work / "rest.o"), "-ldl", "-o", str(work / "libcuda.so.1")])
    folder.mkdir(exist_ok=True)
    (work / "libcuda.so.1").replace(folder / "libcuda.so.1")
    for path in work.iterdir():
        path.unlink()
    work.rmdir()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DriverBuildError(f"{command[0]}: {done.stderr}")
    return done.stdout
