"""The footprint's limits: each names a figure, says why, and is broken by a figure beyond it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import DrivewayError
from hil.bench.footprint import (
    CAPACITY_GB,
    CYCLES,
    SHARE,
    WRITE_AMPLIFICATION,
    Figures,
    Limit,
    bound,
    flash,
    is_kept,
    judged,
    limits,
    value,
)
from hil.bench.footprint_container import Contained
from hil.bench.footprint_disk import DiskCounts, counts_of
from hil.bench.footprint_process import Use
from hil.bench.footprint_situations import Computing, Waiting, Working
from hil.bench.footprint_starts import Package, Spread, repeated, started
from hil.vm.footprint import Footprint

DOCS = Path(__file__).parents[2] / "docs"

IDLE = Waiting(
    gate="open",
    rss_mb=44.0,
    pss_mb=40.0,
    cpu_percent=0.3,
    wakeups_per_s=9.0,
    written_mb_per_h=0.4,
    disk_mb_per_h=1.0,
    flushes_per_h=12.0,
    network_kb_per_h=20.0,
)
WORKING = Working(
    leases=60,
    items=24,
    rss_mb=50.0,
    worker_rss_mb=60.0,
    cpu_ms_per_lease=30.0,
    worker_cpu_ms_per_lease=5.0,
    wakeups_per_lease=40.0,
    written_kb_per_lease=100.0,
    disk_kb_per_lease=250.0,
    flushes_per_lease=4.0,
    network_kb_per_lease=20.0,
    warm=IDLE,
)
USE = Use(rss_mb=50.0, pss_mb=45.0, cpu_percent=1.0, wakeups_per_s=50.0)
QUICK = Spread(n=10, ms=100.0, min_ms=90.0, max_ms=120.0, cpu_ms=90.0)
INSTALLED = Footprint(
    observed_s=60.0,
    rss_bytes=50_000_000,
    cpu_share=0.003,
    wakeups_per_s=10.0,
    written_bytes_per_h=0.0,
    unit_memory_bytes=None,
    unit_cpu_share=None,
    unit_written_bytes_per_h=None,
)


def good(**other: Any) -> Figures:
    found = Figures(
        held=True,
        broken={},
        absent={},
        asleep=IDLE,
        driving=IDLE,
        quiet=IDLE,
        parked=IDLE,
        computing=Computing(daemon=USE, worker=USE, disk_mb_per_h=None, flushes_per_h=None),
        leases=WORKING,
        flash=flash(IDLE, WORKING),
        ready=QUICK,
        starts={"status": QUICK},
        package=Package(name="driveway_1_amd64.deb", mb=80.0, installed_mb=200.0),
        container=Contained(
            package="driveway_1_amd64.deb", start_to_ready_s=1.0, daemon=INSTALLED, update_resident=False
        ),
        limits={},
    )
    return msgspec.structs.replace(found, **other)


def beyond(found: Any, path: list[str], figure: float) -> Any:
    """The same figures, but one."""
    name, *rest = path
    if isinstance(found, dict):
        return found | {name: beyond(found[name], rest, figure) if rest else figure}
    inner = beyond(getattr(found, name), rest, figure) if rest else figure
    return msgspec.structs.replace(found, **{name: inner})


def test_every_limit_names_a_figure_and_a_reason() -> None:
    found = judged(good(), limits())
    assert found.held, found.broken
    for limit in limits():
        assert value(found, limit.figure) is not None
        assert limit.why
        assert (limit.at_most is None) != (limit.at_least is None)
    assert len({limit.figure for limit in limits()}) == len(limits())
    assert set(found.limits) == {limit.figure for limit in limits()}


@pytest.mark.parametrize("limit", limits(), ids=lambda limit: limit.figure)
def test_a_figure_beyond_its_limit_breaks_that_one(limit: Limit) -> None:
    figure = limit.at_most * 1.01 if limit.at_most is not None else (limit.at_least or 0) * 0.99
    found = judged(beyond(good(), limit.figure.split("."), figure), limits())
    assert not found.held
    assert set(found.broken) == {limit.figure}
    assert limit.why in found.broken[limit.figure]


def test_what_was_not_measured_breaks_no_limit_and_is_named() -> None:
    found = judged(good(container=None, package=None, absent={"container": "no systemd-nspawn"}), limits())
    assert found.held
    assert value(found, "container.start_to_ready_s") is None
    assert found.absent


def test_flash_lasts_as_the_formula_says() -> None:
    # 24 h of 1 MB and 400 leases of 250 kB are 124 MB a day, four times that in the cells.
    life = flash(IDLE, WORKING)
    assert life.mb_per_day == 124.0
    assert life.counted == "what the disk was given"
    years = CAPACITY_GB * 1e9 * CYCLES * SHARE / (WRITE_AMPLIFICATION * 365 * 124e6)
    assert life.years == pytest.approx(years, rel=0.01)
    uncounted = flash(msgspec.structs.replace(IDLE, disk_mb_per_h=None), WORKING)
    assert uncounted.mb_per_day == pytest.approx(24 * 0.4 + 400 * 0.1)
    assert uncounted.counted == "pages that the daemon made dirty"


def test_a_disks_counts_are_read_as_the_kernel_writes_them() -> None:
    line = "  10  0  20  5  7  0  4096  9  0  14  14  0  0  0  0  3  2\n"
    assert counts_of(line) == DiskCounts(written_bytes=4096 * 512, writes=7, flushes=3)
    with pytest.raises(DrivewayError, match="does not count"):
        counts_of("10 0 20 5 7 0 4096 9 0 14 14\n")


def test_a_program_that_fails_is_no_start() -> None:
    wall_ms, cpu_ms = started(("/bin/true",))
    assert wall_ms > 0
    assert cpu_ms >= 0
    with pytest.raises(DrivewayError, match=r"ended with 3: so it goes"):
        repeated(lambda: started(("/bin/sh", "-c", "echo so it goes >&2; exit 3")))


def test_a_file_of_limits_that_is_none_explains_itself(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text("[[limit]]\nfigure = 3\n")
    with pytest.raises(DrivewayError, match=r"limits\.toml"):
        limits(file)
    with pytest.raises(DrivewayError, match=r"no figure .parked\.rs."):
        judged(good(), (Limit("parked.rs", "?", at_most=1),))


def test_the_documents_table_is_the_newest_run_with_every_limit() -> None:
    """`docs/proof.md` says what `docs/benchmarks/footprint.json` holds: figure, measured, limit (aim), reason."""
    kept = msgspec.json.decode((DOCS / "benchmarks" / "footprint.json").read_bytes(), type=Figures)
    rows = [
        f"| `{limit.figure}` | {found:g} | {bound(limit)} | {limit.why} |"
        for limit in limits()
        if (found := value(kept, limit.figure)) is not None
    ]
    page = (DOCS / "proof.md").read_text("utf-8")
    told = [line for line in page.partition("### Footprint")[2].partition("\n#")[0].splitlines() if line[:3] == "| `"]
    assert told == rows
    assert set(kept.broken) == {limit.figure for limit in limits() if not is_kept(kept, limit)}
