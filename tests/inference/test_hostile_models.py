"""Hostile models through the whole: the shelf refuses them, so does the worker; where neither looks, the worker ends.

Whatever becomes of the worker, the daemon's side goes on, and the core gives the lease back with the reason.
"""

from __future__ import annotations

import asyncio
import stat
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.core.effects import HandIn, StartWorker
from agent.core.events import EventType, WorkerGone, WorkerLoading, WorkerReady, WorkerRefused
from agent.core.model import Grant, YieldReason
from agent.inference import shelf as shelves
from agent.inference.planned import PlannedShelf
from agent.inference.shelf import Shelf
from agent.inference.station import Station, WorkerLimits
from agent.package import MANIFEST, Limits
from hil.packages.tensors import item_of, package_model
from tests.conftest import FixedClock
from tests.core.stories import ready, until
from tests.core.world import grant
from tests.inference.desk import PATIENCE_S, rewrite_manifest
from tests.inference.test_shelf import TRUSTED, put, sign
from tests.onnx.test_check import HOSTILE
from tests.onnx.writing import GOOD

BYPASSED = """\
#!{python} -I
import runpy, sys
import agent.onnx.check
anything = agent.onnx.check.ModelSummary(inputs=(), outputs=(), nodes=0, opset=0, precision="float32")
agent.onnx.check.check_model = lambda body, where: anything
sys.argv = ["worker", *sys.argv[sys.argv.index("agent.worker") + 1:]]
runpy.run_module("agent.worker", run_name="__main__", alter_sys=True)
"""
"""The real worker, with its eyes shut."""

NATIVE = (
    "external location",
    "a plugin's name",
    "a foreign domain",
    "a huge weight",
    "a bomb of one Tile",
    "a bomb of many Tiles",
    "a bomb by its shape",
    "too deep",
    "cut off",
)
"""What is shown to the engine where nobody looked before."""


def put_model(folder: Path, name: str, model: bytes) -> Path:
    """A whole and signed package whose golden answers are those of y = x, and its model."""
    item = item_of([np.arange(4, dtype=np.float32)])
    path = package_model(GOOD, folder / name, name=name, version="1", golden=[item], where="GOOD").path
    (path / "model.onnx").write_bytes(model)
    limits = Limits(max_item_bytes=1000, max_items=10, memory_mb=512)
    rewrite_manifest(path, lambda manifest: msgspec.structs.replace(manifest, limits=limits))
    sign(path, (path / MANIFEST).read_bytes())
    return path


@pytest.mark.parametrize("what", HOSTILE)
def test_the_shelf_refuses_a_hostile_model_and_says_why(tmp_path: Path, what: str) -> None:
    body, words = HOSTILE[what]
    path = put(tmp_path, "bad")
    (path / "model.onnx").write_bytes(body)
    sign(path, rewrite_manifest(path).manifest_bytes)
    put(tmp_path, "good")
    shelf = Shelf(tmp_path, TRUSTED)
    assert [package.path.name for package in shelf.packages.values()] == ["good"]
    assert words in shelf.refused["bad"]
    assert "bad: model.onnx is not a model that may run" in shelf.refused["bad"]


async def told(folder: Path, limits: WorkerLimits) -> list[EventType]:
    """What the core hears when the only package of the folder is started."""
    events: list[EventType] = []
    over = asyncio.Event()

    def heard(event: EventType) -> None:
        events.append(event)
        if isinstance(event, WorkerReady | WorkerGone):
            over.set()

    clock, shelf = FixedClock(), Shelf(folder, TRUSTED)
    (package,) = shelf.packages
    wanted: Grant = msgspec.structs.replace(grant(1), package_sha256=package)
    plans = PlannedShelf(shelf, None, emit=heard, clock=clock, memory_mb=512)
    station = Station(
        emit=heard, clock=clock, shelf=shelf, plans=plans, limits=limits, on_slice=lambda *_: None, on_lost=pytest.fail
    )
    try:
        station.start(wanted)
        async with asyncio.timeout(PATIENCE_S):
            await over.wait()
    finally:
        await station.close()
    return events


@pytest.fixture
def open_shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shelf that looks at no model."""
    monkeypatch.setattr(shelves, "check_model", lambda _body, _where: None)


@pytest.fixture
def bypassed(tmp_path: Path) -> str:
    """An interpreter that starts the worker with its eyes shut."""
    program = tmp_path / "python"
    program.write_text(BYPASSED.format(python=sys.executable), "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def given_back(events: list[EventType]) -> str:
    """What the core says of the lease when it is told this of its worker."""
    shell = ready()
    until(shell, StartWorker)
    for _ in range(3):
        shell.waiting.clear()
        for event in events:
            shell.tell(msgspec.structs.replace(event, at_ms=shell.now_ms))
        hand_ins = [effect for effect in shell.waiting if isinstance(effect, HandIn)]
        if hand_ins:
            assert hand_ins[0].why in {YieldReason.REFUSED, YieldReason.FAULT}
            return hand_ins[0].detail
        shell.advance(60_000)
    raise AssertionError("the lease was kept")


def test_the_worker_refuses_what_the_shelf_let_pass(tmp_path: Path, open_shelf: None) -> None:
    body, words = HOSTILE["a bomb of one Tile"]
    put_model(tmp_path, "bad", body)
    events = asyncio.run(told(tmp_path, WorkerLimits(threads=1, memory_mb=512)))
    loading, refused, gone = events
    assert isinstance(loading, WorkerLoading)
    assert isinstance(refused, WorkerRefused)
    assert words in refused.detail
    assert isinstance(gone, WorkerGone)
    assert gone.expected
    assert words in given_back(events)


def test_with_its_eyes_shut_a_worker_takes_a_good_model(tmp_path: Path, bypassed: str, open_shelf: None) -> None:
    put_model(tmp_path / "packages", "good", GOOD)
    events = asyncio.run(told(tmp_path / "packages", WorkerLimits(threads=1, memory_mb=512, python=bypassed)))
    assert any(isinstance(event, WorkerReady) for event in events)


@pytest.mark.parametrize("what", NATIVE)
def test_with_its_eyes_shut_a_worker_refuses_or_dies(
    tmp_path: Path, bypassed: str, open_shelf: None, what: str
) -> None:
    put_model(tmp_path / "packages", "bad", HOSTILE[what][0])
    limits = WorkerLimits(threads=1, memory_mb=512, python=bypassed)
    events = asyncio.run(told(tmp_path / "packages", limits))
    gone = events[-1]
    assert isinstance(gone, WorkerGone), "it never got ready"
    refused = [event for event in events if isinstance(event, WorkerRefused)]
    assert bool(refused) == gone.expected, "it said why, or it was lost"
    assert all("not a model that may run" not in event.detail for event in refused), "it did not look"
    assert given_back(events)
