"""Compiled kernels as files: which one a device takes, and whether it is what the manifest says. No CUDA is imported.

`kernels.build` leaves a folder with a manifest and the files it names: one fatbin with code for every device we know
and PTX for later ones, and one cubin for the driver of JetPack 6, which is older than the compiler of the first. `load`
reads the manifest strictly, picks the file for a driver and a device, and gives its bytes only when size, SHA-256 and
the architectures inside are the manifest's. Everything else (a file cut short, changed, of another kind, no code for
this device) is a FatbinError that names the file and what is wrong with it. The digest goes into what is attested.

Where the sources lie beside, as in a checkout and in a wheel, the files must have been made from them as they are: a
launch of today with a kernel of yesterday reads arguments that are no longer there. Otherwise StaleKernelsError.

Which file: the newest whose CUDA the driver serves, with code for exactly this compute capability; then with code for
an earlier one of the same major version, which CUDA keeps compatible; then with PTX that the driver compiles itself.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Dict, Literal, Optional, Tuple  # noqa: UP035 - Python 3.10 evaluates the structs' fields

import msgspec

from kernels.digest import CUDA_SUFFIXES, files_sha256, read_files

SOURCES = Path(__file__).parent
BUILT = SOURCES.parent / "build" / "kernels"
"""Where `make kernels` builds."""
MANIFEST = "manifest.json"
_MOST_MANIFEST_BYTES = 4 << 20
_MOST_FILE_BYTES = 256 << 20

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")]
CudaVersion = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$")]
Architecture = Annotated[str, msgspec.Meta(pattern="^sm_[0-9]{2,3}$")]
VirtualArchitecture = Annotated[str, msgspec.Meta(pattern="^compute_[0-9]{2,3}$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]


class FatbinError(ValueError):
    """Kernels that are not there, not whole, not what the manifest says, or not for this device and driver."""


class StaleKernelsError(FatbinError):
    """Kernels that were made from other sources than those that lie beside them."""


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one kernel takes on one architecture, from the compiler's report."""

    registers: Count
    """Of each thread."""
    spill_bytes: Count
    """Stored to and loaded from memory for want of registers, in each thread."""
    stack_bytes: Count
    shared_bytes: Count
    """Of each block, beside what a launch asks for."""


class KernelFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of compiled kernels, and how it was made."""

    name: FileName
    container: Literal["fatbin", "cubin"]
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=_MOST_FILE_BYTES)]
    sha256: Sha256
    cuda: CudaVersion
    """The driver has to serve this version or a later one."""
    compiler: str
    flags: Tuple[str, ...]  # noqa: UP006
    architectures: Tuple[Architecture, ...]  # noqa: UP006
    ptx: Optional[VirtualArchitecture]  # noqa: UP045
    resources: Dict[Architecture, Dict[str, Resources]]  # noqa: UP006
    """By architecture, then by kernel."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a build left. `sources_sha256`: `files_sha256` of the .cu and .cuh files it was made from."""

    version: Literal[1]
    sources_sha256: Sha256
    files: Tuple[KernelFile, ...]  # noqa: UP006


@dataclass(frozen=True)
class KernelImage:
    """Kernels for one device, ready for the driver: `module_from_buffer(body)`."""

    name: str
    body: bytes
    sha256: str
    target: str
    """The architecture whose code will run: `sm_87`, or `compute_86` where the driver compiles PTX."""


def default_folder() -> Path:
    """Within this package where it was installed with them, else `build/kernels` of a checkout."""
    installed = SOURCES / "compiled"
    return installed if (installed / MANIFEST).is_file() else BUILT


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; raises FatbinError."""
    path = folder / MANIFEST
    body = _read(path, _MOST_MANIFEST_BYTES)
    if len(body) > _MOST_MANIFEST_BYTES:
        raise FatbinError(f"{path}: larger than {_MOST_MANIFEST_BYTES} bytes")
    try:
        manifest = msgspec.json.decode(body, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FatbinError(f"{path}: {error}") from error
    if len({one.name for one in manifest.files}) != len(manifest.files):
        raise FatbinError(f"{path}: names a file twice")
    return manifest


def choose(manifest: Manifest, driver: tuple[int, int], capability: tuple[int, int]) -> tuple[KernelFile, str]:
    """The file for a driver (the CUDA version it serves) and a compute capability, and what in it will run.

    Raises FatbinError when there is none.
    """
    served = [one for one in manifest.files if _version(one.cuda) <= driver]
    device = 10 * capability[0] + capability[1]
    best: tuple[int, int, tuple[int, int]] | None = None
    found: tuple[KernelFile, str] | None = None
    for one in served:
        for target in (*one.architectures, *([one.ptx] if one.ptx else [])):
            rank = _suits(target, device)
            if rank and (best is None or (*rank, _version(one.cuda)) > best):
                best, found = (*rank, _version(one.cuda)), (one, target)
    if found is None:
        has = ", ".join(f"CUDA {one.cuda}: {' '.join(one.architectures)}" for one in manifest.files)
        what = f"compute capability {capability[0]}.{capability[1]} and a driver for CUDA {driver[0]}.{driver[1]}"
        raise FatbinError(f"no kernels for {what} (there are {has or 'none'})")
    return found


def load(folder: Path, driver: tuple[int, int], capability: tuple[int, int], *, sources: Path = SOURCES) -> KernelImage:
    """The kernels for a driver and a device, checked against the manifest; raises FatbinError.

    `sources` may hold the .cu and .cuh files that they must have been made from; raises StaleKernelsError.
    """
    manifest = read_manifest(folder)
    _check_sources(manifest, folder, sources)
    one, target = choose(manifest, driver, capability)
    path = folder / one.name
    body = _read(path, one.size_bytes)
    if len(body) != one.size_bytes:
        size = f"more than {one.size_bytes}" if len(body) > one.size_bytes else str(len(body))
        raise FatbinError(f"{path}: {size} bytes, but the manifest says {one.size_bytes}")
    digest = hashlib.sha256(body).hexdigest()
    if digest != one.sha256:
        raise FatbinError(f"{path}: SHA-256 {digest}, but the manifest says {one.sha256}")
    inside = targets_of(body)
    if inside != (*one.architectures, *([one.ptx] if one.ptx else [])):
        raise FatbinError(f"{path}: holds code for {' '.join(inside)}, which is not what the manifest says")
    return KernelImage(one.name, body, digest, target)


def _check_sources(manifest: Manifest, folder: Path, sources: Path) -> None:
    """Raise StaleKernelsError for a build of other sources than lie here; without sources, nothing can be said."""
    try:
        files = read_files(sources, CUDA_SUFFIXES)
    except OSError as error:
        raise FatbinError(f"{sources}: {error.strerror}") from error
    if files and files_sha256(files) != manifest.sources_sha256:
        command = "make kernels" if folder == BUILT else f"python -m kernels.build {folder}"
        raise StaleKernelsError(f"{folder}: made from other sources than {sources} holds; `{command}` builds them anew")


_FATBIN_MAGIC = 0xBA55ED50
_PTX, _ELF = 1, 2
_EM_CUDA = 190


def targets_of(body: bytes) -> tuple[str, ...]:
    """The architectures that a fatbin or a cubin holds code for, in its order: `sm_87`, `compute_86`.

    A fatbin is a header (magic, version, its own size, the size of the rest) and entries, each with a header (kind, its
    own size, the payload's, the architecture at byte 28); a cubin is an ELF file for NVIDIA's machine. Raises
    FatbinError for anything else, and when sizes do not add up to the file's.
    """
    if body[:4] == b"\x7fELF":
        return (_cubin_target(body),)
    if len(body) < 16:
        raise FatbinError("cut short: no room for a header")
    magic, _, header_bytes, rest_bytes = struct.unpack_from("<IHHQ", body)
    if magic != _FATBIN_MAGIC:
        raise FatbinError("neither a fatbin nor a cubin")
    if header_bytes < 16 or header_bytes + rest_bytes != len(body):
        raise FatbinError(f"a fatbin of {header_bytes + rest_bytes} bytes in {len(body)} bytes")
    found = []
    at = int(header_bytes)
    while at < len(body):
        if at + 32 > len(body):
            raise FatbinError(f"cut short in the entry at byte {at}")
        kind, _, entry_bytes, payload_bytes = struct.unpack_from("<HHIQ", body, at)
        (architecture,) = struct.unpack_from("<I", body, at + 28)
        end = at + entry_bytes + payload_bytes
        if kind not in (_PTX, _ELF) or entry_bytes < 32 or end > len(body):
            raise FatbinError(f"no entry of a fatbin at byte {at}")
        found.append(f"sm_{architecture}" if kind == _ELF else f"compute_{architecture}")
        if kind == _ELF and _cubin_target(body[at + entry_bytes : end]) != found[-1]:
            raise FatbinError(f"the entry at byte {at} is not for {found[-1]}")
        at = end
    return tuple(found)


def _cubin_target(body: bytes) -> str:
    """The architecture of a cubin, from its ELF header: where it stands in the flags depends on the ABI's version."""
    if len(body) < 64 or body[:6] != b"\x7fELF\x02\x01":
        raise FatbinError("cut short, or no 64-bit ELF file")
    abi = body[8]
    (machine,) = struct.unpack_from("<H", body, 18)
    (flags,) = struct.unpack_from("<I", body, 48)
    (sections_at,) = struct.unpack_from("<Q", body, 40)
    section_bytes, sections = struct.unpack_from("<HH", body, 58)
    if machine != _EM_CUDA:
        raise FatbinError(f"an ELF file for machine {machine}, not for a GPU")
    if sections_at + section_bytes * sections > len(body):
        raise FatbinError("a cubin that was cut short")
    return f"sm_{flags >> 8 & 0xFF if abi >= 8 else flags & 0xFF}"


def _suits(target: str, device: int) -> tuple[int, int] | None:
    """How well code suits a device: (2 exactly, 1 compatible, 0 PTX; nearness); None: not at all."""
    kind, _, text = target.partition("_")
    number = int(text)
    if number > device:
        return None
    if kind == "compute":
        return 0, number
    if number // 10 != device // 10:
        return None
    return (2 if number == device else 1), number


def _version(text: str) -> tuple[int, int]:
    major, minor = re.findall("[0-9]+", text)
    return int(major), int(minor)


def _read(path: Path, expected_bytes: int) -> bytes:
    """A file, or so much of it that it is seen to be too long; raises FatbinError."""
    try:
        with path.open("rb") as file:
            return file.read(expected_bytes + 1)
    except OSError as error:
        hint = "; `make kernels` builds them" if isinstance(error, FileNotFoundError) else ""
        raise FatbinError(f"{path}: {error.strerror}{hint}") from error
