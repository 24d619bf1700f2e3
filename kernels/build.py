"""Builds the kernels for every accelerator we know: `python -m kernels.build [FOLDER]`, or `make kernels`.

Into the folder go one fatbin (code for each architecture in ARCHITECTURES, and PTX that a later device's driver
compiles), one cubin for the driver of JetPack 6, and the manifest that `kernels.fatbin` reads: size, SHA-256, flags,
compiler, and what each kernel takes. What a kernel may take stands in budgets.toml; a kernel that spills, takes more
registers than its budget, or has no budget fails the build, because it would be slower where nobody measures. Two
builds of the same sources by the same compilers give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from kernels.compiler import (
    CHECKOUT,
    BuildError,
    Compiled,
    Compiler,
    Nvcc,
    Nvrtc,
    Sources,
    compile_cached,
    read_sources,
    resources_in,
    toolkit,
)
from kernels.fatbin import MANIFEST, KernelFile, Manifest, Resources, targets_of

ARCHITECTURES = ("sm_86", "sm_87", "sm_89", "sm_90", "sm_110", "sm_120")
"""Ampere cards, Orin, Ada cards, Hopper, Thor, Blackwell cards."""
PTX = "compute_86"
"""The newest instructions that all of these devices have."""
JETPACK_6 = "sm_87"
"""JetPack 6 runs on Orin alone."""
SOURCES = Path(__file__).parent
BUDGETS = SOURCES / "budgets.toml"
CACHE = CHECKOUT / "build" / "kernels-cache"
NVRTC_HOME = CHECKOUT / "build" / "cuda" / "nvrtc-12.6" / "nvidia"


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one kernel may take: registers of each thread."""

    registers: int


class Budgets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table of budgets.toml. No kernel may spill more than `spill_bytes`."""

    spill_bytes: int
    kernels: dict[str, Budget]


def read_budgets(path: Path) -> Budgets:
    """The budgets of a TOML file; raises BuildError."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Budgets)
    except (OSError, msgspec.MsgspecError) as error:
        raise BuildError(f"{path}: {error}") from error


def exceeded(budgets: Budgets, architecture: str, kernels: Mapping[str, Resources]) -> list[str]:
    """What is over its budget on one architecture, or has none, in words."""
    faults = []
    for kernel, takes in kernels.items():
        budget = budgets.kernels.get(kernel)
        if budget is None:
            faults.append(f"{kernel} has no budget")
            continue
        if takes.registers > budget.registers:
            faults.append(
                f"{kernel} takes {takes.registers} registers on {architecture}, and may take {budget.registers}"
            )
        if takes.spill_bytes > budgets.spill_bytes:
            faults.append(
                f"{kernel} spills {takes.spill_bytes} bytes on {architecture}, and may spill {budgets.spill_bytes}"
            )
    return faults


def build(
    out: Path,
    *,
    architectures: Sequence[str] = ARCHITECTURES,
    ptx: str | None = PTX,
    jetpack_6: bool = True,
    sources: Path = SOURCES,
    budgets: Path = BUDGETS,
    cache: Path = CACHE,
) -> Manifest:
    """Build into a folder, which is replaced as a whole; raises BuildError and then leaves it as it was."""
    home = toolkit()
    if home is None:
        raise BuildError("there is no CUDA toolkit; `make packages` fetches one, or set CUDA_HOME")
    allowed, source = read_budgets(budgets), read_sources(sources)
    nvcc = Nvcc(home)
    targets = (*architectures, *([ptx] if ptx else []))
    made = _compile(nvcc, source, targets, cache)
    bodies = {f"driveway-cuda{nvcc.cuda}.fatbin": nvcc.join({target: one.body for target, one in made.items()})}
    listed = [_describe(name, body, nvcc, made) for name, body in bodies.items()]
    if jetpack_6:
        nvrtc = Nvrtc(NVRTC_HOME)
        orin = _compile(nvrtc, source, (JETPACK_6,), cache)
        name, body = f"driveway-cuda{nvrtc.cuda}-{JETPACK_6}.cubin", orin[JETPACK_6].body
        bodies[name] = body
        listed.append(_describe(name, body, nvrtc, orin))
    _hold(allowed, listed, complete=sources == SOURCES)
    manifest = Manifest(1, source.sha256, tuple(listed))
    _write(out, {**bodies, MANIFEST: _text(manifest)})
    return manifest


def _compile(compiler: Compiler, source: Sources, targets: Sequence[str], cache: Path) -> dict[str, Compiled]:
    """Two at a time: each takes a few hundred megabytes."""
    with ThreadPoolExecutor(2) as pool:
        compiled = pool.map(partial(compile_cached, compiler, source, cache=cache), targets)
        return dict(zip(targets, compiled, strict=True))


def _describe(name: str, body: bytes, compiler: Compiler, compiled: Mapping[str, Compiled]) -> KernelFile:
    """A file's line in the manifest; its targets are read out of the file itself."""
    targets = targets_of(body)
    if targets != tuple(compiled):
        raise BuildError(f"{name}: made for {' '.join(compiled)}, holds code for {' '.join(targets)}")
    real = tuple(target for target in targets if target.startswith("sm_"))
    ptx = tuple(target for target in targets if target.startswith("compute_"))
    return KernelFile(
        name=name,
        container="fatbin" if name.endswith(".fatbin") else "cubin",
        size_bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        cuda=compiler.cuda,
        compiler=compiler.version,
        flags=compiler.flags,
        architectures=real,
        ptx=ptx[0] if ptx else None,
        resources={target: resources_in(compiled[target].report) for target in real},
    )


def _hold(budgets: Budgets, files: Sequence[KernelFile], *, complete: bool) -> None:
    """Raise BuildError for kernels over their budgets, and for budgets of kernels that there are not (any more)."""
    reports = [(arch, kernels) for file in files for arch, kernels in file.resources.items()]
    faults = [fault for arch, kernels in reports for fault in exceeded(budgets, arch, kernels)]
    if complete:
        compiled = {kernel for _, kernels in reports for kernel in kernels}
        faults += [f"there is no kernel {kernel}, which has a budget" for kernel in budgets.kernels.keys() - compiled]
    if faults:
        raise BuildError("kernels over their budgets (kernels/budgets.toml):\n  " + "\n  ".join(dict.fromkeys(faults)))


def _text(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    """Replace the folder by one with these files."""
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    old = out.with_name(f"{out.name}.{os.getpid()}.old")
    part.mkdir(parents=True)
    for name, body in files.items():
        (part / name).write_bytes(body)
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build everything and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m kernels.build", description="Build the CUDA kernels.")
    parser.add_argument("folder", nargs="?", type=Path, default=CHECKOUT / "build" / "kernels")
    parser.add_argument("--without-jetpack-6", action="store_true", help="leave out the build for CUDA 12.6")
    options = parser.parse_args(arguments)
    try:
        manifest = build(options.folder, jetpack_6=not options.without_jetpack_6)
    except BuildError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command
        return 1
    for file in manifest.files:
        targets = " ".join((*file.architectures, *([file.ptx] if file.ptx else [])))
        print(f"{options.folder / file.name}: {file.size_bytes} bytes, {targets}, by {file.compiler}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
