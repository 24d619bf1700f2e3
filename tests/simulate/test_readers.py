from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.events import SignalsSeen, SourceChanged, SourceHeard
from agent.core.signals import DOOR_HANDLE, GEAR, SPEED
from agent.errors import ConfigError, TraceError
from agent.simulate.readers import Options, open_trace
from agent.simulate.recording import Recording
from agent.simulate.trace import Stimulus, Trace
from tests.simulate import sample_log

DATA = Path(__file__).parent / "data"
LOG = DATA / "tesla-evening.log"
TESLA = Options(
    profiles=("tesla-model3", "driveway-energy"), buses={"can0": "party", "can1": "vehicle", "can2": "energy"}
)


def played(path: Path, options: Options = TESLA) -> tuple[Trace, list[Stimulus]]:
    trace = open_trace(path, options)
    assert isinstance(trace, Trace)
    return trace, list(trace.stimuli)


@pytest.fixture(scope="module")
def evening() -> tuple[Trace, list[Stimulus]]:
    return played(LOG)


def test_the_sample_log_is_what_its_maker_makes() -> None:
    assert LOG.read_text("ascii").splitlines() == list(sample_log.lines())


def test_a_log_is_what_the_daemon_would_have_heard(evening: tuple[Trace, list[Stimulus]]) -> None:
    trace, events = evening
    assert (trace.kind, trace.start_wall_ms, trace.remarks) == ("candump", sample_log.START_S * 1000, [])
    assert {SPEED, GEAR, DOOR_HANDLE} < trace.vehicle.offered
    assert [one.at_ms for one in events] == sorted(one.at_ms for one in events)
    handle = [
        (event.at_ms, sample.value)
        for event in events
        if isinstance(event, SignalsSeen)
        for sample in event.samples
        if sample.path == DOOR_HANDLE
    ]
    pulled_ms = next(at_ms for at_ms, value in handle if value is True)
    assert 24_330 <= pulled_ms <= 24_330 + 20, "at most a drain after the frame"
    assert [value for _, value in handle] == [False, True, False]
    assert sum(isinstance(event, SourceHeard) for event in events) > 3 * 10 * 20


def test_a_bus_that_falls_silent_is_lost_two_seconds_later_and_found_again(
    evening: tuple[Trace, list[Stimulus]],
) -> None:
    changes = [one for one in evening[1] if isinstance(one, SourceChanged)]
    assert {one.source for one in changes[3:6]} == {"party", "vehicle", "energy"}
    for one in changes[3:6]:
        assert not one.alive
        assert 30_500 <= one.at_ms <= 31_100
        assert one.detail == "no frames for 2 s"
    assert {one.source for one in changes[6:]} == {"party", "vehicle", "energy"}
    assert all(one.alive and one.at_ms >= sample_log.WAKES_MS for one in changes[6:])


def test_gzipped_or_not_is_the_same(tmp_path: Path, evening: tuple[Trace, list[Stimulus]]) -> None:
    path = tmp_path / "night"
    path.write_bytes(gzip.compress(LOG.read_bytes()))
    assert played(path)[1] == evening[1]


def test_a_start_that_is_given_wins_and_a_log_that_counts_from_zero_has_none(tmp_path: Path) -> None:
    assert (
        played(LOG, Options(profiles=TESLA.profiles, buses=TESLA.buses, start_wall_ms=5_000))[0].start_wall_ms == 5_000
    )
    path = tmp_path / "zero.log"
    path.write_text("".join(_shifted(line) for line in LOG.read_text("ascii").splitlines()[:200]), "ascii")
    assert played(path)[0].start_wall_ms is None


def _shifted(line: str) -> str:
    stamp, rest = line.split(")", 1)
    return f"({float(stamp[1:]) - sample_log.START_S:.6f}){rest}\n"


def test_what_is_odd_about_a_log_is_remarked(tmp_path: Path) -> None:
    path = tmp_path / "odd.log"
    lines = LOG.read_text("ascii").splitlines()[:400]
    lines.insert(7, "this is no frame")
    lines.append("(999999999999.000000) can0 118#0000000000000000")
    gear = next(number for number in range(50, 100) if " can0 118#" in lines[number])
    lines[gear] = lines[gear].replace("8520", "8521")  # the checksum does not hold any more
    path.write_text("\n".join(lines), "ascii")
    buses = {"can0": "party", "can9": "vehicle"}
    remarks = played(path, Options(profiles=TESLA.profiles, buses=buses))[0].remarks
    told = " ".join(remarks)
    assert "1 lines are no frames (the first is line 8)" in told
    assert "1 frames are more than 31 days after the first" in told
    assert "Nothing was heard on can9 (vehicle)" in told
    assert "can0 (party): dropped_checksum 1" in told


def test_what_a_file_is_shows_in_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "night.log"
    path.write_text(f"# a comment\n\ntime,name,value\n0,{SPEED},0\n", "utf-8")
    assert played(path, Options())[0].kind == "csv"


def test_a_profile_says_what_the_car_of_a_csv_lacks(tmp_path: Path) -> None:
    profile = tmp_path / "small.toml"
    profile.write_text(
        'name = "small"\ndescription = "no handle"\nabsent = ["Vehicle.Driveway.DoorHandlePulled"]\nbuses = {}\n',
        "utf-8",
    )
    path = tmp_path / "night.csv"
    path.write_text(f"time,name,value\n0,{SPEED},0\n", "utf-8")
    assert played(path, Options(profiles=(str(profile),)))[0].vehicle.absent == {DOOR_HANDLE}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"# only\n\n", "is empty"),
        (b"(nonsense\n", "has no line that is a frame"),
        (gzip.compress(b"time,name,value\n", mtime=0), "is gzipped and neither a candump log nor a recording"),
        (gzip.compress(b"(1.0) can0 118#00", mtime=0)[:12], "cannot read the trace"),
        (b"\x1f\x8b", "cannot read the trace"),
        (b'{"no": "header"}\n', "line 1 is not a header of a recording"),
    ],
)
def test_a_file_that_is_no_trace_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "night"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=told):
        played(path)


def test_a_missing_file_and_a_directory_are_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(TraceError, match="cannot read the trace"):
            open_trace(path, TESLA)


def test_a_log_without_a_profile_asks_for_one_and_names_the_buses() -> None:
    with pytest.raises(ConfigError, match="add --profile and --bus"):
        open_trace(LOG, Options())
    with pytest.raises(ConfigError, match="with BUS one of party, vehicle"):
        open_trace(LOG, Options(profiles=("tesla-model3",)))


def test_a_log_whose_buses_are_all_others_is_told_with_its_interfaces() -> None:
    with pytest.raises(TraceError, match="the log's interfaces: can0, can1, can2"):
        played(LOG, Options(profiles=TESLA.profiles, buses={"vcan0": "party"}))


frames = st.from_regex(r"\(\d{1,10}\.\d{6}\) can[0-3] ([0-9A-F]{3}|[0-9A-F]{8})#([0-9A-F]{2}){0,8}", fullmatch=True)
lines = st.lists(st.one_of(frames, st.text(max_size=40)), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines)
def test_no_log_breaks_the_reader(tmp_path: Path, lines: list[str]) -> None:
    """Whatever stands in a log, it is events in order of time, or an error that a person can read."""
    path = tmp_path / "night.log"
    path.write_bytes("\n".join(["(0.000000) can0 118#0000000000000000", *lines]).encode("utf-8", "surrogatepass"))
    trace = open_trace(path, TESLA)
    assert not isinstance(trace, Recording)
    events: list[Stimulus] = []
    try:
        events.extend(trace.stimuli)
    except TraceError as error:
        events.clear()
        told = error.what
        assert "no frame that the profile explains" in told
    assert [one.at_ms for one in events] == sorted(one.at_ms for one in events)
