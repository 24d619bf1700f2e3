"""The packages that this computer holds, for people and programs: what each is, who signed it, and whether it can run.

The daemon answers from its shelf and from what the core knows of engine plans; where none runs, a folder is looked at
instead, and of plans nothing is said. What is not known of a package that was refused is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from agent.core.model import Readiness
from agent.core.state import State
from agent.errors import DrivewayError
from agent.inference.shelf import check_package_model, open_signed
from agent.package import MANIFEST, Bucket, Limits, Package, open_package
from agent.trust.dsse import VerifyingKey

SIGNED, UNSIGNED, UNCHECKED = "signed", "not signed", "not checked"
Keys = Mapping[str, VerifyingKey]
NEEDS_NO_PLAN = "onnxruntime"
"""The executor that takes the model itself."""


class PackageView(msgspec.Struct, frozen=True):
    """One package. `state`: ready, building, no plan, waiting, refused, or unknown; `detail` says why or how far.

    `signature`: signed (by the publisher that the configuration pins), not signed, or not checked (no configuration).
    """

    folder: str
    state: str
    detail: str = ""
    executor: str = ""
    name: str = ""
    version: str = ""
    sha256: str = ""
    signature: str = ""
    input: str = ""
    pipeline: tuple[str, ...] = ()
    buckets: tuple[Bucket, ...] = ()
    limits: Limits | None = None


def on_shelf(packages: Iterable[Package], refused: Mapping[str, str], state: State) -> list[PackageView]:
    """What the daemon offers and what it refused, by the names of their folders."""
    views = [_view(package, SIGNED, state.accelerator.executor, *_planned(package, state)) for package in packages]
    views += [PackageView(folder=folder, state="refused", detail=detail) for folder, detail in refused.items()]
    return sorted(views, key=lambda view: view.folder)


def in_folders(folders: Iterable[Path], publisher_keys: Keys | None) -> list[PackageView]:
    """The packages in these folders, or the folders themselves where they are packages; raises DrivewayError.

    `publisher_keys`: whose signature counts; None: signatures are not checked.
    """
    views = []
    for folder in folders:
        if not folder.is_dir():
            raise DrivewayError(f"there is no folder {folder}", hint="give a package, or a folder of packages")
        inside = [folder] if (folder / MANIFEST).exists() else _packages_in(folder)
        views += [_looked_at(path, publisher_keys) for path in inside]
    return views


def _packages_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DrivewayError(f"cannot look into {folder}: {error.strerror}") from error


def _looked_at(path: Path, publisher_keys: Keys | None) -> PackageView:
    """A package as the shelf would judge it."""
    try:
        package = open_package(path) if publisher_keys is None else open_signed(path, publisher_keys)
        check_package_model(package)
    except DrivewayError as error:
        return PackageView(folder=path.name, state="refused", detail=str(error))
    if publisher_keys is not None:
        return _view(package, SIGNED, "", "unknown", "")
    return _view(package, UNSIGNED if package.signature_bytes is None else UNCHECKED, "", "unknown", "")


def _planned(package: Package, state: State) -> tuple[str, str]:
    """Whether the package's engine is there, and if not, how far it is."""
    sha256, builds, worker, accelerator = package.package_sha256, state.builds, state.worker, state.accelerator
    if accelerator.state is not Readiness.READY:
        return "waiting", f"the accelerator is {accelerator.state.value}: {accelerator.detail}".removesuffix(": ")
    if worker.build is not None and worker.package_sha256 == sha256:
        return "building", f"{worker.build.phase} {worker.build.done_permille / 10:.0f} %".strip()
    if sha256 in builds.refused:
        return "refused", "its engine plan cannot be built here"
    if sha256 in builds.missing:
        tries = builds.tries[sha256].tries if sha256 in builds.tries else 0
        again = f"{tries} builds failed, tried again later" if tries else "built while the car is parked and plugged in"
        return "no plan", again
    return "ready", "" if accelerator.executor in {"", NEEDS_NO_PLAN} else "its engine plan is built"


def _view(package: Package, signature: str, executor: str, state: str, detail: str) -> PackageView:
    manifest = package.manifest
    calls = (*manifest.pipeline.pre, None, *manifest.pipeline.post)
    return PackageView(
        folder=package.path.name,
        state=state,
        detail=detail,
        executor=executor,
        name=manifest.name,
        version=manifest.version,
        sha256=package.package_sha256,
        signature=signature,
        input=manifest.input,
        pipeline=tuple(manifest.model if call is None else call.op for call in calls),
        buckets=manifest.buckets,
        limits=manifest.limits,
    )
