"""Builds what a vehicle installs, into dist/.

    driveway_<version>_<arch>.deb           for dpkg (docs/install.md)
    driveway_<version>_<arch>.cdx.json      its bill of materials, CycloneDX
    driveway_<version>_<arch>.raucb         the same tree for vehicles with two slots, signed

Run from the checkout, with the Python that has pip and hatchling: `make package`. What it is made of is the working
tree; every time in it is that of the last commit (or SOURCE_DATE_EPOCH), and two builds give the same bytes, but for
the bundle's signature.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from systemd.package import bundle, deb, sbom, tree, wheels
from systemd.package.target import TARGETS, BuildError, Release, own_arch

WORK = Path("build/package")


def main() -> int:
    """Build; the process's exit code."""
    options = _parser().parse_args()
    os.chdir(Path(__file__).parents[2])
    os.umask(0o022)
    try:
        build(options)
    except BuildError as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    return 0


def build(options: argparse.Namespace) -> None:
    """Everything that was asked for; raises BuildError."""
    release = Release(own_version(), TARGETS[options.arch], commit_time_s())
    os.environ["SOURCE_DATE_EPOCH"] = str(release.epoch_s)
    signer = bundle.Signer(options.sign_cert, options.sign_key) if options.sign_cert else None
    started_s = time.monotonic()
    target = release.target
    fetched = wheels.fetch(target, wheels.LOCK, target.python, WORK)
    for_worker = None
    if target.worker_python != target.python:
        for_worker = wheels.fetch(target, wheels.WORKER_LOCK, target.worker_python, WORK)
    kernels = _kernels(required=options.require_kernels)
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.out / f"driveway_{release.version}_{release.target.arch}"
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="work-") as folder:
        work = Path(folder)
        own = wheels.build_own(work / "own")
        if not tree.build(work / "tree", release, tree.Parts(fetched, for_worker, own, kernels)):
            _say(f"no python{target.worker_python} here: workers come without byte code, and start more slowly")
        sources = [sbom.Source(tree.site_of(work / "tree", target), (own, *sorted(fetched.glob("*.whl"))))]
        if for_worker is not None:
            site = tree.worker_site_of(work / "tree", target)
            sources.append(sbom.Source(site, tuple(sorted(for_worker.glob("*.whl")))))
        bill = name.with_name(f"{name.name}.cdx.json")
        bill.write_text(sbom.describe(sources, release), "utf-8")
        tree.settle(work / "tree", release.epoch_s)
        package = name.with_name(f"{name.name}.deb")
        if not options.no_bundle:
            _bundle(work, release, signer, name.with_name(f"{name.name}.raucb"))
        deb.lay_out(work / "root", release, work / "tree", bill)
        glibc = wheels.glibc_minor([wheel for source in sources for wheel in source.wheels])
        deb.write(work / "root", release, glibc, package, options.compression)
    _say(f"{package}: {package.stat().st_size / 1e6:.1f} MB in {time.monotonic() - started_s:.0f} s; {bill}")


def own_version() -> str:
    """Of the agent; it is not imported for that."""
    found = re.search(r'(?m)^__version__ = "([0-9A-Za-z.+~]+)"$', Path("agent/__init__.py").read_text("utf-8"))
    if found is None:
        raise BuildError("agent/__init__.py names no version that dpkg takes")
    return found[1]


def commit_time_s() -> int:
    """When the last commit was made, or SOURCE_DATE_EPOCH: seconds since 1970."""
    if said := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(said)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False)  # noqa: S607
    if done.returncode:
        raise BuildError("this is no git checkout: set SOURCE_DATE_EPOCH")
    return int(done.stdout)


def _kernels(*, required: bool) -> Path | None:
    """The folder of compiled kernels; None where there is no CUDA toolkit, and nobody insists."""
    folder = (WORK / "kernels").resolve()
    done = subprocess.run(
        [sys.executable, "-m", "kernels.build", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return folder
    said = (done.stderr or done.stdout).strip()[-400:]
    if required:
        raise BuildError(f"the kernels were not built: {said}")
    _say(f"WITHOUT compiled kernels, so no accelerator can be used: {said}")
    return None


def _bundle(work: Path, release: Release, signer: bundle.Signer | None, out: Path) -> None:
    if problem := bundle.why_not():
        _say(f"no bundle: {problem}")
        return
    if signer is None:
        signer, out = bundle.development_signer(WORK / "development"), out.with_suffix(".development.raucb")
        _say("no --sign-key and --sign-cert: the bundle is signed by a development key that no vehicle may trust")
    bundle.write(work / "tree", release, signer, work / "bundle", out)
    _say(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def _say(line: str) -> None:
    print(f"package: {line}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make package", description="Build what a vehicle installs.")
    parser.add_argument("--arch", choices=sorted(TARGETS), default=own_arch())
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), default=Path("dist"))
    parser.add_argument("--compression", default="zstd-19", help="dpkg-deb's name, and a level: zstd-19, xz, gzip-1")
    parser.add_argument("--require-kernels", action="store_true", help="fail where the kernels cannot be compiled")
    parser.add_argument("--no-bundle", action="store_true", help="the .deb and its bill of materials alone")
    parser.add_argument("--sign-cert", default="", help="certificate (PEM) of the bundle's signer")
    parser.add_argument("--sign-key", default="", help="its private key (PEM, or a PKCS#11 URI)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
