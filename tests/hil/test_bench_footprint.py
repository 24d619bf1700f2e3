"""The footprint's limits: each names a figure, says why, and is broken by a figure beyond it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.errors import DrivewayError
from hil.bench.footprint import ENDURANCE_TBW, Figures, Limit, Waiting, Working, flash, judged, limits, value

PARKED = Waiting(gate="open", rss_mb=44.0, pss_mb=40.0, cpu_percent=0.5, wakeups_per_s=30.0, written_mb_per_h=1.0)
WORKING = Working(
    leases=60, items=24, rss_mb=50.0, worker_rss_mb=60.0, cpu_ms_per_lease=30.0, written_kb_per_lease=100.0
)


def good() -> Figures:
    return judged(1.5, PARKED, PARKED, WORKING, limits())


def test_every_limit_names_a_figure_and_a_reason() -> None:
    found = good()
    assert found.held, found.broken
    for limit in limits():
        assert value(found, limit.figure) >= 0
        assert limit.why
        assert (limit.at_most is None) != (limit.at_least is None)


@pytest.mark.parametrize("figure", [limit.figure for limit in limits() if limit.at_most is not None])
def test_a_figure_beyond_its_limit_breaks_that_one(figure: str) -> None:
    (limit,) = (one for one in limits() if one.figure == figure)
    assert limit.at_most is not None
    group, _, name = figure.rpartition(".")
    parts = {"parked": PARKED, "driving": PARKED, "leases": WORKING}
    ready_s = limit.at_most * 1.01 if not group else 1.5
    if group:
        parts[group] = msgspec.structs.replace(parts[group], **{name: limit.at_most * 1.01})
    parked, driving, leases = parts["parked"], parts["driving"], parts["leases"]
    assert isinstance(parked, Waiting)
    assert isinstance(driving, Waiting)
    assert isinstance(leases, Working)
    found = judged(ready_s, parked, driving, leases, limits())
    assert not found.held
    assert figure in found.broken


def test_flash_lasts_as_the_formula_says() -> None:
    # 24 h of 10 MB and 400 leases of 100 kB are 280 MB a day, four times that on the chip.
    life = flash(10.0, 100.0)
    assert life.written_mb_per_day == 280.0
    assert life.years == pytest.approx(ENDURANCE_TBW * 1e12 / (4 * 365 * 280e6), rel=0.01)
    wears = judged(1.5, msgspec.structs.replace(PARKED, written_mb_per_h=5_000.0), PARKED, WORKING, limits())
    assert "flash.years" in wears.broken


def test_a_file_of_limits_that_is_none_explains_itself(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text("[[limit]]\nfigure = 3\n")
    with pytest.raises(DrivewayError, match=r"limits\.toml"):
        limits(file)
    with pytest.raises(DrivewayError, match=r"no figure .parked\.rs."):
        judged(1.5, PARKED, PARKED, WORKING, (Limit("parked.rs", "?", at_most=1),))
