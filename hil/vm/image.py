"""The vehicle's disk: a bare Debian tree turned into a car's computer, as a file system that QEMU boots.

`build_image` copies the tree, adds what a rig needs in it (`guest/`: a shell on a virtio-serial port, the car's frames
and sensors, three virtual CAN buses), makes a small initial RAM disk, and writes all of it into one ext4 file, without
mounting anything. It needs root, as the tree's owners do. What it makes depends on nothing but the tree and these
files, so it is kept in `build/vm/image-<digest>` and made again only when one of them has changed.

Nothing of Driveway is in it: that comes as its package, as on a vehicle.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent.errors import DrivewayError

BUILDS = Path(__file__).parent.parent.parent / "build" / "vm"
GUEST = Path(__file__).with_name("guest")
SIZE = "3G"
"""Of the file system; the file is sparse. Two versions of the package and an update's download have to fit."""
BUSES = ("vcan0", "vcan1", "vcan2")
MODULES = ("vcan", "can-raw", "can-bcm", "can-gw", "virtio_console", "i2c-dev", "i6300esb")
"""Loaded at boot. `i2c-stub` and `lm75` are not: whoever wants that sensor says at which address (`hil.vm.machine`)."""
INITRD_MODULES = ("virtio_pci", "virtio_blk", "virtio_mmio", "ext4", "virtio_net", "virtio_console")
IDLE_UNITS = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_reap.service"),
    *("e2scrub_all.timer", "fstrim.timer", "systemd-timesyncd.service", "systemd-pstore.service"),
    *("systemd-resolved.service", "systemd-binfmt.service", "rauc.service", "systemd-networkd-wait-online.service"),
)
"""Housekeeping that an hour of a test does not need, and that would be taken for the agent's own load."""
NETWORK = {
    "10-nic.network": "[Match]\nType=ether\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
    **{f"20-{bus}.netdev": f"[NetDev]\nName={bus}\nKind=vcan\n" for bus in BUSES},
    "30-vcan.network": "[Match]\nName=vcan*\n[Network]\nLinkLocalAddressing=no\n[CAN]\n",
}


@dataclass(frozen=True)
class Image:
    """What QEMU boots: the disk (never written to: machines write to an overlay), the kernel and its RAM disk."""

    disk: Path
    kernel: Path
    initrd: Path

    @property
    def digest(self) -> str:
        """Of everything that it was made from."""
        return self.disk.parent.name.removeprefix("image-")


def build_image(tree: Path) -> Image:
    """The image of this tree, made when it is not there yet; raises DrivewayError with what the tools said.

    `tree` is a root file system whose name says what is in it (`hil.vm.rootfs`): its content is not looked at again.
    """
    home = BUILDS / f"image-{_digest(tree)}"
    image = Image(disk=home / "vehicle.ext4", kernel=home / "vmlinuz", initrd=home / "initrd.img")
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / ".image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests make it once
        if not home.exists():
            if os.getuid():
                raise DrivewayError("a vehicle's image is made by root only", hint="run this as root")
            with tempfile.TemporaryDirectory(dir=BUILDS, prefix=".image-") as folder:
                _build(tree, Path(folder))
                (Path(folder) / "image").rename(home)
    return image


def _digest(tree: Path) -> str:
    digest = hashlib.sha256(tree.name.encode())
    for file in sorted(path for path in GUEST.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(f"{file.relative_to(GUEST)}\0{file.stat().st_mode & 0o111:o}\0".encode() + file.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def _build(tree: Path, folder: Path) -> None:
    root, made = folder / "root", folder / "image"
    made.mkdir()
    _do("cp", "-a", "--reflink=auto", str(tree), str(root))
    _fit_out(root)
    _do("chroot", str(root), "update-initramfs", "-u")
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise DrivewayError(f"{tree} has no kernel", hint="its packages need linux-image-amd64")
    shutil.copyfile(kernels[-1], made / "vmlinuz")
    shutil.copyfile(root / "boot" / kernels[-1].name.replace("vmlinuz", "initrd.img"), made / "initrd.img")
    options = ("-q", "-t", "ext4", "-L", "vehicle", "-O", "^metadata_csum", "-E", "lazy_itable_init=1")
    _do("mke2fs", *options, "-d", str(root), str(made / "vehicle.ext4"), SIZE)


def _fit_out(root: Path) -> None:
    """Turn a bare tree into the rig's vehicle; no program of the tree runs."""
    etc = root / "etc"
    units = etc / "systemd/system"
    _write(etc / "hostname", "vehicle\n")
    _write(etc / "hosts", "127.0.0.1 localhost vehicle\n10.0.2.100 fleet.rig\n")
    _write(etc / "fstab", "/dev/vda / ext4 noatime,errors=remount-ro 0 1\n")
    _write(etc / "machine-id", "")
    _write(etc / "modules-load.d/vehicle.conf", "".join(f"{module}\n" for module in MODULES))
    for name, text in NETWORK.items():
        _write(etc / "systemd/network" / name, text)
    _enable(units, Path("/lib/systemd/system/systemd-networkd.service"), "multi-user.target")
    for name in IDLE_UNITS:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    for unit in sorted((GUEST / "units").iterdir()):
        shutil.copyfile(unit, units / unit.name)
        wanted_by = "sysinit.target" if unit.name == "hil-shell.service" else "multi-user.target"
        _enable(units, Path("/etc/systemd/system") / unit.name, wanted_by)
    programs = root / "usr/local/lib/hil"
    programs.mkdir(parents=True)
    for program in GUEST.glob("*.*"):
        shutil.copy(program, programs / program.name)
    initramfs = etc / "initramfs-tools"
    settings = (initramfs / "initramfs.conf").read_text("utf-8").splitlines()
    kept = [line for line in settings if not line.startswith("MODULES=")]
    _write(initramfs / "initramfs.conf", "\n".join((*kept, "MODULES=list", "")))
    _write(initramfs / "modules", "".join(f"{module}\n" for module in INITRD_MODULES))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a link of the tree may lead out of it
    path.write_text(text, "utf-8")


def _enable(units: Path, unit: Path, target: str) -> None:
    wants = units / f"{target}.wants"
    wants.mkdir(exist_ok=True)
    (wants / unit.name).unlink(missing_ok=True)
    (wants / unit.name).symlink_to(unit)


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise DrivewayError(f"{command[0]} failed: {said[-1] if said else 'it said nothing'}")
