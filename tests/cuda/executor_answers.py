"""Scenarios: what comes out of the CUDA executor is what NumPy and ONNX Runtime say (run by test_executor.py)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agent.onnx.check import Port
from agent.package import Bucket, Golden, Limits, Manifest, OpCall, Package, PipelineSpec
from agent.worker.executor import Binding, ExecutorError, Slot, SlotFullError
from agent.worker.images import MAX_PIXELS
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.pipeline import Pipeline
from hil.packages.onnx_model import make_model
from kernels.operation import Array, TensorSpec
from tests.cuda import executor_rig as rig
from tests.inference.numpy_executor import NumpyExecutor


def images_as_numpy() -> None:
    """Batches of different sizes and lengths, in both slots, one after the other."""
    with rig.columns_executor() as (executor, engine):
        binding = rig.line_binding(items=4, width=64, results=[rig.ctc(), rig.values(), rig.fingerprint()])
        bucket = executor.bind(binding)
        assert executor.notes == []
        assert executor.kernels_sha256 == hashlib.sha256(rig.IMAGE).hexdigest(), "what a statement names is what runs"
        assert [(one.dtype, one.shape) for one in bucket.outputs] == [("float32", (8, 40))] * 3
        for turn, count in enumerate((4, 1, 3, 4, 2)):
            slot = bucket.slots[turn % 2]
            batch = rig.images(turn, count)
            for row, image in enumerate(batch):
                slot.stage_image(row, image)
            slot.submit(count)
            slot.wait()
            wanted = rig.expected(engine, binding, dict(enumerate(batch)))
            for row in range(4):  # also the rows that hold nothing
                rig.assert_close(slot.results(row), wanted[row])


def halves_as_numpy() -> None:
    """The engine takes and gives float16."""
    with rig.columns_executor(dtype="float16") as (executor, engine):
        binding = rig.half_binding(2, 64)
        bucket = executor.bind(binding)
        batch = rig.images(7, 2)
        _stage(bucket.slots[0], batch)
        bucket.slots[0].submit(2)
        bucket.slots[0].wait()
        wanted = rig.expected(engine, binding, dict(enumerate(batch)))
        for row in range(2):
            found = rig.copied(bucket.slots[0].results(row))
            assert found[1][0].dtype == np.float16
            np.testing.assert_allclose(found[1][0].astype(float), wanted[row][1][0].astype(float), atol=2e-2)


def both_slots_in_flight() -> None:
    """One is filled and submitted while the other computes, and neither disturbs the other."""
    with rig.columns_executor() as (executor, engine):
        binding = rig.line_binding()
        slots = executor.bind(binding).slots
        batches = [rig.images(seed, 4) for seed in range(6)]
        _stage(slots[0], batches[0])
        slots[0].submit(4)
        for number in range(1, 6):
            filling, computing = slots[number % 2], slots[(number - 1) % 2]
            _stage(filling, batches[number])
            rig.control("kernels_held=1")
            filling.submit(4)
            assert not filling.poll()
            rig.control()
            computing.wait()
            _check(computing, rig.expected(engine, binding, dict(enumerate(batches[number - 1]))))
        slots[1].wait()


def graph_and_plain_path_agree() -> None:
    """An engine that cannot be captured gives the same bytes call by call, and the executor says so."""
    answers: list[list[list[tuple[Array, ...]]]] = []
    for uncapturable in (False, True):
        with rig.columns_executor() as (executor, engine):
            engine.temper.uncapturable = uncapturable
            before = rig.calls("cuGraphLaunch")
            slots = executor.bind(rig.line_binding(results=[rig.ctc(), rig.values("y")])).slots
            runs = engine.temper.enqueued
            given = []
            for seed in range(4):
                slot = slots[seed % 2]
                _stage(slot, rig.images(seed, 4))
                slot.submit(4)
                slot.wait()
                given += [rig.copied(slot.results(row)) for row in range(4)]
            answers.append(given)
            assert rig.calls("cuGraphLaunch") - before == (0 if uncapturable else 4)
            assert engine.temper.enqueued - runs == (4 if uncapturable else 0)
            assert len(executor.notes) == (2 if uncapturable else 0)
            assert all("bucket of 4, 64 wide: no CUDA graph (" in note for note in executor.notes)
    for graph, plain in zip(*answers, strict=True):
        rig.assert_equal(graph, plain)


def tensors_as_onnx_runtime() -> None:
    """The same binding on the engine's stand-in and on ONNX Runtime; stacked and each by itself."""
    generator = np.random.default_rng(3)
    for items in (4, None):
        leading: tuple[int, ...] = () if items is None else (items,)
        model = make_model(
            "MatMul",
            [Port("left", "float32", (*leading, 3, 5)), Port("right", "float32", (*leading, 5, 2))],
            [Port("product", "float32", (*leading, 3, 2))],
        )
        binding = Binding(
            bucket=Bucket(items=items or 1),
            image=None,
            inputs={"left": TensorSpec("float32", (3, 5)), "right": TensorSpec("float32", (5, 2))},
            results=[rig.values("product")],
            stacked=items is not None,
        )
        reference = OnnxRuntimeCpu(model, threads=1, memory_mb=64)
        with rig.product_executor(3, 5, 2, batched=items is not None) as executor:
            ours, theirs = executor.bind(binding), reference.bind(binding)
            assert list(ours.outputs) == list(theirs.outputs)
            for count in (items or 1, 1, min(3, items or 1)):
                slots: Sequence[Slot] = (ours.slots[0], theirs.slots[0])
                for row in range(count):
                    pair = [generator.normal(size=size).astype(np.float32) for size in ((3, 5), (5, 2))]
                    for slot in slots:
                        slot.stage_tensors(row, pair)
                for slot in slots:
                    slot.submit(count)
                    slot.wait()
                for row in range(count):
                    rig.assert_close(slots[0].results(row), slots[1].results(row))
        reference.close()


def a_whole_pipeline_as_numpy() -> None:
    """The worker's pipeline on the device and on NumPy: timed, in several buckets, with large images, then wiped."""
    sizes = [(48, 60), (30, 200), (1200, 1200), (9, 9), (1100, 1400), (48, 64), (1000, 1900), (20, 100), (1300, 1300)]
    levels = np.random.default_rng(1).integers(0, 256, size=(len(sizes), 3))
    items = [_png(rows, columns, level) for (rows, columns), level in zip(sizes, levels, strict=True)]
    items.insert(3, b"no image")
    package = _package(Bucket(items=1, width=64), Bucket(items=4, width=64), Bucket(items=4, width=256))
    with rig.columns_executor() as (executor, engine):
        reference = NumpyExecutor(lambda inputs: {"y": engine.reference(inputs[0])}, engine.inputs, engine.outputs)
        pipeline, plain = Pipeline(package, executor, drain_ms=10_000), Pipeline(package, reference, drain_ms=10_000)
        for worker in (pipeline, plain):
            for _ in worker.calibrate():
                pass
        for _ in range(2):
            ours, theirs = pipeline.compute(items), plain.compute(items)
            assert [one.body.keys() for one in ours] == [one.body.keys() for one in theirs]
            assert [one.failed for one in ours] == [place == 3 for place in range(len(items))]
            for one, other in zip(ours, theirs, strict=True):
                if not one.failed:
                    values, wanted = (np.array(answer.body["outputs"]["y"]) for answer in (one, other))
                    np.testing.assert_allclose(values, wanted, rtol=2e-3, atol=2e-3)
            pipeline.wipe()
        assert len(reference.submitted) > 4
        steps = pipeline.steps(items)
        next(steps)
        steps.close()  # given up in the middle: drained, and then used again
        assert pipeline.compute(items[:2])[0].body == ours[0].body


def _png(rows: int, columns: int, level: NDArray[np.int64]) -> bytes:
    """A picture that fades to the right, so that it is small as a file."""
    fading = np.linspace(0, 1, columns)[None, :, None] * level * np.linspace(1, 0.5, rows)[:, None, None]
    body = io.BytesIO()
    Image.fromarray(fading.astype(np.uint8)).save(body, "PNG", compress_level=1)
    return body.getvalue()


def _package(*buckets: Bucket) -> Package:
    """A package that is only a manifest."""
    manifest = Manifest(
        v=1,
        name="made",
        version="1",
        input="image",
        model="model.onnx",
        pipeline=PipelineSpec(
            pre=(OpCall(op="resize_normalize_pad", params={"height": rig.HEIGHT}),),
            engine="onnx",
            post=(OpCall(op="tensor_values", params={"output": "y"}),),
        ),
        buckets=buckets,
        golden=Golden(input="in", expected="out", tolerance_permille=0),
        limits=Limits(max_item_bytes=32 * rig.MIB, max_items=100, memory_mb=512),
        files={"model.onnx": "0" * 64},
    )
    return Package(Path("made"), manifest, b"", None)


def staging_begins_anew() -> None:
    """A row that was not staged again is zeros, never what another item left there."""
    with rig.columns_executor() as (executor, engine):
        binding = rig.line_binding()
        slot = executor.bind(binding).slots[0]
        batch = rig.images(1, 4)
        _stage(slot, batch)
        for _ in range(3):  # the same again, as a measurement does
            slot.submit(4)
            slot.wait()
            _check(slot, rig.expected(engine, binding, dict(enumerate(batch))))
        slot.stage_image(2, batch[0])
        slot.submit(4)
        slot.wait()
        _check(slot, rig.expected(engine, binding, {2: batch[0]}))
        _stage(slot, batch)
        slot.submit(1)
        slot.wait()
        _check(slot, rig.expected(engine, binding, {0: batch[0]}))
    with rig.product_executor(3, 5, 2, batched=True) as executor:
        slot = executor.bind(rig.product_binding(4)).slots[0]
        ones = [np.ones((3, 5), np.float32), np.ones((5, 2), np.float32)]
        for row in range(4):
            slot.stage_tensors(row, ones)
        slot.submit(4)
        slot.wait()
        slot.stage_tensors(2, ones)
        slot.submit(4)
        slot.wait()
        assert [bool(slot.results(row)[0][0].any()) for row in range(4)] == [False, False, True, False]
        for row in range(4):
            slot.stage_tensors(row, ones)
        slot.submit(2)
        slot.wait()
        assert [bool(slot.results(row)[0][0].any()) for row in range(4)] == [True, True, False, False]


def any_image_fits_an_empty_slot() -> None:
    """The largest image there may be is computed; beside it the slot is full, and the next goes elsewhere."""
    generator = np.random.default_rng(0)
    largest = generator.integers(0, 256, size=(1024, MAX_PIXELS // 1024, 3), dtype=np.uint8)
    with rig.columns_executor() as (executor, engine):
        binding = rig.line_binding()
        first, second = executor.bind(binding).slots
        first.stage_image(0, largest)
        _refused(SlotFullError, lambda: first.stage_image(1, largest))
        second.stage_image(0, largest[::-1])  # a view, as decoders give them
        first.submit(1)
        second.submit(1)
        for slot, image in ((first, largest), (second, largest[::-1])):
            slot.wait()
            _check(slot, rig.expected(engine, binding, {0: image}))
        too_large = np.zeros((1025, MAX_PIXELS // 1024, 3), np.uint8)
        _refused(ExecutorError, lambda: first.stage_image(0, too_large))


def larger_bucket_moves_scratch() -> None:
    """Scratch memory is shared and grows; buckets bound before, and what is in flight, stay right."""
    with rig.columns_executor() as (executor, engine):
        small = rig.line_binding(items=1, width=64)
        slots = executor.bind(small).slots
        batch = rig.images(2, 1)
        _stage(slots[0], batch)
        slots[0].submit(1)
        large = rig.line_binding(items=4, width=256)
        wide = executor.bind(large).slots
        slots[0].wait()
        _check(slots[0], rig.expected(engine, small, {0: batch[0]}))
        for binding, both in ((small, slots), (large, wide), (small, slots)):
            for slot in both:
                images = rig.images(3, binding.bucket.items)
                _stage(slot, images)
                slot.submit(len(images))
            for slot in both:
                slot.wait()
                _check(slot, rig.expected(engine, binding, dict(enumerate(images))))
        before = executor.memory_bytes
        executor.bind(rig.line_binding(items=1, width=128))  # needs less scratch than there is
        needed = max(context.scratch_bytes for context in engine.contexts)
        assert engine.contexts[-1].scratch_bytes < needed
        assert executor.memory_bytes - before < 2 * (14 * rig.MIB)
        assert executor.notes == []


def seconds_add_up() -> None:
    """Time that both slots spend on the device counts once."""
    import time  # noqa: PLC0415 - by this scenario alone

    with rig.columns_executor() as (executor, _):
        slots = executor.bind(rig.line_binding()).slots
        begin = time.monotonic()
        engine_s = 0.0
        slots[0].submit(1)
        for number in range(1, 8):
            slots[number % 2].submit(1)
            engine_s += slots[(number - 1) % 2].wait()
        engine_s += slots[1].wait()
        passed_s = time.monotonic() - begin
        assert 0 < engine_s <= 1.001 * passed_s, (engine_s, passed_s)


def misuse_is_refused() -> None:
    """What a slot must not be asked is refused with a reason, and it goes on."""
    with rig.columns_executor() as (executor, engine):
        binding = rig.line_binding()
        slot = executor.bind(binding).slots[0]
        image = rig.images(0, 1)[0]
        _refused(ExecutorError, slot.wait)
        for items in (0, 5, -1):
            _refused(ExecutorError, lambda items=items: slot.submit(items))
        for row in (-1, 4):
            _refused(ExecutorError, lambda row=row: slot.stage_image(row, image))
        _refused(ExecutorError, lambda: slot.stage_tensors(0, [image]))
        _refused(ExecutorError, lambda: slot.stage_image(0, image[:, :, :2]))
        _refused(ExecutorError, lambda: slot.stage_image(0, image.astype(np.float32)))
        slot.stage_image(0, image)
        slot.submit(1)
        _refused(ExecutorError, lambda: slot.submit(1))
        _refused(ExecutorError, lambda: slot.stage_image(0, image))
        _refused(ExecutorError, executor.wipe)
        slot.wait()
        _check(slot, rig.expected(engine, binding, {0: image}))
        for binding in (rig.product_binding(4), rig.line_binding(results=[rig.ctc("nowhere")])):
            _refused(ExecutorError, lambda binding=binding: executor.bind(binding))
    _refused(ExecutorError, lambda: executor.bind(binding))  # closed
    executor.close()


def drained_slots_can_be_used_again() -> None:
    """A slice that is dropped is drained, and nobody waits for its slots."""
    with rig.columns_executor() as (executor, engine):
        binding = rig.line_binding()
        slots = executor.bind(binding).slots
        for slot in slots:
            _stage(slot, rig.images(1, 4))
            slot.submit(4)
        executor.drain()
        assert all(slot.poll() for slot in slots)
        for slot in slots:
            _refused(ExecutorError, slot.wait)
            batch = rig.images(2, 4)
            _stage(slot, batch)
            slot.submit(4)
            slot.wait()
            _check(slot, rig.expected(engine, binding, dict(enumerate(batch))))


def _stage(slot: Slot, images: rig.Images) -> None:
    for row, image in enumerate(images):
        slot.stage_image(row, image)


def _check(slot: Slot, wanted: Sequence[Sequence[tuple[Array, ...]]]) -> None:
    for row, results in enumerate(wanted):
        rig.assert_close(slot.results(row), results)


def _refused(kind: type[Exception], call: object) -> None:
    assert callable(call)
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{call} was not refused with {kind.__name__}")


if __name__ == "__main__":
    rig.play(globals())
