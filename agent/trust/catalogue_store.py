"""Where a believed catalogue is kept: one file that is replaced whole, and a folder to work in that nobody relies on.

    FOLDER/believed.zip   the metadata that was verified, the roots that led there, and the few targets that count
    FOLDER/unpacked/      its content while python-tuf works on it; removed afterwards, and at the next start

The file is a ZIP archive for its checksums and because one rename replaces it; what is in it is verified again each
time, so whoever can write to the disk can make the car forget, and nothing worse. Standard library only.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from agent.errors import StoreError
from agent.trust.catalogue import CatalogueError, CatalogueFault

BELIEVED, UNPACKED = "believed.zip", "unpacked"
MAX_KEPT_BYTES = 16 * 1024 * 1024
"""Packed or unpacked: hundreds of times what a catalogue is, since all of it is held in memory."""


class CatalogueStore:
    """One catalogue's folder, made when it is needed. Use from one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def opened(self) -> Iterator[Path | None]:
        """What is kept, unpacked into a folder; None where nothing is. Raises CatalogueError, StoreError."""
        with self._working() as work:
            yield work if self._unpack(work) else None

    @contextlib.contextmanager
    def changing(self) -> Iterator[Path]:
        """The same, or an empty folder; what is in it at the end replaces what is kept, unless an exception is raised.

        A file that does not hold stands in nobody's way: then all is fetched anew. Raises StoreError.
        """
        with self._working() as work:
            with contextlib.suppress(CatalogueError):
                self._unpack(work)
            yield work
            self._keep(work)

    @contextlib.contextmanager
    def _working(self) -> Iterator[Path]:
        work = self._folder / UNPACKED
        try:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True, mode=0o700)
            yield work
        except OSError as error:
            raise StoreError(f"the catalogue in {self._folder} cannot be read or kept: {error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _unpack(self, work: Path) -> bool:
        path = self._folder / BELIEVED
        try:
            with path.open("rb") as file:
                body = file.read(MAX_KEPT_BYTES + 1)
        except FileNotFoundError:
            return False
        try:  # from memory: what a damaged file makes of offsets is then no error of the disk
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                _check_size(len(body), archive)
                archive.extractall(work)  # it leaves the folder for no name
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            shutil.rmtree(work)
            work.mkdir(mode=0o700)
            raise CatalogueError(CatalogueFault.MALFORMED, f"{path} is damaged: {error}") from error
        return True

    def _keep(self, work: Path) -> None:
        """Replace the file, so that a power cut leaves the old or the new one."""
        part = self._folder / f"{BELIEVED}.part"
        with part.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
                for path in sorted(work.rglob("*")):
                    if path.is_file() and not path.is_symlink():
                        archive.write(path, str(path.relative_to(work)))
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._folder / BELIEVED)
        directory = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _check_size(packed_bytes: int, archive: zipfile.ZipFile) -> None:
    if max(packed_bytes, sum(one.file_size for one in archive.infolist())) > MAX_KEPT_BYTES:
        raise zipfile.BadZipFile(f"more than the {MAX_KEPT_BYTES} bytes that are ever kept")
