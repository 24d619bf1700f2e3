"""Vehicle profiles: which signal of which CAN message is which VSS leaf, as TOML data.

A profile names, per bus, a DBC and the few messages the agent needs from it. Each mapped signal gives one VSS 6.0
path (`Vehicle.Driveway.*` is our overlay). `values` maps the DBC's named choices (or raw numbers, where the DBC
names none) to VSS values. Choices that carry no value are listed by what they say: `unavailable` (signal not
available), `faults` (the sender's sensor is broken) and `invalid` (anything else that is no value). A choice that is in
none of these lists is invalid too, and counted as a surprise. All of them are unsafe; the lists are for the reason.

`absent` names the leaves that this model does not have at all: the gates do without them. A profile that says so makes
the gates blinder, so the few leaves that no car may lack (`agent.core.signals.NEVER_ABSENT`) cannot be listed.

A profile is loaded by the name of a bundled one (`profiles/NAME.toml`) or by a path. Unknown keys, unknown names and
missing files are ConfigErrors that name the input and suggest the nearest thing that exists.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from agent.core import signals
from agent.core.events import SignalValue
from agent.errors import ConfigError

BUNDLED = Path(__file__).parent / "profiles"
OPENDBC_PREFIX = "opendbc:"


Leaf = Annotated[str, msgspec.Meta(pattern=r"^Vehicle(\.[A-Z][A-Za-z0-9]*)+$")]


class SignalMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One DBC signal and the VSS leaf it is. Without `values` it is a number: physical value * `scale`.

    `minimum` and `maximum` are in the leaf's unit; what lies outside them is out of range, never clamped. `resolution`,
    in the same unit, is the least change that is news: a reading that shivers by less is heard, and not told again.
    """

    signal: str
    path: Leaf
    values: dict[str, SignalValue] = {}
    unavailable: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    scale: float = 1.0
    resolution: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} of {self.signal} is above its maximum {self.maximum}")
        listed = [*self.values, *self.unavailable, *self.faults, *self.invalid]
        if twice := sorted({name for name in listed if listed.count(name) > 1}):
            raise ValueError(f"{twice} of {self.signal} are listed twice")


ChecksumKind = Literal["sum", "e2e_profile_2"]
"""How a message is protected (`agent.vehicle.checksum`)."""


class MessageMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One DBC message. `checksum` and `counter` name its signals ('' when it has none that is worth checking).

    `period_ms` is how often it is sent, 0 where nobody knows; `data_ids` belong to the checksum `e2e_profile_2`.
    """

    message: str
    period_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 0
    checksum: str = ""
    checksum_kind: ChecksumKind = "sum"
    data_ids: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=255)], ...], msgspec.Meta(max_length=16)] = ()
    counter: str = ""
    signals: Annotated[tuple[SignalMapping, ...], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        if len(self.data_ids) != (16 if self.checksum_kind == "e2e_profile_2" else 0):
            raise ValueError(
                f"{self.message}: `data_ids` are sixteen with checksum_kind e2e_profile_2, and none without"
            )


class BusMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one bus carries. `dbc` is a file beside the profile, or `opendbc:FILE` in the installed opendbc wheel.

    Templates of opendbc (`opendbc:generator/nissan/nissan_leaf_2018.dbc`) are read with what they import.
    """

    dbc: str
    messages: Annotated[tuple[MessageMapping, ...], msgspec.Meta(min_length=1)]


class ProfileFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The TOML file as it is written."""

    name: str
    description: str
    buses: dict[str, BusMapping]
    absent: tuple[Leaf, ...] = ()

    def __post_init__(self) -> None:
        if vital := sorted(set(self.absent) & signals.NEVER_ABSENT):
            raise ValueError(f"no car may lack {', '.join(vital)}: it cannot be absent")
        if strange := sorted(set(self.absent) - set(signals.LEAVES)):
            raise ValueError(f"{', '.join(strange)} is no leaf that a gate reads, so it need not be absent")
        if both := sorted(set(self.absent) & mapped_leaves(self.buses)):
            raise ValueError(f"{', '.join(both)} is mapped, and cannot be absent")


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded profile, and the folder that its relative DBC paths start from."""

    name: str
    description: str
    buses: dict[str, BusMapping]
    absent: frozenset[str]
    folder: Path


def mapped_leaves(buses: dict[str, BusMapping]) -> set[str]:
    """The leaves that these buses carry."""
    return {signal.path for bus in buses.values() for message in bus.messages for signal in message.signals}


def vehicle_of(profiles: Sequence[Profile]) -> signals.Vehicle:
    """The vehicle that these profiles describe together, before anything was heard of it.

    What one of them maps, the car has, whatever another says. Raises ConfigError where leaves have two sources.
    """
    offered: set[str] = set()
    for profile in profiles:
        leaves = mapped_leaves(profile.buses)
        if twice := sorted(leaves & offered):
            raise ConfigError(f"two vehicle profiles map {', '.join(twice)}", hint="a leaf has one source")
        offered |= leaves
    absent = {leaf for profile in profiles for leaf in profile.absent}
    return signals.Vehicle(offered=frozenset(offered), absent=frozenset(absent - offered))


def load_profile(name_or_path: str) -> Profile:
    """The bundled profile of that name, or the one in that file. Raises ConfigError."""
    path = Path(name_or_path) if name_or_path.endswith(".toml") else BUNDLED / f"{name_or_path}.toml"
    try:
        text = path.read_bytes()
    except OSError as error:
        bundled = (file.stem for file in BUNDLED.glob("*.toml"))
        raise ConfigError(
            f"vehicle profile {name_or_path!r} cannot be read ({error.strerror})", hint=did_you_mean(path.stem, bundled)
        ) from error
    try:
        written = msgspec.toml.decode(text, type=ProfileFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"vehicle profile {path}: {error}", hint="compare it with a bundled profile") from error
    return Profile(
        name=written.name,
        description=written.description,
        buses=written.buses,
        absent=frozenset(written.absent),
        folder=path.parent,
    )


def dbc_path(profile: Profile, reference: str) -> Path:
    """The file a `dbc` reference means; opendbc is only looked up, its code never run. Raises ConfigError."""
    if not reference.startswith(OPENDBC_PREFIX):
        path = profile.folder / reference
    else:
        package = find_spec("opendbc")
        if package is None or not package.submodule_search_locations:
            raise ConfigError(
                f"vehicle profile {profile.name} needs {reference}, and opendbc is not installed",
                hint="install the extra: driveway-agent[opendbc]",
            )
        path = Path(package.submodule_search_locations[0]) / "dbc" / reference.removeprefix(OPENDBC_PREFIX)
    if not path.is_file():
        nearby = (file.name for file in path.parent.glob("*.dbc"))
        raise ConfigError(
            f"vehicle profile {profile.name} needs the DBC {reference}, and there is no {path}",
            hint=did_you_mean(path.name, nearby),
        )
    return path


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A hint that names what is nearest to `name`, or else what there is."""
    known = sorted(candidates)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known[:12])}" if known else ""
