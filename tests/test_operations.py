"""The arithmetic of docs/operations.md is worked out again from the figures that it names."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from agent.local_config import MetricsSection

TEXT = (Path(__file__).parent.parent / "docs" / "operations.md").read_text("utf-8")
FLEETS = (10, 10_000, 1_000_000, 100_000_000)
SHARE, LEASE_S, PING_S, UP_AND_BYE_S, SPREAD_S = 0.30, 600, 300, 7_200, 900
AWS_CONNECTIONS, AWS_PUBLISHES_PER_S, AWS_CONNECTS_PER_S = 500_000, 20_000, 500


def row(begins: str) -> list[str]:
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {begins}")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


def is_rounded(cell: str, value: float) -> bool:
    """Whether a cell shows this value, rounded to the digits that it has."""
    digits = len(cell.partition(".")[2])
    shown = number(cell)
    return abs(shown - value) <= 0.5000001 * 10**-digits or abs(shown - value) / value < 0.002


def per_lease(begins: str, unit: str) -> float:
    found = re.match(rf"([\d.]+) {unit}", row(begins)[-1])
    assert found is not None, row(begins)[-1]
    return float(found[1])


CONNECTED = [cars * SHARE for cars in FLEETS]
LEASES = [cars / LEASE_S for cars in CONNECTED]


def columns() -> dict[str, list[float]]:
    publishes, messages = per_lease("publishes a second by", "a lease"), per_lease("messages a second at", "a lease")
    kilobytes, memory_kb = per_lease("MB a second", "KB"), per_lease("broker memory, GB, without", "KB")
    times = per_lease("broker memory, GB, with TLS", "times")
    dispatcher_ms, database_ms = per_lease("dispatcher cores", "ms"), per_lease("PostgreSQL cores", "ms")
    return {
        "cars connected": CONNECTED,
        "leases a second | 0": LEASES,
        "publishes a second by": [rate * publishes for rate in LEASES],
        "messages a second at": [rate * messages for rate in LEASES],
        "MB a second": [rate * kilobytes / 1e3 for rate in LEASES],
        "keep-alive pings": [cars / PING_S for cars in CONNECTED],
        "status messages": [2 * cars / UP_AND_BYE_S for cars in CONNECTED],
        "broker memory, GB, without": [cars * memory_kb / 1e6 for cars in CONNECTED],
        "broker memory, GB, with TLS": [cars * memory_kb * times / 1e6 for cars in CONNECTED],
        "dispatcher cores": [rate * dispatcher_ms / 1e3 for rate in LEASES],
        "PostgreSQL cores": [rate * database_ms / 1e3 for rate in LEASES],
        "rows written": [6 * rate for rate in LEASES],
        "connects a second after": [cars / SPREAD_S for cars in CONNECTED],
    }


@pytest.mark.parametrize(("begins", "values"), columns().items())
def test_the_arithmetic_is_right(begins: str, values: list[float]) -> None:
    cells = row(begins)[-5:-1]
    wrong = [(cell, value) for cell, value in zip(cells, values, strict=True) if not is_rounded(cell, value)]
    assert wrong == []


def test_a_wrong_cell_would_be_found() -> None:
    assert is_rounded("2,072", 2_070)
    assert not is_rounded("2,072", 2_200)
    assert not is_rounded("0.02", 0.03)


def test_the_quotas_of_aws_are_worked_out_from_the_table() -> None:
    connections, publishes, connects = (
        row(begins) for begins in ("connections | 500,000", "publishes a second, in", "connects a second, `spread_s`")
    )
    assert connections[1:] == ["0.6 %", "60 %", f"{CONNECTED[3] / AWS_CONNECTIONS:.0f} accounts"]
    assert CONNECTED[1] / AWS_CONNECTIONS == pytest.approx(0.006)
    assert CONNECTED[2] / AWS_CONNECTIONS == pytest.approx(0.6)
    rates = columns()["publishes a second by"]
    shares = [100 * rate / AWS_PUBLISHES_PER_S for rate in rates[1:3]]
    assert [f"{share:.1g} %" for share in shares] == publishes[1:3]
    assert publishes[3] == f"{rates[3] / AWS_PUBLISHES_PER_S:.1f} times the quota"
    again = [cars / SPREAD_S / AWS_CONNECTS_PER_S for cars in CONNECTED[1:]]
    assert connects[1:] == [f"{100 * again[0]:.1g} %", f"{100 * again[1]:.0f} %", f"{again[2]:.0f} times the quota"]


def test_the_plans_are_worked_out_from_the_table() -> None:
    region = CONNECTED[3] / 20
    assert region == 1_500_000
    assert f"{region * 23.7 * 2.5 / 1e6:.0f} GB; on three nodes" in TEXT
    assert f"{region / SPREAD_S:,.0f} connects/s a region" in TEXT
    assert f"{number(row('messages a second at')[-2]) / 20:,.0f} messages/s a region" in TEXT
    assert f"{columns()['dispatcher cores'][3] / 20:.1f} cores a region" in TEXT


def test_the_keys_of_metrics_are_documented_with_their_defaults() -> None:
    told = {name: cells for name, *cells in re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \| ", TEXT, re.MULTILINE)}
    for field in msgspec.structs.fields(MetricsSection):
        assert msgspec.json.decode(told[field.name][0]) == field.default
