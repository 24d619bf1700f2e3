"""The tree of one version, as it lies in /opt/driveway/<version>: a virtual environment that needs no tool to be one.

    pyvenv.cfg, bin/python      the vehicle's own Python, which sees this tree's packages and no others
    bin/driveway                the command; it names its own version's interpreter, never `current`
    lib/python3.x/site-packages what the lock file pins, and ours; compiled kernels in kernels/compiled
    worker/                     the same, and after it the platform's own packages: TensorRT's bindings and pycuda
                                belong to the platform's driver and are never shipped. Where they are for
                                another Python, it holds what a worker needs for that one
    SHA256SUMS                  of every file above: `sha256sum -c` tells whether a version is whole

Byte code is made here, once, without looking at times, so that nothing is compiled on a vehicle at every start. Every
time and every permission is set, so two builds of one commit give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from systemd.package import wheels
from systemd.package.target import BuildError, Release, Target

HOME = Path("/opt/driveway")
SUMS = "SHA256SUMS"
CUDA = 190
"""EM_CUDA: the machine of compiled kernels."""
LAUNCHER = """\
#!{home}/bin/python -I
import sys

from agent.cli.main import main

sys.exit(main())
"""
UNUSED = (
    "numpy/**/tests",
    "opendbc/[!_d]*",  # of opendbc only the DBC files are read
    *(f"onnxruntime/{part}" for part in ("datasets", "quantization", "tools", "transformers")),
    "tests",  # one wheel's own, at the top
    "**/*.pyi",
)
"""What the wheels bring and no vehicle uses, as patterns below site-packages."""
NEVER = ("hil", "can", "iotcore", "pip", "setuptools", "matplotlib", "pytest", "tests")
"""Of the rigs, or able to write to a bus; that none of it is inside is checked at every build."""


WORKER_CODE = ("__init__.py", "errors.py", "onnx", "package.py", "wire.py", "worker")
"""Of the agent: what a worker may import (tests/test_contracts.py holds it to that)."""


@dataclass(frozen=True)
class Parts:
    """What a tree is made of."""

    wheels: Path
    worker_wheels: Path | None
    """For workers on a Python of their own."""
    own: Path
    kernels: Path | None


def build(tree: Path, release: Release, parts: Parts) -> bool:
    """Make the release's tree at `tree`. Raises BuildError where something is in it that must not be, or lacking.

    False: there is no Python of the workers' version here, so they compile what they import at each start.
    """
    version, target = release.version, release.target
    site, worker_site = site_of(tree, target), worker_site_of(tree, target)
    site.mkdir(parents=True)
    wheels.install(target, wheels.LOCK, target.python, parts.wheels, site)
    wheels.install_own(target, parts.own, site)
    if parts.kernels is not None:
        shutil.copytree(parts.kernels, site / "kernels" / "compiled")
    _environment(tree, target.python, system_packages=False)
    _environment(tree / "worker", target.worker_python, system_packages=True)
    worker_site.mkdir(parents=True)
    if parts.worker_wheels is None:
        (worker_site / "driveway.pth").write_text(f"{HOME}/{version}/{site.relative_to(tree)}\n", "ascii")
    else:
        wheels.install(target, wheels.WORKER_LOCK, target.worker_python, parts.worker_wheels, worker_site)
        _copy_worker(site, worker_site)
    for place in (site, worker_site):
        for path in sorted(path for pattern in UNUSED for path in place.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (tree / "bin/driveway").write_text(LAUNCHER.format(home=HOME / version), "ascii")
    (tree / "bin/driveway").chmod(0o755)
    check(tree, site, target)
    for cache in list(tree.rglob("__pycache__")):
        shutil.rmtree(cache)
    if not _compile(tree, HOME / version, tree / "lib", target.python):
        raise BuildError(f"python{target.python} is not installed: byte code is made with the vehicle's Python")
    worker_compiled = parts.worker_wheels is None or _compile(
        tree, HOME / version, tree / "worker/lib", target.worker_python
    )
    (tree / SUMS).write_text(sums(tree), "utf-8")
    return worker_compiled


def site_of(tree: Path, target: Target) -> Path:
    """Where the daemon's packages lie in a tree."""
    return tree / "lib" / f"python{target.python}" / "site-packages"


def worker_site_of(tree: Path, target: Target) -> Path:
    """Where a worker's lie."""
    return tree / "worker/lib" / f"python{target.worker_python}" / "site-packages"


def check(tree: Path, site: Path, target: Target) -> None:
    """Raise BuildError for rigs, writers to a bus, links out of the tree, and machine code of another computer."""
    if found := [name for name in NEVER if (site / name).exists()]:
        raise BuildError(f"a vehicle's package must not have {', '.join(found)}")
    allowed_links = {target.interpreter, target.worker_interpreter, "python"}
    for path in sorted(tree.rglob("*")):
        if path.is_symlink() and str(path.readlink()) not in allowed_links:
            raise BuildError(f"{path} leads to {path.readlink()}")
        if not path.is_file() or path.is_symlink():
            continue
        with path.open("rb") as file:
            head = file.read(20)
        machine = int.from_bytes(head[18:20], "little")
        allowed = {target.elf_machine, *([CUDA] if path.parent.name == "compiled" else [])}
        if head[:4] == b"\x7fELF" and machine not in allowed:
            raise BuildError(f"{path.relative_to(tree)} is not for {target.machine}")


def sums(tree: Path) -> str:
    """Every file below `tree` with its SHA-256, as `sha256sum` writes and reads it; links stand in no such list."""
    files = (path for path in tree.rglob("*") if path.is_file() and not path.is_symlink() and path.name != SUMS)
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files)
    return "".join(sorted(lines, key=lambda line: line[66:]))


def settle(root: Path, epoch_s: int) -> None:
    """Give everything below `root` one time, and permissions that depend on nobody's umask."""
    for path in (*root.rglob("*"), root):
        if not path.is_symlink():
            runs = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if runs else 0o644)
        os.utime(path, (epoch_s, epoch_s), follow_symlinks=False)


def _copy_worker(site: Path, worker_site: Path) -> None:
    """Our own code that runs in a worker, and no other of ours."""
    (worker_site / "agent").mkdir()
    for name in WORKER_CODE:
        copy = shutil.copytree if (site / "agent" / name).is_dir() else shutil.copyfile
        copy(site / "agent" / name, worker_site / "agent" / name)
    shutil.copytree(site / "kernels", worker_site / "kernels")


def _environment(home: Path, python: str, *, system_packages: bool) -> None:
    """What makes a folder a virtual environment of a Python of the vehicle's (PEP 405)."""
    (home / "bin").mkdir(parents=True)
    (home / "bin/python").symlink_to(f"/usr/bin/python{python}")
    (home / "bin/python3").symlink_to("python")
    sees = "true" if system_packages else "false"
    text = f"home = /usr/bin\ninclude-system-site-packages = {sees}\nversion = {python}\n"
    (home / "pyvenv.cfg").write_text(text, "ascii")


def _compile(tree: Path, there: Path, folder: Path, python: str) -> bool:
    """Byte code that names its files as they will lie on the vehicle. Any build of that Python makes the same.

    False where there is no such Python here; raises BuildError for code that it cannot read.
    """
    interpreter = next(
        (one for one in (f"/usr/bin/python{python}", shutil.which(f"python{python}")) if _runs(one)), None
    )
    if interpreter is None:
        return False
    how = ("-q", "--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", str(there))
    done = subprocess.run(
        [interpreter, "-I", "-m", "compileall", *how, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-400:]
        raise BuildError(f"byte code for Python {python} was not made: {said}")
    return True


def _runs(interpreter: str | None) -> bool:
    if interpreter is None or not Path(interpreter).exists():
        return False
    return subprocess.run([interpreter, "-V"], capture_output=True, check=False).returncode == 0
