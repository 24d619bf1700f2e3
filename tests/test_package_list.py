"""What the daemon says of its packages: each state that the core can be in with one, and those that were refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.core.builds import Build, Builds
from agent.core.lease import Retry
from agent.core.model import Accelerator, Readiness
from agent.core.state import State, WorkerPhase, WorkerState
from agent.inference.shelf import Shelf
from agent.package_list import PackageView, on_shelf
from tests.core.stories import ready
from tests.inference.test_shelf import TRUSTED, put


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """One good package and one without its signature."""
    folder = tmp_path_factory.mktemp("shelf")
    put(folder, "good")
    (put(folder, "bad") / "manifest.sig.json").unlink()
    return Shelf(folder, TRUSTED)


def state_of(shelf: Shelf, **changes: object) -> State:
    on_gpu = Accelerator(state=Readiness.READY, executor="tensorrt", device="a GPU")
    return msgspec.structs.replace(ready().state, **{"accelerator": on_gpu, **changes})


def listed(shelf: Shelf, state: State) -> PackageView:
    bad, good = on_shelf(shelf.packages.values(), shelf.refused, state)
    assert (bad.folder, bad.state, bad.name) == ("bad", "refused", "")
    assert "has no manifest.sig.json" in bad.detail
    assert (good.folder, good.signature) == ("good", "signed")
    return good


def test_a_package_whose_plan_is_built_is_ready(shelf: Shelf) -> None:
    view = listed(shelf, state_of(shelf))
    assert (view.state, view.executor, view.detail) == ("ready", "tensorrt", "its engine plan is built")
    assert view.pipeline == ("resize", "model.onnx", "decode")
    assert [bucket.width for bucket in view.buckets] == [320]
    assert view.sha256 in shelf.packages


def test_where_no_plan_is_needed_none_is_spoken_of(shelf: Shelf) -> None:
    state = state_of(shelf, accelerator=Accelerator(executor="onnxruntime"))
    assert (listed(shelf, state).state, listed(shelf, state).detail) == ("ready", "")


def test_a_package_without_a_plan_waits_for_its_build(shelf: Shelf) -> None:
    (package,) = shelf.packages
    missing = Builds(missing=(package,))
    assert listed(shelf, state_of(shelf, builds=missing)).state == "no plan"
    assert "parked" in listed(shelf, state_of(shelf, builds=missing)).detail
    tried = missing.tried(package, Retry(2, 99))
    assert "2 builds failed" in listed(shelf, state_of(shelf, builds=tried)).detail
    refused = msgspec.structs.replace(missing, refused=(package,))
    assert listed(shelf, state_of(shelf, builds=refused)).state == "refused"


def test_a_build_says_how_far_it_is(shelf: Shelf) -> None:
    (package,) = shelf.packages
    worker = WorkerState(
        WorkerPhase.BUILDING, package_sha256=package, build=Build(0, phase="tactics", done_permille=420)
    )
    view = listed(shelf, state_of(shelf, worker=worker, builds=Builds(missing=(package,))))
    assert (view.state, view.detail) == ("building", "tactics 42 %")


def test_without_an_accelerator_everything_waits(shelf: Shelf) -> None:
    lost = Accelerator(state=Readiness.LOST, executor="tensorrt", detail="the context is gone")
    view = listed(shelf, state_of(shelf, accelerator=lost))
    assert (view.state, view.detail) == ("waiting", "the accelerator is lost: the context is gone")


def test_what_is_still_on_its_way_to_the_shelf_is_left_alone(tmp_path: Path) -> None:
    put(tmp_path, ".package-half")
    shelf = Shelf(tmp_path, TRUSTED)
    assert (shelf.packages, shelf.refused) == ({}, {})
