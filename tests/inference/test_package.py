"""Every kind of damage to a package is refused with its own words."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agent.package
from agent.errors import PackageError
from agent.package import MANIFEST, SIGNATURE, Manifest, encode_manifest, open_package, run_in

FILES = {"model.onnx": b"onnx", "characters.txt": b"a\nb\n", "golden/input": b"\x90", "golden/expected.json": b"[]"}


def manifest_fields() -> dict[str, Any]:
    return {
        "v": 1,
        "name": "tiny",
        "version": "1",
        "input": "image",
        "model": "model.onnx",
        "pipeline": {
            "pre": [{"op": "resize_normalize_pad", "params": {"height": 48}}],
            "engine": "onnx",
            "post": [{"op": "ctc_greedy_decode", "params": {"characters": "characters.txt"}}],
        },
        "buckets": [{"items": 1, "width": 320}],
        "golden": {"input": "golden/input", "expected": "golden/expected.json", "tolerance_permille": 10},
        "limits": {"max_item_bytes": 1000, "max_items": 10, "memory_mb": 256},
        "files": {name: hashlib.sha256(body).hexdigest() for name, body in FILES.items()},
    }


def write_manifest(path: Path, fields: dict[str, Any]) -> None:
    (path / MANIFEST).write_text(json.dumps(fields))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    (path / "golden").mkdir(parents=True)
    for name, body in FILES.items():
        (path / name).write_bytes(body)
    write_manifest(path, manifest_fields())
    return path


def test_a_whole_package_opens(tiny: Path) -> None:
    (tiny / SIGNATURE).write_bytes(b"{}")
    package = open_package(tiny)
    assert package.package_sha256 == hashlib.sha256((tiny / MANIFEST).read_bytes()).hexdigest()
    assert package.manifest_bytes == (tiny / MANIFEST).read_bytes()
    assert package.signature_bytes == b"{}"
    assert package.read("characters.txt") == b"a\nb\n"
    assert package.manifest.pipeline.pre[0].params == {"height": 48}


@pytest.mark.parametrize(
    ("allowed", "model", "on_cpu", "on_accelerator"),
    [
        ({}, "float32", "float32", "tf32"),
        ({}, "float16", "float16", "float16"),
        ({"float32": 200}, "float32", "float32", "float32"),
        ({"float32": 200, "tf32": 0}, "float32", "float32", "tf32"),
        ({"tf32": 0}, "float32", None, "tf32"),
        ({"float32": 200, "float16": 9}, "float16", "float16", "float16"),
        ({"float32": 200}, "int8", None, None),
    ],
)
def test_a_package_says_in_which_precision_it_may_be_run(
    tiny: Path, allowed: dict[str, int], model: str, on_cpu: str | None, on_accelerator: str | None
) -> None:
    write_manifest(tiny, manifest_fields() | {"precisions": allowed})
    manifest = open_package(tiny).manifest
    for runs_in, is_accelerator in ((on_cpu, False), (on_accelerator, True)):
        if runs_in is None:
            with pytest.raises(PackageError, match=f"its model is {model}, and it may be run in"):
                run_in(manifest, model, on_accelerator=is_accelerator)
        else:
            assert run_in(manifest, model, on_accelerator=is_accelerator) == runs_in


@pytest.mark.parametrize("precisions", [{"float33": 1}, {"float32": -1}, {"float32": 10**7}, ["float32"]])
def test_precisions_that_nobody_knows_are_damage(tiny: Path, precisions: object) -> None:
    write_manifest(tiny, manifest_fields() | {"precisions": precisions})
    with pytest.raises(PackageError, match="precisions"):
        open_package(tiny)


def test_a_package_needs_no_signature_to_open(tiny: Path) -> None:
    assert open_package(tiny).signature_bytes is None


def test_the_written_manifest_reads_back(tiny: Path) -> None:
    manifest = open_package(tiny).manifest
    (tiny / MANIFEST).write_bytes(encode_manifest(manifest))
    assert open_package(tiny).manifest == manifest


def with_fields(**changes: object) -> Callable[[Path], None]:
    return lambda path: write_manifest(path, manifest_fields() | changes)


def with_file(name: str, sha256: str) -> Callable[[Path], None]:
    return lambda path: write_manifest(path, manifest_fields() | {"files": manifest_fields()["files"] | {name: sha256}})


def link_model(path: Path) -> None:
    (path / "model.onnx").rename(path.parent / "outside.onnx")
    (path / "model.onnx").symlink_to(path.parent / "outside.onnx")


def link_directory(path: Path) -> None:
    (path / "golden").rename(path.parent / "outside")
    (path / "golden").symlink_to(path.parent / "outside")


def link_manifest(path: Path) -> None:
    (path / MANIFEST).rename(path.parent / "m")
    (path / MANIFEST).symlink_to(path.parent / "m")


def pipe_for_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()
    os.mkfifo(path / MANIFEST)


def many_files(path: Path) -> None:
    for number in range(70):
        (path / f"file{number}").touch()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda path: (path / MANIFEST).unlink(), r"manifest.json cannot be read \(No such file"),
    "manifest is a link": (
        link_manifest,
        r"manifest.json cannot be read \(Too many levels of symbolic links",
    ),
    "manifest is a pipe": (
        pipe_for_manifest,
        "manifest.json is not a plain file",
    ),
    "manifest too large": (
        lambda path: (path / MANIFEST).write_bytes(b" " * 300_000),
        "manifest.json is 300000 bytes, more than 262144",
    ),
    "not JSON": (lambda path: (path / MANIFEST).write_bytes(b"{"), "manifest.json is not a valid manifest"),
    "not UTF-8": (
        lambda path: (path / MANIFEST).write_bytes(b'{"v": "\xff"}'),
        "manifest.json is not a valid manifest",
    ),
    "deeply nested": (
        lambda path: (path / MANIFEST).write_bytes(b"[" * 200_000),
        "manifest.json is not a valid manifest",
    ),
    "unknown version": (with_fields(v=2), r"Invalid enum value 2 - at `\$.v`"),
    "unknown field": (with_fields(plugin="x.so"), "unknown field `plugin`"),
    "unknown engine": (
        with_fields(pipeline=manifest_fields()["pipeline"] | {"engine": "plan"}),
        r"Invalid enum value 'plan' - at `\$.pipeline.engine`",
    ),
    "no bucket": (with_fields(buckets=[]), r"length >= 1 - at `\$.buckets`"),
    "no post-processing": (
        with_fields(pipeline=manifest_fields()["pipeline"] | {"post": []}),
        r"length >= 1 - at `\$.pipeline.post`",
    ),
    "short digest": (with_file("characters.txt", "ab"), r"matching regex .* at `\$.files\[...\]`"),
    "parent directory": (with_file("../outside", "0" * 64), r"lists '../outside', which is not a plain path inside"),
    "inner parent": (with_file("golden/../../x", "0" * 64), "which is not a plain path inside"),
    "absolute path": (with_file("/etc/passwd", "0" * 64), r"lists '/etc/passwd', which is not a plain path inside"),
    "hidden file": (with_file(".bashrc", "0" * 64), "which is not a plain path inside"),
    "NUL in a name": (with_file("a\0b", "0" * 64), "which is not a plain path inside"),
    "newline after a name": (with_file("a\n", "0" * 64), "which is not a plain path inside"),
    "lists its manifest": (with_file(MANIFEST, "0" * 64), "lists manifest.json, which cannot be part of"),
    "lists its signature": (with_file(SIGNATURE, "0" * 64), "lists manifest.sig.json, which cannot be part of"),
    "model not listed": (with_fields(model="other.onnx"), "other.onnx is used but not listed"),
    "golden not listed": (
        with_fields(golden=manifest_fields()["golden"] | {"input": "golden/else"}),
        "golden/else is used but not listed",
    ),
    "missing file": (lambda path: (path / "characters.txt").unlink(), "characters.txt is listed but missing"),
    "changed file": (
        lambda path: (path / "characters.txt").write_bytes(b"a\nc\n"),
        "characters.txt does not have the listed SHA-256",
    ),
    "unlisted file": (lambda path: (path / "golden/extra").write_bytes(b""), "golden/extra is not listed"),
    "model is a link": (link_model, "model.onnx is a link or a special file"),
    "directory is a link": (link_directory, "golden is a link or a special file"),
    "a pipe": (lambda path: os.mkfifo(path / "pipe"), "pipe is a link or a special file"),
    "too many files": (
        many_files,
        "more than 64 files",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, tiny: Path) -> None:
    damage, message = DAMAGE[kind]
    damage(tiny)
    with pytest.raises(PackageError, match=message) as caught:
        open_package(tiny)
    assert str(tiny) in caught.value.what


def test_sizes_are_capped(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.package, "MAX_FILE_BYTES", 3)
    with pytest.raises(PackageError, match=r"characters.txt is 4 bytes, more than 3"):
        open_package(tiny)
    monkeypatch.setattr(agent.package, "MAX_PACKAGE_BYTES", 5)
    with pytest.raises(PackageError, match=r"its files are \d+ bytes, more than 5"):
        open_package(tiny)


def test_a_file_that_changes_after_opening_is_not_read(tiny: Path) -> None:
    package = open_package(tiny)
    (tiny / "model.onnx").write_bytes(b"evil")
    with pytest.raises(PackageError, match=r"model.onnx does not have the listed SHA-256"):
        package.read("model.onnx")
    with pytest.raises(PackageError, match=r"unheard-of is used but not listed"):
        package.read("unheard-of")


def test_the_directory_itself_may_be_missing(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"manifest.json cannot be read"):
        open_package(tmp_path / "nowhere")


@given(st.binary(max_size=400))
def test_arbitrary_manifests_only_ever_raise_package_errors(body: bytes) -> None:
    with pytest.raises(PackageError):
        agent.package._parse(Path("p"), body)


def test_manifest_is_frozen(tiny: Path) -> None:
    manifest: Manifest = open_package(tiny).manifest
    with pytest.raises(AttributeError):
        manifest.name = "other"  # type: ignore[misc]  # what is tested
