"""Run with real TensorRT-RTX: build plans of one model as told, with our builder; prints what came of it as JSON.

Argument: a JSON file with `model` (a path), `buckets`, and perhaps `compute_capability`, `stop_at` (at which calls of
`attend` to give up, a build each), `rest_s`, `timing`, `tied` (leave sizes of one name tied), `shape_fault`
(the built-in error that giving a profile its shape raises), `twice`, `open`.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from agent.errors import DrivewayError
from agent.worker.executor import ExecutorError
from agent.worker.tensorrt import builder
from agent.worker.tensorrt.builder import BuildOrder, Plan, build_plan
from agent.worker.tensorrt.engine import open_engine
from agent.worker.tensorrt.flavour import Flavour, open_flavour


class StopError(Exception):
    """Enough."""


def main() -> None:
    todo = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    if todo.get("tied"):
        builder._untie = lambda network, buckets: None  # as if we did not know
    flavour = open_flavour("tensorrt_rtx")
    flags = _watched_flags()
    if "shape_fault" in todo:
        _spoil_shapes(getattr(builtins, todo["shape_fault"]))
    order = BuildOrder(
        model=Path(todo["model"]).read_bytes(),
        where="model.onnx",
        buckets=[{name: tuple(shape) for name, shape in one.items()} for one in todo["buckets"]],
        scratch_bytes=todo.get("scratch_bytes", 2**28),
        threads=2,
        tf32=todo.get("tf32", True),
        timing=todo.get("timing", "").encode(),
        compute_capability=todo.get("compute_capability", "8.6"),
    )
    said: dict[str, Any] = {"version": flavour.version}
    said["stopped"] = [_tried(order, flavour, stop_at)[1] for stop_at in todo.get("stop_at", ())]
    began_s = time.monotonic()
    plan, said["error"], said["calls"] = _tried(order, flavour, todo.get("last_stop_at", 0), todo.get("rest_s", 0))
    said["user_allocation"], said["tf32"] = [one for one, _ in flags], [one for _, one in flags]
    said["seconds"] = time.monotonic() - began_s
    said["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if plan is not None:
        said["bytes"], said["timing_bytes"] = len(plan.body), len(plan.timing)
        said["sha256"] = hashlib.sha256(plan.body).hexdigest()
        said["opened"] = _opened(bytes(plan.body), flavour)
    sys.stdout.write(json.dumps(said))


def _watched_flags() -> list[tuple[bool, bool]]:
    """Whether each build is told that the engine must not allocate while it runs, and may multiply in TF32."""
    seen: list[tuple[bool, bool]] = []
    configure = builder._configure

    def configured(order: BuildOrder, flavour: Flavour, config: Any) -> Any:
        cache = configure(order, flavour, config)
        flag = flavour.trt.BuilderFlag
        seen.append((config.get_flag(flag.REQUIRE_USER_ALLOCATION), config.get_flag(flag.TF32)))
        return cache

    builder._configure = configured
    return seen


def _spoil_shapes(fault: type[Exception]) -> None:
    """Make the bindings raise where a profile is given a shape, as some releases do for what others take."""
    given = builder._set_shape

    class Profile:
        def set_shape(self, *_: object) -> None:
            raise fault("inconsistent")

    builder._set_shape = lambda profile, *rest: given(Profile(), *rest)


def _tried(
    order: BuildOrder, flavour: Flavour, stop_at: int, rest_s: float = 0
) -> tuple[Plan | None, str, list[tuple[str, int]]]:
    """The plan, or how it ended; and what was told on the way."""
    calls: list[tuple[str, int]] = []

    def attend(phase: str, done_permille: int) -> None:
        calls.append((phase, done_permille))
        if len(calls) == stop_at:
            raise StopError
        if rest_s:
            time.sleep(rest_s)

    try:
        return build_plan(order, flavour, attend), "", calls
    except (StopError, ExecutorError, DrivewayError, MemoryError) as error:
        return None, f"{type(error).__name__}: {error}", calls


def _opened(plan: bytes, flavour: Flavour) -> str:
    try:
        open_engine(plan, flavour)
    except ExecutorError as error:
        return f"{type(error).__name__}: {error}"
    return "opened"


if __name__ == "__main__":
    main()
