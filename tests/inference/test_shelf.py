"""The shelf offers a package only when it is whole and its publisher signed this very manifest; it says why not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey, generate_private_key

from agent.errors import DrivewayError, PackageError, TrustError
from agent.inference.shelf import Shelf, open_signed
from agent.package import (
    MANIFEST,
    PAYLOAD_TYPE,
    SIGNATURE,
    Bucket,
    Golden,
    Limits,
    Manifest,
    OpCall,
    PipelineSpec,
    encode_manifest,
    open_package,
)
from agent.trust import dsse
from agent.trust.keys import FileSigner
from tests.hil.tiny_models import softmax_model

FILES = {"model.onnx": softmax_model(1, 4), "golden/input": b"\x90", "golden/expected.json": b"[]"}
PUBLISHER = FileSigner(generate_private_key(SECP256R1()))
STRANGER = FileSigner(generate_private_key(SECP256R1()))
TRUSTED: Mapping[str, EllipticCurvePublicKey] = {PUBLISHER.keyid: PUBLISHER.public_key()}


def manifest(name: str, version: str = "1") -> bytes:
    return encode_manifest(
        Manifest(
            v=1,
            name=name,
            version=version,
            input="image",
            model="model.onnx",
            pipeline=PipelineSpec(pre=(OpCall(op="resize"),), engine="onnx", post=(OpCall(op="decode"),)),
            buckets=(Bucket(items=1, width=320),),
            golden=Golden(input="golden/input", expected="golden/expected.json", tolerance_permille=10),
            limits=Limits(max_item_bytes=1000, max_items=10, memory_mb=256),
            files={name: hashlib.sha256(body).hexdigest() for name, body in FILES.items()},
        )
    )


def sign(path: Path, body: bytes, signer: FileSigner = PUBLISHER, payload_type: str = PAYLOAD_TYPE) -> None:
    (path / SIGNATURE).write_bytes(dsse.sign(payload_type, body, signer))


def put(directory: Path, name: str) -> Path:
    """A small package, whole and signed by the publisher."""
    path = directory / name
    (path / "golden").mkdir(parents=True)
    for file, body in FILES.items():
        (path / file).write_bytes(body)
    (path / MANIFEST).write_bytes(manifest(name))
    sign(path, manifest(name))
    return path


Fault = tuple[Callable[[Path], object], type[DrivewayError], str]
FAULTS: dict[str, Fault] = {
    "no signature": (
        lambda path: (path / SIGNATURE).unlink(),
        PackageError,
        "has no manifest.sig.json; ask its publisher for a signed one",
    ),
    "a stranger's signature": (
        lambda path: sign(path, manifest("bad"), STRANGER),
        TrustError,
        "no signature on the envelope was made by a trusted key",
    ),
    "another package's signature": (
        lambda path: sign(path, manifest("good")),
        PackageError,
        "has a signature for another manifest",
    ),
    "a manifest altered after it was signed": (
        lambda path: (path / MANIFEST).write_bytes(manifest("bad", version="2")),
        PackageError,
        "has a signature for another manifest",
    ),
    "the publisher's signature as something else": (
        lambda path: sign(path, manifest("bad"), payload_type="application/vnd.driveway.policy+json"),
        TrustError,
        "the envelope holds a 'application/vnd.driveway.policy+json'",
    ),
    "a signature that is none": (
        lambda path: (path / SIGNATURE).write_bytes(b"{}"),
        TrustError,
        "not a DSSE envelope",
    ),
    "a damaged file": (
        lambda path: (path / "model.onnx").write_bytes(b"evil"),
        PackageError,
        "model.onnx does not have the listed SHA-256",
    ),
}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A directory with one good package."""
    put(tmp_path / "packages", "good")
    return tmp_path / "packages"


def test_a_whole_signed_package_is_offered_by_its_digest(packages: Path) -> None:
    shelf = Shelf(packages, TRUSTED)
    digest = hashlib.sha256(manifest("good")).hexdigest()
    assert list(shelf.packages) == [digest]
    assert shelf.refused == {}
    found = shelf.find(digest)
    assert found == open_signed(packages / "good", TRUSTED) == open_package(packages / "good")
    assert found.path == packages / "good"


@pytest.mark.parametrize("kind", FAULTS)
def test_a_package_with_a_fault_is_named_and_its_neighbour_offered(packages: Path, kind: str) -> None:
    fault, error, said = FAULTS[kind]
    path = put(packages, "bad")
    assert len(Shelf(packages, TRUSTED).packages) == 2
    fault(path)
    with pytest.raises(error) as caught:
        open_signed(path, TRUSTED)
    assert type(caught.value) is error
    assert said in str(caught.value)
    shelf = Shelf(packages, TRUSTED)
    assert [package.path.name for package in shelf.packages.values()] == ["good"]
    assert shelf.refused == {"bad": str(caught.value)}


def test_whoever_trusts_nobody_offers_nothing(packages: Path) -> None:
    shelf = Shelf(packages, {})
    assert shelf.packages == {}
    assert "no signature" in shelf.refused["good"]


def test_a_directory_that_is_no_package_is_refused_and_a_loose_file_passed_over(packages: Path) -> None:
    (packages / "README.txt").write_text("not a package")
    (packages / "empty").mkdir()
    shelf = Shelf(packages, TRUSTED)
    assert [package.path.name for package in shelf.packages.values()] == ["good"]
    assert list(shelf.refused) == ["empty"]
    assert "manifest.json cannot be read" in shelf.refused["empty"]


def test_without_packages_the_shelf_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("empty", "missing", "file"):
        shelf = Shelf(tmp_path / name, TRUSTED)
        assert (shelf.packages, shelf.refused) == ({}, {})


def test_an_unknown_digest_is_named(packages: Path) -> None:
    with pytest.raises(PackageError, match=r"holds no package abababababababab…; see the packages in `driveway sta"):
        Shelf(packages, TRUSTED).find("ab" * 32)


def test_what_was_taken_off_is_offered_again_by_the_next_start_only(packages: Path) -> None:
    put(packages, "other")
    shelf = Shelf(packages, TRUSTED)
    bad, good = (open_package(packages / name) for name in ("good", "other"))
    for _ in range(2):  # the worker may say so twice
        shelf.take_off(bad, "the golden vector came out wrong")
        assert shelf.refused == {"good": "the golden vector came out wrong"}
        assert list(shelf.packages) == [good.package_sha256]
    with pytest.raises(PackageError, match="holds no package"):
        shelf.find(bad.package_sha256)
    assert Shelf(packages, TRUSTED).find(bad.package_sha256) == bad


def test_what_is_put_there_later_is_found_when_somebody_looks_again(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    first = put(packages, "first")
    shelf = Shelf(packages, TRUSTED)
    assert not shelf.changed()
    put(tmp_path / "made", "second").rename(packages / "second")
    put(tmp_path / "made", "third").rename(packages / "third")
    (packages / "third" / "model.onnx").write_bytes(b"other")
    assert shelf.changed()
    assert not shelf.changed()
    shelf.take_in(shelf.newcomers())
    assert {package.path.name for package in shelf.packages.values()} == {first.name, "second"}
    assert "model.onnx does not have the listed SHA-256" in shelf.refused["third"]
    assert shelf.newcomers() == {}


def test_a_package_that_the_worker_refused_is_not_offered_again_by_looking(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    put(packages, "first")
    shelf = Shelf(packages, TRUSTED)
    shelf.take_off(next(iter(shelf.packages.values())), "the golden vector differs")
    put(tmp_path / "made", "second").rename(packages / "second")
    assert shelf.changed()
    shelf.take_in(shelf.newcomers())
    assert [package.path.name for package in shelf.packages.values()] == ["second"]
    assert shelf.refused == {"first": "the golden vector differs"}
