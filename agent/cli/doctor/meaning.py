"""What each check is about: its group, in the order in which they are printed, and what hangs on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """`names` are beginnings of names of checks."""

    title: str
    names: tuple[str, ...]


GROUPS = (
    Group("Configuration", ("config", "permissions")),
    Group("Computer", ("clock", "disk", "state", "kernel", "engine")),
    Group("Vehicle", ("vehicle",)),
    Group("Keys and certificates", ("keys",)),
    Group("Broker", ("broker",)),
    Group("Service", ("units",)),
    Group("Daemon", ("daemon",)),
)
MEANINGS = {
    "config": "Without a right configuration the daemon does not start.",
    "permissions.config": "Whoever may write it decides when the car works, and for whom.",
    "permissions.state": "Results, ledger and keys lie there.",
    "permissions.secrets": "Whoever reads a key can speak for this car.",
    "disk": "What was earned is kept until it is settled; a full disk shuts the gate.",
    "clock": "Certificates and schedules are judged by the clock; deadlines are not.",
    "state.schema": "A store that this version does not know is not opened, and the daemon does not start.",
    "kernel": "A worker that cannot be watched is not started.",
    "engine.bindings": "A worker without them computes nothing.",
    "engine.device": "Work is done on it, or not at all.",
    "engine.kernels": "Pictures are prepared and answers condensed by them, on the accelerator.",
    "vehicle.leaves": "A gate whose signals nobody tells stays shut.",
    "vehicle.dbc": "Signals that are not in the DBC are never heard.",
    "vehicle.bus": "The car is believed only while its buses are heard.",
    "keys.unit": "It signs what the car did; without it nothing is paid.",
    "keys.tls": "The broker lets in nobody without them.",
    "keys": "Only work and packages that these keys signed are taken.",
    "broker.tls": "The broker lets in nobody without them.",
    "broker": "Work comes from it, and results go there.",
    "units": "systemd starts the daemon, starts it anew, and kills it when it hangs.",
    "daemon.reachable": "Nothing else of the daemon can be asked.",
    "daemon.version": "The version that runs is not the one that is installed.",
    "daemon.gate": "A gate that a fault shut does not open by itself.",
    "daemon.link": "Without it no work comes; results wait here.",
    "daemon.sources": "A source that is not heard counts as 'the driver is here'.",
    "daemon.store": "What is earned must be on the disk before it counts.",
    "daemon.ledger": "It proves the work; in dispute, nothing is paid.",
    "daemon.accelerator": "Work is done on it, or not at all.",
    "daemon.key": "It signs what the car did; without it nothing is paid.",
    "daemon.packages": "Work is asked for only for packages that may run.",
    "daemon.catalogue": "It says what may run; an expired one takes no new package in.",
    "daemon.self_test": "The gate stays shut until all of it is well.",
    "daemon.golden": "A worker computed what its package says it must.",
    "daemon.cage": "What keeps a package from the rest of the computer.",
}


def group_of(name: str) -> str:
    """The title of the check's group."""
    return next((one.title for one in GROUPS if name.partition(".")[0] in one.names), "Other")


def meaning_of(name: str) -> str:
    """What hangs on the check, in a sentence; "" where nothing is written."""
    while name:
        if name in MEANINGS:
            return MEANINGS[name]
        name = name.rpartition(".")[0]
    return ""
