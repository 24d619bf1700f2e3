"""A control group of the worker's own, where the platform delegates one: a leaf that holds nothing but it.

In version 2 of control groups every group can be frozen (Linux 5.2) and killed whole (5.14): that leaves no child
behind, however fast it forks. Where the memory and pids controllers are delegated as well, both are bounded. systemd
delegates with `Delegate=yes`; with `DelegateSubgroup=` the daemon itself is in a group below the delegated one, whose
limits may then be handed on: a group that holds processes cannot hand on any.

Nothing here is required and nothing raises: a worker without it is as well confined as its own cage makes it, and what
is absent is told with the rest of the confinement. A leaf that outlives its daemon is empty, and removed by the next.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from agent.wire import Confinement

ENFORCED = "enforced"
LEAF = "driveway-worker-"
HEADROOM_MB = 512
"""Besides the package's memory: the interpreter, the engine's libraries, the page cache of the model."""
MAX_TASKS = 512


class WorkerGroup:
    """The group of one worker; without a directory where there is none, and then it does nothing."""

    def __init__(self, directory: Path | None, confinement: tuple[Confinement, ...]) -> None:
        self._directory = directory
        self.confinement = confinement
        """What of it holds, and what is absent and why."""

    def kill(self) -> None:
        """End every process in the group, now."""
        if self._directory is None:
            return
        if (self._directory / "cgroup.kill").exists():
            self._tell("cgroup.kill", "1")
            return
        self.freeze(frozen=True)  # so that none can fork while the list is read
        with contextlib.suppress(OSError, ValueError):
            for line in (self._directory / "cgroup.procs").read_text("ascii").split():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(line), signal.SIGKILL)
        self.freeze(frozen=False)

    def freeze(self, *, frozen: bool) -> None:
        """Stop every process in the group where it is, or let them go on."""
        if self._directory is not None:
            self._tell("cgroup.freeze", "1" if frozen else "0")

    def remove(self) -> None:
        """Take the group away; its processes have ended."""
        if self._directory is not None:
            with contextlib.suppress(OSError):  # a child that is still dying keeps it, until the next worker's start
                self._directory.rmdir()

    def _tell(self, file: str, word: str) -> None:
        assert self._directory is not None
        with contextlib.suppress(OSError):
            (self._directory / file).write_text(word, "ascii")


def enclose(pid: int, memory_mb: int | None, proc: Path = Path("/proc/self")) -> WorkerGroup:
    """A group with the process `pid` and none else, bounded to `memory_mb` and some; whatever of that there can be."""
    try:
        home = own_group(proc)
        _remove_leftovers(home)
        leaf = home / f"{LEAF}{pid}"
        leaf.mkdir()
    except (OSError, ValueError, IndexError) as error:  # whatever a platform writes into these files
        return _none((isinstance(error, OSError) and error.strerror) or repr(error))
    for controller in ("memory", "pids"):
        with contextlib.suppress(OSError):
            (home / "cgroup.subtree_control").write_text(f"+{controller}", "ascii")
    most_bytes = None if memory_mb is None else (memory_mb + HEADROOM_MB) * 1024**2
    bounds = (
        _bounded(leaf, "cgroup_memory", "memory.max", most_bytes),
        _bounded(leaf, "cgroup_tasks", "pids.max", MAX_TASKS),
    )
    with contextlib.suppress(OSError):
        (leaf / "memory.oom.group").write_text("1", "ascii")
    try:
        (leaf / "cgroup.procs").write_text(str(pid), "ascii")
    except OSError as error:
        with contextlib.suppress(OSError):
            leaf.rmdir()
        return _none(error.strerror or str(error))
    kills = (leaf / "cgroup.kill").exists() or (leaf / "cgroup.freeze").exists()
    kill = Confinement("cgroup_kill", ENFORCED if kills else "absent: the kernel can neither kill nor freeze a group")
    return WorkerGroup(leaf, (Confinement("cgroup", ENFORCED), *bounds, kill))


def own_group(proc: Path) -> Path:
    """The directory below which this process may make groups; raises OSError where there is none."""
    mount, root = _mount(proc)
    lines = (proc / "cgroup").read_text("utf-8").splitlines()
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        raise FileNotFoundError(0, "this process is in no group of version 2")
    with contextlib.suppress(ValueError):  # a mount may show only what is below a group
        path = str(Path(path).relative_to(root))
    home = mount / path.lstrip("/")
    if _delegated(home.parent) and not _delegated(home):
        home = home.parent
    if not os.access(home, os.W_OK):
        raise PermissionError(0, "the platform delegates no group to this user")
    return home


def _mount(proc: Path) -> tuple[Path, str]:
    """Where version 2 is mounted, and which group is its top there; see proc_pid_mountinfo(5)."""
    for line in (proc / "mountinfo").read_text("utf-8").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if after.split()[:1] == ["cgroup2"]:
            return Path(fields[4]), fields[3]
    raise FileNotFoundError(0, "control groups of version 2 are not mounted")


def _delegated(group: Path) -> bool:
    """Whether systemd says that what is below this group is its owner's; see systemd's CGROUP_DELEGATION."""
    for attribute in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, attribute) == b"1":
                return True
    return False


def _remove_leftovers(home: Path) -> None:
    """Groups of workers that ended after their daemon. One that is in use cannot be removed, and is not."""
    for leaf in home.glob(f"{LEAF}*"):
        with contextlib.suppress(OSError):
            leaf.rmdir()


def _bounded(leaf: Path, name: str, file: str, most: int | None) -> Confinement:
    if most is None:
        return Confinement(name, "absent: nobody said how much")
    try:
        if not (leaf / file).exists():
            return Confinement(name, f"absent: the {file.partition('.')[0]} controller is not delegated here")
        (leaf / file).write_text(str(most), "ascii")
    except OSError as error:
        return Confinement(name, f"absent: {error.strerror}")
    return Confinement(name, ENFORCED)


def _none(why: str) -> WorkerGroup:
    return WorkerGroup(None, (Confinement("cgroup", f"absent: {why}"),))
