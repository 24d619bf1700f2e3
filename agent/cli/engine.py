"""What `infer` and `bench` have in common: the package that is meant, the engine it runs on, and how a build goes.

A package is its folder, or its name among those of the configuration. Under a configuration only what its publisher
signed runs, on the executor that it names unless `--executor` names another; there is no falling back from either.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent import wire
from agent.cli.progress import Progress
from agent.config import Config, load
from agent.errors import DrivewayError, PackageError
from agent.identity import read_key
from agent.inference.runner import BUILD_MEMORY_MB, PackageRunner
from agent.inference.shelf import check_package_model, open_signed
from agent.package import Package, open_package
from agent.printable import printable

IMAGES = "PNG or JPEG files"


def open_wanted(options: argparse.Namespace) -> Package:
    """The package that is meant, checked as a daemon checks what it offers; raises PackageError or TrustError."""
    config = _config(options)
    path = _find(options.package, config)
    if config is None:
        print(f"driveway: without a configuration nobody vouches for {path}", file=sys.stderr)
        package = open_package(path)
    else:
        keys = read_key(config, config.inference.publisher_key, "inference.publisher_key")
        package = open_signed(path, keys)
    check_package_model(package)
    return package


def runner_for(options: argparse.Namespace, package: Package, progress: Progress) -> PackageRunner:
    """A worker for it, which is not started yet."""
    config = _config(options)
    engine = None if config is None else config.inference
    executor: wire.ExecutorName = options.executor or (engine.executor if engine is not None else "onnxruntime")
    return PackageRunner(
        package.path,
        options.threads,
        executor=executor,
        python=(engine.worker_python if engine is not None else "") or sys.executable,
        library_path="" if engine is None else engine.library_path,
        required=() if engine is None else engine.require_confinement,
        memory_mb=engine.memory_mb if engine is not None else BUILD_MEMORY_MB,
        on_building=progress.show,
    )


def read_input(path: Path) -> bytes:
    """One input file; raises DrivewayError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DrivewayError(f"cannot read the input {path}: {error.strerror}", hint="give existing files") from error


def takes(package: Package) -> str:
    """What an input of this package is, for a person whose input was none."""
    limits = f"of at most {package.manifest.limits.max_item_bytes / 1024**2:.1f} MiB"
    if package.manifest.input == "image":
        return f"{IMAGES} {limits}"
    tensors = [call.params for call in package.manifest.pipeline.pre]
    shapes = (f"{one.get('input')} {one.get('dtype')}[{one.get('shape')}]" for one in tensors)
    return printable(f"files with {', then '.join(shapes)}, each as numpy.save writes it, {limits}")


def _config(options: argparse.Namespace) -> Config | None:
    return load(options.config) if options.config.exists() else None


def _find(said: Path, config: Config | None) -> Path:
    """The package's folder; raises PackageError."""
    if said.is_dir():
        return said
    if config is not None and said.name == str(said):
        installed = config.path(config.inference.packages_dir) / said.name
        if installed.is_dir():
            return installed
    raise PackageError(f"there is no package {said}", hint="give its folder, or a name from `driveway packages`")
