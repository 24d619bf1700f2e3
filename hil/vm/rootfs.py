"""A bare Debian tree, as a vehicle's computer has it before Driveway: what the nspawn tier boots and the VM's disk is.

`build_rootfs` runs mmdebstrap once (a minute and a half, some 700 MB) and keeps the tree in `build/vm/rootfs-<digest>`
until the list of packages changes. The sources are those of this machine's own Debian. It needs root: the tree's owners
are real. Nobody writes into the tree: who needs a vehicle of his own takes a copy (`copy_rootfs`).

What the Debian archive had on the day is part of the tree and not of the digest; remove the folder to take newer ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from agent.errors import DrivewayError

BUILDS = Path(__file__).parents[2] / "build" / "vm"
SUITE = "bookworm"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "procps", "zstd", "ca-certificates"),
    *("python3", "can-utils", "i2c-tools", "tpm2-tools", "libtss2-tcti-device0", "rauc", "rauc-service"),
    *("linux-image-amd64", "initramfs-tools"),
)
"""A vehicle's system, its kernel (the VM's tier alone boots it), and what the rigs look at it with. The package itself
has to name what it needs: of Python only Debian's own is here, and no pip."""
LEFT_OUT = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")
"""Kept small; Driveway's own documents are looked at by the tests, so they are let in again below."""
LET_IN = (
    *("/usr/share/doc/driveway", "/usr/share/doc/driveway/*"),
    *("/usr/share/man/man1", "/usr/share/man/man1/driveway*"),
)
"""A file's folder is to be named too, or dpkg finds none for it."""


def build_rootfs() -> Path:
    """The tree, made where it is not there yet. Raises DrivewayError: no root, no mmdebstrap, or what it said."""
    tree = BUILDS / f"rootfs-{_digest()}"
    if tree.is_dir():
        return tree
    if problem := why_not():
        raise DrivewayError(f"no root file system can be built: {problem}", hint="see docs/install.md, Tests")
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / ".rootfs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests make it once
        if not tree.is_dir():
            part = tree.with_name(f".{tree.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            _debootstrap(part)
            part.rename(tree)
    return tree


def why_not() -> str | None:
    """Why this machine cannot build one; None: it can."""
    if os.getuid():
        return "its files belong to root, and this is not root"
    if shutil.which("mmdebstrap") is None:
        return "mmdebstrap is not installed"
    return None if SOURCES.is_file() else f"{SOURCES} is not there: this is no Debian {SUITE}"


def copy_rootfs(target: Path) -> Path:
    """A tree of one's own; files share their blocks where the file system can do that."""
    subprocess.run(["/bin/cp", "-a", "--reflink=auto", str(build_rootfs()), str(target)], check=True)
    return target


def _digest() -> str:
    inputs = (SUITE, *PACKAGES, "-", *LEFT_OUT, "-", *LET_IN)
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]


def _debootstrap(part: Path) -> None:
    done = subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            '--aptopt=Apt::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT),
            *(f"--dpkgopt=path-include={path}" for path in LET_IN),
            *(SUITE, str(part), str(SOURCES)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(part, ignore_errors=True)
        raise DrivewayError(f"mmdebstrap failed: {done.stderr.strip()[-600:]}", hint="is the Debian archive in reach?")
