"""The cage: what the worker takes from itself before it touches a byte of a package or loads an engine.

A package's model goes through native parsers, and what runs on the accelerator goes through a driver; both are taken to
be breakable. So the process that holds them has nothing worth taking: it dies with the daemon, cannot be looked into,
opens nothing but its libraries and its package, writes nowhere, reaches no network, starts no program, and touches no
other process, though it runs as the same user as the daemon.

Each measure is tried by itself, and told with the first frame: `enforced`, or why it is not on this platform. A kernel
that lacks one is no reason not to work, but the operator has to know, and may require it (`lacking`). Without the
parent's signal there is no worker.

The order matters. A namespace is entered while that is still permitted, /proc is written before this process becomes
unreadable to its own user, Landlock's list needs the paths that the filter's calls would not hide, and the filter is
last, since it refuses what the others are made of. All of it needs a process of one thread: engines make more.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from agent.errors import WorkerError
from agent.wire import Confinement
from agent.worker.sandbox import activation, landlock, namespaces, process, seccomp
from agent.worker.sandbox.kernel import Kernel
from agent.worker.sandbox.places import places
from agent.worker.sandbox.process import limit_memory

__all__ = ["ENFORCED", "confine", "lacking", "limit_memory"]

ENFORCED = "enforced"
_MAX_STATE = 256
_LANDLOCK = (landlock.FILES, landlock.TCP, landlock.DEVICES, landlock.SCOPES)


def confine(
    channel: socket.socket,
    readable: Sequence[str],
    *,
    accelerator: bool = False,
    activated: bool = False,
    kernel: Kernel | None = None,
) -> tuple[Confinement, ...]:
    """Shut this process in, for good, and say how well; `channel` leads to the parent.

    `activated`: there is no parent, systemd started it, and it is tied to the daemon already (`activation.Ties`).

    `readable` are the directories that may be read besides the interpreter's and the system's; `accelerator` grants an
    accelerator's devices. Raises WorkerError when the process cannot be tied to its parent, or has threads already.
    """
    kernel = Kernel() if kernel is None else kernel
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise WorkerError(f"the worker has {threads} threads before it is shut in, and they would stay outside")
    if not activated:
        process.die_with_parent(kernel, channel)
    own_namespace = _tried(kernel, "own_network", namespaces.leave_the_network)
    unit = activation.unit_measures() if activated else ()
    return (
        Confinement("dies_with_parent", ENFORCED),
        activation.network(channel, own_namespace) if activated else own_namespace,
        _tried(kernel, "first_to_go", process.be_first_to_go),
        _tried(kernel, "low_priority", process.yield_to_others),
        _tried(kernel, "not_dumpable", process.hide_memory),
        _tried(kernel, "open_files", partial(process.limit_files, accelerator=accelerator)),
        _threads(own_namespace, unit),
        _tried(kernel, "no_privileges", process.gain_nothing),
        *_landlocked(kernel, readable, accelerator=accelerator),
        _tried(kernel, "system_calls", partial(seccomp.refuse_calls, accelerator=accelerator)),
        *unit,
    )


def lacking(confinement: Sequence[Confinement], required: Sequence[str]) -> str:
    """What is required of the cage and does not stand, and why, for a person; empty when all of it stands."""
    states = {one.name: one.state for one in confinement}
    missing = [f"{name} ({states.get(name, 'unknown')})" for name in required if states.get(name) != ENFORCED]
    return f"the worker's cage lacks what require_confinement demands: {', '.join(missing)}" if missing else ""


def _tried(kernel: Kernel, name: str, measure: Callable[[Kernel], None]) -> Confinement:
    """Take one measure, and say what came of it."""
    try:
        measure(kernel)
    except (OSError, ValueError) as error:  # resource.setrlimit has a ValueError for what it may not
        return _absent(name, error)
    return Confinement(name, ENFORCED)


def _threads(own_namespace: Confinement, unit: Sequence[Confinement]) -> Confinement:
    if Confinement("cgroup_tasks", ENFORCED) in unit:
        return Confinement("threads", ENFORCED)  # the unit's group bounds them
    if own_namespace.state != ENFORCED:
        return _absent("threads", "the user's other processes would count too")
    process.limit_threads()
    return Confinement("threads", ENFORCED)


def _landlocked(kernel: Kernel, readable: Sequence[str], *, accelerator: bool) -> list[Confinement]:
    """Landlock's parts: the whole may be absent, or single parts on an older kernel."""
    try:
        parts = landlock.shut_in(kernel, places(readable, accelerator=accelerator))
    except OSError as error:
        return [_absent(name, error) for name in _LANDLOCK]
    return [_absent(name, parts[name]) if parts[name] else Confinement(name, ENFORCED) for name in _LANDLOCK]


def _absent(name: str, why: object) -> Confinement:
    text = f"{why.strerror}" if isinstance(why, OSError) and why.strerror else f"{why}"
    return Confinement(name, f"absent: {text}"[:_MAX_STATE])
