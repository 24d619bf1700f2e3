"""Packages whose micro-batch takes as long as one likes on this computer: a pile of matrix products, then a classifier.

An item is a vector; sixteen are a micro-batch. The matrix turns and does not stretch, so that values stay what they are
however often it is applied. How often that is, is found by measuring.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from agent.onnx.check import Port
from agent.package import Bucket, Limits, Package
from agent.worker.onnxruntime_cpu import session_options
from hil.packages.onnx_model import make_stack
from hil.packages.recipe import Recipe, build, call
from hil.packages.tensors import item_of
from kernels.npy_tensor import NpyTensor

VALUES = 128
ITEMS = 16
SEED = 5
_FIRST_TIMES = 40
_RUNS = 30


def build_work(folder: Path, milliseconds: float) -> Package:
    """A package into `folder` whose micro-batch takes about so long on one thread; raises PackageError."""
    times = _FIRST_TIMES
    for _ in range(3):
        times = max(2, round(times * milliseconds / _run_ms(_model(times))))
    tensor = NpyTensor(input="x", dtype="float32", shape=str(VALUES), stacked=True)
    recipe = Recipe(
        name=f"work-{milliseconds:g}ms".replace(".", "_"),
        version="1.0.0",
        where="the pile of products",
        model=_model(times),
        input="tensor",
        pre=(call("npy_tensor", **msgspec.to_builtins(tensor)),),
        post=(call("softmax_top_k", k=5, softmax=True),),
        buckets=(Bucket(items=ITEMS),),
        limits=Limits(max_item_bytes=4 * VALUES + 256, max_items=100_000, memory_mb=512),
        tolerance_permille=20,
        golden=work_items(2),
        check_answers=lambda _: None,
    )
    return build(recipe, folder)


def work_items(count: int) -> list[bytes]:
    """Drawn vectors, a few of them again and again."""
    dice = np.random.default_rng(SEED)
    drawn = [item_of([dice.standard_normal(VALUES).astype(np.float32)]) for _ in range(min(count, 64))]
    return [drawn[place % len(drawn)] for place in range(count)]


def median_ms(run: Callable[[], object], runs: int = _RUNS) -> float:
    """The median of so many runs after two that do not count, in processor time, which others do not take."""
    timings_ms = []
    for _ in range(runs + 2):
        began_s = time.thread_time()
        run()
        timings_ms.append((time.thread_time() - began_s) * 1000)
    return statistics.median(timings_ms[2:])


def _model(times: int) -> bytes:
    weight: NDArray[np.float32] = np.linalg.qr(np.random.default_rng(SEED).standard_normal((VALUES, VALUES)))[0].astype(
        np.float32
    )
    return make_stack(times, weight, Port("x", "float32", (None, VALUES)), Port("y", "float32", (None, VALUES)))


def _run_ms(model: bytes) -> float:
    session = ort.InferenceSession(model, session_options(1), providers=["CPUExecutionProvider"])
    batch = {"x": np.ones((ITEMS, VALUES), np.float32)}
    return median_ms(lambda: session.run(None, batch))
