"""Our builder over the real TensorRT-RTX, which builds plans without a GPU: the packages' models, and hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.onnx.check import check_model
from agent.package import Package
from agent.worker.building import bucket_shapes
from hil.packages import RECIPES, build_named
from tests.onnx.writing import GOOD, block, graph, model, node, value
from tests.tensorrt.bindings import RTX_VERSIONS, answer_of, folder, run_script
from tests.tensorrt.hostile import MODELS

BUILD = Path(__file__).parent / "rtx_build.py"
NEWEST = RTX_VERSIONS[-1]
GOOD_BUCKETS = [{"x": [1, 4]}, {"x": [8, 4]}]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    into = tmp_path_factory.mktemp("packages")
    return {name: build_named(name, into / name) for name in RECIPES}


def whole(package: Package) -> dict[str, Any]:
    """The package's model with all its buckets."""
    summary = check_model(package.read(package.manifest.model), "model.onnx")
    buckets = bucket_shapes(package, summary)
    assert len(buckets) == len(package.manifest.buckets)
    return {"model": str(package.path / package.manifest.model), "buckets": buckets}


def built(todo: dict[str, Any], into: Path, version: str = NEWEST) -> dict[str, Any]:
    order = into / "todo.json"
    order.write_text(json.dumps(todo), "utf-8")
    said: dict[str, Any] = answer_of(BUILD, str(order), packages=folder("tensorrt_rtx", version))
    return said


def of_bytes(body: bytes, into: Path, **more: Any) -> dict[str, Any]:
    (into / "model.onnx").write_bytes(body)
    return {"model": str(into / "model.onnx"), "buckets": GOOD_BUCKETS} | more


@pytest.mark.parametrize(
    ("name", "version"), [*((name, NEWEST) for name in RECIPES), *(("orientation", one) for one in RTX_VERSIONS[:-1])]
)
def test_every_package_becomes_a_plan(name: str, version: str, packages: dict[str, Package], tmp_path: Path) -> None:
    todo = whole(packages[name])
    said = built(todo, tmp_path, version)
    assert (said["error"], said["version"]) == ("", version)
    assert said["bytes"] > len(packages[name].read(packages[name].manifest.model))
    assert said["timing_bytes"] == 0
    assert said["user_allocation"] == [True]
    assert said["calls"][0] == ["Reading the model", 0]
    phases = {phase for phase, _ in said["calls"]}
    assert {"Building engine", "Computing profile costs"} <= phases
    assert all(0 <= done <= 1000 for _, done in said["calls"])
    # No driver is here, so a plan is as far as it goes, and that is told for what it is and not as a stale plan.
    assert said["opened"].startswith(f"UnavailableError: TensorRT-RTX {version} cannot use the accelerator: ")


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_only_where_it_is_allowed(packages: dict[str, Package], tmp_path: Path, tf32: bool) -> None:
    said = built(whole(packages["orientation"]) | {"tf32": tf32}, tmp_path)
    assert (said["error"], said["tf32"]) == ("", [tf32])


def test_two_processes_build_the_same_plan(packages: dict[str, Package], tmp_path: Path) -> None:
    todo = whole(packages["orientation"])
    first, second = built(todo, tmp_path), built(todo, tmp_path)
    assert first["sha256"] == second["sha256"]
    assert built(todo | {"compute_capability": "8.9"}, tmp_path)["sha256"] != first["sha256"]


def test_a_build_ends_at_any_step_and_the_next_one_is_whole(packages: dict[str, Package], tmp_path: Path) -> None:
    todo = whole(packages["orientation"]) | {"buckets": [{"x": [1, 3, 48, 192]}]}
    plain = built(todo, tmp_path)
    steps = len(plain["calls"])
    stops = sorted({1, 2, 3, *range(4, steps, steps // 12), steps - 1, steps})
    stopped = built(todo | {"stop_at": stops}, tmp_path)
    assert stopped["stopped"] == ["StopError: "] * len(stops)
    assert (stopped["sha256"], stopped["calls"]) == (plain["sha256"], plain["calls"])


def test_a_rest_between_steps_only_makes_it_slower(tmp_path: Path) -> None:
    quick = built(of_bytes(GOOD, tmp_path), tmp_path)
    slow = built(of_bytes(GOOD, tmp_path, rest_s=0.01), tmp_path)
    assert slow["sha256"] == quick["sha256"]
    assert slow["seconds"] >= 0.01 * len(slow["calls"])


def test_sizes_of_one_name_are_untied_where_buckets_need_it(packages: dict[str, Package], tmp_path: Path) -> None:
    """The classifier's exporter calls height and width both `?`: as they are, TensorRT refuses the buckets."""
    tied = built(whole(packages["orientation"]) | {"tied": True}, tmp_path)
    assert "cannot build model.onnx: IBuilder::buildSerializedNetwork" in tied["error"]
    assert "different constant values or have contradictory" in tied["error"]


@pytest.mark.parametrize("capability", ["8.7", "9.0", "11.0"])
def test_a_device_that_the_flavour_does_not_serve_is_told(capability: str, tmp_path: Path) -> None:
    said = built(of_bytes(GOOD, tmp_path, compute_capability=capability), tmp_path)["error"]
    assert said.startswith(f"UnavailableError: TensorRT-RTX {NEWEST} does not build for {capability}: ")
    assert 'the executor "tensorrt"' in said


def test_building_for_the_device_that_is_here_needs_one(tmp_path: Path) -> None:
    said = built(of_bytes(GOOD, tmp_path, compute_capability=None), tmp_path)["error"]
    assert said.startswith(f"UnavailableError: TensorRT-RTX {NEWEST} cannot use the accelerator: ")
    assert "CUDA driver version is insufficient" in said


@pytest.mark.parametrize("fault", ["ValueError", "RuntimeError", "TypeError"])
def test_a_shape_that_the_bindings_do_not_take_is_an_error_in_our_words(fault: str, tmp_path: Path) -> None:
    said = built(of_bytes(GOOD, tmp_path, shape_fault=fault), tmp_path)["error"]
    assert said.startswith(f"ExecutorError: TensorRT-RTX {NEWEST} does not take (1, 4) for the input 'x' (")


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        ([{"x": [1, 5]}], "the input 'x' is (-1, 4) (-1: any), and a bucket gives (1, 5)"),
        ([{"x": [1, 4, 1]}], "a bucket gives (1, 4, 1)"),
        ([{"z": [1, 4]}], "has the inputs x, and a bucket gives z"),
    ],
)
def test_buckets_that_are_not_the_models_are_refused(buckets: list[Any], said: str, tmp_path: Path) -> None:
    assert said in built(of_bytes(GOOD, tmp_path) | {"buckets": buckets}, tmp_path)["error"]


def test_the_same_bucket_twice_is_one_profile(tmp_path: Path) -> None:
    once = built(of_bytes(GOOD, tmp_path), tmp_path)
    twice = built(of_bytes(GOOD, tmp_path) | {"buckets": GOOD_BUCKETS * 2}, tmp_path)
    assert twice["sha256"] == once["sha256"]


def test_a_model_that_the_guard_refuses_never_reaches_the_parser(tmp_path: Path) -> None:
    plugin = model(graph(node("EfficientNMS_TRT", ["x"], ["y"])))
    said = built(of_bytes(plugin, tmp_path), tmp_path)
    assert said["error"].startswith("PackageError: model.onnx is not a model that may run")
    assert said["calls"] == []


def test_an_input_whose_values_are_a_shape_is_refused(tmp_path: Path) -> None:
    shaped = model(
        graph(node("Expand", ["x", "s"], ["y"]), more=block(11, value("s", [2], 7))),
    )
    said = built(of_bytes(shaped, tmp_path) | {"buckets": [{"x": [1, 4], "s": [2]}]}, tmp_path)["error"]
    assert "takes the values of 's' as a shape; only tensors are served" in said


WORDS = {
    "a cycle": "Failed to sort the model topologically",
    "an input that nobody makes": "cannot read model.onnx: Add: Assertion failed",
    "shapes that do not fit": "cannot read model.onnx: MatMul: Invalid Node",
    "a division by zero in a shape": "cannot read model.onnx: Reshape: Invalid Node",
    "an operator of no engine": "cannot read model.onnx: Det: ",
    "an axis beyond the rank": "cannot read model.onnx: Softmax: Assertion failed",
    "texts that are no UTF-8 in an error": "has names that are not UTF-8",
    "a size whose name is no UTF-8": "has names that are not UTF-8",
}


@pytest.mark.parametrize("what", MODELS)
def test_hostile_models_become_an_error_or_a_plan(what: str, tmp_path: Path) -> None:
    """Nothing crashes, nothing hangs, nothing takes more memory than it may; refusals name the operator."""
    (tmp_path / "todo.json").write_text(json.dumps(of_bytes(MODELS[what], tmp_path)), "utf-8")
    ended = run_script(
        BUILD, str(tmp_path / "todo.json"), packages=folder("tensorrt_rtx", NEWEST), memory_mb=1024, timeout_s=60
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    said = json.loads(ended.stdout.splitlines()[-1])
    if what in WORDS:
        assert said["error"].startswith("ExecutorError: ")
        assert WORDS[what] in said["error"]
    assert said["error"].isprintable()
    assert said["error"].startswith("ExecutorError: ") or said["bytes"] > 0
