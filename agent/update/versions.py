"""The versions on the disk, and the two links to them: what is there, whether it is whole, and a link's change.

A link is changed by making another beside it and renaming that over it, so it leads to the one or the other at every
moment. A version is removed by renaming it first: what is half gone has no version's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from agent.errors import StoreError
from agent.trust.version_floors import VERSION
from agent.update.journal import sync_folder
from agent.update.machine import CURRENT, GOOD
from agent.update.model import Disk

SUMS = "SHA256SUMS"
GONE = ".gone"
MAX_SUMS_BYTES = 16 * 1024 * 1024
REPAIR = "install its package again"


class Versions:
    """A folder of versions, `/opt/driveway` on a vehicle."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def look(self) -> Disk:
        """What is there now; raises StoreError."""
        try:
            staged = {one.name for one in self.home.iterdir() if VERSION.fullmatch(one.name) and one.is_dir()}
        except OSError as error:
            raise StoreError(f"cannot look into {self.home}: {error.strerror}") from error
        return Disk(self._leads_to(CURRENT, staged), self._leads_to(GOOD, staged), frozenset(staged))

    def point(self, link: str, version: str) -> None:
        """Have a link lead to a version, durably; raises StoreError, and then it leads to where it led."""
        new = self.home / f"{link}.new"
        if not (self.home / version).is_dir():
            raise StoreError(f"{version} is gone, and {link} cannot lead to it", hint=REPAIR)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)  # noqa: PTH108 - as the calls beside it
            os.symlink(version, new)  # noqa: PTH211
            os.rename(new, self.home / link)  # noqa: PTH104
            sync_folder(self.home)
        except OSError as error:
            raise StoreError(f"cannot have {self.home / link} lead to {version}: {error.strerror}") from error

    def problem_of(self, version: str) -> str:
        """What is wrong with a version's files, held against the list that came with them; empty for nothing."""
        tree = self.home / version
        try:
            listed = _listed(tree / SUMS)
            found = {
                str(path.relative_to(tree))
                for path in tree.rglob("*")
                if path.is_file() and not path.is_symlink() and path != tree / SUMS
            }
            if odd := sorted(found ^ set(listed)):
                kind = "is not in its list" if odd[0] in found else "is missing"
                return f"{odd[0]} {kind}; {REPAIR}"
            for name, digest in listed.items():
                with (tree / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        return f"{name} is damaged; {REPAIR}"
        except (OSError, ValueError) as error:
            return f"it cannot be checked: {error}; {REPAIR}"
        return "" if os.access(tree / "bin/driveway", os.X_OK) else f"bin/driveway cannot be run; {REPAIR}"

    def remove(self, versions: frozenset[str], *, but: bool) -> None:
        """Remove these, or all but these, and never one that a link leads to; raises StoreError."""
        disk = self.look()
        gone = (disk.staged - versions if but else disk.staged & versions) - {disk.current, disk.good}
        try:
            for version in sorted(gone):
                os.rename(self.home / version, self.home / f"{version}{GONE}")  # noqa: PTH104
            for path in self.home.glob(f"*{GONE}"):
                shutil.rmtree(path)
        except OSError as error:
            raise StoreError(f"cannot remove a version: {error}") from error

    def _leads_to(self, link: str, staged: set[str]) -> str:
        """The version that a link leads to; empty where it leads nowhere."""
        try:
            version = os.readlink(self.home / link)  # noqa: PTH115 - a Path would be made of it
        except OSError:
            return ""
        return version if version in staged else ""


def _listed(path: Path) -> dict[str, str]:
    """Names and digests, as `sha256sum` writes them; raises OSError, and ValueError for another format."""
    with path.open("rb") as file:
        content = file.read(MAX_SUMS_BYTES + 1)
    if len(content) > MAX_SUMS_BYTES:
        raise ValueError(f"{SUMS} is too long")
    listed = {}
    for line in content.decode().splitlines():
        digest, separator, name = line[:64], line[64:66], line[66:]
        if separator != "  " or not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{SUMS} is not understood")
        listed[name] = digest
    if not listed:
        raise ValueError(f"{SUMS} is empty")
    return listed
