"""What `make package` writes: twice the same bytes, nothing of the rigs, a true bill, a bundle nobody can change."""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent import __version__
from systemd.package import bundle, tree
from systemd.package.sbom import canonical
from systemd.package.target import TARGETS, Release
from systemd.package.wheels import LOCK, read_lock
from tests.tools import lacking

ROOT = Path(__file__).parents[2]
RELEASE = Release("1.2.3", TARGETS["amd64"], 1_790_000_000)
FORBIDDEN = re.compile(r"/site-packages/(hil|can|iotcore|matplotlib|rich|pip|pytest|tests)(/|$)|emit", re.IGNORECASE)


def listed(package: Path) -> list[str]:
    lines = subprocess.run(["dpkg-deb", "-c", str(package)], capture_output=True, text=True, check=True).stdout
    return [line.split()[5] for line in lines.splitlines()]


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked") / "root"
    subprocess.run(["dpkg-deb", "-R", str(built), str(folder)], check=True)
    return folder


def test_two_builds_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "systemd.package",
        "--no-bundle",
        "--compression",
        "gzip-1",
        "--out",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, check=True, umask=0o077)
    for first in (built, built.with_suffix(".cdx.json")):
        second = tmp_path / first.name
        assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()


def test_nothing_of_the_rigs_and_nothing_that_writes_to_a_bus_is_inside(built: Path) -> None:
    names = listed(built)
    assert len(names) > 1000
    assert [name for name in names if FORBIDDEN.search(name.removeprefix("./usr/lib/driveway/"))] == []
    assert any(name.endswith("/site-packages/agent/core/machine.py") for name in names)


def test_every_file_is_roots_and_nobody_elses_to_change(built: Path) -> None:
    lines = subprocess.run(["dpkg-deb", "-c", str(built)], capture_output=True, text=True, check=True).stdout
    for line in lines.splitlines():
        mode, owner = line.split()[:2]
        assert owner == "root/root"
        assert mode in {"drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--", "lrwxrwxrwx"}, line


def test_the_bill_names_what_is_inside_with_the_locks_hashes(unpacked: Path) -> None:
    bill = json.loads((unpacked / "usr/share/doc/driveway/sbom.cdx.json").read_text())
    (site,) = unpacked.glob("usr/lib/driveway/*/lib/python3.11/site-packages")
    inside = {canonical(path.name.partition("-")[0]) for path in site.glob("*.dist-info")}
    libraries = {one["name"]: one for one in bill["components"] if one["type"] == "library"}
    assert set(libraries) == inside
    locked = {digest for pin in read_lock((ROOT / LOCK).read_text()) for digest in pin.hashes}
    for name, one in libraries.items():
        assert name == "driveway-agent" or f"sha256:{one['hashes'][0]['content']}" in locked
        assert one["licenses"], f"{name} has no licence"
    references = {bill["metadata"]["component"]["bom-ref"], *(one["bom-ref"] for one in bill["components"])}
    assert len(references) == 1 + len(bill["components"])
    assert {one["ref"] for one in bill["dependencies"]} == references
    assert {ref for one in bill["dependencies"] for ref in one["dependsOn"]} <= references
    kernels = {one["name"]: one["hashes"][0]["content"] for one in bill["components"] if one["type"] == "file"}
    for name, digest in kernels.items():
        assert hashlib.sha256((site / "kernels/compiled" / name).read_bytes()).hexdigest() == digest


def test_a_version_can_be_checked_file_by_file(unpacked: Path) -> None:
    (home,) = unpacked.glob("usr/lib/driveway/*")
    assert (home / "SHA256SUMS").read_text() == tree.sums(home)
    check = ["sha256sum", "--quiet", "--check", "SHA256SUMS"]
    assert subprocess.run(check, cwd=home, check=False).returncode == 0
    (home / "bin/driveway").write_text("#!/bin/sh\n")
    assert subprocess.run(check, cwd=home, check=False, capture_output=True).returncode == 1


@pytest.fixture(scope="module")
def jetson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the package for arm64, unpacked; nothing of it can run here."""
    folder = tmp_path_factory.mktemp("jetson")
    command = [sys.executable, "-m", "systemd.package", "--arch=arm64", "--no-bundle", "--compression", "gzip-1"]
    subprocess.run([*command, "--out", str(folder)], cwd=ROOT, check=True)
    subprocess.run(
        ["dpkg-deb", "-R", str(folder / f"driveway_{__version__}_arm64.deb"), str(folder / "root")], check=True
    )
    return folder / "root"


def test_every_program_of_the_package_for_arm64_is_for_it(jetson: Path) -> None:
    programs = [path for path in jetson.rglob("*.so*") if path.read_bytes()[:4] == b"\x7fELF"]
    assert len(programs) > 50
    assert {int.from_bytes(path.read_bytes()[18:20], "little") for path in programs} == {183}
    assert [path.name for path in jetson.glob("usr/lib/systemd/system/*.d/*")] == ["jetson.conf"]
    assert "Architecture: arm64" in (jetson / "DEBIAN/control").read_text()


def test_its_workers_have_a_python_of_their_own_with_all_they_import(jetson: Path) -> None:
    """Whether that Python takes what we wrote; what is in machine code cannot be tried here."""
    (worker,) = jetson.glob("usr/lib/driveway/*/worker")
    site = worker / "lib/python3.10/site-packages"
    assert "include-system-site-packages = true" in (worker / "pyvenv.cfg").read_text()
    assert (worker / "bin/python").readlink() == Path("/usr/bin/python3.10")
    assert not (site / "agent/daemon.py").exists()
    there = {path.name.partition(".")[0] for path in site.iterdir()}
    assert {"agent", "kernels", "msgspec", "numpy", "PIL"} <= there
    for path in (*site.glob("agent/**/*.py"), *site.glob("kernels/**/*.py")):
        ast.parse(path.read_text("utf-8"), feature_version=(3, 10))


# --- the bundle -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bundle.Signer]:
    """A bundle of a small tree, signed by a key that was made for it."""
    if problem := bundle.why_not():
        lacking(problem)
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "tree/bin").mkdir(parents=True)
    (folder / "tree/bin/driveway").write_bytes(random.Random(7).randbytes(50_000))
    signer = bundle.development_signer(folder / "keys")
    bundle.write(folder / "tree", RELEASE, signer, folder / "work", folder / "driveway.raucb")
    return folder / "driveway.raucb", signer


def info(path: Path, keyring: str) -> subprocess.CompletedProcess[str]:
    command = ["rauc", f"--keyring={keyring}", "info", "--output-format=json", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def verity(path: Path, certificate: str) -> bool:
    """Whether every block is what the signed root hash says: what the kernel does as a bundle is read."""
    command = ["rauc", f"--keyring={certificate}", "info", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    salt, root, size = (re.search(rf"Verity {name}:\s+'?(\w+)", text) for name in ("Salt", "Hash", "Size"))
    assert salt is not None
    assert root is not None
    assert size is not None
    data = path.read_bytes()
    # The content, its hashes, the signature, and eight bytes with the signature's size.
    at_bytes = len(data) - 8 - int.from_bytes(data[-8:], "big") - int(size[1])
    options = ("--no-superblock", f"--salt={salt[1]}", f"--hash-offset={at_bytes}", f"--data-blocks={at_bytes // 4096}")
    check = ["veritysetup", "verify", *options, str(path), str(path), root[1]]
    return subprocess.run(check, capture_output=True, check=False).returncode == 0


def test_a_bundle_says_what_it_is_and_who_signed_it(signed: tuple[Path, bundle.Signer], tmp_path: Path) -> None:
    path, signer = signed
    said = json.loads(info(path, signer.certificate).stdout)
    assert (said["compatible"], said["version"]) == ("driveway-amd64", "1.2.3")
    stranger = bundle.development_signer(tmp_path / "stranger")
    assert info(path, stranger.certificate).returncode != 0


@pytest.mark.parametrize("part", ["signature", "payload"])
def test_a_flipped_byte_is_refused(signed: tuple[Path, bundle.Signer], tmp_path: Path, part: str) -> None:
    path, signer = signed
    if shutil.which("veritysetup") is None:
        lacking("not installed: cryptsetup-bin")
    changed = tmp_path / path.name
    shutil.copyfile(path, changed)
    assert verity(changed, signer.certificate)
    data = bytearray(path.read_bytes())
    data[-400 if part == "signature" else 500] ^= 1
    changed.write_bytes(data)
    if part == "signature":
        assert info(changed, signer.certificate).returncode != 0
    else:
        assert not verity(changed, signer.certificate)
