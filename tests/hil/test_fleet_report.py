"""What a fleet run found, as JSON, as a table and as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest
from rich.console import Console

from hil.bench.command import Machine
from hil.fleet import report as report_module
from hil.fleet.command import show
from hil.fleet.figure import write_figure
from hil.fleet.plan import FleetPlan
from hil.fleet.report import Books, FleetReport, Outage, Step


def step(cars: int, **changes: object) -> Step:
    made = dict.fromkeys(Step.__struct_fields__, 1.5) | {
        "cars": cars,
        "connected": cars,
        "equivalent_cars": 10 * cars,
        "connects_best_s": 310,
        "jobs": cars,
        "renewals": 3,
        "broker_dropped": 0,
        "asked_again": 0,
        "handed_in_again": 0,
        "dispatcher_rss_bytes": 50_000_000,
        **changes,
    }
    return msgspec.convert(made, Step)


BOOKS = Books(
    made=900,
    settled=899,
    duplicate=1,
    stale=0,
    bad=0,
    owed=0,
    paid_micro=45_000,
    book_settled=900,
    book_paid_micro=45_000,
    lost=0,
    doubled=0,
)


def outage(what: str, *, paced: bool) -> Outage:
    return Outage(
        what=what,
        paced=paced,
        down_s=2.0,
        restored_at_s=2.1,
        cars=100,
        back_p50_s=1.5 if what == "broker" else None,
        back_p99_s=3.5 if what == "broker" else None,
        served_p50_s=2.0,
        served_p99_s=None,
        connects_best_s=60,
        connects=[0, 0, 60, 30, 10],
        served=[0, 0, 20, 30, 40],
        asked_again=7,
        handed_in_again=8,
    )


REPORT = FleetReport(
    plan=FleetPlan(cars=1_000),
    compression=10.0,
    steps=[step(100), step(1_000, renewal_p50_ms=None, database_cpu_ms_per_job=None)],
    outages=[outage("broker", paced=False), outage("dispatchers", paced=True)],
    books=BOOKS,
    held=True,
    machine=Machine("0.1", "3.11", "Linux", "a processor", 2),
    wall_s=12.0,
)


def shown(report: FleetReport) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=160), report)
    return stream.getvalue()


def test_the_table_has_a_column_for_each_size() -> None:
    text = shown(REPORT)
    assert "1,000" in text
    assert "leases 10 times shorter" in text
    assert "hand-ins made 900, settled 899" in text
    assert "lost 0, doubled 0" in text
    assert "paced" in text


def test_what_was_not_measured_is_a_dash() -> None:
    bare = msgspec.structs.replace(REPORT, outages=[], steps=[step(100, grant_p50_ms=None)])
    line = next(line for line in shown(bare).splitlines() if "grant p50" in line)
    assert "-" in line.rpartition("grant p50 ms")[2]


def test_every_key_is_explained_where_it_is_written() -> None:
    words = report_module.__doc__ or ""
    for kind in (Step, Outage, Books, FleetReport):
        for name in kind.__struct_fields__:
            assert name in words, f"{kind.__name__}.{name} is not in the docstring of hil/fleet/report.py"


def test_json_is_read_back_as_it_was() -> None:
    assert msgspec.json.decode(msgspec.json.encode(REPORT), type=FleetReport) == REPORT


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_report_gives_the_same_picture(tmp_path: Path, kind: str) -> None:
    first, second = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    write_figure(REPORT, first)
    write_figure(REPORT, second)
    assert first.read_bytes() == second.read_bytes()


def test_the_picture_says_what_it_shows(tmp_path: Path) -> None:
    write_figure(REPORT, tmp_path / "plots.svg")
    root = ET.fromstring((tmp_path / "plots.svg").read_text("utf-8"))
    words = " ".join("".join(element.itertext()) for element in root.iter() if element.tag.endswith("text"))
    for said in ("Latency of a grant, ms", "CPU a job, ms", "Broker killed, 100 cars", "99 % never", "up again"):
        assert said in words


def test_one_size_and_no_outage_can_be_drawn(tmp_path: Path) -> None:
    write_figure(msgspec.structs.replace(REPORT, steps=[step(20)], outages=[]), tmp_path / "plots.png")
    assert (tmp_path / "plots.png").stat().st_size > 10_000
