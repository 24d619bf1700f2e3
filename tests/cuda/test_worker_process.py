"""A whole worker process on the CUDA executor, as the daemon has it: what it computes, and that it can hang."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent import wire
from agent.inference import watchdog
from agent.inference.launcher import WorkerProcess
from agent.package import Bucket, Limits, Package
from agent.sealed import InputMemory
from hil.packages.recipe import Recipe, build, call
from hil.packages.tensors import item_of
from kernels.float_outputs import NOT_A_NUMBER
from tests.cuda import standin
from tests.cuda.caged_worker import COLUMNS, INNER, ROWS, shim
from tests.inference.desk import Desk
from tests.onnx.writing import block, model, node, value

LEFT, RIGHT = (ROWS, INNER), (INNER, COLUMNS)
PATIENCE_MS = 3000


def item(left: float, right: float) -> bytes:
    """One item of the package: matrices that hold one number each."""
    return item_of([np.full(LEFT, left, np.float32), np.full(RIGHT, right, np.float32)])


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A package that multiplies matrices and answers with the largest values."""
    body = (
        block(1, node("MatMul", ["left", "right"], ["product"]))
        + block(2, "g")
        + block(11, value("left", ["N", *LEFT]))
        + block(11, value("right", ["N", *RIGHT]))
        + block(12, value("product", ["N", ROWS, COLUMNS]))
    )
    tensors = {"left": LEFT, "right": RIGHT}
    recipe = Recipe(
        name="product",
        version="1.0.0",
        where="product.onnx",
        model=model(body),
        input="tensor",
        pre=tuple(
            call("npy_tensor", input=name, dtype="float32", shape=",".join(map(str, shape)), stacked=True)
            for name, shape in tensors.items()
        ),
        post=(call("tensor_fingerprint", output="product", k=4),),
        buckets=(Bucket(items=1), Bucket(items=4)),
        limits=Limits(max_item_bytes=4096, max_items=100, memory_mb=512),
        tolerance_permille=5,
        golden=[item(0.5, 2.0), item(-1.0, 1.0)],
        check_answers=lambda _answers: None,
    )
    return build(recipe, tmp_path_factory.mktemp("packages") / "product")


async def loaded(desk: Desk, package: Package, python: str) -> WorkerProcess:
    """A worker that is ready for the package's slices."""
    process = desk.launch(python=python, readable=[package.path], accelerator=True)
    plan = InputMemory.holding(b"a plan")
    limits = {"threads": 1, "memory_mb": 1024, "drain_ms": 60, "load_s": 60}
    process.load(package.path, executor="tensorrt", plan=plan, **limits)
    plan.close()
    assert (await desk.wait_for(wire.Loaded)).executor == "standin"
    return process


def give(process: WorkerProcess, items: list[bytes]) -> None:
    memory = InputMemory.holding(wire.encode_input(items))
    process.send_input(memory, items=len(items))
    memory.close()


def test_results_that_are_no_numbers_fail_their_slice_alone(
    product: Package, engine_kernels: Path, tmp_path: Path
) -> None:
    control = tmp_path / "control"
    standin.write_control(control, {})

    async def story() -> None:
        desk = Desk()
        process = await loaded(desk, product, shim(tmp_path, control, engine_kernels))
        give(process, [item(1.0, 1.0), item(float("nan"), 1.0), item(3e38, 3e38), item(2.0, 1.0)])
        for number in range(4):
            process.run(number, number, number + 1)
        answers = [msgspec.json.decode((await desk.wait_for(wire.SliceDone)).output)]
        for number in (1, 2):
            error = await desk.wait_for(wire.SliceError)
            assert error.index == number
            assert error.detail == NOT_A_NUMBER
        answers.append(msgspec.json.decode((await desk.wait_for(wire.SliceDone)).output))
        assert [one["fingerprint"]["values"] for (one,) in answers] == [[5.0] * 4, [10.0] * 4]
        process.stop(5000)
        assert (await desk.end())[0]

    asyncio.run(story())


def test_a_kernel_that_never_ends_is_found_out_and_its_process_killed(
    product: Package, engine_kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "FLOOR_MS", PATIENCE_MS)  # ten seconds, as it is, prove no more
    control = tmp_path / "control"
    standin.write_control(control, {})

    async def story() -> None:
        desk = Desk()
        process = await loaded(desk, product, shim(tmp_path, control, engine_kernels))
        give(process, [item(1.0, 1.0)])
        await desk.wait_for(wire.Beat)
        standin.write_control(control, {"kernel_hangs": "standin_product_float32@1:1"})
        process.run(0, 0, 1)
        expected, detail = await desk.end()
        assert not expected
        assert detail.startswith("hangs in a kernel for "), detail
        assert "was killed by SIGKILL" in detail
        silent_ms = int(detail.split()[5])
        assert silent_ms >= PATIENCE_MS, "it was silent for that long: between two kernels it beats twice a second"
        assert not [one for one in desk.messages if isinstance(one, wire.SliceDone | wire.SliceError | wire.Idle)]
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)

    asyncio.run(story())
