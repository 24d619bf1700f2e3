"""The same tree for a vehicle with two slots: a squashfs image in a RAUC bundle, signed, and checked while it is read.

The image is what is mounted at /opt/driveway: `<version>/`, and `current` and `good`, which lead to it. In a bundle of
the format `verity` every block is checked against the signed root hash as it is read, so a byte that was changed is
refused and not installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from systemd.package.target import BuildError, Release
from systemd.package.tree import settle

MANIFEST = """\
[update]
compatible=driveway-{arch}
version={version}

[bundle]
format=verity

[image.driveway]
filename=driveway.squashfs
"""
DEVELOPMENT = "driveway development, for no vehicle"


@dataclass(frozen=True)
class Signer:
    """An X.509 certificate and its private key (PEM files, or a PKCS#11 URI for the key)."""

    certificate: str
    key: str


def why_not() -> str | None:
    """Why this machine can make no bundle; None: it can."""
    lacking = [tool for tool in ("rauc", "mksquashfs", "openssl") if shutil.which(tool) is None]
    return f"{', '.join(lacking)} not installed (rauc, squashfs-tools, openssl)" if lacking else None


def development_signer(folder: Path) -> Signer:
    """A key that is made here and that no vehicle may trust; the same one as before, where there is one."""
    signer = Signer(str(folder / "development.cert.pem"), str(folder / "development.key.pem"))
    if not Path(signer.certificate).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        names = ("-subj", f"/CN={DEVELOPMENT}", "-days", "3650")
        _do("openssl", "req", "-x509", *curve, "-nodes", *names, "-keyout", signer.key, "-out", signer.certificate)
    return signer


def write(tree: Path, release: Release, signer: Signer, work: Path, out: Path) -> None:
    """The bundle of a tree. Raises BuildError with what a tool said. The signature's own time makes each one differ."""
    image, content = work / "image", work / "content"
    image.mkdir(parents=True)
    content.mkdir()
    shutil.copytree(tree, image / release.version, symlinks=True)
    for link in ("current", "good"):
        (image / link).symlink_to(release.version)
    squashfs = content / "driveway.squashfs"
    settle(image, release.epoch_s)
    options = ("-noappend", "-all-root", "-no-xattrs", "-quiet", "-no-progress", "-comp", "zstd")
    _do("mksquashfs", str(image), str(squashfs), *options, SOURCE_DATE_EPOCH=str(release.epoch_s))
    (content / "manifest.raucm").write_text(MANIFEST.format(arch=release.target.arch, version=release.version), "ascii")
    out.unlink(missing_ok=True)
    _do("rauc", f"--cert={signer.certificate}", f"--key={signer.key}", "bundle", str(content), str(out))


def _do(*command: str, **environment: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    if done.returncode:
        raise BuildError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-400:]}")
