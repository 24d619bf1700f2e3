"""The worker process in build mode, shut in as on a vehicle, over real TensorRT-RTX; and without what it needs."""

from __future__ import annotations

import hashlib
import signal
import time
from pathlib import Path

import msgspec
import pytest

from agent import wire
from agent.package import Bucket, Package
from hil.packages import build_named
from hil.packages.tensors import build_tensor_package
from tests.inference.desk import rewrite_manifest
from tests.onnx.writing import GOOD, graph, integers, model, node
from tests.tensorrt.bindings import RTX_VERSIONS, folder
from tests.tensorrt.hostile import MODELS, PARSER_DIES_OF
from tests.tensorrt.worker import Worker

NEWEST = RTX_VERSIONS[-1]


@pytest.fixture(scope="module")
def orientation(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The classifier with two of its buckets."""
    path = tmp_path_factory.mktemp("packages") / "orientation"
    build_named("orientation", path)
    buckets = (Bucket(items=1, width=192), Bucket(items=4, width=192))
    return rewrite_manifest(path, lambda manifest: msgspec.structs.replace(manifest, buckets=buckets))


@pytest.fixture
def bindings() -> Path:
    return folder("tensorrt_rtx", NEWEST)


def order(package: Package, **changes: object) -> wire.Build:
    whole = wire.Build(path=str(package.path), executor="tensorrt_rtx", threads=2, memory_mb=2048)
    return msgspec.structs.replace(whole, **changes)


def with_model(package: Package, body: bytes, into: Path) -> Package:
    """A package that is right in every digest, around another model."""
    path = into / "package"
    path.mkdir()
    for name in (*package.manifest.files, "manifest.json"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes((package.path / name).read_bytes())
    (path / package.manifest.model).write_bytes(body)
    files = {**package.manifest.files, package.manifest.model: hashlib.sha256(body).hexdigest()}
    return rewrite_manifest(path, lambda manifest: msgspec.structs.replace(manifest, files=files))


def test_a_plan_is_built_and_handed_over_sealed(orientation: Package, bindings: Path) -> None:
    with Worker(bindings, orientation.path) as worker:
        worker.tell(order(orientation))
        built = worker.hear(wire.Built)
        assert worker.status() == 0
        assert (built.timing_bytes, len(worker.memories)) == (0, 1)
        plan = worker.memory(0)
        assert len(plan) == built.plan_bytes > 1_000_000
        told = worker.all_of(wire.Building)
        assert told[0] == wire.Building(phase="Reading the model", done_permille=0)
        hello = worker.hear(wire.Hello) if not worker.all_of(wire.Hello) else worker.all_of(wire.Hello)[0]
        assert {one.name: one.state for one in hello.confinement}["system_calls"] == "enforced"
    with Worker(bindings, orientation.path) as another:
        another.tell(order(orientation))
        another.hear(wire.Built)
        assert another.memory(0) == plan


def test_stop_ends_a_build_between_two_steps(orientation: Package, bindings: Path) -> None:
    with Worker(bindings, orientation.path) as worker:
        worker.tell(order(orientation))
        worker.hear(wire.Building)
        worker.tell(wire.Stop())
        worker.hear(wire.Idle)
        assert worker.status() == 0
        assert worker.all_of(wire.Built) == []
        assert worker.memories == []


def test_a_build_on_hold_lives_and_goes_on_when_it_may(orientation: Package, bindings: Path) -> None:
    with Worker(bindings, orientation.path) as worker:
        worker.tell(wire.Pace(duty_permille=0))
        worker.tell(order(orientation))
        for _ in range(3):
            worker.hear(wire.Beat)
        assert worker.all_of(wire.Built) == []
        assert {one.phase for one in worker.all_of(wire.Building)} <= {"Reading the model"}
        worker.tell(wire.Pace(duty_permille=1000))
        worker.hear(wire.Built)


def test_a_held_build_is_stopped_at_once(orientation: Package, bindings: Path) -> None:
    with Worker(bindings, orientation.path) as worker:
        worker.tell(wire.Pace(duty_permille=0))
        worker.tell(order(orientation))
        worker.hear(wire.Beat)
        worker.tell(wire.Stop())
        worker.hear(wire.Idle)
        assert worker.status() == 0


def test_a_fifth_of_the_pace_leaves_most_of_the_time(orientation: Package, bindings: Path) -> None:
    """The whole process may have worked for two fifths of the time at most: a fifth, and what was before the build."""
    with Worker(bindings, orientation.path) as worker:
        worker.tell(wire.Pace(duty_permille=200))
        worker.tell(order(orientation, threads=1))
        worker.hear(wire.Building)
        before_s, began_s = worker.processor_s(), time.monotonic()
        worker.hear(wire.Built)
        took_s = time.monotonic() - began_s
        assert worker.processor_s() - before_s < took_s * 0.4


def test_a_model_that_is_deep_does_not_overflow_the_stack(orientation: Package, bindings: Path, tmp_path: Path) -> None:
    """A stack of 1 MiB stands for a much longer chain in the usual 8: the build crashes in what it started with."""
    path = tmp_path / "deep.onnx"
    path.write_bytes(MODELS["a long chain"])
    package = build_tensor_package(path, tmp_path / "deep")
    with Worker(bindings, package.path, stack_kib=1024) as worker:
        worker.tell(order(package))
        assert worker.hear(wire.Built).plan_bytes > 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (model(graph(node("EfficientNMS_TRT", ["x"], ["y"]))), "is not an operator of the standard"),
        (b"\x89PNG\r\n\x1a\n", "is not a model that may run"),
        (GOOD, "the model's input 'x' is float32[?,4], and the pipeline fills float32[1,3,48,192]"),
    ],
)
def test_a_package_that_cannot_be_built_is_refused(
    orientation: Package, bindings: Path, tmp_path: Path, body: bytes, said: str
) -> None:
    package = with_model(orientation, body, tmp_path)
    with Worker(bindings, package.path) as worker:
        worker.tell(order(package))
        refused = worker.hear(wire.Refused)
        assert said in refused.detail
        assert (refused.stale_plan, refused.unavailable) == (False, False)
        assert worker.status() == 3


def test_a_model_that_the_library_refuses_is_told_with_its_words(bindings: Path, tmp_path: Path) -> None:
    """What plain Python and ONNX Runtime take may still be none for TensorRT: it has no determinants."""
    nodes = (
        node("Reshape", ["x", "square"], ["s"]),
        node("Det", ["s"], ["d"]),
        node("Unsqueeze", ["d", "axis"], ["c"]),
        node("Add", ["x", "c"], ["y"]),
    )
    path = tmp_path / "determinant.onnx"
    path.write_bytes(model(graph(*nodes, weights=(integers("square", -1, 2, 2), integers("axis", 1)))))
    package = build_tensor_package(path, tmp_path / "determinant")
    with Worker(bindings, package.path) as worker:
        worker.tell(order(package))
        detail = worker.hear(wire.Refused).detail
        assert f"TensorRT-RTX {NEWEST} cannot read package {package.path}: model.onnx: Det: " in detail
        assert worker.status() == 3


def test_a_model_that_crashes_the_library_costs_the_process_only(bindings: Path, tmp_path: Path) -> None:
    """This is why builds have a process of their own. Where it is refused before, all the better."""
    path = tmp_path / "good.onnx"
    path.write_bytes(GOOD)
    package = with_model(build_tensor_package(path, tmp_path / "good"), PARSER_DIES_OF, tmp_path)
    with Worker(bindings, package.path) as worker:
        worker.tell(order(package))
        assert worker.status() in {3, -signal.SIGSEGV}
        assert worker.memories == []


def test_too_little_memory_costs_the_process_only(orientation: Package, bindings: Path) -> None:
    """Whether the library says so or dies of it: there is no plan, and nobody waits for one."""
    with Worker(bindings, orientation.path, data_mb=100) as worker:
        worker.tell(order(orientation))
        status = worker.status()
        assert status != 0


def test_a_timing_cache_that_comes_along_is_taken(orientation: Package, bindings: Path) -> None:
    """TensorRT-RTX has no use for one, but its descriptor must not be taken for another."""
    with Worker(bindings, orientation.path) as worker:
        worker.tell(order(orientation, timing_bytes=5), b"cache")
        worker.hear(wire.Built)


@pytest.mark.parametrize("executor", ["tensorrt", "tensorrt_rtx"])
def test_without_the_library_a_build_is_refused(orientation: Package, executor: str) -> None:
    with Worker(None, orientation.path) as worker:
        worker.tell(order(orientation, executor=executor))
        refused = worker.hear(wire.Refused)
        assert "is not installed for" in refused.detail
        assert refused.unavailable
        assert worker.status() == 3


def test_without_a_device_a_build_is_refused(orientation: Package, bindings: Path) -> None:
    with Worker(bindings, orientation.path, capability="here") as worker:
        worker.tell(order(orientation))
        detail = worker.hear(wire.Refused).detail
        assert detail.startswith("the accelerator cannot be used: ")


def test_onnx_runtime_needs_no_plan(orientation: Package) -> None:
    with Worker(None, orientation.path) as worker:
        worker.tell(order(orientation, executor="onnxruntime"))
        assert "needs no plan" in worker.hear(wire.Refused).detail
