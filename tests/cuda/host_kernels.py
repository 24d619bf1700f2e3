"""The .cu files of `kernels/` compiled for this computer's processor, and launched on NumPy arrays.

`library` compiles every kernel into one shared library with g++ and the shim (tests/cuda/shim), unchanged, and keeps it
under build/cuda-host by a digest of everything that went into it. Each kernel `NAME` is exported as

    extern "C" void NAME__shim(const char* packed_arguments, const unsigned grid[3], const unsigned block[3],
                               size_t shared_bytes)

with the arguments packed as `cuLaunchKernel` takes them, each at its natural alignment. `driveway_shim_order(int)` says
in which order threads and blocks get their turn (0 ascending, 1 descending, else a seed), and
`driveway_shim_failure()` why the calling thread's last launch failed (null: it did not).

With `sanitized` everything is compiled with ASan and UBSan: such a library is only for a process that preloads
libasan (tests/cuda/sanitized.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.operation import Argument, Buffer, Float32, Int32, Launch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "kernels"
SHIM = Path(__file__).parent / "shim"
CACHE = ROOT / "build" / "cuda-host"

CANARY_BYTES = 256
"""Before and behind each buffer, as far as device memory is aligned; a kernel that writes there has gone astray."""
_CANARY, _POISON = 0x5A, 0xA5
_PROCESS = ctypes.CDLL(None)
SANITIZED = hasattr(_PROCESS, "__asan_poison_memory_region")
"""Whether this process has libasan in it."""
_FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Wextra",
          "-Werror", "-Wno-unknown-pragmas")  # fmt: skip
_PLAIN = ("-O2",)
_SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fsanitize-sections=driveway_shared",
              "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")  # fmt: skip
_KERNEL = re.compile(r'extern "C" __global__ void(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)\(')


class LaunchError(Exception):
    """A launch that the shim refused or found at fault, or one that wrote beside its buffers."""


def kernel_names(source: str) -> list[str]:
    """The kernels that a .cu file exports."""
    return _KERNEL.findall(source)


def library(
    sources: Path = SOURCES, *, only: Sequence[str] | None = None, sanitized: bool = False, portable: bool = False
) -> Path:
    """The shared library of the kernels in a directory, compiled if need be; `only`: of these .cu files.

    `portable`: with the fibers that run on every processor, though slower.
    """
    flags = (*_FLAGS, *(_SANITIZED if sanitized else _PLAIN), *(("-DSHIM_UCONTEXT",) if portable else ()))
    files = sorted(path for path in sources.glob("*.cu") if only is None or path.name in only)
    headers = sorted(sources.glob("*.cuh"))
    objects = [_object(SHIM / "fibers.cpp", (SHIM / "fibers.cpp").read_text("utf-8"), (), flags)]
    for path in files:
        exports = "".join(f"DRIVEWAY_SHIM({name})\n" for name in kernel_names(path.read_text("utf-8")))
        objects.append(_object(path, f'#include "{path}"\n{exports}', (path, *headers), flags))
    name = hashlib.sha256("".join(one.name for one in objects).encode("ascii")).hexdigest()
    target = CACHE / f"kernels-{name[:20]}.so"
    if not target.exists():
        _compile(["-shared", *map(str, objects), *(one for one in flags if "sanitize" in one)], target)
    return target


def _object(path: Path, text: str, inputs: Sequence[Path], flags: Sequence[str]) -> Path:
    """One translation unit, compiled behind the shim's header."""
    shim = sorted(path for path in SHIM.iterdir() if path.is_file())
    digest = hashlib.sha256(repr((text, flags, *(one.read_bytes() for one in (*shim, *inputs)))).encode("utf-8"))
    target = CACHE / f"{path.stem}-{digest.hexdigest()[:20]}.o"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unit = target.with_suffix(f".{os.getpid()}.cpp")
        unit.write_text(text, "utf-8")
        include = [f"-I{SHIM}", f"-I{path.parent}", "-include", str(SHIM / "device.h")]
        try:
            _compile(["-c", *flags, *include, str(unit)], target)
        finally:
            unit.unlink()
    return target


def _compile(arguments: Sequence[str], target: Path) -> None:
    """Run g++; several processes may want the same file at once, so it appears whole."""
    part = target.with_suffix(f"{target.suffix}.{os.getpid()}")
    done = subprocess.run(["g++", *arguments, "-o", str(part)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LaunchError(f"g++ refused {target.name}:\n{done.stderr}")
    part.replace(target)


class HostKernels:
    """The kernels of one library."""

    def __init__(self, path: Path) -> None:
        """Load a library that `library` made."""
        self._library = ctypes.CDLL(str(path))
        self._library.driveway_shim_failure.restype = ctypes.c_char_p

    def launch(self, launch: Launch, buffers: Mapping[str, NDArray[Any]], order: int = 0) -> None:
        """Run one launch to its end; raises LaunchError."""
        entry = getattr(self._library, f"{launch.kernel}__shim")
        addresses = {name: buffer.ctypes.data for name, buffer in buffers.items()}
        packed = pack(launch.arguments, addresses)
        self._library.driveway_shim_order(order)
        entry(
            packed,
            (ctypes.c_uint * 3)(*launch.grid),
            (ctypes.c_uint * 3)(*launch.block),
            ctypes.c_size_t(launch.shared_bytes),
        )
        failure = self._library.driveway_shim_failure()
        if failure is not None:
            raise LaunchError(f"{launch.kernel}: {failure.decode()}")


def pack(arguments: Sequence[Argument], addresses: Mapping[str, int]) -> bytes:
    """Arguments as the driver's launch buffer has them: each at its natural alignment."""
    packed = b""
    for argument in arguments:
        match argument:
            case Buffer(name):
                packed = packed.ljust(-(-len(packed) // 8) * 8, b"\0") + struct.pack("<Q", addresses[name])
            case Int32(value):
                packed += struct.pack("<i", value)
            case Float32(value):
                packed += struct.pack("<f", value)
    return packed


class Guarded:
    """Memory of exactly so many bytes at an address as aligned as the device's, with canaries on both sides.

    What is not given is poisoned, so a kernel that leaves a byte out is seen. In a sanitised process the canaries may
    not even be read.
    """

    def __init__(self, size_bytes: int, body: bytes = b"") -> None:
        """Memory for `size_bytes`, that begins with `body`."""
        raw = np.full(3 * CANARY_BYTES + size_bytes, _CANARY, dtype=np.uint8)
        begin = -raw.ctypes.data % CANARY_BYTES + CANARY_BYTES
        self._before, self.bytes, self._behind = raw[:begin], raw[begin : begin + size_bytes], raw[begin + size_bytes :]
        self.bytes[:] = _POISON
        self.bytes[: len(body)] = np.frombuffer(body, dtype=np.uint8)
        _forbid(self._before)
        _forbid(self._behind)

    def release(self, name: str) -> None:
        """Give the memory up; raises LaunchError when something was written beside it."""
        _allow(self._before)
        _allow(self._behind)
        if (self._before != _CANARY).any() or (self._behind != _CANARY).any():
            raise LaunchError(f"a kernel wrote beside {name}")


def _forbid(memory: NDArray[np.uint8]) -> None:
    """Have a sanitised process stop at whoever touches this."""
    if SANITIZED:
        _PROCESS.__asan_poison_memory_region(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes))


def _allow(memory: NDArray[np.uint8]) -> None:
    if SANITIZED:
        _PROCESS.__asan_unpoison_memory_region(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes))
