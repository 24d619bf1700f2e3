"""Every name of TensorRT's that our source touches is there, in each version that we say we support.

The bindings are the real ones; a library with nine empty functions stands where TensorRT would, so they can be imported
and looked at anywhere. TensorRT-RTX has its real libraries.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.worker.tensorrt.subset import OPTIONAL, REQUIRED
from tests.tensorrt.bindings import RTX_VERSIONS, VERSIONS, answer_of, folder, stub_libraries
from tests.tensorrt.touched import our_sources, touched

LOOK = Path(__file__).parent / "look_at_bindings.py"
FLAVOURS = [("tensorrt", one) for one in VERSIONS] + [("tensorrt_rtx", one) for one in RTX_VERSIONS]
ON_RTX = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability.CURRENT",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}
SINCE_10_13 = {"ICudaEngine.create_runtime_config", "IRuntimeConfig.set_execution_context_allocation_strategy"}
CALLS = [f"{kind}.{method}={count}" for kind, method, count in sorted(touched(our_sources()).calls)]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_libraries(tmp_path_factory.mktemp("nvinfer"))


def test_the_table_is_what_the_source_touches() -> None:
    found = touched(our_sources())
    listed = {kind: {*REQUIRED.get(kind, ()), *OPTIONAL.get(kind, ())} for kind in {*REQUIRED, *OPTIONAL}}
    assert found.members == listed
    assert found.unnamed == set()


@pytest.mark.parametrize(
    "planted",
    [
        "def f(engine): engine.serialize_twice()",
        "def f(self): return self._context.weather",
        "def f(flavour): return flavour.trt.BuilderFlag.FP16",
        "def f(trt): return hasattr(trt.BuilderFlag, 'INT8')",
        "def f(flavour): return flavour.made('Refitter')",
        "class F(trt.IOutputAllocator): pass",
    ],
)
def test_reading_the_source_sees_what_the_table_lacks(planted: str) -> None:
    found = touched([*our_sources(), planted])
    assert found.members != touched(our_sources()).members


def test_reading_the_source_sees_an_object_by_another_name() -> None:
    assert touched(["def f(thing: Any) -> None: thing.run()"]).unnamed == {"thing"}


@pytest.mark.parametrize(("flavour", "version"), FLAVOURS)
def test_all_that_we_touch_is_there(flavour: str, version: str, libraries: Path) -> None:
    seen = answer_of(LOOK, flavour, *CALLS, packages=folder(flavour, version), libraries=libraries)
    assert seen["version"] == version
    assert seen["misfits"] == []
    everything = {f"{kind}.{member}" for kind, members in OPTIONAL.items() for member in members}
    absent = set() if flavour == "tensorrt_rtx" else set(ON_RTX)
    if version in {"10.3.0", "10.7.0"}:
        absent |= SINCE_10_13
    assert set(seen["optional"]) == everything - absent


@pytest.mark.parametrize(("flavour", "version"), FLAVOURS)
def test_our_subclasses_work_through_the_library(flavour: str, version: str, libraries: Path) -> None:
    seen = answer_of(LOOK, flavour, packages=folder(flavour, version), libraries=libraries)
    recorded = "recorded 0; recorded 1; recorded 2; recorded 3"
    assert seen["journal"] == [
        "nothing",
        "a logged [31m error",
        8,
        "recorded 0",
        "INVALID_CONFIG",
        True,
        recorded,
        True,
        True,
        False,
    ]
    assert seen["progress"] == [[["outer", 250], ["outer", 500]], [True, False, False], "TimeoutError"]
    assert seen["flags"] == (2 if version.startswith("10.") else 1)


@pytest.mark.parametrize(("flavour", "version"), FLAVOURS)
def test_a_library_that_cannot_start_is_told(flavour: str, version: str, libraries: Path) -> None:
    """The stub makes no runtime; TensorRT-RTX makes one, and refuses what is no plan."""
    said = answer_of(LOOK, flavour, packages=folder(flavour, version), libraries=libraries)["engine"]
    if flavour == "tensorrt":
        assert said.startswith(f"UnavailableError: TensorRT {version} cannot start: it does not say why; check with")
    else:
        assert said.startswith(f"StalePlanError: TensorRT-RTX {version} does not load the plan: ")


@pytest.mark.parametrize(("flavour", "version"), FLAVOURS)
def test_a_version_that_dropped_something_is_refused_by_name(flavour: str, version: str, libraries: Path) -> None:
    packages = folder(flavour, version)
    refused = answer_of(LOOK, flavour, "ICudaEngine.frobnicate", packages=packages, libraries=libraries)["refused"]
    assert f"{version} lacks ICudaEngine.frobnicate; install another release" in refused


def test_bindings_without_their_libraries_are_told() -> None:
    refused = answer_of(LOOK, "tensorrt", packages=folder("tensorrt", "11.4.0.106"))["refused"]
    assert "not all of its libraries: libnv" in refused
    assert "install the libraries of the same version" in refused


def test_no_bindings_at_all_are_told() -> None:
    refused = answer_of(LOOK, "tensorrt_rtx", packages=None)["refused"]
    assert refused.startswith("TensorRT-RTX is not installed for ")
    assert "worker_python" in refused


def test_an_unknown_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = '12.0.0'\n")
    refused = answer_of(LOOK, "tensorrt", packages=tmp_path)["refused"]
    assert refused == "TensorRT 12.0.0 is not supported; install 10.3 or newer, before 12.0"


def test_a_release_of_tensorrt_rtx_that_nobody_tried_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("__version__ = '1.5.0.99'\n")
    refused = answer_of(LOOK, "tensorrt_rtx", packages=tmp_path)["refused"]
    assert refused == "TensorRT-RTX 1.5.0.99 is not supported; install 1.6 or newer, before 2.0"


def test_bindings_that_lack_another_package_are_told(tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("import a_package_that_is_not_there\n")
    refused = answer_of(LOOK, "tensorrt", packages=tmp_path)["refused"]
    assert refused == "TensorRT cannot be imported: a_package_that_is_not_there is missing; install it again"
