"""What a package is built for: a processor and a Python, and what each tool calls them."""

from __future__ import annotations

import platform
from dataclasses import dataclass

NEWEST_GLIBC_MINOR = 35
"""Of Ubuntu 22.04, under JetPack 6; Debian 12 has 36. Wheels that want a newer one are not taken."""
_LEGACY = ("manylinux2014", "manylinux2010", "manylinux1")


class BuildError(Exception):
    """What cannot be packaged, and why; the message is for whoever runs the build."""


@dataclass(frozen=True)
class Target:
    """A kind of computer, in Debian's words."""

    arch: str
    machine: str
    """As `uname -m`, and as wheels name it."""
    elf_machine: int
    """e_machine of its programs (elf.h)."""
    accelerators: str
    """The drop-in of `driveway-worker@.service.d` that grants its accelerator."""
    python: str = "3.11"
    worker_python: str = "3.11"
    """For which the platform brings the engine's bindings; they decide it."""

    @property
    def interpreter(self) -> str:
        """Of the vehicle's own system, which the package depends on."""
        return f"/usr/bin/python{self.python}"

    @property
    def worker_interpreter(self) -> str:
        """Of the vehicle's own system too; the package asks for it where it is another."""
        return f"/usr/bin/python{self.worker_python}"

    @property
    def platforms(self) -> list[str]:
        """The tags of wheels that run there (PEP 600), newest first."""
        perennial = [f"manylinux_2_{minor}_{self.machine}" for minor in range(NEWEST_GLIBC_MINOR, 4, -1)]
        return [*perennial, *(f"{legacy}_{self.machine}" for legacy in _LEGACY)]


@dataclass(frozen=True)
class Release:
    """What is being built."""

    version: str
    target: Target
    epoch_s: int
    """Seconds since 1970: every time in what is built."""


TARGETS = {
    "amd64": Target("amd64", "x86_64", 62, "nvidia-x86.conf"),
    "arm64": Target("arm64", "aarch64", 183, "jetson.conf", worker_python="3.10"),
}


def own_arch() -> str:
    """This machine's own, in Debian's words."""
    return next((target.arch for target in TARGETS.values() if target.machine == platform.machine()), "amd64")
