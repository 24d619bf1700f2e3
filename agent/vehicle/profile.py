"""Vehicle profiles: which signal of which CAN message is which VSS leaf, as TOML data.

A profile names, per bus, a DBC and the few messages the agent needs from it. Each mapped signal gives one VSS 6.0
path (`Vehicle.Driveway.*` is our overlay). `values` maps the DBC's named choices (or raw numbers, where the DBC
names none) to VSS values; a choice that is not in the map makes the leaf invalid, and so unsafe. `invalid` lists
the choices that are known to carry no value (SNA, FAULT), so that only a true surprise is counted as one.

A profile is loaded by the name of a bundled one (`profiles/NAME.toml`) or by a path. Unknown keys, unknown names and
missing files are ConfigErrors that name the input and suggest the nearest thing that exists.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import msgspec

from agent.core.events import SignalValue
from agent.errors import ConfigError

BUNDLED = Path(__file__).parent / "profiles"
OPENDBC_PREFIX = "opendbc:"


class SignalMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One DBC signal and the VSS leaf it is. Without `values` it is a number: physical value * `scale`.

    `minimum` and `maximum` are in the leaf's unit; what lies outside them is out of range, never clamped.
    """

    signal: str
    path: Annotated[str, msgspec.Meta(pattern=r"^Vehicle(\.[A-Z][A-Za-z0-9]*)+$")]
    values: dict[str, SignalValue] = {}
    invalid: tuple[str, ...] = ()
    scale: float = 1.0
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} of {self.signal} is above its maximum {self.maximum}")
        if both := set(self.values) & set(self.invalid):
            raise ValueError(f"{sorted(both)} of {self.signal} are both a value and invalid")


class MessageMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One DBC message; `checksum` names its checksum signal ('' when it has none that is worth checking)."""

    message: str
    checksum: str = ""
    signals: Annotated[tuple[SignalMapping, ...], msgspec.Meta(min_length=1)]


class BusMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one bus carries. `dbc` is a file beside the profile, or `opendbc:FILE` in the installed opendbc wheel."""

    dbc: str
    messages: Annotated[tuple[MessageMapping, ...], msgspec.Meta(min_length=1)]


class ProfileFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The TOML file as it is written."""

    name: str
    description: str
    buses: dict[str, BusMapping]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded profile, and the folder that its relative DBC paths start from."""

    name: str
    description: str
    buses: dict[str, BusMapping]
    folder: Path


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
    return Profile(name=written.name, description=written.description, buses=written.buses, folder=path.parent)


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
