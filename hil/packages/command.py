"""`driveway-hil package`: build packages by their recipes, or of a customer's model, and sign them."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from agent.errors import PackageError, TrustError
from agent.package import Package
from agent.trust.keys import FileSigner
from hil.output import check_writable
from hil.packages import RECIPES, build_named
from hil.packages.signing import put_package
from hil.packages.tensors import build_tensor_package, name_of


def package(options: argparse.Namespace) -> int:
    """Build what is named, one after the other, and print what it is; raises PackageError at the first that fails."""
    check_writable(options.json)
    builds = _builds(options)
    for name in builds:
        if (options.out / name).exists():
            raise PackageError(f"{options.out / name} is there already", hint="move it away, or give another folder")
    publisher = None if options.sign is None else _publisher(options.sign)
    built = []
    for name, build in builds.items():
        built.append(_figures(put_package(build, options.out / name, publisher)))
        print(_words(built[-1]))
    if publisher is None:
        print("not signed: a daemon takes only what its publisher signed (--sign KEY)")
    if options.json is not None:
        options.json.write_text(json.dumps(built, indent=2) + "\n", "ascii")
    return 0


def _builds(options: argparse.Namespace) -> dict[str, Any]:
    """By the name of its folder, what builds a package into one."""
    if options.what.endswith(".onnx"):
        model = Path(options.what)
        return {name_of(model): partial(build_tensor_package, model, sizes=dict(options.shape))}
    names = RECIPES if options.what == "all" else (options.what,)
    return {name: partial(build_named, name) for name in names}


def _publisher(key: Path) -> FileSigner:
    """The key, made when it is missing, with its public half beside it."""
    public = key.with_suffix(".pub")
    if public == key:
        raise TrustError(f"{key} is the name of a public key", hint="name the private one, for example publisher.key")
    publisher = FileSigner.open_or_create(key)
    if not public.exists():
        public.write_text(publisher.public_key_pem(), "ascii")
        print(f"{public}: the publisher's public key, for [inference] publisher_key of the cars")
    return publisher


def _figures(package: Package) -> dict[str, Any]:
    manifest = package.manifest
    return {
        "path": str(package.path),
        "name": manifest.name,
        "version": manifest.version,
        "sha256": package.package_sha256,
        "signed": package.signature_bytes is not None,
        "bytes": sum((package.path / name).stat().st_size for name in manifest.files),
    }


def _words(built: dict[str, Any]) -> str:
    size = f"{built['bytes'] / 1e6:.1f} MB"
    return f"{built['path']}: {built['name']} {built['version']}, {size}, SHA-256 {built['sha256'][:16]}…"
