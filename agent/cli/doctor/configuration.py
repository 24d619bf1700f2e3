"""Offline: the configuration, who may change it and its secrets, and whether the vehicle's signals are covered."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from agent.cli.doctor.model import Finding, fail, missing, ok, warn
from agent.config import Config
from agent.core import signals
from agent.toml import drop_ins
from agent.vehicle.profile import Profile, load_profile, mapped_leaves, vehicle_of

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_ANY = stat.S_IRWXG | stat.S_IRWXO


def permissions(path: Path, config: Config) -> Iterator[Finding]:
    """The configuration is only its owner's to change, and secrets are nobody else's to read."""
    beside = drop_ins(path)
    files = [path, *({one.parent for one in beside}), *beside]
    open_files = [one for one in files if one.stat().st_mode & _OTHERS_WRITE]
    for one in open_files:
        yield fail("permissions.config", f"others may write {one}", f"chmod go-w {one}")
    if not open_files:
        with_them = f" and its {len(beside)} drop-ins" if beside else ""
        yield ok("permissions.config", f"only its owner may write {path}{with_them}")
    state = config.path(config.state_dir)
    if not state.is_dir():
        yield missing("permissions.state", f"{state} is not there yet: the daemon makes it")
        return
    if state.stat().st_mode & _OTHERS_WRITE:
        yield fail("permissions.state", f"others may write into {state}", f"chmod go-w {state}")
    else:
        yield ok("permissions.state", f"only its owner may write into {state}")
    open_keys = [one for one in _secrets(config) if one.is_file() and one.stat().st_mode & _OTHERS_ANY]
    for one in open_keys:
        yield fail("permissions.secrets", f"others may use the secret {one}", f"chmod 600 {one}")
    if not open_keys:
        yield ok("permissions.secrets", "no secret file is open to others")


def _secrets(config: Config) -> Iterator[Path]:
    key = config.key
    yield key.file
    yield from config.path(config.state_dir).glob("*.secret")
    yield from (one for one in (key.tpm.owner_auth_file, key.pkcs11 and key.pkcs11.pin_file) if one)
    tls = config.fleet.tls
    if tls is not None and not tls.key.startswith("credential:"):
        yield config.path(tls.key)


def coverage(config: Config) -> Iterator[Finding]:
    """Every signal that the profiles map is in their DBCs, and every leaf that the gates need is mapped or absent."""
    profiles = [load_profile(one) for one in config.vehicle.profiles]
    for profile in profiles:
        yield _dbc(profile, config)
    if config.vehicle.databroker is not None:
        yield missing("vehicle.leaves", "which leaves the databroker offers is known when it is asked")
        return
    vehicle = vehicle_of(profiles)
    read = {one.name for one in config.vehicle.bus}
    buses = [{name: bus for name, bus in profile.buses.items() if name in read} for profile in profiles]
    heard = {leaf for one in buses for leaf in mapped_leaves(one)}
    lacking = sorted(signals.NEVER_ABSENT - heard)
    silent = sorted(leaf for leaf in signals.LEAVES if vehicle.reads(leaf) and leaf not in heard)
    if lacking:
        mend = "map them in a vehicle profile, and configure its bus: without them the gate stays shut for ever"
        yield fail("vehicle.leaves", f"no bus that is read tells {', '.join(lacking)}", mend)
    elif silent:
        mend = "read their bus, or list them as absent where this model lacks them: they count as unknown"
        yield warn("vehicle.leaves", f"{len(silent)} leaves are told by no bus that is read: {', '.join(silent)}", mend)
    else:
        yield ok("vehicle.leaves", f"{len(heard)} leaves are told, {len(vehicle.absent)} are absent in this model")


def _dbc(profile: Profile, config: Config) -> Finding:
    """The buses that are read, bound as the daemon binds them."""
    from agent.vehicle.binding import bind_bus  # noqa: PLC0415 - cantools is an extra, and takes a second to import

    name = f"vehicle.dbc.{profile.name}"
    buses = [one.name for one in config.vehicle.bus if one.name in profile.buses]
    bound = {bus: bind_bus(bus, [profile]) for bus in buses}
    messages = sum(len(one) for one in bound.values())
    wanted = sum(len(message.signals) for bus in buses for message in profile.buses[bus].messages)
    if not buses:
        return warn(name, f"none of its buses ({', '.join(profile.buses)}) is configured", "add a [[vehicle.bus]]")
    return ok(name, f"all {wanted} signals of {messages} messages are in its DBCs")


def disk(config: Config) -> Finding:
    """There is room for what is earned."""
    from agent.disk import RESERVE_BYTES  # noqa: PLC0415 - with what it is about

    folder = config.path(config.state_dir)
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    free_mb, reserve_mb = found.f_bavail * found.f_frsize // 1024**2, RESERVE_BYTES // 1024**2
    said = f"{free_mb} MiB are free at {folder}; {reserve_mb} MiB are kept for what is earned"
    if free_mb < reserve_mb:
        return fail("disk", said, "make room: until then nothing new is fetched, and a full disk shuts the gate")
    if free_mb < 2 * reserve_mb:
        return warn("disk", said, "make room soon: packages and plans are not fetched any more")
    return ok("disk", said)
