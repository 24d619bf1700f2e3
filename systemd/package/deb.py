"""The Debian package: the tree, the units, and what dpkg is told of them. `dpkg-deb` writes it.

There is no configuration file in it: what a vehicle is configured with is written by whoever provisions it, and dpkg
would ask about it in the middle of an update. The tree lies in /usr/lib/driveway/<version> and is staged from there
(`scripts/postinst`): dpkg takes its own files away when the next version comes, under a daemon that still runs.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from agent.cli import completion
from systemd.package import tree
from systemd.package.target import BuildError, Release

UNITS = Path("systemd")
SCRIPTS = Path(__file__).with_name("scripts")
LICENCE, EXAMPLE = Path("LICENSE"), Path("systemd/agent.example.toml")
CONTROL = """\
Package: driveway
Version: {version}
Architecture: {arch}
Maintainer: Driveway <maintainers@driveway.example>
Installed-Size: {size_kib}
Depends: python{python}, libc6 (>= 2.{glibc_minor}), libstdc++6, tzdata, systemd (>= 249)
Recommends: tpm-udev, ca-certificates{worker}
Section: misc
Priority: optional
Homepage: https://driveway.example/
Description: lends a parked car's idle computer to an inference network
 The daemon watches the vehicle's buses, leases inference work while the car is
 parked and plugged in, runs it in sandboxed workers, and gives the computer
 back at once when the driver comes. It never writes to a vehicle bus.
 .
 TensorRT and pycuda are not in it: they come with the platform's driver.
"""


@dataclass(frozen=True)
class Units:
    """What systemd is given, by what happens to it."""

    files: tuple[Path, ...]
    enabled: tuple[str, ...]
    """Started at boot: they have an [Install] section."""
    stopped: tuple[str, ...]
    """Before a removal: all that are no templates."""

    @classmethod
    def of(cls, folder: Path) -> Units:
        """Every unit of a folder, sockets before the services that use them."""
        kinds = (".socket", ".path", ".timer", ".service", ".slice")
        files = sorted((path for path in folder.iterdir() if path.suffix in kinds), key=lambda path: path.name)
        enabled = [path.name for path in files if "\n[Install]\n" in path.read_text("utf-8")]
        stopped = [path.name for path in files if "@" not in path.name]
        by_kind = sorted(enabled, key=lambda name: kinds.index(Path(name).suffix))
        return cls(tuple(files), tuple(by_kind), tuple(sorted(stopped, key=_stop_order)))


def _stop_order(name: str) -> tuple[bool, bool, bool]:
    """What starts the update program, that, which starts the daemon, the daemon, and the rest."""
    return not name.endswith(".timer"), "-update" not in name, name != "driveway.service"


def lay_out(root: Path, release: Release, made: Path, sbom: Path) -> None:
    """What is installed, below `root`; `made` (the tree) is moved there."""
    units, documents = root / "usr/lib/systemd/system", root / "usr/share/doc/driveway"
    for folder in (units, documents, root / "usr/bin", root / "usr/lib/driveway"):
        folder.mkdir(parents=True)
    made.rename(root / "usr/lib/driveway" / release.version)
    (root / "usr/bin/driveway").symlink_to("/opt/driveway/current/bin/driveway")
    for unit in Units.of(UNITS).files:
        shutil.copyfile(unit, units / unit.name)
    drop_ins = units / "driveway-worker@.service.d"
    drop_ins.mkdir()
    accelerators = release.target.accelerators
    shutil.copyfile(UNITS / drop_ins.name / accelerators, drop_ins / accelerators)
    for kind in ("sysusers", "tmpfiles"):
        folder = root / f"usr/lib/{kind}.d"
        folder.mkdir()
        shutil.copyfile(UNITS / f"driveway.{kind}", folder / "driveway.conf")
    shutil.copyfile(LICENCE, documents / "copyright")
    shutil.copyfile(EXAMPLE, documents / EXAMPLE.name)
    shutil.copyfile(sbom, documents / "sbom.cdx.json")
    _for_people(root / "usr/share")


def _for_people(share: Path) -> None:
    """What completes the command in each shell, and its manual page."""
    texts = {folder: completion.script(shell) for shell, folder in completion.FILES.items()}
    for place, text in texts.items():
        (share / place).parent.mkdir(parents=True)
        (share / place).write_text(text, "utf-8")
    page = share / f"{completion.MANUAL}.gz"
    page.parent.mkdir(parents=True)
    page.write_bytes(gzip.compress(completion.manual().encode(), mtime=0))


def write(root: Path, release: Release, glibc_minor: int, out: Path, compression: str) -> None:
    """Give `root` its control files and write the package. Raises BuildError with what dpkg-deb said."""
    control = root / "DEBIAN"
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    size_kib = sum(-(-path.stat().st_size // 1024) for path in files)
    sums = "".join(f"{_md5(path)}  {path.relative_to(root)}\n" for path in files)
    control.mkdir()
    fields = {"version": release.version, "arch": release.target.arch, "python": release.target.python}
    other = release.target.worker_python != release.target.python
    fields["worker"] = f", python{release.target.worker_python}" if other else ""
    (control / "control").write_text(CONTROL.format(**fields, size_kib=size_kib, glibc_minor=glibc_minor), "utf-8")
    (control / "md5sums").write_text(sums, "utf-8")
    units = Units.of(UNITS)
    words = {"VERSION": release.version, "ENABLED": " ".join(units.enabled), "STOPPED": " ".join(units.stopped)}
    for script in sorted(SCRIPTS.iterdir()):
        text = re.sub(r"@([A-Z]+)@", lambda found: words[found[1]], script.read_text("utf-8"))
        (control / script.name).write_text(text, "utf-8")
        (control / script.name).chmod(0o755)
    tree.settle(root, release.epoch_s)
    name, _, level = compression.partition("-")
    how = ["--root-owner-group", f"-Z{name}", *([f"-z{level}"] if level else []), "--build", str(root), str(out)]
    done = subprocess.run(
        ["/usr/bin/dpkg-deb", *how],
        capture_output=True,
        text=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(release.epoch_s)},
        check=False,
    )
    if done.returncode:
        raise BuildError(f"dpkg-deb failed: {done.stderr.strip()}")


def _md5(path: Path) -> str:
    """What dpkg's own format asks for; SHA256SUMS in the tree is what counts."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
