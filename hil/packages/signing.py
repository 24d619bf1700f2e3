"""The publisher's signature on a package, and its place among packages: there whole and signed, or not there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from agent.errors import PackageError
from agent.package import MANIFEST, PAYLOAD_TYPE, SIGNATURE, Package, open_package
from agent.trust import dsse
from agent.trust.keys import FileSigner


def sign_package(path: Path, publisher: FileSigner) -> None:
    """Put the publisher's signature beside the manifest."""
    manifest = (path / MANIFEST).read_bytes()
    (path / SIGNATURE).write_bytes(dsse.sign(PAYLOAD_TYPE, manifest, publisher))


def put_package(build: Callable[[Path], Package], home: Path, publisher: FileSigner | None) -> Package:
    """Build a package beside `home`, sign it if there is a publisher, and move it there whole: a daemon may be looking.

    Raises PackageError when there is something at `home` already, or nothing can be written there.
    """
    if home.exists():
        raise PackageError(f"{home} is there already", hint="move it away, or build into another folder")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=".package-") as folder:
            package = build(Path(folder) / home.name)
            if publisher is not None:
                sign_package(package.path, publisher)
            package.path.rename(home)
    except OSError as error:
        raise PackageError(f"cannot write the package {home}: {error.strerror}", hint="give another folder") from error
    return open_package(home)
