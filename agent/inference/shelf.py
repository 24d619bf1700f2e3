"""The packages this unit holds: found on disk, whole, and signed by the publisher the configuration pins, or listed
in the operator's catalogue where one is configured (`judge`; then the listing is the signature that counts).

A package that is damaged, signed by nobody we know, or whose model no native parser should see (`agent.onnx`), is named
with its fault and never offered to the dispatcher. The worker checks digests and model again, and the golden vector,
when it loads one. What is still on its way to the shelf has a name that begins with a dot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from agent.errors import DrivewayError, PackageError
from agent.onnx.check import check_model
from agent.package import PAYLOAD_TYPE, SIGNATURE, Package, open_package
from agent.trust import dsse
from agent.trust.dsse import VerifyingKey

Found = dict[str, Package | str]
"""By the name of its folder: a package that may be offered, or why it may not."""


class Shelf:
    """All packages in one directory. What is put there later is found when somebody looks again (`changed`)."""

    def __init__(
        self,
        directory: Path,
        publisher_keys: Mapping[str, VerifyingKey],
        judge: Callable[[Package], str] | None = None,
        takes_new: Callable[[], bool] = lambda: True,
    ) -> None:
        self.packages: dict[str, Package] = {}
        self.refused: dict[str, str] = {}
        self.takes_new = takes_new
        """Whether anything on the shelf may be offered for new work now."""
        self._judge = judge
        self._barred: dict[str, Package] = {}
        """Whole packages that the catalogue does not admit now, by folder."""
        self._directory, self._publisher_keys = directory, publisher_keys
        self._known: set[str] = set()
        self._listed_ns = 0
        self.changed()
        self.take_in(self.newcomers())

    def changed(self) -> bool:
        """Whether something came or went since this was last asked: the directory's time, so it costs next to nothing.

        A package is to be moved there whole: one that is looked at half written is refused until the next start. A disk
        may hang all the same, so ask on a thread.
        """
        before_ns = self._listed_ns
        try:
            self._listed_ns = self._directory.stat().st_mtime_ns
        except OSError:
            self._listed_ns = 0
        return self._listed_ns != before_ns

    def newcomers(self) -> Found:
        """Packages not seen before, looked at; reads all of them, so leave it to a thread while anything waits."""
        found: Found = {}
        for path in sorted(self._directory.iterdir()) if self._directory.is_dir() else ():
            if path.name in self._known or path.name.startswith(".") or not path.is_dir():
                continue
            try:
                package = open_package(path) if self._judge else open_signed(path, self._publisher_keys)
                check_package_model(package)
                found[path.name] = package
            except DrivewayError as error:
                found[path.name] = str(error)
        return found

    def newcomers_if_changed(self) -> Found:
        """The same, looked for only where something came or went since."""
        return self.newcomers() if self.changed() else {}

    def take_in(self, found: Found) -> None:
        """Offer what was found, or keep why not."""
        self._known.update(found)
        for name, package in found.items():
            if isinstance(package, Package):
                self._put(package)
            else:
                self.refused[name] = package

    def _put(self, package: Package) -> None:
        """Offer a whole package, unless the catalogue does not admit it."""
        why = self._judge(package) if self._judge else ""
        if why:
            self._barred[package.path.name] = package
            self.refused[package.path.name] = why
        else:
            self.packages[package.package_sha256] = package

    def judge_again(self) -> None:
        """The catalogue has changed: what it admits now is offered, and nothing else."""
        whole = [*self.packages.values(), *self._barred.values()]
        for name in self._barred:
            self.refused.pop(name, None)
        self.packages.clear()
        self._barred.clear()
        for package in whole:
            self._put(package)

    def take_off(self, package: Package, detail: str) -> None:
        """Offer a package no more, since the worker refused it; the next start looks at it again."""
        self.packages.pop(package.package_sha256, None)
        self._barred.pop(package.path.name, None)
        self.refused[package.path.name] = detail

    def find(self, sha256: str) -> Package:
        """The package of this digest; raises PackageError when this unit does not hold it."""
        package = self.packages.get(sha256)
        if package is None:
            raise PackageError(
                f"this unit holds no package {sha256[:16]}…", hint="see the packages in `driveway status`"
            )
        return package


def check_package_model(package: Package) -> None:
    """Look at the package's model without running any of it; raises PackageError for one that may not run."""
    name = package.manifest.model
    check_model(package.read(name), f"package {package.path}: {name}")


def open_signed(path: Path, publisher_keys: Mapping[str, VerifyingKey]) -> Package:
    """Open a package and check its publisher's signature; raises PackageError or TrustError."""
    package = open_package(path)
    if package.signature_bytes is None:
        raise PackageError(f"the package {path} has no {SIGNATURE}", hint="ask its publisher for a signed one")
    if dsse.verify(package.signature_bytes, PAYLOAD_TYPE, publisher_keys) != package.manifest_bytes:
        raise PackageError(f"the package {path} has a signature for another manifest")
    return package
