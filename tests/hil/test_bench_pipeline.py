"""The pipeline's benchmark: that both sides do the same work, and that the figures are told; never how fast it is."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from agent.errors import DrivewayError
from agent.package import Package
from agent.wire import encode_input
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.pipeline import Pipeline
from hil import cli
from hil.bench import PIPELINE_PACKAGES, command, pipeline, pipeline_starts, pipeline_turns, pipeline_vacate
from hil.bench.made_work import ITEMS, build_work, work_items
from hil.bench.pipeline_loads import LOADS, Load, Place, build_load, places
from hil.bench.pipeline_peer import Loops, Took
from hil.bench.pipeline_starts import start_of
from hil.bench.pipeline_turns import Turn, peer, row_of
from hil.bench.pipeline_vacate import Vacate, memory_of, p99_ms, sum_bytes, vacated

FIRST = places()[:1]
MB = 1024**2


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
    load = Load("work 16", work, work_items(ITEMS * 4), ITEMS)
    monkeypatch.setattr(pipeline, "build_load", lambda _name, _folder: load)
    monkeypatch.setattr(pipeline, "places", lambda: [*FIRST, Place(FIRST[0].processors[:1], 1)])
    monkeypatch.setattr(pipeline_starts, "WARM_STARTS", 2)
    monkeypatch.setattr(pipeline_turns, "SINGLES", 2)
    figures = msgspec.to_builtins(pipeline.run("work-2ms", rounds=2, slice_s=0.02, starts=1, vacates=2))
    (entry,) = figures["packages"].values()
    for key in ("micro_batch_ms", "cold_start_ms", "process_start_ms", "warm_start_ms", "ratio", "naive_ratio"):
        assert entry[key] > 0
    for key in ("micro_batch", "cold_start", "warm_start"):
        assert entry[f"{key}_min_ms"] <= entry[f"{key}_ms"] <= entry[f"{key}_max_ms"]
    assert entry["overhead_min_us"] <= entry["overhead_us"] <= entry["overhead_max_us"]
    assert entry["drained"]
    assert entry["vacates"] == figures["vacates"] == 2
    assert 0 < entry["vacate_min_ms"] <= entry["vacate_p50_ms"] <= entry["vacate_max_ms"] == figures["vacate_max_ms"]
    assert entry["worker_rss_mb"] > entry["worker_own_mb"] > 1
    ((elsewhere, row),) = figures["places"].items()
    assert elsewhere == "work 16, 1 thread on 1"
    assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    assert figures["versions"]["onnxruntime"]


@pytest.mark.parametrize("name", ["orientation", "detector"])
def test_a_recipes_load_has_one_bucket_and_items_that_fit(name: str, tmp_path: Path) -> None:
    load = build_load(name, tmp_path)
    (bucket,) = load.package.manifest.buckets
    assert bucket.items == load.batch_items
    assert load.name.startswith(f"{load.package.manifest.name} {bucket.items}x")
    assert len(load.repeated(3)) == 3 * load.batch_items
    assert len(load.items) >= load.batch_items


def test_every_load_has_the_name_that_a_person_gives() -> None:
    assert tuple(LOADS) == PIPELINE_PACKAGES


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
    singles_s = [bare_s / 100 + more_s for more_s in (0.001, 0.004, 0.002)]
    row = row_of(turns, singles_s, Load("work", work, [b""], 4), place, count=100)
    assert (row.ratio_min, row.ratio, row.ratio_max) == pytest.approx((0.5, 0.96, 0.97))
    assert row.aim == aim
    assert (row.aim is None or row.ratio >= row.aim) == held
    assert row.micro_batch_ms == pytest.approx(bare_s * 10)
    assert row.overhead_us == pytest.approx((bare_s / 0.96 - bare_s) * 10_000)
    assert row.overhead_max_us == pytest.approx(bare_s * 10_000)
    assert row.cpu_overhead_us == pytest.approx(2000)
    assert (row.slice_overhead_min_us, row.slice_overhead_us) == pytest.approx((1000, 2000))
    assert row.slice_overhead_max_us == pytest.approx(4000)
    assert row.bare_items_per_s == pytest.approx(400 / bare_s)


def vacate(gone_ms: float, *, drained: bool = True, killed: bool = False) -> Vacate:
    return Vacate(gone_ms, drained, killed, rss_bytes=90 * MB, own_bytes=40 * MB, freed_bytes=39 * MB)


def test_of_fewer_than_a_hundred_vacates_there_is_no_p99() -> None:
    few = vacated([vacate(float(one)) for one in range(99, 0, -1)])
    assert (few.vacate_p50_ms, few.vacate_p99_ms, few.vacate_min_ms, few.vacate_max_ms) == (50.0, None, 1.0, 99.0)
    many = vacated([vacate(float(one)) for one in range(1, 201)])
    assert (many.vacates, many.vacate_p99_ms, many.vacate_max_ms) == (200, 198.0, 200.0)
    assert p99_ms([1.0]) is None


def test_vacates_say_who_was_killed_and_what_memory_is_missing() -> None:
    figures = vacated([vacate(5.0), vacate(61.0, killed=True)])
    assert figures.drained
    assert figures.killed == 1
    assert (figures.worker_rss_mb, figures.worker_own_mb) == (90.0, 40.0)
    assert (figures.memory_freed_mb, figures.memory_left_mb) == (39.0, 1.0)
    assert not vacated([vacate(5.0, drained=False, killed=True)]).drained


def test_memory_is_read_out_of_the_kernels_words() -> None:
    status = (
        "Name:\tworker\nVmRSS:\t    3072 kB\nRssAnon:\t    1024 kB\nRssFile:\t    1024 kB\nRssShmem:\t    1024 kB\n"
    )
    assert (memory_of(status).rss_bytes, memory_of(status).own_bytes) == (3 * MB, 2 * MB)
    assert sum_bytes("AnonPages:  4 kB\nShmem:  2 kB\n", "AnonPages", "Shmem") == 6144
    with pytest.raises(DrivewayError, match="does not say RssAnon"):
        memory_of("Name:\tworker\nState:\tZ (zombie)\n")


def test_a_worker_that_is_to_be_killed_is(work: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the detector's package comes to, where one micro-batch is longer than the budget."""
    monkeypatch.setattr(pipeline_vacate, "BUDGET_MS", 0)
    load = Load("work 16", work, work_items(ITEMS * 4), ITEMS)
    figures = vacated(asyncio.run(pipeline_vacate.vacate_often(load, FIRST[0], 1)))
    assert not figures.drained
    assert figures.killed == 1


def test_the_table_of_every_figure_fits_a_hundred_columns(work: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is cut short, and none is broken but between words."""
    names = ["ocr-line 1x480", "line-orientation 16x192", "text-detector 1x960x960", "work-2ms 16", "work-10ms 16"]
    row = row_of([turn(1.0, 0.98)] * 2, [0.00123456] * 2, Load("", work, [], 1), Place((0, 1), 1), count=7)
    start = start_of([12345.678], [1234.5678], [12.345678])
    entry = pipeline.entry_of(row, start, vacated([vacate(56.123456, drained=False, killed=True)] * 30))
    elsewhere = msgspec.to_builtins(msgspec.convert(row, pipeline.Elsewhere, from_attributes=True))
    told = io.StringIO()
    console = Console(file=told, width=100)
    figures = {
        "packages": dict.fromkeys(names, entry),
        "places": {f"{one}, 2 threads on 2": elsewhere for one in names},
    }
    command._print(console, "pipeline", figures)
    printed = told.getvalue()
    assert max(map(len, printed.splitlines())) <= 100
    assert "…" not in printed
    for word in ("line-orientation", "text-detector", *entry, "1x960x960, 2 threads on 2", "56.12", "12346"):
        assert word in printed


def test_one_package_is_asked_for_of_this_benchmark_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "thermal", "--package", "ocr"])
    assert caught.value.code == 2
    assert "pipeline alone" in capsys.readouterr().err


def test_the_package_that_is_asked_for_is_the_one_that_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def run(package: str) -> Place:
        asked.append(package)
        raise DrivewayError("far enough")

    monkeypatch.setattr(pipeline, "run", run)
    assert cli.main(["bench", "pipeline", "--package", "detector"]) == 1
    assert asked == ["detector"]
    assert "far enough" in capsys.readouterr().err


def test_what_a_peer_is_asked_it_answers(work: Package, tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(encode_input(work_items(ITEMS)))
    with peer(Load("work", work, [b""], ITEMS), FIRST[0], file) as ask:
        assert ask("bare", 1).wall_s > 0
        assert ask("naive", 1).cpu_s > 0
