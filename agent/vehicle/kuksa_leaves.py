"""Which leaves to ask a databroker for, by which names, and what its values mean. Pure: nothing is asked here.

Only leaves that gates read are ever asked for, by their VSS 6.0 name or one of VSS 4.x or 5.x, whichever the broker
lists. A broker's own word on a leaf (type, unit) is checked against what the gates expect: another spelling of the unit
is understood, another unit converted, anything else is refused, so that 30 m/s is never read as 30 km/h.

One leaf may have several names in one broker (a charging cable for each port). Then a bad value outweighs all, a cable
in one port is a cable, somebody seen by one sensor is somebody, and a name without a value says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from kuksa.val.v2 import types_pb2

from agent.core.events import Quality, Sample, SignalValue
from agent.core.signals import ALIASES, CABLE, LEAVES, PASSENGER_SEAT, SEAT, Staleness, canonical

EDGE, SLOW = "edge", "slow"
"""The two groups of leaves that are heard together: gate edges with every poll, all others once a second."""

LONGEST_STRING = 128
"""No value that a gate reads is longer; what a broker sends is not to be trusted to be short."""

NUMBERS = range(types_pb2.DATA_TYPE_INT8, types_pb2.DATA_TYPE_DOUBLE + 1)
"""The scalar number types of kuksa.val.v2, int8 to double, which are numbered in a row."""

UNITS: dict[str, dict[str, tuple[float, float]]] = {
    "km/h": {
        "km/h": (1, 0),
        "kmh": (1, 0),
        "kph": (1, 0),
        "m/s": (3.6, 0),
        "mph": (1.609344, 0),
        "mi/h": (1.609344, 0),
    },
    "%": {"percent": (1, 0), "%": (1, 0)},
    "celsius": {
        "celsius": (1, 0),
        "degc": (1, 0),
        "°c": (1, 0),
        "kelvin": (1, -273.15),
        "k": (1, -273.15),
        "fahrenheit": (5 / 9, -160 / 9),
    },
    "V": {"v": (1, 0), "volt": (1, 0), "mv": (0.001, 0)},
    "A": {"a": (1, 0), "ampere": (1, 0), "ma": (0.001, 0)},
    "W": {"w": (1, 0), "watt": (1, 0), "kw": (1_000, 0)},
    "kWh": {"kwh": (1, 0), "wh": (0.001, 0)},
}
"""For each unit of a leaf: how the broker may spell its unit (lower case), and factor and offset from that to ours."""

LOUDEST: dict[str, SignalValue] = {CABLE: True, SEAT: "OCCUPIED", PASSENGER_SEAT: "OCCUPIED"}
"""Where a leaf has several names, the value that counts as soon as one of them says it."""


class Name(msgspec.Struct, frozen=True):
    """One name that the broker has for a leaf. `path` is the leaf in VSS 6.0; `problem` says why it is not believed.

    A number is `factor` times the broker's plus `offset`.
    """

    asked: str
    path: str
    factor: float = 1.0
    offset: float = 0.0
    problem: str = ""

    @property
    def edge(self) -> bool:
        """Whether the leaf is asked for with every poll; a heartbeat of our own branch is."""
        leaf = LEAVES.get(self.path)
        return leaf is None or leaf.staleness is Staleness.GATE_EDGE

    @property
    def streamed(self) -> bool:
        """Whether changes are subscribed to: edges and switches are, numbers that drift are only polled."""
        leaf = LEAVES.get(self.path)
        return leaf is not None and (leaf.staleness is Staleness.GATE_EDGE or leaf.kind is not float)

    @property
    def group(self) -> str:
        """What keeps it fresh."""
        return EDGE if self.edge else SLOW


def resolve(listed: Iterable[types_pb2.Metadata], absent: Iterable[str], heartbeats: Iterable[str]) -> tuple[Name, ...]:
    """The names to ask for: those of the leaves that the broker lists, and of the heartbeats. Nothing else, ever."""
    by_path = {metadata.path: metadata for metadata in listed}
    spellings = [(path, path) for path in LEAVES] + list(ALIASES.items())
    skipped = frozenset(absent)
    names = [
        _name(by_path[asked], asked, path) for asked, path in spellings if asked in by_path and path not in skipped
    ]
    known = {name.asked for name in names}
    extra = [beat for beat in dict.fromkeys(heartbeats) if beat in by_path and beat not in known]
    return (*names, *(Name(beat, ALIASES.get(beat, beat)) for beat in extra))


def _name(metadata: types_pb2.Metadata, asked: str, path: str) -> Name:
    """The name with its conversion, or with what is wrong about it."""
    leaf = LEAVES[path]
    kind = bool if asked != path else leaf.kind  # every name of an older VSS is a boolean
    data_type = metadata.data_type
    fits = (
        data_type in NUMBERS
        if kind is float
        else data_type == (types_pb2.DATA_TYPE_BOOLEAN if kind is bool else types_pb2.DATA_TYPE_STRING)
    )
    if not fits:
        return Name(asked, path, problem=f"the broker's data type {data_type} is no {kind.__name__}")
    if not leaf.unit or not metadata.unit:  # a broker that tells no unit is held to the one that VSS prescribes
        return Name(asked, path)
    conversion = UNITS[leaf.unit].get(metadata.unit.strip().casefold())
    if conversion is None:
        return Name(asked, path, problem=f"the broker's unit {metadata.unit[:32]!r} is not {leaf.unit}")
    return Name(asked, path, *conversion)


def sample(name: Name, value: types_pb2.Value | None) -> Sample:
    """The value as a sample of the leaf; None where the broker has no value."""
    kind = None if value is None else value.WhichOneof("typed_value")
    if value is None or kind is None:
        return Sample(name.path, None, Quality.UNKNOWN, name.group)
    typed = None if name.problem else _typed(value, kind)
    if typed is None:
        return Sample(name.path, None, Quality.INVALID, name.group)
    if isinstance(typed, float):
        typed = typed * name.factor + name.offset
    return canonical(Sample(name.asked, typed, Quality.GOOD, name.group))


def _typed(value: types_pb2.Value, kind: str) -> SignalValue | None:  # noqa: PLR0911 - one return a kind
    """The scalar inside, or None for what no leaf of ours can be (an array, an endless string)."""
    match kind:
        case "bool":
            return bool(value.bool)
        case "string":
            text = str(value.string)
            return text if len(text) <= LONGEST_STRING else None
        case "float":
            return float(f"{value.float:.7g}")  # 21.7 as the sender meant it, not 21.700000762939453
        case "double":
            return float(value.double)
        case "int32":
            return float(value.int32)
        case "uint32":
            return float(value.uint32)
        case "int64":
            return float(value.int64)
        case "uint64":
            return float(value.uint64)
        case _:
            return None


def combine(samples: Sequence[Sample]) -> Sample:
    """One leaf's sample from those under its several names, best name first."""
    if len(samples) == 1:
        return samples[0]
    telling = [one for one in samples if one.quality is not Quality.UNKNOWN]
    if not telling:
        return samples[0]
    bad = next((one for one in telling if one.quality is not Quality.GOOD), None)
    loudest = next((one for one in telling if one.value == LOUDEST.get(one.path)), None)
    return bad or loudest or telling[0]
