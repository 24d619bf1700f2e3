"""Compiled kernels as files: the right one is chosen, and whatever is not whole or not ours is refused by name."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import fatbin as compiled
from kernels.digest import files_sha256
from kernels.fatbin import (
    MANIFEST,
    FatbinError,
    KernelFile,
    Manifest,
    StaleKernelsError,
    choose,
    read_manifest,
    targets_of,
)

NAME = "driveway-cuda13.0.fatbin"


def cubin(architecture: int, *, abi: int = 8) -> bytes:
    """An ELF header as a cubin has it, and a section header table at its end."""
    flags = architecture << 8 | 0x02 if abi >= 8 else architecture << 16 | architecture
    ident = b"\x7fELF\x02\x01\x01" + bytes([0x41, abi]) + bytes(7)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, 64, flags, 64, 0, 0, 64, 1, 0)
    return header + bytes(64)


def entry(kind: int, architecture: int, payload: bytes) -> bytes:
    return (
        struct.pack("<HHIQIIII", kind, 0x101, 64, len(payload), 0, 0, 8 << 16 | 1, architecture) + bytes(32) + payload
    )


def fatbin(*entries: bytes) -> bytes:
    rest = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(rest)) + rest


BODY = fatbin(entry(2, 87, cubin(87)), entry(2, 110, cubin(110)), entry(1, 86, b".version 9.0\n"))
ORIN = cubin(87, abi=7)
NO_SOURCES = Path(__file__).parent


def load(folder: Path, driver: tuple[int, int], capability: tuple[int, int]) -> compiled.KernelImage:
    """As where no sources lie beside."""
    return compiled.load(folder, driver, capability, sources=NO_SOURCES)


def described(name: str, body: bytes, cuda: str, architectures: tuple[str, ...], ptx: str | None = None) -> KernelFile:
    digest = hashlib.sha256(body).hexdigest()
    container = "fatbin" if name.endswith("fatbin") else "cubin"
    fields = {"name": name, "container": container, "size_bytes": len(body), "sha256": digest, "cuda": cuda}
    rest: dict[str, object] = {
        "compiler": "a",
        "flags": [],
        "architectures": architectures,
        "ptx": ptx,
        "resources": {},
    }
    return msgspec.convert({**fields, **rest}, KernelFile)


FILES = (
    described(NAME, BODY, "13.0", ("sm_87", "sm_110"), "compute_86"),
    described("driveway-cuda12.6-sm_87.cubin", ORIN, "12.6", ("sm_87",)),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(Manifest(1, "0" * 64, FILES)))
    (tmp_path / FILES[0].name).write_bytes(BODY)
    (tmp_path / FILES[1].name).write_bytes(ORIN)
    return tmp_path


@pytest.mark.parametrize(
    ("driver", "capability", "name", "target"),
    [
        ((13, 0), (8, 7), 0, "sm_87"),
        ((13, 2), (8, 7), 0, "sm_87"),
        ((12, 6), (8, 7), 1, "sm_87"),
        ((12, 9), (8, 7), 1, "sm_87"),
        ((13, 0), (8, 9), 0, "sm_87"),
        ((13, 0), (11, 0), 0, "sm_110"),
        ((13, 0), (8, 6), 0, "compute_86"),
        ((13, 0), (10, 3), 0, "compute_86"),
        ((13, 0), (12, 0), 0, "compute_86"),
    ],
)
def test_which_file_a_device_takes(
    folder: Path, driver: tuple[int, int], capability: tuple[int, int], name: int, target: str
) -> None:
    image = load(folder, driver, capability)
    assert (image.name, image.target, image.sha256) == (FILES[name].name, target, FILES[name].sha256)
    assert image.body == (BODY, ORIN)[name]


@pytest.mark.parametrize(("driver", "capability"), [((12, 5), (8, 7)), ((12, 6), (11, 0)), ((13, 0), (8, 0))])
def test_no_kernels_for_a_device(folder: Path, driver: tuple[int, int], capability: tuple[int, int]) -> None:
    with pytest.raises(FatbinError, match=rf"capability {capability[0]}\.{capability[1]} and a driver for CUDA"):
        choose(read_manifest(folder), driver, capability)


@given(cut=st.integers(0, len(BODY) - 1))
def test_a_file_that_was_cut_short(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / MANIFEST).write_bytes(msgspec.json.encode(Manifest(1, "0" * 64, FILES)))
    (folder / NAME).write_bytes(BODY[:cut])
    with pytest.raises(FatbinError, match=f"{NAME}: {cut} bytes, but the manifest says {len(BODY)}"):
        load(folder, (13, 0), (8, 7))
    with pytest.raises(FatbinError):
        targets_of(BODY[:cut])


@given(at=st.integers(0, len(BODY) - 1), change=st.integers(1, 255))
def test_a_file_that_was_changed(tmp_path_factory: pytest.TempPathFactory, at: int, change: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / MANIFEST).write_bytes(msgspec.json.encode(Manifest(1, "0" * 64, FILES)))
    (folder / NAME).write_bytes(BODY[:at] + bytes([BODY[at] ^ change]) + BODY[at + 1 :])
    with pytest.raises(FatbinError, match=f"{NAME}: SHA-256 [0-9a-f]+, but the manifest says"):
        load(folder, (13, 0), (8, 7))


def test_other_files_than_the_manifest_promises(folder: Path) -> None:
    (folder / NAME).write_bytes(BODY + b"\0")
    with pytest.raises(FatbinError, match=f"more than {len(BODY)} bytes"):
        load(folder, (13, 0), (8, 7))
    (folder / NAME).unlink()
    with pytest.raises(FatbinError, match="No such file or directory"):
        load(folder, (13, 0), (8, 7))
    for body, what in [
        (fatbin(entry(2, 90, cubin(90))), "holds code for sm_90"),
        (b"MZ" + bytes(99), "neither a fatbin"),
    ]:
        (folder / NAME).write_bytes(body)
        listed = described(NAME, body, "13.0", ("sm_87",))
        (folder / MANIFEST).write_bytes(msgspec.json.encode(Manifest(1, "0" * 64, (listed,))))
        with pytest.raises(FatbinError, match=what):
            load(folder, (13, 0), (8, 7))


def test_a_build_of_other_sources_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sources lie beside; other files among them count for nothing."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "one.cu").write_text("as it was")
    (sources / "one.py").write_text("anything")
    built = Manifest(1, files_sha256({"one.cu": b"as it was"}), FILES)
    (folder / MANIFEST).write_bytes(msgspec.json.encode(built))
    assert compiled.load(folder, (13, 0), (8, 7), sources=sources).sha256 == FILES[0].sha256
    (sources / "one.py").write_text("something else")
    assert compiled.load(folder, (13, 0), (8, 7), sources=sources).body == BODY
    (sources / "one.cu").write_text("as it is now")
    with pytest.raises(
        StaleKernelsError, match=rf"other sources than {sources} holds; `python -m kernels.build {folder}`"
    ):
        compiled.load(folder, (13, 0), (8, 7), sources=sources)
    monkeypatch.setattr(compiled, "BUILT", folder)
    with pytest.raises(StaleKernelsError, match="`make kernels` builds them anew"):
        compiled.load(folder, (13, 0), (8, 7), sources=sources)
    (sources / "one.cu").write_text("as it was")
    (sources / "two.cuh").touch()
    with pytest.raises(StaleKernelsError):
        compiled.load(folder, (13, 0), (8, 7), sources=sources)
    with pytest.raises(FatbinError, match="No such file"):
        compiled.load(folder, (13, 0), (8, 7), sources=tmp_path / "nowhere")


def test_the_sources_are_those_beside_the_operations_unless_said_otherwise(folder: Path) -> None:
    with pytest.raises(StaleKernelsError, match=f"other sources than {compiled.SOURCES}"):
        compiled.load(folder, (13, 0), (8, 7))


def as_builtins() -> dict[str, object]:
    tree: dict[str, object] = msgspec.json.decode(msgspec.json.encode(Manifest(1, "0" * 64, FILES)))
    return tree


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../kernels.fatbin"),
        ("name", "/etc/passwd"),
        ("name", ""),
        ("name", "a" * 200),
        ("container", "so"),
        ("size_bytes", 0),
        ("size_bytes", 1 << 40),
        ("size_bytes", "1"),
        ("sha256", "0" * 63),
        ("cuda", "13"),
        ("architectures", ["sm_"]),
        ("architectures", ["compute_86"]),
        ("ptx", "sm_86"),
        ("more", 1),
        ("resources", {"sm_87": {"k": {"registers": -1}}}),
    ],
)
def test_a_manifest_is_read_strictly(tmp_path: Path, field: str, value: object) -> None:
    tree = as_builtins()
    files = tree["files"]
    assert isinstance(files, list)
    files[0][field] = value
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(tree))
    with pytest.raises(FatbinError, match=MANIFEST):
        read_manifest(tmp_path)


def test_manifests_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    twice = Manifest(1, "0" * 64, (FILES[0], FILES[0]))
    for body in (b"", b"{}", b"[" * 100_000, b"\xff", b'{"version":2}', msgspec.json.encode(twice), b" " * (5 << 20)):
        path.write_bytes(body)
        with pytest.raises(FatbinError, match=MANIFEST):
            read_manifest(tmp_path)
    path.unlink()
    with pytest.raises(FatbinError, match="make kernels"):
        read_manifest(tmp_path)
    path.mkdir()
    with pytest.raises(FatbinError, match="Is a directory"):
        read_manifest(tmp_path)


def test_what_is_inside() -> None:
    assert targets_of(BODY) == ("sm_87", "sm_110", "compute_86")
    assert targets_of(ORIN) == ("sm_87",)
    assert targets_of(cubin(120)) == ("sm_120",)
    assert targets_of(fatbin()) == ()


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "no room for a header"),
        (b"\x7fELF", "cut short"),
        (b"\x7fELF\x02\x01" + bytes(100), "machine 0"),
        (fatbin(entry(2, 87, cubin(90))), "is not for sm_87"),
        (fatbin(entry(3, 87, cubin(87))), "no entry of a fatbin at byte 16"),
        (fatbin(struct.pack("<HHIQIIII", 2, 0, 0, 0, 0, 0, 0, 87)), "no entry of a fatbin at byte 16"),
        (fatbin(entry(2, 87, cubin(87))[:-1]), "no entry of a fatbin at byte 16"),
        (fatbin(b"\2\0\1\1"), "cut short in the entry at byte 16"),
    ],
)
def test_containers_that_are_none(body: bytes, what: str) -> None:
    with pytest.raises(FatbinError, match=what):
        targets_of(body)


@given(st.binary(max_size=200), st.sampled_from([b"", BODY[:4], BODY[:16], BODY[:80], ORIN[:20], ORIN[:64]]))
def test_any_bytes_give_targets_or_a_typed_error(tail: bytes, head: bytes) -> None:
    try:
        targets = targets_of(head + tail)
    except FatbinError:
        return
    assert all(target.startswith(("sm_", "compute_")) for target in targets)


@given(st.integers(0, len(BODY) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_container_gives_targets_or_a_typed_error(at: int, bytes_there: bytes) -> None:
    try:
        targets_of(BODY[:at] + bytes_there + BODY[at + len(bytes_there) :])
    except FatbinError as error:
        assert str(error)  # noqa: PT017 - both ways out are right
