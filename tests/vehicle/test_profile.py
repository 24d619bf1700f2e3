from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from agent.core.signals import BELT, CHARGE, HOOD, LEAVES
from agent.errors import ConfigError
from agent.vehicle import profile as profile_module
from agent.vehicle.profile import Profile, dbc_path, load_profile, vehicle_of
from agent.vehicle.source import BusConfig, build_decoder

MINIMAL = """
name = "test"
description = "a test"
{head}
[buses.energy]
dbc = "{dbc}"
[[buses.energy.messages]]
message = "{message}"
checksum = "{checksum}"
{more}
[[buses.energy.messages.signals]]
signal = "{signal}"
path = "{path}"
{extra}
"""
FINE = {
    "head": "",
    "more": "",
    "dbc": str(profile_module.BUNDLED / "driveway_energy.dbc"),
    "message": "DW_chargeStatus",
    "checksum": "DW_chargeStatusChecksum",
    "signal": "DW_cableState",
    "path": "Vehicle.Test",
    "extra": "values = { CONNECTED = true }",
}


def write(folder: Path, **changes: str) -> str:
    path = folder / "test.toml"
    path.write_text(MINIMAL.format(**{**FINE, **changes}))
    return str(path)


def bind(folder: Path, **changes: str) -> None:
    build_decoder("energy", [load_profile(write(folder, **changes))])


NEEDED = {path for path, leaf in LEAVES.items() if leaf.needed}


@pytest.mark.parametrize("car", ["tesla-model3", "vw-meb", "nissan-leaf"])
def test_with_the_energy_messages_every_car_gives_each_leaf_that_gates_need_or_says_that_it_lacks_it(car: str) -> None:
    loaded = [load_profile(car), load_profile("driveway-energy")]
    vehicle = vehicle_of(loaded)
    assert vehicle.offered | vehicle.absent >= NEEDED
    assert not vehicle.offered & vehicle.absent
    assert vehicle.offered <= set(LEAVES), "a leaf that no gate reads is mapped for nothing"


@pytest.mark.parametrize("car", ["vw-meb", "nissan-leaf"])
def test_no_car_is_run_without_its_charge(car: str) -> None:
    """Neither DBC has it, and no profile may say that it is not needed."""
    vehicle = vehicle_of([load_profile(car)])
    assert vehicle.reads(CHARGE)
    assert CHARGE not in vehicle.offered


def test_what_one_profile_lacks_and_another_has_is_there(tmp_path: Path) -> None:
    lacking = load_profile(write(tmp_path, head=f'absent = ["{HOOD}", "{BELT}"]'))
    other = tmp_path / "other"
    other.mkdir()
    having = load_profile(write(other, path=HOOD))
    vehicle = vehicle_of([lacking, having])
    assert vehicle.absent == {BELT}
    assert vehicle.offered == {"Vehicle.Test", HOOD}


def test_two_profiles_may_not_map_one_leaf(profiles: tuple[Profile, ...]) -> None:
    with pytest.raises(ConfigError, match="two vehicle profiles map"):
        vehicle_of([profiles[0], profiles[0]])


def test_a_profile_in_a_file_of_its_own_binds(tmp_path: Path) -> None:
    bind(tmp_path)


def test_opendbc_is_found_without_running_its_code(profiles: tuple[Profile, ...]) -> None:
    assert dbc_path(profiles[0], "opendbc:tesla_model3_party.dbc").is_file()
    assert "opendbc" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "named", "hint"),
    [
        ({"message": "DW_chargeState"}, "no message 'DW_chargeState'", "DW_chargeStatus"),
        ({"signal": "DW_cabelState"}, "message DW_chargeStatus has no signal 'DW_cabelState'", "DW_cableState"),
        ({"checksum": "DW_chargeStatusChecksun"}, "no signal 'DW_chargeStatusChecksun'", "DW_chargeStatusChecksum"),
        ({"checksum": "DW_chargeStatusCounter"}, "not one whole byte", ""),
        ({"more": 'counter = "DW_chargeStatusCount"'}, "no signal 'DW_chargeStatusCount'", "DW_chargeStatusCounter"),
        ({"extra": 'values = { CONNECTED = true }\nfaults = ["FALUT"]'}, "no choice 'FALUT'", "FAULT"),
        ({"extra": "values = { CONECTED = true }"}, "no choice 'CONECTED'", "CONNECTED"),
        ({"extra": 'values = { CONNECTED = true }\ninvalid = ["SNAA"]'}, "no choice 'SNAA'", "SNA"),
        ({"dbc": "driveway_energi.dbc"}, "there is no", ""),
        ({"dbc": "opendbc:tesla_model3_prty.dbc"}, "tesla_model3_prty.dbc", "tesla_model3_party.dbc"),
    ],
)
def test_what_the_dbc_lacks_is_named_with_a_suggestion(
    tmp_path: Path, changes: dict[str, str], named: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(tmp_path, **changes)
    assert named in caught.value.what
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"extra": "valeus = { CONNECTED = true }"}, "valeus"),
        ({"extra": "minimum = 2\nmaximum = 1"}, "minimum"),
        ({"extra": 'values = { SNA = true }\ninvalid = ["SNA"]'}, "SNA"),
        ({"path": "Car.Speed"}, "path"),
        ({"extra": 'values = { CONNECTED = true }\nfaults = ["SNA"]\nunavailable = ["SNA"]'}, "SNA"),
        ({"extra": "resolution = -1"}, "resolution"),
        ({"head": f'absent = ["{CHARGE}"]'}, "no car may lack"),
        ({"head": 'absent = ["Vehicle.Cabin.Sunroof"]'}, "no leaf that a gate reads"),
        ({"head": f'absent = ["{HOOD}"]', "path": HOOD}, "is mapped"),
        ({"more": 'checksum_kind = "e2e_profile_2"'}, "data_ids"),
        ({"more": "data_ids = [1]"}, "data_ids"),
        ({"more": 'checksum_kind = "crc"'}, "checksum_kind"),
    ],
)
def test_a_profile_that_is_wrong_in_itself_is_refused(tmp_path: Path, changes: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_profile(write(tmp_path, **changes))


def test_two_signals_may_not_claim_one_leaf(tmp_path: Path) -> None:
    second = '[[buses.energy.messages.signals]]\nsignal = "DW_chargingState"\npath = "Vehicle.Test"'
    with pytest.raises(ConfigError, match=r"two signals .* claim Vehicle\.Test"):
        bind(tmp_path, extra=second)


def test_an_unknown_profile_suggests_a_bundled_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("tesla-model-3")
    assert caught.value.hint == "did you mean 'tesla-model3'?"


def test_a_dbc_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.dbc").write_text("BO_ this is not a DBC")
    with pytest.raises(ConfigError, match=r"broken\.dbc"):
        bind(tmp_path, dbc="broken.dbc")


def test_a_bus_that_no_profile_has_is_refused(profiles: tuple[Profile, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_decoder("vehicel", profiles)
    assert caught.value.hint == "did you mean 'vehicle'?"


def test_a_bus_that_two_profiles_have_is_refused(profiles: tuple[Profile, ...]) -> None:
    with pytest.raises(ConfigError, match="more than one"):
        build_decoder("energy", [*profiles, profiles[1]])


@pytest.mark.parametrize(
    "text",
    [
        'name = "party"\ninterface = "udp_multicast"\nchannel = "239.1.1.1"',
        'name = "party"\ninterface = "socketcan"\nchannel = "can0"\nport = 5',
        'name = "party"\ninterface = "candump"\nchannel = "night.log"\nmode = "bcm"',
        'name = "party"\ninterface = "socketcan"\nchannel = "can0"\nrecorded_as = "can0"',
        'name = "party"\ninterface = "slcan"\nchannel = "can0"',
        'name = "party"\ninterface = "socketcan"\nchannel = "can0"\nbitrate = 500000',
    ],
)
def test_a_bus_configuration_is_checked(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.toml.decode(text, type=BusConfig)
