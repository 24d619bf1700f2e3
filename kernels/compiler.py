"""Compiles the kernels for one architecture at a time, and reads what the compiler says each of them takes.

All .cu files become one translation unit, each in a namespace of its own, so that a device gets one module with every
kernel. Two compilers: nvcc of a CUDA toolkit (`toolkit`), and NVRTC 12.6, which makes cubins that the driver of
JetPack 6 knows (their ELF ABI is 7, the newer compiler's is 8). The same sources and flags give the same bytes wherever
they lie; what was compiled is kept by a digest of all that went in.

    python -m kernels.compiler      says where the CUDA toolkit is; exit status 1: there is none
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kernels.digest import CUDA_SUFFIXES, files_sha256, read_files
from kernels.fatbin import Resources

CHECKOUT = Path(__file__).parents[1]
CUDA = "13.0"
"""The version of CUDA whose nvcc we build with: budgets were measured, and files are named, with this one."""
USUAL_HOME = Path(f"/usr/local/cuda-{CUDA}")
FETCHED_HOME = CHECKOUT / "build" / "cuda" / "toolkit" / "nvidia" / "cu13"
_TOOLKIT = ("bin/nvcc", "include/cuda.h", "include/cudaProfiler.h")
UNIT = "kernels.cu"
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xptxas", "-v")
NVRTC_FLAGS = ("--std=c++17", "--ptxas-options=-v")


class BuildError(Exception):
    """A compiler that is not there or refuses a kernel, or kernels that take more than their budgets."""


@dataclass(frozen=True)
class Sources:
    """The kernels' source files, and the one translation unit that they make."""

    folder: Path
    files: Mapping[str, bytes]

    @property
    def unit(self) -> str:
        """Headers first, outside of every namespace; then each .cu file within its own."""
        headers = "".join(f'#include "{name}"\n' for name in self.files if name.endswith(".cuh"))
        kernels = [name for name in self.files if name.endswith(".cu")]
        return headers + "".join(f'namespace {name[:-3]} {{\n#include "{name}"\n}}\n' for name in kernels)

    @property
    def sha256(self) -> str:
        """`files_sha256` of them, which the manifest names."""
        return files_sha256(self.files)


def read_sources(folder: Path) -> Sources:
    """The .cu and .cuh files of a folder; raises BuildError when there are none."""
    files = read_files(folder, CUDA_SUFFIXES)
    if not any(name.endswith(".cu") for name in files):
        raise BuildError(f"{folder}: no kernels")
    return Sources(folder, files)


@dataclass(frozen=True)
class Compiled:
    """A cubin or PTX, and what the compiler said."""

    body: bytes
    report: str


class Compiler(Protocol):
    """One of the two compilers. `cuda`: the version of CUDA whose drivers take what it makes."""

    cuda: str
    version: str
    flags: tuple[str, ...]

    def compile(self, sources: Sources, target: str) -> Compiled:
        """For `sm_87` (a cubin) or `compute_86` (PTX); raises BuildError."""
        ...


class Nvcc:
    """nvcc of a CUDA toolkit."""

    flags: tuple[str, ...] = NVCC_FLAGS

    def __init__(self, home: Path) -> None:
        """The toolkit at `home`; raises BuildError when it is none."""
        self._programs = home / "bin"
        text = _run([str(self._programs / "nvcc"), "--version"])
        found = re.search(r"release ([0-9]+\.[0-9]+), V([0-9.]+)", text)
        if found is None:
            raise BuildError(f"{home}: nvcc does not say its version")
        self.cuda = found[1]
        self.version = f"nvcc {found[2]}"

    def compile(self, sources: Sources, target: str) -> Compiled:
        """See Compiler. Runs where nothing else is, under a fixed name: paths do not get into what comes out."""
        with tempfile.TemporaryDirectory() as work:
            (Path(work) / UNIT).write_text(sources.unit)
            kind = "-ptx" if target.startswith("compute_") else "-cubin"
            command = [str(self._programs / "nvcc"), *self.flags, kind, f"-arch={target}", f"-I{sources.folder}"]
            report = _run([*command, "-o", "out", UNIT], Path(work))
            return Compiled((Path(work) / "out").read_bytes(), report)

    def join(self, parts: Mapping[str, bytes]) -> bytes:
        """One fatbin of cubins and PTX by target, in their order, nothing in it compressed."""
        with tempfile.TemporaryDirectory() as work:
            images = []
            for target, body in parts.items():
                (Path(work) / target).write_bytes(body)
                kind = "ptx" if target.startswith("compute_") else "elf"
                images.append(f"--image3=kind={kind},sm={target.partition('_')[2]},file={target}")
            program = str(self._programs / "fatbinary")
            _run([program, "-64", "--compress-mode=none", "--create=out", *images], Path(work))
            return (Path(work) / "out").read_bytes()


class Nvrtc:
    """NVRTC as its wheel has it, with the headers of the same CUDA."""

    flags: tuple[str, ...] = NVRTC_FLAGS

    def __init__(self, home: Path) -> None:
        """The folder with `cuda_nvrtc` and `cuda_runtime`; raises BuildError when they are not there."""
        self._include = home / "cuda_runtime" / "include"
        libraries = sorted((home / "cuda_nvrtc" / "lib").glob("libnvrtc.so.*"))
        if not libraries or not self._include.is_dir():
            raise BuildError(f"{home}: no NVRTC; `make packages` fetches it")
        self._library = ctypes.CDLL(str(libraries[0]))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.cuda = f"{major.value}.{minor.value}"
        self.version = f"NVRTC {self.cuda}"

    def compile(self, sources: Sources, target: str) -> Compiled:
        """See Compiler."""
        program = ctypes.c_void_p()
        unit = sources.unit.encode()
        self._check("nvrtcCreateProgram", ctypes.byref(program), unit, UNIT.encode(), 0, None, None)
        try:
            options = [f"--gpu-architecture={target}", *self.flags, f"-I{self._include}", f"-I{sources.folder}"]
            texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            failed = self._library.nvrtcCompileProgram(program, len(options), texts)
            report = self._take("ProgramLog", program).rstrip(b"\0").decode("utf-8", "replace")
            if failed:
                raise BuildError(f"{self.version} for {target}: {report}")
            return Compiled(self._take("CUBIN", program), report)
        finally:
            self._check("nvrtcDestroyProgram", ctypes.byref(program))

    def _take(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._check(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        body = ctypes.create_string_buffer(size.value)
        self._check(f"nvrtcGet{what}", program, body)
        return body.raw

    def _check(self, call: str, *arguments: object) -> None:
        code = getattr(self._library, call)(*arguments)
        if code:
            raise BuildError(f"{call}: {self._library.nvrtcGetErrorString(code).decode()}")


def toolkit() -> Path | None:
    """Where the CUDA toolkit is: in CUDA_HOME, else at USUAL_HOME, else around the nvcc on PATH, else as fetched.

    Every part of Driveway asks here, `.ci/cuda` too. A place counts when it has nvcc and the driver's headers, whatever
    its version is: `other_cuda` says whether that is another one than ours.
    """
    homes = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    homes.append(USUAL_HOME)
    if (compiler := shutil.which("nvcc")) is not None:
        homes += [Path(compiler).absolute().parents[1], Path(compiler).resolve().parents[1]]
    homes.append(FETCHED_HOME)
    return next((home for home in homes if all((home / part).exists() for part in _TOOLKIT)), None)


def other_cuda(home: Path) -> str | None:
    """Why figures of our compiler do not hold for the toolkit at `home`; None: it is ours. Raises BuildError."""
    cuda = Nvcc(home).cuda
    return None if cuda == CUDA else f"{home} is CUDA {cuda}, and budgets are of CUDA {CUDA}"


def compile_cached(compiler: Compiler, sources: Sources, target: str, cache: Path) -> Compiled:
    """As `compiler.compile`, but what was compiled before is taken from the cache. Raises BuildError."""
    inputs = repr((compiler.version, compiler.flags, sources.unit, sources.sha256, target))
    key = f"{target}-{hashlib.sha256(inputs.encode()).hexdigest()[:32]}"
    code, report = cache / key, cache / f"{key}.report"
    if not report.exists():
        compiled = compiler.compile(sources, target)
        cache.mkdir(parents=True, exist_ok=True)
        _write(code, compiled.body)
        _write(report, compiled.report.encode())
    return Compiled(code.read_bytes(), report.read_text("utf-8"))


_KERNEL = re.compile(r"Compiling entry function '(\w+)' for 'sm_\w+'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def resources_in(report: str) -> dict[str, Resources]:
    """What each kernel takes, from `ptxas -v`; raises BuildError when the report leaves out a line.

    A kernel's lines: its name; stack frame, spill stores and spill loads; registers and, if it has any, shared memory.
    """
    found: dict[str, Resources] = {}
    for kernel, lines in _sections(report.splitlines()):
        text = "\n".join(lines)
        memory, used, shared = _MEMORY.search(text), _USED.search(text), _SHARED.search(text)
        if memory is None or used is None:
            raise BuildError(f"the compiler does not say what {kernel} takes")
        stack, stores, loads = (int(number) for number in memory.groups())
        found[kernel] = Resources(int(used[1]), stores + loads, stack, int(shared[1]) if shared else 0)
    return dict(sorted(found.items()))


def _sections(lines: Iterable[str]) -> Iterable[tuple[str, list[str]]]:
    kernel, section = "", list[str]()
    for line in lines:
        begins = _KERNEL.search(line)
        if begins is None:
            section.append(line)
            continue
        if kernel:
            yield kernel, section
        kernel, section = begins[1], []
    if kernel:
        yield kernel, section


def _run(command: list[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise BuildError(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _write(path: Path, body: bytes) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(body)
    part.replace(path)


def main() -> int:
    """Say where the toolkit is."""
    home = toolkit()
    if home is None:
        return 1
    print(home.absolute())  # noqa: T201 - a command
    return 0


if __name__ == "__main__":
    sys.exit(main())
