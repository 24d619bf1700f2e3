from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.core.events import DemandSeen, OwnerMode, OwnerSaid, Quality, SignalsSeen, SourceChanged
from agent.core.signals import CABLE, GEAR, LEAVES, SEAT
from agent.errors import TraceError
from agent.simulate.table import NAMES, parse_table, read_table
from agent.simulate.trace import ClockSet, NetworkSet, Quantity, Recorded, Trace
from tests.simulate.nights import SPEED

HEAD = "time,name,value\n"
START_MS = round(dt.datetime(2026, 3, 28, 20, tzinfo=dt.UTC).timestamp() * 1000)


def said(rows: str, start_wall_ms: int | None = START_MS) -> list[object]:
    return list(parse_table(HEAD + rows, "t", start_wall_ms).stimuli)


def only(rows: str) -> object:
    return said(rows)[-1]


def test_rows_of_one_moment_are_one_event_and_the_first_says_that_the_car_speaks() -> None:
    first, second, third = said(f"0,{SPEED},3\n0,{GEAR},P\n1.25,{SPEED},0\n")
    assert isinstance(first, SourceChanged)
    assert first.alive
    assert isinstance(second, SignalsSeen)
    assert [(one.path, one.value) for one in second.samples] == [(SPEED, 3.0), (GEAR, 126.0)]
    assert isinstance(third, SignalsSeen)
    assert third.at_ms == 1250


@pytest.mark.parametrize("nothing", ["", "NA", "n/a", "NaN", "null"])
def test_an_empty_value_is_unknown_and_not_zero(nothing: str) -> None:
    seen = only(f"0,{SPEED},{nothing}\n")
    assert isinstance(seen, SignalsSeen)
    assert (seen.samples[0].value, seen.samples[0].quality) == (None, Quality.UNKNOWN)
    assert only(f"0,compute.die_c,{nothing}\n") == Recorded(at_ms=0, quantity=Quantity.DIE_C, value=None)


def test_older_names_are_understood_and_taken_as_leaves_of_this_car() -> None:
    trace = parse_table(
        f"{HEAD}0,Vehicle.Cabin.Seat.Row1.DriverSide.IsOccupied,true\n"
        "0,Vehicle.Powertrain.TractionBattery.Charging.IsChargingCableConnected,yes\n",
        "t",
        absent=frozenset({CABLE, "Vehicle.Body.Hood.IsOpen"}),
    )
    assert trace.vehicle.offered == {SEAT, CABLE}
    assert trace.vehicle.absent == {"Vehicle.Body.Hood.IsOpen"}, "what the trace tells, the car has"


def test_what_is_not_of_the_car() -> None:
    assert only("2,network,metered\n") == NetworkSet(at_ms=2000, connected=True, metered=True)
    assert only("2,network,down\n") == NetworkSet(at_ms=2000, connected=False, metered=False)
    assert only("2,clock,-90.5\n") == ClockSet(at_ms=2000, error_ms=-90_500, kept=True)
    assert only("2,clock,unkept\n") == ClockSet(at_ms=2000, error_ms=0, kept=False)
    assert only("2,owner,paused\n") == OwnerSaid(at_ms=2000, mode=OwnerMode.PAUSED)
    assert only("2,demand,60\n") == DemandSeen(at_ms=2000, stop_for_ms=60_000, detail="recorded")
    lost = only("2,source,lost\n")
    assert isinstance(lost, SourceChanged)
    assert not lost.alive


def test_prices_become_one_curve_that_holds_between_rows_and_to_the_end() -> None:
    price = "price_micro_per_kwh"
    trace = parse_table(
        f"{HEAD}0,{price},300000\n3600,{price},NA\n7200,{price},-5000\n9000,ambient_c,3\n", "t", START_MS
    )
    assert [(one.start_wall_ms - START_MS, one.end_wall_ms - START_MS) for one in trace.prices] == [
        (0, 3_600_000),
        (7_200_000, 9_000_000),
    ]
    assert [one.price_micro_per_kwh for one in trace.prices] == [300_000, -5_000]


def test_rfc_3339_times_tell_the_date_across_the_change_of_the_clocks() -> None:
    rows = f"2026-03-29T01:59:59+01:00,{SPEED},1\n2026-03-29T03:00:01+02:00,{SPEED},0\n"
    trace = parse_table(HEAD + rows, "t")
    assert trace.start_wall_ms == round(dt.datetime(2026, 3, 29, 0, 59, 59, tzinfo=dt.UTC).timestamp() * 1000)
    assert [one.at_ms for one in trace.stimuli] == [0, 0, 2000]


def test_columns_in_another_order_comments_blanks_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "night.csv"
    path.write_bytes(f"\ufeff# a night\r\nvalue,time,name\r\n\r\n7,0,{SPEED}\r\n# end\r\n".encode())
    seen = list(read_table(path).stimuli)[-1]
    assert isinstance(seen, SignalsSeen)
    assert seen.samples[0].value == 7.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: the trace has no rows"),
        (HEAD, "line 1: the trace has no rows"),
        ("time,nam,value\n0,a,1\n", "line 1: unknown column 'nam'; did you mean 'name'?"),
        ("time,name\n0,a\n", "line 1: the header is 'time,name'"),
        (HEAD + "0,Vehicle.Sped,1\n", "line 2: unknown name 'Vehicle.Sped'; did you mean 'Vehicle.Speed'?"),
        (HEAD + "0,qqqqqqqq,1\n", "line 2: unknown name 'qqqqqqqq'; docs/simulate.md"),
        (HEAD + f"0,{SPEED},1\n\n0,{SPEED}\n", "line 4: 2 columns"),
        (HEAD + f"0,{SPEED},fast\n", "line 2: Vehicle.Speed is 'fast'; it takes a number"),
        (HEAD + f"0,{SPEED},inf\n", "line 2: Vehicle.Speed is 'inf'"),
        (HEAD + f"0,{GEAR},X\n", "it takes P, R, N, D or a VSS number"),
        (HEAD + f"0,{SEAT},FULL\n", "it takes one of EMPTY, OCCUPIED, or NA"),
        (HEAD + "0,Vehicle.Body.Trunk.Rear.IsOpen,ajar\n", "it takes true or false"),
        (HEAD + f"5,{SPEED},1\n4,{SPEED},1\n", "line 3: time '4' is before the line above"),
        (HEAD + f"-1,{SPEED},1\n", "line 2: time '-1' is not within 0 and"),
        (HEAD + f"nan,{SPEED},1\n", "line 2: time 'nan' is not within 0 and"),
        (HEAD + f"noon,{SPEED},1\n", "line 2: time 'noon' is no time"),
        (HEAD + f"2026-03-28T22:00,{SPEED},1\n", "has no offset; end it with Z"),
        (HEAD + f"0,{SPEED},1\n2026-03-28T22:00Z,{SPEED},1\n", "line 3: time '2026-03-28T22:00Z' is of another kind"),
        (HEAD + f"2026-03-28T22:00Z,{SPEED},1\n2028-03-28T22:00Z,{SPEED},1\n", "more than 31 days after the first"),
        (HEAD + f"9999-12-31T22:00Z,{SPEED},1\n", "is not within 1970 and 2100"),
        (HEAD + "0,ambient_c,99\n", "it takes a number from -60 to 80, or NA"),
        (HEAD + "0,network,gone\n", "it takes up, down or metered"),
        (HEAD + "0,owner,away\n", "it takes auto, paused, finish, or `consent N`"),
        (HEAD + "0,source,dead\n", "it takes lost or alive"),
        (HEAD + "0,demand,-5\n", "it takes 0 to 604800 seconds"),
        (HEAD + "0,clock,late\n", "it takes kept, unkept, or the seconds"),
        (HEAD + "0,price_micro_per_kwh,5\n", "a price needs to know the date; give --start"),
        (HEAD + '0,"' + SPEED + "\n", "no CSV"),
    ],
)
def test_what_is_not_understood_is_told_with_its_line(text: str, told: str) -> None:
    with pytest.raises(TraceError, match=re.escape(told)):
        parse_table(text, "t")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "night.csv"
    path.write_bytes(b"time,name,value\n0,\xff,1\n")
    with pytest.raises(TraceError, match="is no text"):
        read_table(path)


words = st.one_of(
    st.sampled_from(sorted(NAMES)),
    st.sampled_from(
        ["", "NA", "true", "0", "-1", "1e300", "P", "lost", "paused", "consent 3", "2026-03-28T22:00Z", "up"]
    ),
    st.floats().map(str),
    st.text(max_size=12),
)
rows = st.lists(st.tuples(words, words, words), max_size=12)


@given(rows)
@example([("0", SPEED, "1e308"), ("0", SPEED, "2")])
def test_no_rows_break_the_reader(rows: list[tuple[str, str, str]]) -> None:
    """Whatever stands in a row, it is a night in order of time, or an error with a line."""
    text = HEAD + "".join(",".join(row) + "\n" for row in rows)
    error, trace = _parsed(text, START_MS)
    if trace is None:
        assert re.match(r"line \d+: ", error)
        return
    times = [one.at_ms for one in trace.stimuli]
    assert times == sorted(times)
    assert trace.vehicle.offered <= set(LEAVES)


@given(st.text(max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    error, trace = _parsed(text, None)
    assert error or trace is not None


def _parsed(text: str, start_wall_ms: int | None) -> tuple[str, Trace | None]:
    try:
        return "", parse_table(text, "t", start_wall_ms)
    except TraceError as error:
        return error.what, None
