"""The pipeline's benchmark: that both sides do the same work, and that the figures are told; never how fast it is."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from agent.package import Package
from agent.wire import encode_input
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.pipeline import Pipeline
from hil.bench import pipeline
from hil.bench.made_work import ITEMS, build_work, work_items
from hil.bench.pipeline import Load, Place, Turn, places
from hil.bench.pipeline_peer import Loops, Took

FIRST = places()[:1]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return build_work(tmp_path_factory.mktemp("work") / "work", 0.2)


def test_the_script_gives_the_leased_workers_answers(work: Package) -> None:
    items = work_items(ITEMS * 2)
    engine = OnnxRuntimeCpu(work.read("model.onnx"), threads=1, memory_mb=256)
    leased = [answer.body for answer in Pipeline(work, engine).compute(items)]
    engine.close()
    loops = Loops(work, items, threads=1)
    loops.bare(2)
    assert json.loads(loops.naive(2)) == leased


def test_a_small_run_tells_every_figure(work: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Load("work/16", work, work_items(ITEMS * 4), ITEMS)
    monkeypatch.setattr(pipeline, "_loads", lambda _: [load])
    monkeypatch.setattr(pipeline, "places", lambda: FIRST)
    monkeypatch.setattr(pipeline, "WARM_STARTS", 2)
    figures = msgspec.to_builtins(pipeline.run(rounds=2, slice_s=0.02, starts=1))
    (row,) = figures["pipelines"].values()
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert min(row["micro_batch_ms"], row["items_per_s"], row["bare_items_per_s"], row["naive_ratio"]) > 0
    assert min(figures["starts"]["work/16"].values()) > 0
    assert figures["versions"]["onnxruntime"]
    assert figures["rounds"] == 2


def turn(leased_s: float, bare_s: float) -> Turn:
    return Turn(Took(leased_s, 0.3), Took(bare_s, 0.1), Took(2.0, 2.0))


@pytest.mark.parametrize(
    ("bare_s", "spare", "aim", "held"), [(1.0, True, 0.98, False), (0.2, True, 0.95, True), (1.0, False, None, True)]
)
def test_an_aim_stands_where_there_is_a_processor_to_spare(
    work: Package, bare_s: float, spare: bool, aim: float | None, held: bool
) -> None:
    place = Place((0, 1), 1) if spare else Place((0,), 1)
    turns = [turn(bare_s / ratio, bare_s) for ratio in (0.5, 0.96, 0.97)]
    row = pipeline.row_of(turns, Load("work", work, [b""], 4), place, count=100)
    assert row.ratio == pytest.approx(0.96)
    assert row.aim == aim
    assert (row.aim is None or row.ratio >= row.aim) == held
    assert row.micro_batch_ms == pytest.approx(bare_s * 10)
    assert row.overhead_us == pytest.approx((bare_s / 0.96 - bare_s) * 10_000)
    assert row.cpu_overhead_us == pytest.approx(2000)
    assert row.bare_items_per_s == pytest.approx(400 / bare_s)


def test_what_a_peer_is_asked_it_answers(work: Package, tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(encode_input(work_items(ITEMS)))
    with pipeline.peer(Load("work", work, [b""], ITEMS), FIRST[0], file) as ask:
        assert ask("bare", 1).wall_s > 0
        assert ask("naive", 1).cpu_s > 0
