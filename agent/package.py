"""The package format: a directory that says what to run, on what, how large, and what must come out.

    manifest.json        what is below, with the SHA-256 of every other file
    manifest.sig.json    a DSSE envelope over manifest.json's bytes (checked in agent.trust, not here)
    model.onnx           customers ship ONNX only: a plan or a plugin is executable code
    characters.txt …     whatever the pipeline's operations name
    golden/…             an input and the answers it must give before anything else may run

`open_package` trusts nothing: the manifest is parsed strictly, names cannot leave the directory, and what is on disk
is exactly what is listed, with the right digest. The digest of manifest.json therefore names the whole package.
`Package.read` checks again while reading, since files may change after the check. Both sides of the wire use this.
Standard library and msgspec only.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, Union

import msgspec

from agent.errors import PackageError

VERSION = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig.json"
PAYLOAD_TYPE = "application/vnd.driveway.package+json"
"""The DSSE payload type under which manifest.json is signed."""

MAX_MANIFEST_BYTES = 256 * 1024
MAX_FILES = 64
MAX_FILE_BYTES = 2 * 1024**3
MAX_PACKAGE_BYTES = 4 * 1024**3
_CHUNK_BYTES = 1024 * 1024

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
FileName = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
PrecisionName = Literal["float64", "float32", "tf32", "bfloat16", "float16", "float8", "int8", "integer"]
"""What an engine computes in. `tf32`: float32 whose products keep ten bits, as accelerators take them by default."""
BandPpm = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Parameter = Union[bool, int, float, str]  # noqa: UP007 - Python 3.10 evaluates this line
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unlike a message from a newer peer, a manifest with a field we do not know must not run."""


class OpCall(_Strict, frozen=True, kw_only=True):
    """One operation by name, with its parameters; `kernels.operation` knows both."""

    op: Name
    params: dict[str, Parameter] = {}


class PipelineSpec(_Strict, frozen=True, kw_only=True):
    """Pre-processing operations, the engine, post-processing operations: from an item's bytes to its answer."""

    pre: Annotated[tuple[OpCall, ...], msgspec.Meta(min_length=1, max_length=16)]
    engine: Literal["onnx"]
    post: Annotated[tuple[OpCall, ...], msgspec.Meta(min_length=1, max_length=16)]


class Bucket(_Strict, frozen=True, kw_only=True):
    """One static shape the engine is run with: items in a batch, and what of an image's size is free, in pixels."""

    items: Annotated[int, msgspec.Meta(ge=1, le=256)]
    width: Annotated[int, msgspec.Meta(ge=8, le=16_384)] | None = None
    height: Annotated[int, msgspec.Meta(ge=8, le=16_384)] | None = None


class Golden(_Strict, frozen=True, kw_only=True):
    """The golden vector: `input` in the form of a job's input, `expected` the JSON array of its answers.

    Texts, integers and digests must be equal; since engines round differently, a confidence may differ by
    `tolerance_permille`, and the floats of one output by so many thousandths of the largest of them.
    """

    input: FileName
    expected: FileName
    tolerance_permille: Annotated[int, msgspec.Meta(ge=0, le=1000)]


class Limits(_Strict, frozen=True, kw_only=True):
    """The most that one item (bytes), one job (items), the worker (MiB of private memory) and loading (s) may take."""

    max_item_bytes: Annotated[int, msgspec.Meta(ge=1, le=64 * 1024**2)]
    max_items: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    memory_mb: Annotated[int, msgspec.Meta(ge=64, le=65_536)]
    load_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60


class Manifest(_Strict, frozen=True, kw_only=True):
    """What manifest.json says. `files` maps every other file (the signature excepted) to its SHA-256.

    `precisions` are those that the package may be run in, and nothing else is paid; none: in the model's own, with TF32
    where the engine takes it. Each has its band: by how many millionths of their size the samples of an answer
    (`kernels.tensor_samples`) may differ between two honest engines of that precision; 0: nobody knows.
    """

    v: Literal[1]
    name: Name
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    input: Literal["image", "tensor"]
    model: FileName
    pipeline: PipelineSpec
    buckets: Annotated[tuple[Bucket, ...], msgspec.Meta(min_length=1, max_length=64)]
    golden: Golden
    limits: Limits
    precisions: dict[PrecisionName, BandPpm] = {}
    files: Annotated[dict[FileName, Sha256], msgspec.Meta(min_length=1, max_length=MAX_FILES)]


@dataclass(frozen=True)
class Package:
    """A package whose files were all there and right when it was opened."""

    path: Path
    manifest: Manifest
    manifest_bytes: bytes
    signature_bytes: bytes | None

    @property
    def package_sha256(self) -> str:
        """SHA-256 of manifest.json, hex: the package's name everywhere."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()

    def read(self, name: str) -> bytes:
        """The bytes of a listed file; raises PackageError when it is not listed or is not what was listed."""
        expected = self.manifest.files.get(name)
        if expected is None:
            raise _damaged(self.path, f"{name} is used but not listed in {MANIFEST}")
        body = _read_regular(self.path, name, MAX_FILE_BYTES)
        if hashlib.sha256(body).hexdigest() != expected:
            raise _damaged(self.path, f"{name} does not have the listed SHA-256")
        return body


def may_use_tf32(manifest: Manifest) -> bool:
    """Whether an accelerator may multiply float32 in TF32."""
    return not manifest.precisions or "tf32" in manifest.precisions


def run_in(manifest: Manifest, model_precision: str, *, on_accelerator: bool) -> str:
    """The precision that the package's model is run in: its own, or TF32 on an accelerator where that is allowed.

    Raises PackageError where the package does not allow it.
    """
    allowed = manifest.precisions
    if on_accelerator and model_precision == "float32" and may_use_tf32(manifest):
        return "tf32"
    if allowed and model_precision not in allowed:
        what = f"its model is {model_precision}, and it may be run in {', '.join(allowed)} only"
        raise PackageError(f"package {manifest.name}: {what}", hint="build the package anew with the right precisions")
    return model_precision


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json: JSON with sorted keys and an indent, so that people can compare two of them."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def open_package(path: Path) -> Package:
    """Open and check the package in the directory `path`; raises PackageError, which names the file at fault."""
    manifest_bytes = _read_regular(path, MANIFEST, MAX_MANIFEST_BYTES)
    manifest = _parse(path, manifest_bytes)
    present = _walk(path)
    _check_names(path, manifest)
    unlisted = present.keys() - manifest.files.keys() - {MANIFEST, SIGNATURE}
    if unlisted:
        raise _damaged(path, f"{min(unlisted)} is not listed in {MANIFEST}")
    if sum(present.values()) > MAX_PACKAGE_BYTES:
        raise _damaged(path, f"its files are {sum(present.values())} bytes, more than {MAX_PACKAGE_BYTES}")
    for name, expected in sorted(manifest.files.items()):
        if name not in present:
            raise _damaged(path, f"{name} is listed but missing")
        if present[name] > MAX_FILE_BYTES:
            raise _damaged(path, f"{name} is {present[name]} bytes, more than {MAX_FILE_BYTES}")
        if _sha256(path, name) != expected:
            raise _damaged(path, f"{name} does not have the listed SHA-256")
    signature = _read_regular(path, SIGNATURE, MAX_MANIFEST_BYTES) if SIGNATURE in present else None
    return Package(path, manifest, manifest_bytes, signature)


def _parse(path: Path, manifest_bytes: bytes) -> Manifest:
    """The manifest, strictly."""
    try:
        return msgspec.json.decode(manifest_bytes, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, f"{MANIFEST} is not a valid manifest: {error}") from error


def _check_names(path: Path, manifest: Manifest) -> None:
    """No name leaves the directory, and every file the manifest uses is listed."""
    for name in manifest.files:
        if not _SAFE_NAME.fullmatch(name):
            raise _damaged(path, f"{MANIFEST} lists {name!r}, which is not a plain path inside the package")
        if name in {MANIFEST, SIGNATURE}:
            raise _damaged(path, f"{MANIFEST} lists {name}, which cannot be part of its own digest")
    for name in (manifest.model, manifest.golden.input, manifest.golden.expected):
        if name not in manifest.files:
            raise _damaged(path, f"{name} is used but not listed in {MANIFEST}")


def _walk(path: Path) -> dict[str, int]:
    """Every file below `path` with its size; raises PackageError on links and on anything that is no plain file."""
    sizes: dict[str, int] = {}
    waiting = [path]
    while waiting:
        for found in _list(path, waiting.pop()):
            name, status = str(found.relative_to(path)), found.lstat()
            if stat.S_ISDIR(status.st_mode):
                waiting.append(found)
            elif stat.S_ISREG(status.st_mode):
                sizes[name] = status.st_size
            else:
                raise _damaged(path, f"{name} is a link or a special file")
            if len(sizes) + len(waiting) > MAX_FILES + 2:
                raise _damaged(path, f"more than {MAX_FILES} files")
    return sizes


def _list(path: Path, directory: Path) -> Iterator[Path]:
    """What is in a directory of the package `path`."""
    try:
        yield from directory.iterdir()
    except OSError as error:
        raise _damaged(path, f"{directory.name} cannot be read ({error.strerror})") from error


def _read_regular(path: Path, name: str, limit: int) -> bytes:
    """A plain file's bytes, never through a link and never more than `limit`."""
    with _open_regular(path, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise _damaged(path, f"{name} is {size} bytes, more than {limit}")
        return file.read(size)


def _sha256(path: Path, name: str) -> str:
    """SHA-256 of a plain file, hex, without holding it in memory."""
    digest = hashlib.sha256()
    with _open_regular(path, name) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _open_regular(path: Path, name: str) -> BinaryIO:
    """A plain file of the package `path`, never through a link; raises PackageError."""
    try:
        descriptor = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _damaged(path, f"{name} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _damaged(path, f"{name} is not a plain file")
    return os.fdopen(descriptor, "rb")


def _damaged(path: Path, what: str) -> PackageError:
    return PackageError(f"package {path}: {what}", hint="fetch or build the package again")
