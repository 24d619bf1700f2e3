"""`driveway-hil package`: builds what it is told, signed and whole, or says in a sentence why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import DrivewayError
from agent.inference.shelf import Shelf, open_signed
from agent.package import Package
from agent.trust.keys import FileSigner, load_public_key
from hil.cli import main
from hil.packages.nothing import build_nothing_package
from hil.packages.signing import put_package
from tests.hil.tiny_models import softmax_model


def run(*arguments: str | Path) -> int:
    return main(["package", *map(str, arguments)])


def test_a_recipe_is_built_and_signed_where_a_daemon_finds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, key = tmp_path / "packages", tmp_path / "publisher.key"
    assert run("orientation", out, "--sign", key, "--json", tmp_path / "built.json") == 0
    public = load_public_key((tmp_path / "publisher.pub").read_text("ascii"))
    signer = FileSigner.open_or_create(key)
    package = open_signed(out / "orientation", {signer.keyid: public})
    (built,) = json.loads((tmp_path / "built.json").read_text())
    assert (built["sha256"], built["signed"]) == (package.package_sha256, True)
    assert built["bytes"] == sum(len(package.read(name)) for name in package.manifest.files)
    said = capsys.readouterr().out
    assert "the publisher's public key, for [inference] publisher_key of the cars" in said
    assert f"line-orientation 2.0.0, {built['bytes'] / 1e6:.1f} MB, SHA-256 {built['sha256'][:16]}…" in said
    assert [path.name for path in out.iterdir()] == ["orientation"], "nothing is left of the building"


def test_without_a_key_it_says_what_that_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("orientation", tmp_path / "packages") == 0
    assert "not signed: a daemon takes only what its publisher signed" in capsys.readouterr().out
    assert run("orientation", tmp_path / "packages") == 1
    assert "orientation is there already; move it away" in capsys.readouterr().err


def test_a_model_of_ones_own_is_packaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "my model.onnx"
    model.write_bytes(softmax_model(None, None))
    assert run(model, tmp_path / "packages") == 1
    assert "say what an item has, for example --shape x=128" in capsys.readouterr().err
    assert list((tmp_path / "packages").iterdir()) == []
    assert run(model, tmp_path / "packages", "--shape", "x=4") == 0
    assert (tmp_path / "packages" / "my-model" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "arguments",
    [("nosuch",), ("ocr", "--shape", "x=3"), ("model.onnx", "--shape", "x=three"), ("ocr", "--shape", "x=0")],
)
def test_what_does_not_go_together_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    what, *rest = arguments
    with pytest.raises(SystemExit) as ended:
        run(what, tmp_path / "packages", *rest)
    assert ended.value.code == 2
    assert not (tmp_path / "packages").exists()


def test_a_public_keys_name_is_no_place_for_a_private_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("orientation", tmp_path / "packages", "--sign", tmp_path / "publisher.pub") == 1
    assert "is the name of a public key" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_daemon_that_looks_meanwhile_sees_all_or_nothing(tmp_path: Path) -> None:
    """While it is being built, signed too, there is nothing on the shelf, not even something to refuse."""
    publisher = FileSigner.open_or_create(tmp_path / "publisher.key")
    trusted = {publisher.keyid: publisher.public_key()}
    shelf = Shelf(tmp_path / "packages", trusted)

    def build(folder: Path) -> Package:
        package = build_nothing_package(folder)
        shelf.take_in(shelf.newcomers())
        assert (shelf.packages, shelf.refused) == ({}, {})
        return package

    package = put_package(build, tmp_path / "packages" / "nothing", publisher)
    assert list(shelf.newcomers_if_changed()) == ["nothing"]
    assert package.signature_bytes is not None


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails(folder: Path) -> Package:
        build_nothing_package(folder)
        raise DrivewayError("no")

    with pytest.raises(DrivewayError, match="no"):
        put_package(fails, tmp_path / "packages" / "x", None)
    assert list((tmp_path / "packages").iterdir()) == []
