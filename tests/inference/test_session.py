"""The worker's life, in a thread of this process, with an engine that can be told to fail."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent import wire
from agent.errors import WorkerError
from agent.package import Package, PrecisionName
from agent.sealed import InputMemory
from agent.worker import session as session_module
from agent.worker.channel import Channel, ChannelClosedError
from agent.worker.executor import ExecutorError, LostError, ModelTensor, OutOfMemoryError, StalePlanError
from agent.worker.session import RefusedError, Session
from hil.packages.nothing import build_nothing_package, nothing_item
from kernels.operation import Array
from tests.inference.desk import rewrite_manifest
from tests.inference.numpy_executor import NumpyExecutor

PATIENCE_S = 30.0
NUMBERS = ModelTensor("int64", (None,))


@dataclass
class Engine:
    """What stands behind the session: an identity that can be told to fail."""

    fault: ExecutorError | None = None
    opened: list[tuple[str, bytes | None, dict[str, int]]] = field(default_factory=list)
    limits_mb: list[int] = field(default_factory=list)
    executor: NumpyExecutor = field(init=False)

    def __post_init__(self) -> None:
        self.executor = NumpyExecutor(self._compute, {"x": NUMBERS}, {"y": NUMBERS})

    def open(self, name: str, _model: bytes, plan: memoryview | None, **options: int) -> NumpyExecutor:
        self.opened.append((name, None if plan is None else bytes(plan), options))
        if plan is not None and bytes(plan) == b"stale":
            raise StalePlanError("built by another release")
        return self.executor

    def _compute(self, inputs: Sequence[Array]) -> dict[str, Array]:
        if self.fault is not None and inputs[0].any():
            raise self.fault
        return {"y": inputs[0]}


class Side:
    """The daemon's side of a session that runs in a thread."""

    def __init__(self, connection: socket.socket, other: socket.socket) -> None:
        self.connection = connection
        self.session = Session(Channel(other))
        self.decoder = wire.worker_messages()
        self.waiting: list[wire.WorkerMessage] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        try:
            self.session.serve()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def send(self, message: wire.DaemonMessage, memory: InputMemory | None = None) -> None:
        socket.send_fds(self.connection, [wire.encode(message)], [] if memory is None else [memory.descriptor])
        if memory is not None:
            memory.close()

    def load(self, package: Package, plan: bytes = b"") -> None:
        order = wire.Load(
            path=str(package.path),
            executor="tensorrt" if plan else "onnxruntime",
            threads=1,
            memory_mb=1024,
            drain_ms=60,
            plan_bytes=len(plan),
        )
        self.send(order, InputMemory.holding(plan) if plan else None)

    def give(self, items: list[bytes]) -> None:
        memory = InputMemory.holding(wire.encode_input(items))
        self.send(wire.Input(items=len(items), bytes=memory.length), memory)

    def next(self, kind: type[Any]) -> Any:
        """The next message that is no Beat or Progress, unless one of these is meant; it has to be of this kind."""
        while True:
            while self.waiting:
                message = self.waiting.pop(0)
                if kind in {wire.Beat, wire.Progress} and isinstance(message, kind):
                    return message
                if not isinstance(message, wire.Beat | wire.Progress):
                    assert isinstance(message, kind), message
                    return message
            self.waiting += self.decoder.feed(self.connection.recv(65536))

    def left(self) -> list[wire.WorkerMessage]:
        """What it said and nobody took; it has ended."""
        self.connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self.waiting += self.decoder.feed(self.connection.recv(65536))
        return self.waiting

    def end(self) -> BaseException | None:
        """Wait for the session's end; what it raised."""
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.error


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(session_module, "open_executor", made.open)
    monkeypatch.setattr(session_module, "limit_memory", made.limits_mb.append)
    monkeypatch.setattr(session_module, "scrub", lambda: None)  # of this whole process, heaps of threads included
    return made


@pytest.fixture
def side(engine: Engine) -> Iterator[Side]:
    assert engine
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(PATIENCE_S)
        made = Side(ours, theirs)
        try:
            made.next(wire.Hello)
            yield made
        finally:
            ours.close()
            made.thread.join(PATIENCE_S)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return build_nothing_package(tmp_path_factory.mktemp("packages") / "nothing")


def test_a_lease_and_the_next_one(side: Side, nothing: Package, engine: Engine) -> None:
    side.load(nothing)
    ready = side.next(wire.Loaded)
    assert (ready.executor, ready.device, ready.package_sha256) == ("numpy", "test", nothing.package_sha256)
    assert ready.micro_batch_ms == pytest.approx(16.0)  # 1 ms an item: 16 of 1, 4, 16, 64
    assert (ready.precision, ready.batch) == ("integer", (16,))
    assert engine.opened == [("onnxruntime", None, {"threads": 1, "memory_mb": 512})]
    assert engine.limits_mb == [512]
    side.give([nothing_item(number) for number in range(20)])
    side.send(wire.Run(index=0, first=0, last=20))
    assert side.next(wire.Progress).index == 0
    done = side.next(wire.SliceDone)
    answers = msgspec.json.decode(done.output)
    assert [answer["outputs"]["y"] for answer in answers] == list(range(20))
    assert ready.golden_raw_sha256 != done.raw_sha256
    assert done.compute_ms == 20  # micro-batches of 16 and 4
    side.send(wire.Forget())
    side.send(wire.Run(index=1, first=0, last=1))
    assert side.next(wire.SliceError).detail == "no input was sent"
    assert engine.executor.wipes == 1
    side.give([nothing_item(7)])
    side.send(wire.Run(index=2, first=0, last=1))
    side.next(wire.Progress)
    assert msgspec.json.decode(side.next(wire.SliceDone).output) == [{"outputs": {"y": 7}}]
    side.send(wire.Stop())
    side.next(wire.Idle)
    assert side.end() is None


def test_it_says_that_it_lives_while_it_waits_and_while_it_rests(side: Side, nothing: Package) -> None:
    side.next(wire.Beat)
    side.next(wire.Beat)
    side.load(nothing)
    side.next(wire.Loaded)
    side.give([nothing_item(1)] * 100)
    side.send(wire.Pace(duty_permille=0))
    side.send(wire.Run(index=0, first=0, last=100))
    side.next(wire.Progress)
    side.next(wire.Beat)
    side.next(wire.Beat)
    side.send(wire.Pace(duty_permille=1000))
    side.next(wire.SliceDone)


def test_what_a_load_computes_is_paced_too(side: Side, nothing: Package, engine: Engine) -> None:
    computed: list[int] = []

    def compute(inputs: Sequence[Array]) -> dict[str, Array]:
        computed.append(len(inputs[0]))
        return engine._compute(inputs)

    engine.executor.engine = compute
    side.send(wire.Pace(duty_permille=0))
    side.load(nothing)
    for _ in range(3):
        side.next(wire.Beat)
    assert len(computed) <= 2, "a bucket is bound and has run once, and then it rests"
    side.send(wire.Pace(duty_permille=1000))
    side.next(wire.Loaded)
    assert len(computed) > 3


def test_stop_drains_what_is_in_flight_before_it_is_answered(side: Side, nothing: Package, engine: Engine) -> None:
    side.load(nothing)
    side.next(wire.Loaded)
    side.give([nothing_item(1)] * 100)

    def stopping(inputs: Sequence[Array]) -> dict[str, Array]:
        side.send(wire.Stop())
        engine.executor.engine = engine._compute
        return {"y": inputs[0]}

    engine.executor.engine = stopping
    side.send(wire.Run(index=0, first=0, last=100))
    side.next(wire.Idle)
    assert side.end() is None
    assert engine.executor.drains == 1
    assert not engine.executor.flying


def test_memory_that_cannot_be_overwritten_ends_the_process(
    side: Side, nothing: Package, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ExecutorError("sparks")

    side.load(nothing)
    side.next(wire.Loaded)
    monkeypatch.setattr(engine.executor, "wipe", fail)
    side.send(wire.Forget())
    error = side.end()
    assert isinstance(error, WorkerError)
    assert error.what == "what held a lease's items could not be overwritten: sparks"


def test_an_engine_that_fails_costs_a_slice(side: Side, nothing: Package, engine: Engine) -> None:
    side.load(nothing)
    side.next(wire.Loaded)
    side.give([nothing_item(1)])
    engine.fault = ExecutorError("sparks")
    side.send(wire.Run(index=3, first=0, last=1))
    failed = side.next(wire.SliceError)
    assert (failed.index, failed.detail) == (3, "sparks")
    engine.fault = None
    side.send(wire.Run(index=3, first=0, last=1))
    side.next(wire.Progress)
    assert side.next(wire.SliceDone).index == 3


def test_a_lost_accelerator_costs_the_slice_and_the_process(side: Side, nothing: Package, engine: Engine) -> None:
    side.load(nothing)
    side.next(wire.Loaded)
    side.give([nothing_item(1)])
    engine.fault = LostError("the context is gone")
    side.send(wire.Run(index=0, first=0, last=1))
    assert isinstance(side.end(), LostError)
    kinds = {type(message) for message in side.left()}
    assert wire.SliceError not in kinds, "the slice has not failed: another worker computes it"


def test_a_lost_accelerator_is_not_the_packages_fault(side: Side, nothing: Package, engine: Engine) -> None:
    engine.fault = LostError("the context is gone")
    side.load(nothing)
    assert isinstance(side.end(), LostError)


def test_an_engine_that_fails_while_it_is_proved_refuses_the_package(
    side: Side, nothing: Package, engine: Engine
) -> None:
    engine.fault = ExecutorError("sparks")
    side.load(nothing)
    refused = side.next(wire.Refused)
    assert (refused.detail, refused.stale_plan) == ("sparks", False)
    assert isinstance(side.end(), RefusedError)


def test_memory_that_is_short_for_the_moment_is_not_the_packages_fault(
    side: Side, nothing: Package, engine: Engine
) -> None:
    engine.fault = OutOfMemoryError("CUDA: out of memory")
    side.load(nothing)
    refused = side.next(wire.Refused)
    assert (refused.detail, refused.unavailable) == ("CUDA: out of memory; it is tried again later", True)
    assert isinstance(side.end(), RefusedError)


def test_what_the_executor_does_without_is_told_within_bounds(side: Side, nothing: Package, engine: Engine) -> None:
    engine.executor.notes = ("n" * 1000,) * 100
    side.load(nothing)
    assert side.next(wire.Loaded).notes == ("n" * wire.MAX_TEXT,) * wire.MAX_NOTES


def test_the_plan_comes_with_the_order(side: Side, nothing: Package, engine: Engine) -> None:
    side.load(nothing, plan=b"a plan")
    side.next(wire.Loaded)
    assert engine.opened == [("tensorrt", b"a plan", {"threads": 1, "memory_mb": 512})]
    assert engine.limits_mb == [512 + wire.ACCELERATOR_LIBRARIES_MB], "the libraries' own share is not the package's"


def test_a_plan_that_does_not_load_is_told_from_a_bad_package(side: Side, nothing: Package) -> None:
    side.load(nothing, plan=b"stale")
    refused = side.next(wire.Refused)
    assert (refused.detail, refused.stale_plan) == ("built by another release", True)
    assert isinstance(side.end(), RefusedError)


def test_a_plan_that_was_not_sent_ends_the_process(side: Side, nothing: Package) -> None:
    order = wire.Load(path=str(nothing.path), executor="tensorrt", threads=1, memory_mb=64, drain_ms=1, plan_bytes=5)
    side.send(order)
    error = side.end()
    assert isinstance(error, wire.WireError)
    assert "without its memfd" in error.what


def test_a_second_load_ends_the_process(side: Side, nothing: Package) -> None:
    side.load(nothing)
    side.next(wire.Loaded)
    side.load(nothing)
    assert isinstance(side.end(), wire.WireError)


def test_a_daemon_that_leaves_ends_the_process(side: Side) -> None:
    side.connection.close()
    assert isinstance(side.end(), ChannelClosedError)


def test_a_hostile_model_never_reaches_an_engine(side: Side, nothing: Package, engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in ("manifest.json", *nothing.manifest.files):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((nothing.path / name).read_bytes())
    (folder / "model.onnx").write_bytes(b"\x08\x09" + b"\xff" * 40)
    side.load(rewrite_manifest(folder))
    assert "model.onnx is not a model that may run" in side.next(wire.Refused).detail
    assert engine.opened == []
    assert isinstance(side.end(), RefusedError)


def test_a_model_in_another_precision_than_allowed_never_reaches_an_engine(
    side: Side, nothing: Package, engine: Engine, tmp_path: Path
) -> None:
    folder = tmp_path / "strict"
    shutil.copytree(nothing.path, folder)
    precisions: dict[PrecisionName, int] = {"float32": 200}
    side.load(rewrite_manifest(folder, lambda one: msgspec.structs.replace(one, precisions=precisions)))
    assert side.next(wire.Refused).detail.startswith(
        "package nothing: its model is integer, and it may be run in float32 only"
    )
    assert engine.opened == []
    assert isinstance(side.end(), RefusedError)


def test_what_is_no_number_fails_the_slice(side: Side, nothing: Package, engine: Engine, tmp_path: Path) -> None:
    """Operations decide what is no answer; here one of a classifier, on an engine that gives NaN for the number 1."""
    folder = tmp_path / "classes"
    folder.mkdir()
    for name in ("manifest.json", *nothing.manifest.files):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((nothing.path / name).read_bytes())
    (folder / nothing.manifest.golden.input).write_bytes(wire.encode_input([nothing_item(0)]))
    expected = [{"classes": [{"class": 0, "probability_permille": 500}]}]
    (folder / nothing.manifest.golden.expected).write_bytes(msgspec.json.encode(expected))
    package = rewrite_manifest(
        folder,
        lambda manifest: msgspec.json.decode(
            msgspec.json.encode(manifest).replace(
                b'"post":[{"op":"tensor_values","params":{"output":"y"}}]',
                b'"post":[{"op":"softmax_top_k","params":{"k":1,"softmax":true}}]',
            ),
            type=type(manifest),
        ),
    )

    def classes(inputs: Sequence[Array]) -> dict[str, Array]:
        values = np.where(inputs[0].astype(np.int64) == 1, np.nan, 0).astype(np.float32)
        return {"y": np.stack([values, values], axis=1)}

    engine.executor.engine = classes
    side.load(package)
    side.next(wire.Loaded)
    side.give([nothing_item(1), nothing_item(0)])
    side.send(wire.Run(index=0, first=0, last=1))
    assert "not a number" in side.next(wire.SliceError).detail
    side.send(wire.Run(index=1, first=1, last=2))
    side.next(wire.Progress)
    assert msgspec.json.decode(side.next(wire.SliceDone).output) == expected
