"""Landlock: what this process may still do with files, devices, TCP ports and other processes.

A kernel says which version of Landlock's interface it offers (its ABI), and every version can hold back more: files
(1), moving them (2), truncating them (3), TCP (4), commands to devices (5), abstract sockets and signals (6). All
that is offered is taken. What is granted is a list of places; nothing may be written, but to a device, and to the
names of this process's threads. A rule is about the files that a path leads to now, and nothing can be granted later.

Landlock has no say in `stat`, `chmod`, `chown` and the like: the system call filter refuses those that change anything.
Numbers from `include/uapi/linux/landlock.h`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterable

from agent.worker.sandbox.kernel import Kernel
from agent.worker.sandbox.places import Access, Place

_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_IOCTL_DEV = 1 << 15
_FILES_OF_ABI = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: _IOCTL_DEV}
_TCP_BIND_AND_CONNECT = 0b11
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
_TCP_SINCE, _DEVICES_SINCE, _SCOPES_SINCE = 4, 5, 6

_RIGHTS = {
    Access.READ: _READ_FILE | _READ_DIR,
    Access.LIST: _READ_DIR,
    Access.DEVICE: _READ_FILE | _READ_DIR | _WRITE_FILE | _IOCTL_DEV,
    Access.WRITE: _WRITE_FILE,
}
_OF_A_FILE = _READ_FILE | _WRITE_FILE | _IOCTL_DEV
"""A rule about anything but a directory may name no other right."""


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr; an older kernel takes its beginning."""

    _fields_ = (("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _fields_ = (("rights", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


_BYTES_OF_RULESET = {1: 8, _TCP_SINCE: 16, _SCOPES_SINCE: 24}

FILES, TCP, DEVICES, SCOPES = "landlock_files", "landlock_tcp", "landlock_devices", "landlock_scopes"
_SINCE = {FILES: 1, TCP: _TCP_SINCE, DEVICES: _DEVICES_SINCE, SCOPES: _SCOPES_SINCE}


def offered_abi(kernel: Kernel) -> int:
    """The version that the kernel offers; raises OSError where it has no Landlock, or had it switched off."""
    return kernel.call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)


def shut_in(kernel: Kernel, places: Iterable[Place]) -> dict[str, str]:
    """Restrict this process to `places`, for good; each part with what there is to say of it (empty: it is enforced).

    A place that cannot be granted, for whatever reason, is not: one broken mount must not cost the whole measure.
    Raises OSError when nothing is enforced. The process must have one thread and must be unable to gain privileges.
    """
    abi = offered_abi(kernel)
    handled = sum(rights for since, rights in _FILES_OF_ABI.items() if since <= abi)
    attributes = _Ruleset(
        files=handled,
        tcp=_TCP_BIND_AND_CONNECT if abi >= _TCP_SINCE else 0,
        scoped=_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if abi >= _SCOPES_SINCE else 0,
    )
    size = max(bytes_ for since, bytes_ in _BYTES_OF_RULESET.items() if since <= abi)
    ruleset = kernel.call("landlock_create_ruleset", ctypes.byref(attributes), size, 0)
    try:
        for place in places:
            with contextlib.suppress(OSError):  # it is not there, or broken: no rule, and so no access
                _grant(kernel, ruleset, place, handled)
        kernel.call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return {part: "" if since <= abi else f"Landlock's ABI is {abi}, not {since}" for part, since in _SINCE.items()}


def _grant(kernel: Kernel, ruleset: int, place: Place, handled: int) -> None:
    """One rule; raises OSError where the place cannot be opened, or the kernel takes no rule for it."""
    descriptor = os.open(place.path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = _RIGHTS[place.access] & handled
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_A_FILE
        if rights:
            rule = _PathBeneath(rights=rights, descriptor=descriptor)
            kernel.call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        if not place.pinned:
            os.close(descriptor)
