"""The files that somebody gives, as the items of a package: found, looked at one by one, and read when they are sent.

Every file is looked at before the first is sent (its first bytes, its size), so that a wrong one is named while nothing
has happened yet; none is kept in memory. In a folder only files with a fitting name count, in the order of their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.errors import ConfigError
from agent.package import Package
from hil.packages.tensors import inputs_of, item_of
from kernels.npy_tensor import NpyTensor, sizes

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
IMAGE_HEADS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
NPY_HEAD = b"\x93NUMPY"
ZIP_HEAD = b"PK\x03\x04"
MAX_HEADER_BYTES = 4096


class Source(Protocol):
    """What turns a file into an item."""

    suffixes: tuple[str, ...]
    """How the names of fitting files in a folder end."""

    def check(self, path: Path) -> None:
        """Look at a file without reading it whole; raises ConfigError, which says what is wrong with it."""
        ...

    def item(self, path: Path) -> bytes:
        """The file as an item; raises ConfigError."""
        ...


def source_for(package: Package) -> Source:
    """What turns files into items of this package."""
    if package.manifest.input == "image":
        return Images(package.manifest.limits.max_item_bytes)
    return Tensors(inputs_of(package))


def find_files(given: Sequence[Path], source: Source) -> tuple[list[Path], int]:
    """The files to be sent, and how many others lie in the folders; raises ConfigError when there is none."""
    found: list[Path] = []
    others = 0
    for path in given:
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.is_file())
            fitting = [one for one in inside if one.suffix.lower() in source.suffixes]
            if not fitting:
                hint = f"it needs files that end in {', '.join(source.suffixes)}"
                raise ConfigError(f"there is nothing to send in {path}", hint=hint)
            found += fitting
            others += len(inside) - len(fitting)
        elif path.exists():
            found.append(path)
        else:
            raise ConfigError(f"there is no {path}", hint="give a folder, or files")
    if not found:
        raise ConfigError("there is nothing to send", hint="give a folder, or files")
    for path in found:
        source.check(path)
    return found, others


def read_items(files: Sequence[Path], source: Source) -> Iterator[tuple[Path, bytes]]:
    """Each file with its item, read when its turn comes."""
    for path in files:
        yield path, source.item(path)


class Images:
    """PNG and JPEG files, sent as they are."""

    suffixes: tuple[str, ...] = IMAGE_SUFFIXES

    def __init__(self, max_item_bytes: int) -> None:
        self._max_item_bytes = max_item_bytes

    def check(self, path: Path) -> None:
        """See `Source`."""
        if not _head(path, 8).startswith(IMAGE_HEADS):
            raise ConfigError(f"{path} is not an image", hint="the package takes PNG and JPEG files")
        size = path.stat().st_size
        if size > self._max_item_bytes:
            raise ConfigError(
                f"{path} has {size} bytes, and the package takes {self._max_item_bytes}", hint="make it smaller"
            )

    def item(self, path: Path) -> bytes:
        """See `Source`."""
        return _read(path)


class Tensors:
    """.npy files for a model with one input; .npz files, which name their arrays, for one with several."""

    def __init__(self, inputs: Sequence[NpyTensor]) -> None:
        self._inputs = tuple(inputs)
        self.suffixes: tuple[str, ...] = (".npy", ".npz") if len(self._inputs) == 1 else (".npz",)

    def check(self, path: Path) -> None:
        """See `Source`."""
        head = _head(path, 6)
        if head.startswith(NPY_HEAD) and len(self._inputs) == 1:
            self._fit(path, self._inputs[0], _loaded(path, mapped=True))
        elif not head.startswith(ZIP_HEAD):
            hint = f"the package takes {' and '.join(self.suffixes)} files with {self._wanted()}"
            raise ConfigError(f"{path} is not a tensor file", hint=hint)
        else:
            self._arrays(path)

    def item(self, path: Path) -> bytes:
        """See `Source`."""
        if _head(path, 6).startswith(NPY_HEAD):
            return item_of([self._fit(path, self._inputs[0], _loaded(path, mapped=False))])
        return item_of(self._arrays(path))

    def _arrays(self, path: Path) -> list[NDArray[Any]]:
        """The inputs' arrays out of a .npz file."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                self._check_archive(path, {entry.filename: entry.file_size for entry in archive.zip.infolist()})
                return [self._fit(path, one, archive[one.input]) for one in self._inputs]
        except ConfigError:
            raise
        except Exception as error:  # zip and NumPy raise almost anything for damaged files
            raise ConfigError(
                f"{path} is not a readable .npz file: {error}", hint="save it with numpy.savez"
            ) from error

    def _check_archive(self, path: Path, entries: dict[str, int]) -> None:
        """Each input is there, and none unpacks to more than its tensor."""
        for one in self._inputs:
            size = entries.get(f"{one.input}.npy")
            if size is None:
                raise ConfigError(f"{path} has no array {one.input!r}", hint=f"it needs {self._wanted()}")
            if size > _bytes(one) + MAX_HEADER_BYTES:
                raise ConfigError(f"{path}: {one.input!r} is larger than the model takes", hint=self._wanted())

    def _fit(self, path: Path, wanted: NpyTensor, array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype.newbyteorder("=") != np.dtype(wanted.dtype) or array.shape != sizes(wanted.shape):
            found = f"{array.dtype.name} {array.shape}"
            raise ConfigError(f"{path} holds {found}", hint=f"the package takes {_words(wanted)}")
        return array

    def _wanted(self) -> str:
        return " and ".join(_words(one) for one in self._inputs)


def _words(one: NpyTensor) -> str:
    return f"{one.input}: {one.dtype} {sizes(one.shape)}"


def _bytes(one: NpyTensor) -> int:
    return int(np.prod(sizes(one.shape), dtype=np.int64)) * np.dtype(one.dtype).itemsize


def _loaded(path: Path, *, mapped: bool) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except Exception as error:  # as for .npz files
        raise ConfigError(f"{path} is not a readable .npy file: {error}", hint="save it with numpy.save") from error
    return array


def _head(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check the file") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check the file") from error
