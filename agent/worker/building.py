"""The worker in build mode: a package's model becomes a plan for this computer, and the process ends.

The package is opened and its model looked at in plain Python before any native parser sees a byte; the shapes to build
for are those that the pipeline will bind. Between the builder's steps the process tells how far it is, rests as the
pace asks, and heeds Stop. A step that lasts long is ended with the process: nothing here is worth keeping.

The plan leaves in sealed memory. Nobody believes it because of what is in it: the daemon authenticates it as its own.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

from agent.errors import PackageError
from agent.onnx.check import ModelSummary, check_model
from agent.package import Package, open_package, run_in
from agent.wire import MAX_TIMING_BYTES, Build, Building, Built
from agent.worker.channel import Channel
from agent.worker.cuda.opening import open_context
from agent.worker.executor import ModelTensor
from agent.worker.executors import host_memory_mb
from agent.worker.program import compile_program
from agent.worker.sandbox import limit_memory
from agent.worker.tensorrt.builder import BuildOrder, Plan, Shapes, build_plan
from agent.worker.tensorrt.flavour import open_flavour
from agent.worker.tensorrt.progress import Attend

_TOLD_EVERY_S = 0.25
_MAX_PHASE = 256
_STACK_BYTES = 64 * 1024**2
"""The builder recurses along a model: in the usual 8 MiB it crashes on one that is 2500 operators deep."""

Rest = Callable[[float], None]
"""Looks at the socket and sleeps as the pace asks after so many seconds of work; raises to stop everything."""


def build(order: Build, channel: Channel, rest: Rest, compute_capability: str | None = None) -> None:
    """Build the plan of a package, telling how far it is, and send Built.

    `compute_capability` (`8.6`) builds for a device that is not here, where the flavour can. Raises PackageError,
    ExecutorError and MemoryError, to be sent as Refused, and whatever `rest` raises.
    """
    timing = bytes(channel.take_memory(order.timing_bytes)) if order.timing_bytes else b""
    package = open_package(Path(order.path))
    limit_memory(host_memory_mb(order.executor, order.memory_mb))
    _deepen_stack()
    model = package.read(package.manifest.model)
    where = f"package {package.path}: {package.manifest.model}"
    summary = check_model(model, where)
    todo = BuildOrder(
        model=model,
        where=where,
        buckets=bucket_shapes(package, summary),
        tf32=run_in(package.manifest, summary.precision, on_accelerator=True) == "tf32",
        scratch_bytes=order.memory_mb * 1024**2 // 2,
        threads=order.threads,
        timing=timing,
        compute_capability=compute_capability,
    )
    plan = _built(todo, order.executor, _Teller(channel, rest).attend)
    memories = _memories(plan)
    channel.send(Built(plan_bytes=len(plan.body), timing_bytes=sum(map(len, memories[1:]))), memories)


def _deepen_stack() -> None:
    """Let this thread's stack grow further; it takes memory only as far as it is used."""
    now, most = resource.getrlimit(resource.RLIMIT_STACK)
    if now != resource.RLIM_INFINITY:
        wanted = _STACK_BYTES if most == resource.RLIM_INFINITY else min(_STACK_BYTES, most)
        resource.setrlimit(resource.RLIMIT_STACK, (max(now, wanted), most))


def bucket_shapes(package: Package, model: ModelSummary) -> list[Shapes]:
    """The input shapes of each bucket, as the executor will bind them; raises PackageError."""
    inputs = {one.name: ModelTensor(one.dtype, one.shape) for one in model.inputs}
    outputs = {one.name: ModelTensor(one.dtype, one.shape) for one in model.outputs}
    program = compile_program(package, inputs, outputs)
    bindings = [binding for lane in program.lanes for binding in lane.bindings]
    return [
        {name: (one.bucket.items, *spec.shape) if one.stacked else spec.shape for name, spec in one.inputs.items()}
        for one in bindings
    ]


def _built(todo: BuildOrder, executor: str, attend: Attend) -> Plan:
    """Build with the executor's library, on the device that is here unless another was named."""
    if executor == "onnxruntime":
        raise PackageError(f"{todo.where} needs no plan: ONNX Runtime takes it as it is")
    flavour = open_flavour(executor)
    if todo.compute_capability is not None:
        return build_plan(todo, flavour, attend)
    with open_context():
        return build_plan(todo, flavour, attend)


def _memories(plan: Plan) -> list[bytes | memoryview]:
    """What rides with Built: the plan, and the timing cache where there is one and the daemon would take it."""
    return [plan.body, plan.timing] if 0 < len(plan.timing) <= MAX_TIMING_BYTES else [plan.body]


class _Teller:
    """Stands between two steps of the builder: tells where it is, a few times a second, and rests."""

    def __init__(self, channel: Channel, rest: Rest) -> None:
        self._channel, self._rest = channel, rest
        self._began_s = time.monotonic()
        self._told_s = float("-inf")
        self._told: tuple[str, int] | None = None

    def attend(self, phase: str, done_permille: int) -> None:
        """As `progress.Attend`."""
        now_s = time.monotonic()
        where = (phase[:_MAX_PHASE], done_permille)
        if where != self._told and now_s - self._told_s >= _TOLD_EVERY_S:
            self._channel.send(Building(phase=where[0], done_permille=where[1]))
            self._told, self._told_s = where, now_s
        self._rest(now_s - self._began_s)
        self._began_s = time.monotonic()
