"""Which places of the file system the worker may still open: its interpreter, the system's libraries, its package.

The daemon's state directory with its keys, its configuration and its socket are nowhere below these, and so out of
reach though the worker runs as the same user. An accelerator's device nodes, and what its driver reads to find them,
are granted only to a worker that is meant to use one.

The kernel's view of this process is granted by inode. `pinned` places are kept open for as long as the process lives:
under memory pressure the kernel would forget a directory of /proc that nobody holds, and make another inode for the
same path, to which no rule applies.

Where CUDA's needs come from: drivers since 570 name their threads through /proc/self/task/*/comm, and give up when they
cannot; they read /proc/driver/nvidia and nvidia-uvm; their shared memory is a memfd, so /dev/shm is not granted, and
with it no CUDA IPC and no MPS, which a single process has no use for.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


class Access(enum.Enum):
    """What may be done with a place and everything below it."""

    READ = "read"
    LIST = "list"
    """See what there is by name, and read none of it."""
    DEVICE = "device"
    """Read, write, and give commands to a device."""
    WRITE = "write"


@dataclass(frozen=True)
class Place:
    """A path and what may be done with it."""

    path: str
    access: Access
    pinned: bool = False


_SYSTEM = (
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/localtime",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/proc/filesystems",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/max_map_count",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/kernel/mm/transparent_hugepage",
)

_ACCELERATOR = (
    "/opt/nvidia",
    "/run/opengl-driver",
    "/run/nvidia/driver",
    "/etc/nvidia",
    "/etc/nv_tegra_release",
    "/proc/devices",
    "/proc/modules",
    "/proc/driver/nvidia",
    "/proc/driver/nvidia-uvm",
    "/proc/driver/nvidia-nvlink",
    "/proc/driver/nvidia-caps",
    "/sys/bus/pci",
    "/sys/bus/platform",
    "/sys/class/drm",
    "/sys/class/devfreq",
    "/sys/devices",
    "/sys/firmware/devicetree",
    "/sys/module",
)

_DEVICES = (
    *("nvidia[0-9]*", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"),
    *("nvhost-*", "nvmap", "nvgpu", "nvsciipc"),
    "dri/renderD*",
)
"""Desktop and data centre cards, then a Jetson's and DRIVE's, then the render nodes of either. Nothing that drives a
display: no `dri/card*` and no `nvidia-modeset`."""


def places(readable: Iterable[str], *, accelerator: bool) -> Iterator[Place]:
    """Every place that is granted; `readable` are the directories that the daemon named."""
    yield from (Place(path, Access.READ) for path in (*_interpreter(), *_SYSTEM, *readable))
    yield from (Place(entry, Access.LIST) for entry in sys.path if entry)
    yield Place("/dev/null", Access.DEVICE)
    yield Place("/proc/self", Access.READ, pinned=True)
    if accelerator:
        yield Place("/proc/self/task", Access.WRITE, pinned=True)
        yield from (Place(path, Access.READ) for path in _ACCELERATOR)
        yield from (Place(str(node), Access.DEVICE) for node in devices(Path("/dev")))


def devices(root: Path) -> Iterator[Path]:
    """The nodes below /dev that an accelerator is used through."""
    return (node for name in _DEVICES for node in sorted(root.glob(name)))


def _interpreter() -> Iterator[str]:
    """Where Python, what is installed for it, and our own code lie.

    A directory that is only searched for modules (a source tree that is installed in place) may be listed, not read:
    what else lies there may be anything.
    """
    yield from dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix))
    for name in ("agent", "kernels"):
        found = importlib.util.find_spec(name)
        for place in () if found is None else found.submodule_search_locations or ():
            yield place
            yield str(Path(place).parent / "build" / name)  # a checkout's compiled kernels
