#!/usr/bin/python3
"""In the vehicle: stages a copy of the version that has proven itself, under another number and perhaps broken.

`stage_release.py HOME VERSION KIND`; what the kinds are says `hil.vm.releases`. Files that differ are written anew, the
others are hard links. The list of its files is right, but for what a flipped byte is to show.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

BROKEN = {
    "crashes": ("agent/daemon", "raise SystemExit(3)\n"),
    "hangs": ("agent/daemon", "import time\ntime.sleep(1e9)\n"),
    "fails_self_test": ("agent/worker/__main__", "raise SystemExit('this worker does not start')\n"),
}


class Copy:
    """A version's files as they are copied; `listed` has their digests by name."""

    def __init__(self, old: Path, new: Path) -> None:
        self.new = new
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(old, new, symlinks=True, copy_function=os.link)
        lines = (line.split("  ", 1) for line in (old / "SHA256SUMS").read_text().splitlines())
        self.listed = {name: digest for digest, name in lines}

    def write(self, path: Path, content: bytes) -> None:
        """Another content for one file of it."""
        mode = path.stat().st_mode
        path.unlink()  # the other version's is the same file
        path.write_bytes(content)
        path.chmod(mode & 0o777)
        self.listed[str(path.relative_to(self.new))] = hashlib.sha256(content).hexdigest()

    def replace_module(self, module: str, text: str) -> None:
        """Another text for a module, which is compiled no more."""
        for path in self.new.glob(f"lib/python3*/site-packages/{module}.py"):
            self.write(path, text.encode())
            for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
                compiled.unlink()
                del self.listed[str(compiled.relative_to(self.new))]

    def flip_a_byte(self) -> None:
        """In the middle of its largest file; the list stays as it is."""
        path = max((self.new / name for name in self.listed), key=lambda one: one.stat().st_size)
        name, content = str(path.relative_to(self.new)), bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        right = self.listed[name]
        self.write(path, bytes(content))
        self.listed[name] = right

    def list_files(self) -> None:
        """Write the list."""
        sums = self.new / "SHA256SUMS"
        sums.unlink()
        sums.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(self.listed.items())))


def main(home: Path, version: str, kind: str) -> None:
    """Stage it."""
    old = (home / "good").resolve()
    copy = Copy(old, home / f".{version}.staging")
    for path in (copy.new / "bin/driveway", *copy.new.glob("worker/lib/*/site-packages/driveway.pth")):
        copy.write(path, path.read_bytes().replace(str(old).encode(), str(home / version).encode()))
    if kind in BROKEN:
        copy.replace_module(*BROKEN[kind])
    elif kind == "flipped_byte":
        copy.flip_a_byte()
    copy.list_files()
    os.sync()
    copy.new.rename(home / version)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
