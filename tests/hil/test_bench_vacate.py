"""The vacate bench: its arithmetic, and two real edges. What they took is the bench's to say, not a test's."""

from __future__ import annotations

import random
from typing import Any

import pytest

from hil.bench import vacate
from hil.bench.vacate import SLICE_ITEMS, percentile

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("count", "percent", "rank"), [(1, 50, 1), (2, 50, 1), (100, 99, 99), (1000, 99, 990), (20, 99, 20), (3, 100, 3)]
)
def test_percentiles_are_by_nearest_rank(count: int, percent: float, rank: int) -> None:
    values = list(range(1, count + 1))
    random.Random(1).shuffle(values)
    assert percentile(sorted(map(float, values)), percent) == rank


WORKER = {"phase": "ready"}
LEASE = {"items_done_in_slice": 5}


@pytest.mark.parametrize(
    ("status", "computing"),
    [
        ({"lease": LEASE, "worker": WORKER}, True),
        ({"lease": None, "worker": WORKER}, False),
        ({"lease": LEASE, "worker": None}, False),
        ({"lease": LEASE, "worker": {"phase": "starting"}}, False),
        ({"lease": {"items_done_in_slice": 0}, "worker": WORKER}, False),
        ({"lease": {"items_done_in_slice": SLICE_ITEMS - 1}, "worker": WORKER}, False),
    ],
)
def test_an_edge_counts_only_in_the_middle_of_a_slice(status: dict[str, Any], computing: bool) -> None:
    assert vacate._computing(status) is computing


def test_two_edges_on_a_real_rig() -> None:
    figures = vacate.run(edges=2)
    assert figures.edges == 2
    assert 0 < figures.p50_ms <= figures.p99_ms == figures.max_ms < 30_000
    assert figures.daemon_max_ms is not None
