"""Orders and classes of work, from the operator to the car: issued, signed, sent again, and never what is not taken."""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.core.model import JobKey
from agent.errors import ConfigError, FleetError
from agent.fleet.messages import Capability, MessageError, Request, Status, decode, encode
from agent.fleet.operator_messages import DEMAND_TYPE, PRICES_TYPE, DemandMessage, PricesMessage, PricesSlot
from agent.trust import dsse
from hil import orders as command
from hil.broker import EmbeddedBroker, free_port
from hil.cli import main
from hil.dispatcher.orders import DemandOrder, PricesOrder
from hil.dispatcher.submit import add_job
from tests.hil.honest_car import PACKAGE, Car, Desk
from tests.hil.test_dispatcher_process import DispatcherProcess, Remote

NOW_MS = 1_790_000_000_000
SLOTS = (PricesSlot(NOW_MS, NOW_MS + 900_000, 210_000), PricesSlot(NOW_MS + 900_000, NOW_MS + 1_800_000, -5_000))


@pytest.fixture
def desk(desk: Desk) -> Desk:
    desk.now_ms = NOW_MS
    return desk


def comes_up(car: Car) -> None:
    car.say("status", encode(Status(state="up", boot="b", conn=1, version="0")))


def hear(car: Car) -> PricesMessage | DemandMessage:
    """The order as a car reads it."""
    topic, envelope = car.peer.hear()
    assert topic == f"dw/v1/d/{car.unit}/config"
    if dsse.parse(envelope).payload_type == PRICES_TYPE:
        return decode(dsse.verify(envelope, PRICES_TYPE, car.peer.trusted()), PricesMessage)
    return decode(dsse.verify(envelope, DEMAND_TYPE, car.peer.trusted()), DemandMessage)


def test_orders_are_sent_at_once_and_again_when_the_link_comes_up(desk: Desk, car: Car, other: Car) -> None:
    desk.service.order(car.unit, PricesOrder(valid_for_s=3_600, slots=SLOTS))
    desk.service.order(car.unit, DemandOrder(stop_for_s=900, detail="peak"))
    curve, stop = hear(car), hear(car)
    assert isinstance(curve, PricesMessage)
    assert isinstance(stop, DemandMessage)
    assert (curve.slots, curve.expires_wall_ms - curve.issued_wall_ms) == (SLOTS, 3_600_000)
    assert (stop.stop_for_s, stop.detail) == (900, "peak")
    desk.now_ms += 600_000
    comes_up(other)
    assert desk.sent == [], "another unit's orders are none of its business"
    comes_up(car)
    again = [hear(car), hear(car)]
    assert again == [msgspec.structs.replace(stop, stop_for_s=300), curve], "what is left of a stop, under its own time"
    desk.now_ms += 3_600_000
    comes_up(car)
    assert hear(car) == msgspec.structs.replace(stop, stop_for_s=0)
    assert desk.sent == [], "an expired curve is not sent"


def test_issue_times_rise_whatever_the_clock_does(desk: Desk, car: Car) -> None:
    times = []
    for step_ms in (0, 0, -3_600_000, 5):
        desk.now_ms += step_ms
        times.append(desk.service.order(car.unit, DemandOrder(stop_for_s=1)).issued_wall_ms)
        times.append(desk.service.order(car.unit, PricesOrder(valid_for_s=60, slots=())).issued_wall_ms)
    assert times == sorted(set(times))


@pytest.mark.parametrize(
    ("unit", "order"),
    [
        ("stranger", DemandOrder(stop_for_s=1)),
        ("car-1", DemandOrder(stop_for_s=-1)),
        ("car-1", DemandOrder(stop_for_s=86_401)),
        ("car-1", DemandOrder(stop_for_s=1, detail="x" * 129)),
        ("car-1", PricesOrder(valid_for_s=0, slots=SLOTS)),
        ("car-1", PricesOrder(valid_for_s=10**12, slots=SLOTS)),
        ("car-1", PricesOrder(valid_for_s=60, slots=SLOTS[::-1])),
        ("car-1", PricesOrder(valid_for_s=60, slots=SLOTS * 200)),
    ],
)
def test_what_no_car_would_take_is_not_issued(
    desk: Desk, car: Car, unit: str, order: PricesOrder | DemandOrder
) -> None:
    with pytest.raises(MessageError):
        desk.service.order(unit, order)
    comes_up(car)
    assert desk.sent == []


# --- classes of work --------------------------------------------------------------------------------------------


def job(desk: Desk, workload_class: str | None) -> str:
    return add_job(
        desk.book,
        desk.objects,
        package=PACKAGE,
        items=[b"x"],
        slice_items=1,
        customer="customer-1",
        price_micro_per_item=1,
        currency="EUR",
        ttl_s=600,
        workload_class=workload_class,
    )


RIDS = itertools.count()


def asks(car: Car, *classes: str, have: tuple[JobKey, ...] = ()) -> tuple[str, str | None] | None:
    """The job and class of the grant that a car of these classes gets."""
    capability = Capability(device_class="x", executor="y", packages=(PACKAGE.sha256,), classes=classes)
    rid = f"r{next(RIDS)}"
    car.say("request", encode(Request(rid=rid, have=have, credit=1, cap=capability)))
    granted = car.hear_grant().job
    return None if granted is None else (granted.job, granted.workload_class)


def test_no_unit_is_granted_work_that_its_owner_does_not_take(desk: Desk, car: Car, other: Car) -> None:
    plain, speech, ocr = job(desk, None), job(desk, "speech"), job(desk, "ocr")
    assert asks(car, "video") is None
    assert asks(car, "ocr", "video") == (ocr, "ocr")
    assert asks(car, "ocr", have=(JobKey(ocr, 1),)) is None
    assert asks(other) == (plain, None), "no class named: any work"
    assert asks(other, have=(JobKey(plain, 1),)) == (speech, "speech")


def test_a_lost_lease_that_is_no_longer_taken_goes_to_somebody_else(desk: Desk, car: Car, other: Car) -> None:
    ocr = job(desk, "ocr")
    assert asks(car, "ocr") == (ocr, "ocr")
    assert asks(car, "ocr") == (ocr, "ocr"), "the grant was lost, and is sent again"
    assert asks(car, "speech") is None
    desk.now_ms += 10_000
    assert asks(other, "ocr") is None, "one request alone takes no lease away"
    assert asks(car, "speech") is None
    assert asks(other, "ocr") == (ocr, "ocr")


def test_a_class_that_no_grant_can_carry_is_refused(desk: Desk) -> None:
    with pytest.raises(FleetError, match="cannot be granted"):
        job(desk, "two words")


# --- from the operator's command to a car, over a real broker -----------------------------------------------------


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[tuple[Path, Car]]:
    """A folder as a rig has it, with its dispatcher running, and one car."""
    folder = tmp_path / "dispatcher"
    folder.mkdir()
    with EmbeddedBroker(tmp_path / "broker", free_port()) as broker:
        process = DispatcherProcess(folder, broker.port)
        ready = process.start()
        remote = Remote("car-1", broker.port, ready, (folder / "dispatcher.pub").read_text())
        try:
            yield tmp_path, Car(remote, "car-1", "welcome")
        finally:
            remote.close()
            process.kill()


def test_an_operators_orders_reach_the_car(rig: tuple[Path, Car], capsys: pytest.CaptureFixture[str]) -> None:
    folder, car = rig
    file = folder / "prices.json"
    file.write_text('[{"start": "2026-03-01T00:00+01:00", "end": "2026-03-01T00:15+01:00", "price": 0.21}]')
    where = ["--dir", str(folder), "--unit", "car-1"]
    assert main(["demand", "--stop-for", "15m", "--detail", "peak", *where]) == 0
    stop = hear(car)
    assert isinstance(stop, DemandMessage)
    assert (stop.stop_for_s, stop.detail) == (900, "peak")
    assert main(["demand", "--over", *where]) == 0
    over = hear(car)
    assert isinstance(over, DemandMessage)
    assert over.stop_for_s == 0
    assert over.issued_wall_ms > stop.issued_wall_ms
    assert capsys.readouterr().out == "car-1 is to stop for 900 s\ncar-1 may go on\n"
    assert main(["prices", str(file), *where]) == 1, "a curve of the past"
    said = capsys.readouterr().err
    assert "begin at most a day ago" in said
    assert "{" not in said, "a sentence, not the answer's JSON"
    assert main(["demand", "--over", "--dir", str(folder), "--unit", "nobody"]) == 1
    assert "no unit 'nobody' is enrolled" in capsys.readouterr().err
    _only_the_operator(folder)


def test_an_operator_paces_cells_and_takes_leases_back(
    rig: tuple[Path, Car], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = rig
    where = ["--dir", str(folder)]
    assert main(["pace", "closed", "--cell", "0a", "--spread", "15m", "--detail", "moving", *where]) == 0
    assert main(["pace", "stop", *where]) == 0
    assert main(["cancel", "no-such-job", *where]) == 1
    captured = capsys.readouterr()
    assert "there is no job 'no-such-job'" in captured.err
    said = captured.out.splitlines()
    assert said[0] == "1 cell: cars ask for no new work, what runs goes on"
    assert said[1].endswith("cells: cars give back what they hold")
    assert main(["counts", *where]) == 0
    assert {"book", "replica"} <= json.loads(capsys.readouterr().out).keys()
    with pytest.raises(SystemExit):
        main(["pace", "stop", "--cell", "everywhere", *where])
    assert "neither two hex digits nor all" in capsys.readouterr().err


def _only_the_operator(folder: Path) -> None:
    url = json.loads((folder / "dispatcher" / "ready").read_text())["http_url"]
    assert (folder / "dispatcher" / "operator.token").stat().st_mode & 0o077 == 0
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer wrong"}):
        asked = urllib.request.Request(f"{url}/units/car-1/demand", b'{"stop_for_s":900}', headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=10)
        assert refused.value.code == 403
        refused.value.close()


def test_a_price_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    with pytest.raises(ConfigError, match="cannot read the prices"):
        command.read_prices(file)
    good = {"start": "2026-03-01T00:00+01:00", "end": "2026-03-01T00:15:00+01:00", "price": "0.2105"}
    for change, complaint in (
        ({"start": "2026-03-01T00:00"}, "slot 2 has a time without its offset"),
        ({"price": "11"}, "slot 2 has the price 11"),
        ({"price": "cheap"}, "is no list of prices"),
        ({"end": "later"}, "slot 2 has the time 'later'"),
        ({"colour": "red"}, "colour"),
        ({}, "slot 2 begins before slot 1 ends"),
        ({"end": "2026-02-28T00:00Z"}, "slot 2 is from .* a slot ends after it begins"),
        ({"end": "2026-03-03T00:00Z"}, "slot 2 is from .* within a day"),
    ):
        file.write_text(json.dumps([good, good | change]))
        with pytest.raises(ConfigError, match=complaint):
            command.read_prices(file)
    file.write_text(json.dumps([good] * 257))
    with pytest.raises(ConfigError, match="257 slots; at most 256"):
        command.read_prices(file)
    file.write_text(json.dumps([good]))
    assert [slot.price_micro_per_kwh for slot in command.read_prices(file)] == [210_500]


@pytest.mark.parametrize(
    ("arguments", "longest"),
    [(["demand", "--stop-for", "25h"], "1d"), (["prices", "x.json", "--valid-for", "9d"], "8d")],
)
def test_an_order_that_no_car_takes_is_usage(
    arguments: list[str], longest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as usage:
        main(arguments)
    assert usage.value.code == 2
    assert f"is longer than {longest}" in capsys.readouterr().err


def test_without_a_dispatcher_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demand", "--over", "--dir", str(tmp_path)]) == 1
    assert "no dispatcher runs in" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main(["demand", "--dir", str(tmp_path)])
    assert usage.value.code == 2
