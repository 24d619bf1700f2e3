"""A vehicle's system in a container, booted in a second: where its package, its units and its sandbox are tried.

systemd-nspawn boots the same tree as the VM (`hil.vm.rootfs`), with systemd as its first process, at native speed and
with no network. What it has not: a CAN bus, a TPM, a kernel of its own, and memory limits where this machine's control
groups are of the first kind; for those there is the VM.

Commands are run by entering the container's namespaces, so nothing in it listens for us.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.errors import DrivewayError

BOOT_S, COMMAND_S, OFF_S = 60.0, 120.0, 30.0
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
BOOTED = {"running", "degraded"}
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def why_not() -> str | None:
    """Why this machine can boot no container; None: it can."""
    if os.getuid():
        return "a container is booted by root only"
    lacking = [tool for tool in ("systemd-nspawn", "nsenter") if shutil.which(tool) is None]
    return f"not installed: {', '.join(lacking)} (systemd-container, util-linux)" if lacking else None


class Container:
    """One booted system of its own over a tree that stays as it is; `with` boots it, switches it off and clears away.

    What it writes goes to `folder` (an overlay), and is seen and written from outside at `root`.
    """

    def __init__(self, tree: Path, folder: Path) -> None:
        self.root, self._tree, self._folder = folder / "root", tree, folder
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        for name in ("root", "upper", "work"):
            (self._folder / name).mkdir(parents=True)
        places = {"lowerdir": self._tree, "upperdir": self._folder / "upper", "workdir": self._folder / "work"}
        options = ",".join(f"{name}={path.resolve()}" for name, path in places.items())
        _mount("mount", "-t", "overlay", "overlay", "-o", options, str(self.root))
        try:
            self.boot()
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.switch_off()
        self._clear()

    def _clear(self) -> None:
        _mount("umount", "--lazy", str(self.root))  # the kernel may still be ending what ran in it
        for name in ("upper", "work"):
            shutil.rmtree(self._folder / name)

    def boot(self) -> None:
        """Returns when systemd has started everything. Raises DrivewayError with the console where it does not."""
        console = self.root.with_name(f"{self.root.name}.console")
        options = ("--register=no", "--keep-unit", "--private-network", "--console=pipe", "--boot")
        with console.open("wb") as log:
            self._nspawn = subprocess.Popen(
                ["/usr/bin/systemd-nspawn", "--quiet", "--directory", str(self.root), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + BOOT_S
        while time.monotonic() < deadline_s and self._nspawn.poll() is None:
            self._init = self._init or _child_of(self._nspawn.pid)
            if self._init and self.run("systemctl", "is-system-running", "--wait").stdout.strip() in BOOTED:
                return
            time.sleep(0.1)
        self.switch_off()
        raise DrivewayError(f"the container did not boot: {console.read_text('utf-8', 'replace')[-600:]}")

    def switch_off(self) -> None:
        """Cut its power. What it wrote stays in `root`, as the page cache is this machine's."""
        if self._nspawn is None:
            return
        for pid in (self._init, self._nspawn.pid):
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)
        self._nspawn.wait(OFF_S)
        self._nspawn, self._init = None, 0

    def run(self, *command: str, timeout_s: float = COMMAND_S, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in it as root, and return with whatever came of it."""
        enter = ["/usr/bin/nsenter", "--target", str(self._init), *NAMESPACES, "--"]
        return subprocess.run(
            [*enter, *command], input=stdin, capture_output=True, text=True, timeout=timeout_s, env=CLEAN, check=False
        )

    def check(self, *command: str, timeout_s: float = COMMAND_S) -> str:
        """What a command prints. Raises DrivewayError where it fails."""
        done = self.run(*command, timeout_s=timeout_s)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-800:]
            raise DrivewayError(f"{' '.join(command)} failed with status {done.returncode}: {said}")
        return done.stdout

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        said = self.check("systemctl", "show", "--property", ",".join(properties), unit)
        return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)

    def until(self, unit: str, name: str, value: str, timeout_s: float) -> None:
        """Returns when a unit's property is that; raises DrivewayError with the unit's last words when it never is."""
        deadline_s = time.monotonic() + timeout_s
        while (found := self.show(unit, name).get(name)) != value:
            if time.monotonic() > deadline_s:
                words = self.run("journalctl", "--no-pager", "-n", "30", "-u", unit).stdout
                raise DrivewayError(f"{unit}: {name} is {found}, not {value}: {words}")
            time.sleep(0.1)


def _mount(*command: str) -> None:
    """Raise DrivewayError with what mount or umount said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DrivewayError(f"{command[0]} failed: {done.stderr.strip()}")


def _child_of(pid: int) -> int:
    """The first process in the container, once there is one; nspawn may have helpers before it."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text("ascii").strip() == "systemd":
                return int(child)
    return 0
