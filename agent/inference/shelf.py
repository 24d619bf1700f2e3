"""The packages this unit holds: found on disk, whole, and signed by the publisher the configuration pins.

A package that is damaged or signed by nobody we know is named with its fault and never offered to the dispatcher.
The worker checks digests and the golden vector again when it loads one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.errors import DrivewayError, PackageError
from agent.package import PAYLOAD_TYPE, SIGNATURE, Package, open_package
from agent.trust import dsse


class Shelf:
    """All packages in one directory, looked at once."""

    def __init__(self, directory: Path, publisher_keys: Mapping[str, EllipticCurvePublicKey]) -> None:
        self.packages: dict[str, Package] = {}
        self.refused: dict[str, str] = {}
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            if not path.is_dir():
                continue
            try:
                package = open_signed(path, publisher_keys)
            except DrivewayError as error:
                self.refused[path.name] = str(error)
            else:
                self.packages[package.package_sha256] = package

    def take_off(self, package: Package, detail: str) -> None:
        """Offer a package no more, since the worker refused it; the next start looks at it again."""
        self.packages.pop(package.package_sha256, None)
        self.refused[package.path.name] = detail

    def find(self, sha256: str) -> Package:
        """The package of this digest; raises PackageError when this unit does not hold it."""
        package = self.packages.get(sha256)
        if package is None:
            raise PackageError(
                f"this unit holds no package {sha256[:16]}…", hint="see the packages in `driveway status`"
            )
        return package


def open_signed(path: Path, publisher_keys: Mapping[str, EllipticCurvePublicKey]) -> Package:
    """Open a package and check its publisher's signature; raises PackageError or TrustError."""
    package = open_package(path)
    if package.signature_bytes is None:
        raise PackageError(f"the package {path} has no {SIGNATURE}", hint="ask its publisher for a signed one")
    if dsse.verify(package.signature_bytes, PAYLOAD_TYPE, publisher_keys) != package.manifest_bytes:
        raise PackageError(f"the package {path} has a signature for another manifest")
    return package
