"""Which leaves are asked for, by which names, and what a broker's values mean."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kuksa.val.v2 import types_pb2

import agent.vehicle
from agent.core import signals
from agent.core.events import Quality, Sample
from agent.core.signals import ALIASES, CABLE, LEAVES, SEAT
from agent.vehicle.databroker import OVERLAY
from agent.vehicle.kuksa_leaves import LOUDEST, Name, combine, resolve, sample

PRIVATE = ("Location", "Vehicle.VehicleIdentification", "Vehicle.Occupant", "Identifier", "EvseId", "VIN")
TYPES = {bool: "BOOLEAN", str: "STRING", float: "FLOAT"}


def metadata(path: str, data_type: str = "", unit: str = "") -> types_pb2.Metadata:
    leaf = LEAVES.get(ALIASES.get(path, path))
    kind = bool if path in ALIASES else float if leaf is None else leaf.kind
    chosen = types_pb2.DataType.Value(f"DATA_TYPE_{data_type or TYPES[kind]}")
    return types_pb2.Metadata(path=path, data_type=chosen, unit=unit)


def value(**one_of: Any) -> types_pb2.Value:
    return types_pb2.Value(**one_of)


def only(path: str, data_type: str = "", unit: str = "") -> Name:
    (name,) = resolve([metadata(path, data_type, unit)], (), ())
    return name


@given(st.sets(st.sampled_from(sorted({*LEAVES, *ALIASES}))), st.sets(st.text(min_size=1, max_size=40)))
def test_only_leaves_that_gates_read_are_ever_asked_for(ours: set[str], others: set[str]) -> None:
    private = {
        "Vehicle.CurrentLocation.Latitude",
        "Vehicle.VehicleIdentification.VIN",
        "Vehicle.Occupant.Row1.DriverSide.Identifier.Subject",
        "Vehicle.Powertrain.TractionBattery.Charging.EvseId",
        "Vehicle.Powertrain.TractionBattery.Charging.Location.Latitude",
    }
    names = resolve([metadata(path) for path in ours | others | private], (), ("Vehicle.Speed",))
    assert {name.asked for name in names} == ours


def test_no_leaf_that_can_be_asked_for_is_private() -> None:
    assert [path for path in {*LEAVES, *ALIASES} if any(word in path for word in PRIVATE)] == []
    assert any(word in "Vehicle.CurrentLocation.Latitude" for word in PRIVATE)


def test_absent_leaves_and_leaves_that_the_broker_lacks_are_not_asked_for() -> None:
    listed = [metadata(SEAT), metadata(signals.HOOD)]
    assert [name.asked for name in resolve(listed, (signals.HOOD,), ())] == [SEAT]


def test_a_heartbeat_of_our_own_branch_is_asked_for_and_is_no_leaf() -> None:
    beat = f"{OVERLAY}Beat"
    names = resolve([metadata(beat), metadata(signals.SPEED)], (), (signals.SPEED, beat))
    assert [(name.asked, name.edge, name.streamed) for name in names] == [
        (signals.SPEED, True, True),
        (beat, True, False),
    ]


@pytest.mark.parametrize(
    ("path", "unit", "sent", "read"),
    [
        (signals.SPEED, "km/h", 36.0, 36.0),
        (signals.SPEED, "m/s", 10.0, 36.0),
        (signals.SPEED, "mph", 10.0, 16.09344),
        (signals.PACK_TEMPERATURE, "Celsius", 21.5, 21.5),
        (signals.PACK_TEMPERATURE, "celsius", 21.5, 21.5),
        (signals.PACK_TEMPERATURE, "kelvin", 293.15, 20.0),
        (signals.PACK_TEMPERATURE, "fahrenheit", 212.0, 100.0),
        (signals.CHARGE, "percent", 80.0, 80.0),
        (signals.PACK_POWER, "kW", 1.5, 1500.0),
        (signals.LOW_VOLTAGE, "mV", 14_100.0, 14.1),
        (signals.CAPACITY, "Wh", 75_000.0, 75.0),
        (signals.SPEED, "", 36.0, 36.0),
    ],
)
def test_units_are_understood_or_converted(path: str, unit: str, sent: float, read: float) -> None:
    assert sample(only(path, "DOUBLE", unit), value(double=sent)).value == pytest.approx(read)


@pytest.mark.parametrize("unit", ["furlong/h", "percent", "rpm"])
def test_a_foreign_unit_is_refused_and_says_so(unit: str) -> None:
    name = only(signals.SPEED, "FLOAT", unit)
    assert unit in name.problem
    assert sample(name, value(float=0.0)).quality is Quality.INVALID


@pytest.mark.parametrize(
    ("path", "data_type"),
    [
        (signals.SPEED, "STRING"),
        (signals.SPEED, "BOOLEAN"),
        (signals.SPEED, "FLOAT_ARRAY"),
        (signals.DOORS[0], "UINT8"),
        (SEAT, "BOOLEAN"),
        ("Vehicle.Cabin.Seat.Row1.DriverSide.IsOccupied", "STRING"),
    ],
)
def test_a_leaf_of_another_type_is_never_believed(path: str, data_type: str) -> None:
    name = only(path, data_type)
    assert name.problem
    assert sample(name, value(bool=False)).quality is Quality.INVALID


@pytest.mark.parametrize(
    ("path", "sent", "read", "quality"),
    [
        (signals.DOORS[0], value(bool=False), False, Quality.GOOD),
        (signals.SPEED, value(float=0.0), 0.0, Quality.GOOD),
        (signals.SPEED, value(float=21.7), 21.7, Quality.GOOD),
        (signals.GEAR, value(int32=126), 126.0, Quality.GOOD),
        (signals.BRAKE, value(uint32=0), 0.0, Quality.GOOD),
        (signals.CHARGE, value(uint64=2**63), None, Quality.OUT_OF_RANGE),
        (signals.SPEED, value(float=float("nan")), None, Quality.NOT_A_NUMBER),
        (signals.SPEED, value(float=float("inf")), None, Quality.OUT_OF_RANGE),
        (signals.SPEED, value(bool=False), None, Quality.INVALID),
        (signals.DOORS[0], value(int32=0), None, Quality.INVALID),
        (signals.DOORS[0], value(string="false"), None, Quality.INVALID),
        (signals.DOORS[0], value(bool_array=types_pb2.BoolArray(values=[False])), None, Quality.INVALID),
        (signals.LOW_VOLTAGE_STATE, value(string="LOCK"), "LOCK", Quality.GOOD),
        (signals.LOW_VOLTAGE_STATE, value(string=""), None, Quality.INVALID),
        (signals.LOW_VOLTAGE_STATE, value(string="UNDEFINED"), None, Quality.UNKNOWN),
        (signals.TIMER_TIME, value(string="x" * 129), None, Quality.INVALID),
        (SEAT, value(string="UNKNOWN"), None, Quality.UNKNOWN),
        (SEAT, value(), None, Quality.UNKNOWN),
        (SEAT, None, None, Quality.UNKNOWN),
    ],
)
def test_values_keep_their_kind_and_no_value_is_no_no(
    path: str, sent: types_pb2.Value | None, read: object, quality: Quality
) -> None:
    taken = sample(only(path), sent)
    assert (taken.value, taken.quality) == (read, quality)
    assert type(taken.value) is type(read)


def test_an_older_name_speaks_in_the_words_of_the_newer() -> None:
    name = only("Vehicle.Cabin.Seat.Row1.DriverSide.IsOccupied")
    assert sample(name, value(bool=True)) == Sample(SEAT, "OCCUPIED", group="edge")
    assert sample(name, value(bool=False)) == Sample(SEAT, "EMPTY", group="edge")


QUALITIES = st.sampled_from([quality for quality in Quality if quality is not Quality.GOOD])


@given(st.lists(st.one_of(st.booleans(), QUALITIES), min_size=1, max_size=7))
def test_of_several_ports_one_cable_is_a_cable_and_one_fault_is_a_fault(said: list[bool | Quality]) -> None:
    samples = [Sample(CABLE, one) if isinstance(one, bool) else Sample(CABLE, None, one) for one in said]
    combined = combine(samples)
    faults = {one for one in said if isinstance(one, Quality) and one is not Quality.UNKNOWN}
    if faults:
        assert combined.quality in faults
    elif any(one is True for one in said):
        assert combined.value is True
    else:
        assert combined.value is (False if False in said else None)


def test_a_leaf_of_several_names_is_as_loud_as_its_loudest() -> None:
    assert combine([Sample(SEAT, "EMPTY"), Sample(SEAT, "OCCUPIED")]).value == "OCCUPIED"
    assert set(LOUDEST) == set(ALIASES.values())


ONE_OF = [field.name for field in types_pb2.Value.DESCRIPTOR.fields]


@given(st.binary(max_size=64), st.sampled_from(sorted({*LEAVES, *ALIASES})))
def test_no_bytes_that_parse_as_a_value_raise(raw: bytes, path: str) -> None:
    parsed = types_pb2.Value()
    try:
        parsed.MergeFromString(raw)
    except Exception:  # noqa: BLE001 - what does not parse never gets this far
        return
    taken = sample(only(path), parsed)
    assert (taken.value is None) == (taken.quality is not Quality.GOOD)


@given(st.text(max_size=40), st.integers(0, 30), st.text(max_size=20))
def test_no_metadata_raises(path: str, data_type: int, unit: str) -> None:
    listed = [types_pb2.Metadata(path=path, data_type=data_type, unit=unit)] + [
        types_pb2.Metadata(path=one, data_type=data_type, unit=unit) for one in LEAVES
    ]
    for name in resolve(listed, (), ()):
        sample(name, value(double=1.0))


# --- the overlay --------------------------------------------------------------------------------------------------


def overlay() -> dict[str, dict[str, Any]]:
    """The leaves of the file that integrators load, by path."""
    text = (Path(agent.vehicle.__file__).parent / "driveway-overlay.json").read_text("utf-8")

    def leaves(prefix: str, node: dict[str, Any]) -> dict[str, dict[str, Any]]:
        if node["type"] != "branch":
            assert {"type", "datatype", "description"} <= set(node)
            return {prefix: node}
        return {
            path: leaf
            for name, one in node["children"].items()
            for path, leaf in leaves(f"{prefix}.{name}", one).items()
        }

    (root,) = json.loads(text).items()
    return leaves(*root)


def test_the_overlay_has_every_leaf_that_vss_lacks_in_the_kind_that_gates_expect() -> None:
    kinds = {path: leaf["datatype"] for path, leaf in overlay().items()}
    expected = {bool: "boolean", str: "string", float: "float"}
    wanted = {path: expected[leaf.kind] for path, leaf in LEAVES.items() if path.startswith(OVERLAY)}
    assert {path: kinds.get(path) for path in wanted} == wanted
    others = ("KeepAwakeUntil", "State", "PowerDraw", "EnergyUsed", "ReserveSoC", "DepartureTime", "Tariff.Price")
    assert {OVERLAY + name for name in (*others, "Tariff.ValidUntil")} <= set(kinds)
    assert all(path.startswith(OVERLAY) for path in kinds)


NAMED = re.compile(r"Vehicle\.Driveway(?:\.[A-Z][A-Za-z0-9]*)+")
ROOT = Path(agent.__file__).parent.parent


def test_the_overlay_has_every_leaf_of_our_branch_that_documents_and_code_name() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    sources = [
        path for folder in ("agent", "hil") for kind in ("py", "toml") for path in ROOT.glob(f"{folder}/**/*.{kind}")
    ]
    known = set(overlay())
    branches = {path.rsplit(".", level)[0] for path in known for level in (1, 2)}
    named = {(name, path.name) for path in pages + sources for name in NAMED.findall(path.read_text("utf-8"))}
    assert {"databroker.md", "kuksa_awake.py", "tesla-model3.toml"} <= {page for _, page in named}
    assert {(name, page) for name, page in named if name not in known | branches} == set()


def test_a_heartbeat_of_the_overlay_is_asked_for_where_it_is_configured_and_nowhere_else() -> None:
    beats = {path for path in overlay() if path.endswith("Heartbeat")}
    assert beats
    listed = [types_pb2.Metadata(path=path, data_type=types_pb2.DATA_TYPE_UINT8) for path in beats]
    assert resolve(listed, (), ()) == ()
    assert {name.asked for name in resolve(listed, (), beats)} == beats
