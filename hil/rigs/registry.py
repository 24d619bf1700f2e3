"""Every rig there is, by its name; one whose parts cannot be imported here says why."""

from __future__ import annotations

from collections.abc import Callable

from agent.errors import ConfigError
from hil.rigs.interface import Rig
from hil.scenario.model import RIG_NAMES, Scenario


def _sim() -> type[Rig]:
    from hil.rigs.sim import SimRig  # noqa: PLC0415 - imports the whole world

    return SimRig


def _sil() -> type[Rig]:
    from hil.rigs.sil import SilRig  # noqa: PLC0415 - imports the dispatcher and an engine

    return SilRig


def _vm() -> type[Rig]:
    from hil.rigs.vm import VmRig  # noqa: PLC0415 - imports the whole machine

    return VmRig


RIGS: dict[str, Callable[[], type[Rig]]] = {"sim": _sim, "sil": _sil, "vm": _vm}
"""Rigs that are built; `bench` joins here."""


def rig_named(name: str) -> type[Rig]:
    """The rig of this name. Raises ConfigError for one that there is not."""
    if name not in RIGS:
        raise ConfigError(f"there is no rig {name!r}", hint=f"there are {', '.join(RIGS)}")
    return RIGS[name]()


def why_not(name: str, scenario: Scenario) -> str | None:
    """Why a scenario cannot be played on this rig, in a sentence; None when it can."""
    assert name in RIG_NAMES
    if name not in RIGS:
        return scenario.not_on.get(name, "this rig is not built yet")  # type: ignore[call-overload,no-any-return]
    return rig_named(name).why_not(scenario)
