"""Which package is meant: one of the rig's by its name, a package's folder, or an ONNX model to make a package of.

A model is packaged, signed with the rig's publisher's key and put among the rig's packages, where the daemon finds it
with its next request; the same model again is the package that is there already. Elsewhere packages come to cars in
ways of their own, so there the folder of one that cars hold is needed.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.errors import ConfigError, DrivewayError, PackageError
from agent.package import MANIFEST, Package, open_package
from agent.trust.keys import FileSigner
from hil.packages.recipe import MODEL
from hil.packages.signing import sign_package
from hil.packages.tensors import build_tensor_package, inputs_of
from hil.submit.sources import Tensors

GOLDEN_FILES = 3


def find_package(said: str, rig: Path | None, shapes: Mapping[str, tuple[int, ...]], files: Sequence[Path]) -> Package:
    """The package that `said` means; a model's is proven with the first of `files`. Raises DrivewayError."""
    path = Path(said)
    if path.suffix == ".onnx":
        return _of_model(path, rig, shapes, files)
    if (path / MANIFEST).is_file():
        return open_package(path)
    if rig is not None and path.name == said and (rig / "packages" / said / MANIFEST).is_file():
        return open_package(rig / "packages" / said)
    known = ", ".join(_names(rig)) if rig is not None else ""
    hint = (
        f"the rig has {known}; or give a package's folder, or an .onnx file"
        if known
        else ("give a package's folder; a package's name or an .onnx file needs the rig's folder (--dir)")
    )
    raise ConfigError(f"there is no package {said!r}", hint=hint)


def _names(rig: Path) -> list[str]:
    folder = rig / "packages"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _of_model(model: Path, rig: Path | None, shapes: Mapping[str, tuple[int, ...]], files: Sequence[Path]) -> Package:
    if rig is None:
        hint = "give the folder of a package that the cars hold"
        raise ConfigError(f"{model} can be packaged only for a rig (--dir)", hint=hint)
    key = rig / "publisher.key"
    if not key.is_file():
        raise ConfigError(f"{rig} has no publisher's key to sign a package with", hint="is it the folder of a rig?")
    there = _packaged(model, rig)
    if there is not None:
        return there
    with tempfile.TemporaryDirectory(dir=rig, prefix=".package-") as folder:
        package = build_tensor_package(model, Path(folder) / "package", sizes=shapes)
        golden = _golden(package, files)
        if golden:
            shutil.rmtree(package.path)
            package = build_tensor_package(model, Path(folder) / "package", sizes=shapes, golden=golden)
        sign_package(package.path, FileSigner.open_or_create(key))
        home = rig / "packages" / f"{package.manifest.name}-{package.package_sha256[:8]}"
        home.parent.mkdir(exist_ok=True)
        package.path.rename(home)  # whole, or not there: the daemon may be looking
    return open_package(home)


def _packaged(model: Path, rig: Path) -> Package | None:
    """The rig's package of this model, if it was packaged before."""
    try:
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
    except OSError as error:
        raise PackageError(f"cannot read the model {model}: {error.strerror}", hint="give an .onnx file") from error
    for name in _names(rig):
        try:
            package = open_package(rig / "packages" / name)
        except DrivewayError:
            continue  # a damaged one is the daemon's to complain of
        if package.manifest.input == "tensor" and package.manifest.files.get(MODEL) == digest:
            return package
    return None


def _golden(package: Package, files: Sequence[Path]) -> list[bytes]:
    """The first files as items, which prove a package better than what is drawn; none where they do not fit."""
    source = Tensors(inputs_of(package))
    plain = [path for path in files if path.is_file()]
    inside = [one for path in files if path.is_dir() for one in sorted(path.iterdir())]
    fitting = [path for path in (*plain, *inside) if path.suffix in source.suffixes]
    try:
        return [source.item(path) for path in fitting[:GOLDEN_FILES]]
    except ConfigError:
        return []  # what is wrong with the files is said when they are looked at
