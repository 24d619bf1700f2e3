"""A worker that systemd started on a connection: it is nobody's child, so what ties a child is made another way.

* It dies with the daemon by its **lifeline**: a pipe of which the daemon holds the only end for writing. When that is
  closed, however the daemon ended, the kernel kills this process (F_SETSIG), inside a call of the engine too. The end
  travels with the first frame: a connection that is closed with it unread kills as well.
* The daemon knows it by its own **process descriptor**, which rides there too: one that cannot be another's.
* Its **last words** go to the daemon by a pipe that takes the place of standard error. What it says before that goes
  to the journal, as for any unit.
* What its **unit** adds (control group, limits, a network namespace) is looked at from inside and told with the rest,
  and what the unit lacks is told as absent.

systemd says by $LISTEN_PID that the process was started so (sd_listen_fds(3)). It must happen before the cage, whose
filter refuses what this is made of.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from fnmatch import fnmatch
from pathlib import Path

from agent.errors import WorkerError
from agent.wire import Confinement

UNIT = "driveway-worker@*.service"
_ENFORCED = "enforced"
_MAX_STATE = 256
_SO_NETNS_COOKIE = 71
"""socket(7): a number of the network namespace that a socket is in; since Linux 5.14."""
_COOKIE_BYTES = 8
_GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


def is_activated() -> bool:
    """Whether systemd (or what stands in for it) started this process on its connection."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


class Ties:
    """What ties this process to the daemon. `riding` is sent with the first frame, and not kept."""

    def __init__(self) -> None:
        """Make them; raises WorkerError where the kernel has no such thing."""
        try:
            lifeline, held = os.pipe2(os.O_CLOEXEC)
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
            read, self._words = os.pipe2(os.O_CLOEXEC)
            self.riding = (os.pidfd_open(os.getpid()), held, read)
        except OSError as error:
            raise WorkerError(f"the worker cannot be tied to the daemon: {error.strerror}") from error

    def words_to_the_daemon(self) -> None:
        """From now on standard error leads there."""
        os.dup2(self._words, 2)
        os.close(self._words)


def network(channel: socket.socket, tried: Confinement) -> Confinement:
    """`own_network`, where this process may not leave the network by itself: the unit may have taken it away.

    A socket made here and the connection to the daemon then are in two namespaces.
    """
    if tried.state == _ENFORCED:
        return tried
    try:
        ours, other = socket.socketpair()
        with ours, other:
            here = ours.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_BYTES)
        there = channel.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_BYTES)
    except OSError:
        return tried
    return Confinement("own_network", _ENFORCED) if here != there else tried


def unit_measures(proc: Path = Path("/proc/self"), groups: tuple[Path, ...] = _GROUPS) -> tuple[Confinement, ...]:
    """What the unit adds, by the names that a control group of the daemon's making has."""
    try:
        lines = (proc / "cgroup").read_text("utf-8").splitlines()
    except OSError as error:
        return (Confinement("cgroup", f"absent: {error.strerror}"),)
    paths = [line.split(":", 2)[-1] for line in lines if line.startswith(("0::", "1:name=systemd:"))]
    unit = next((path for path in paths if fnmatch(path.rpartition("/")[2], UNIT)), None)
    if unit is None:
        where = f"absent: it runs in {paths[0] if paths else 'no group'}, which is no unit {UNIT}"
        return tuple(Confinement(name, where[:_MAX_STATE]) for name in ("cgroup", "cgroup_kill"))
    homes = [group / unit.lstrip("/") for group in groups]
    return (
        Confinement("cgroup", _ENFORCED),
        _bounded(homes, "cgroup_memory", "memory.max"),
        _bounded(homes, "cgroup_tasks", "pids.max"),
        Confinement("cgroup_kill", _ENFORCED),  # systemd ends what is left in a unit's group (KillMode=control-group)
    )


def _bounded(homes: list[Path], name: str, file: str) -> Confinement:
    for home in homes:
        try:
            most = (home / file).read_text("ascii").strip()
        except OSError:
            continue
        return Confinement(name, _ENFORCED if most.isdigit() else "absent: the unit sets no limit")
    return Confinement(name, f"absent: {file} of its unit cannot be read")
