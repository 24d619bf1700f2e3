"""Every CUDA kernel, compiled for this processor, against its NumPy reference, under several thread orders.

Everything agrees bit for bit, except softmax probabilities (`kernel_cases.SOFTMAX_TOLERANCE`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hil.gpu.hard_cases import CASES, Case, ImageCase, ResultCase, floats, picture
from kernels import (
    ctc_greedy_decode,
    letterbox_normalize,
    resizing,
    softmax_top_k,
    tensor_samples,
    threshold_bit_pack,
    top_k,
)
from kernels.ctc_greedy_decode import CtcGreedyDecode
from kernels.letterbox_normalize import LetterboxNormalize
from kernels.operation import Array, Int32, ResultOperation, TensorSpec
from kernels.resize_normalize_pad import ResizeNormalizePad
from kernels.softmax_top_k import SoftmaxTopK
from kernels.tensor_fingerprint import TensorFingerprint
from kernels.tensor_samples import TensorSamples
from kernels.threshold_bit_pack import ThresholdBitPack
from tests.cuda import sanitized
from tests.cuda.host_kernels import SOURCES, Guarded, HostKernels, kernel_names, library
from tests.cuda.kernel_cases import ORDERS, difference, launched

FLOATS: tuple[Literal["float32", "float16"], ...] = ("float32", "float16")
sides, widths, dtypes = st.integers(1, 70), st.integers(1, 300), st.sampled_from(FLOATS)
images = st.lists(st.none() | st.builds(picture, st.integers(0, 9), sides, sides), min_size=1, max_size=3)
odd_floats = st.sampled_from([0.0, -0.0, 1.0, -1.0, 65504.0, 6e-8, -0.3, 0.3, np.inf, -np.inf, np.nan]) | st.floats(
    -100, 100, width=16
)


@pytest.fixture(scope="module")
def kernels(host_kernels: Path) -> HostKernels:
    return HostKernels(host_kernels)


@st.composite
def outputs(draw: st.DrawFn, *shape: st.SearchStrategy[int]) -> Array:
    """One to three items with values from few that are odd, so that ties are common."""
    sizes = (draw(st.integers(1, 3)), *(draw(size) for size in shape))
    return draw(arrays.arrays(draw(dtypes), sizes, elements=odd_floats, fill=odd_floats))


def cases() -> list[tuple[str, Case]]:
    return [(f"{file.removesuffix('.cu')}-{at}", case) for file, each in CASES.items() for at, case in enumerate(each)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", [case for _, case in cases()], ids=[name for name, _ in cases()])
def test_the_kernel_and_the_reference_agree(kernels: HostKernels, case: Case, order: int) -> None:
    assert difference(case, kernels, order) is None


def test_every_kernel_has_cases() -> None:
    assert set(CASES) == {path.name for path in SOURCES.glob("*.cu")}


@pytest.mark.long
@pytest.mark.usefixtures("host_kernels")
def test_no_access_out_of_bounds_and_nothing_undefined() -> None:
    done = sanitized.run(library(sanitized=True))
    assert done.returncode == 0, done.stderr


@st.composite
def lines(draw: st.DrawFn) -> Case:
    return ImageCase(ResizeNormalizePad(height=draw(st.integers(8, 60))), draw(images), None, draw(widths))


@st.composite
def frames(draw: st.DrawFn) -> Case:
    operation = LetterboxNormalize(
        scale=draw(st.sampled_from([1 / 255, 1.0, 0.017])),
        mean=draw(st.sampled_from(["0", "0.485,0.456,0.406", "-1.5"])),
        std=draw(st.sampled_from(["1", "0.229,0.224,0.225"])),
        fill=draw(st.sampled_from(["0", "114", "255,0,7"])),
        channels=draw(st.sampled_from(["rgb", "bgr"])),
        align=draw(st.sampled_from(["centre", "top_left"])),
        enlarge=draw(st.booleans()),
        dtype=draw(dtypes),
    )
    return ImageCase(operation, draw(images), draw(sides), draw(widths))


@st.composite
def steps(draw: st.DrawFn) -> Case:
    return ResultCase(CtcGreedyDecode(characters="c"), draw(outputs(st.integers(1, 5), st.integers(2, 700))))


@st.composite
def likeliest(draw: st.DrawFn) -> Case:
    output = draw(outputs(st.integers(1, 1500)))
    return ResultCase(
        SoftmaxTopK(k=draw(st.integers(1, min(output.shape[1], 128))), softmax=draw(st.booleans())), output
    )


@st.composite
def masks(draw: st.DrawFn) -> Case:
    operation = ThresholdBitPack(threshold=draw(st.sampled_from([0.0, 0.3, 1.0])))
    return ResultCase(operation, draw(outputs(st.integers(1, 20), st.integers(1, 300))))


@st.composite
def fingerprints(draw: st.DrawFn) -> Case:
    output = draw(outputs(st.integers(1, 3000)))
    return ResultCase(TensorFingerprint(output="y", k=draw(st.integers(1, min(output.shape[1], 128)))), output)


@st.composite
def samples(draw: st.DrawFn) -> Case:
    return ResultCase(TensorSamples(output="y", k=draw(st.integers(1, 64))), draw(outputs(st.integers(1, 3000))))


@pytest.mark.parametrize("family", [lines, frames, steps, likeliest, masks, fingerprints, samples])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data(), order=st.sampled_from(ORDERS))
def test_any_size_and_any_values(
    kernels: HostKernels, family: Callable[[], st.SearchStrategy[Case]], data: st.DataObject, order: int
) -> None:
    assert difference(data.draw(family()), kernels, order) is None


@pytest.mark.parametrize("classes", [2, 3, 255, 256, 257, 1023, 6_625, 18_710, 30_000])
@pytest.mark.parametrize("dtype", FLOATS)
def test_as_many_classes_as_recognisers_have(kernels: HostKernels, classes: int, dtype: str) -> None:
    case = ResultCase(CtcGreedyDecode(characters="c"), floats(classes, 1, 2, classes, dtype=dtype))
    assert difference(case, kernels, order=2) is None


@pytest.mark.parametrize("shift", [0, 1, 5, 13])
def test_a_fingerprint_does_not_depend_on_the_size_of_the_groups(kernels: HostKernels, shift: int) -> None:
    operation, values = TensorFingerprint(output="y", k=37), floats(shift, 1, 35_000)
    (indices, found), (count, k) = operation.reference(values), (values.size, operation.k)
    groups = (count - 1) // 2**shift + 1
    results = {"result0": Guarded(4 * k), "result1": Guarded(4 * k), "scratch": Guarded(8 * groups)}
    results["output"] = Guarded(values.nbytes, values.tobytes())
    for launch in operation.launches(1, TensorSpec("float32", (count,))):
        grid = (groups // top_k.GROUPS_PER_BLOCK + 1, 1, 1) if "groups" in launch.kernel else launch.grid
        arguments = (*launch.arguments[: -1 if "groups" in launch.kernel else -2], Int32(shift))
        rest = () if "groups" in launch.kernel else launch.arguments[-1:]
        moved = replace(launch, grid=grid, arguments=(*arguments, *rest))
        kernels.launch(moved, {name: buffer.bytes for name, buffer in results.items()}, order=3)
    assert (results["result0"].bytes.view(np.int32) == indices[0]).all()
    assert (results["result1"].bytes.view(np.float32) == found[0]).all()


@pytest.mark.parametrize(
    ("operation", "shape"),
    [
        (SoftmaxTopK(k=5, softmax=True), (1000,)),
        (CtcGreedyDecode(characters="c"), (40, 211)),
        (TensorFingerprint(output="y", k=16), (7, 301)),
        (TensorSamples(output="y", k=64), (7, 301)),
        (ThresholdBitPack(threshold=0.5), (33, 77)),
    ],
)
def test_results_are_equal_to_the_last_bit_under_every_order(
    kernels: HostKernels, operation: ResultOperation, shape: tuple[int, ...]
) -> None:
    case = ResultCase(operation, floats(1, 2, *shape))
    first = [one.tobytes() for one in launched(case, kernels, 0)]
    assert all([one.tobytes() for one in launched(case, kernels, order)] == first for order in range(1, 9))


def test_equal_rows_give_equal_bits_wherever_they_lie(kernels: HostKernels) -> None:
    row = floats(3, 1, 1003)
    probabilities = launched(ResultCase(SoftmaxTopK(k=9, softmax=True), np.repeat(row, 5, axis=0)), kernels, 2)[1]
    assert (probabilities == probabilities[0]).all()


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("resize.cuh", "COLUMNS_PER_BLOCK", resizing.COLUMNS_PER_BLOCK),
        ("resize.cuh", "ROWS_PER_THREAD", resizing.ROWS_PER_THREAD),
        ("resize.cuh", "CHANNELS", resizing.CHANNELS),
        ("ctc_greedy_decode.cu", "THREADS", ctc_greedy_decode.THREADS),
        ("threshold_bit_pack.cu", "ROWS_PER_BLOCK", threshold_bit_pack.ROWS_PER_BLOCK),
        ("threshold_bit_pack.cu", "VOTES", threshold_bit_pack.VOTES),
        ("tensor_samples.cu", "THREADS", tensor_samples.THREADS),
        ("top_k.cuh", "GROUPS_PER_BLOCK", top_k.GROUPS_PER_BLOCK),
        ("top_k.cuh", "SELECT_THREADS", top_k.SELECT_THREADS),
        ("top_k.cuh", "MAX_K", top_k.MAX_K),
    ],
)
def test_constants_that_stand_in_both_files(file: str, name: str, value: int) -> None:
    assert re.findall(rf"constexpr int {name} = (\d+);", (SOURCES / file).read_text("utf-8")) == [str(value)]


def test_constants_that_follow_from_them() -> None:
    assert threshold_bit_pack.THREADS == 32 * threshold_bit_pack.ROWS_PER_BLOCK
    assert top_k.GROUP_THREADS == 32 * top_k.GROUPS_PER_BLOCK
    assert softmax_top_k.GROUP == 1 << 8
    assert "constexpr int GROUP_SHIFT = 8;" in (SOURCES / "softmax_top_k.cu").read_text("utf-8")


def test_every_kernel_that_is_launched_exists_and_the_other_way_round() -> None:
    exist = {name for path in SOURCES.glob("*.cu") for name in kernel_names(path.read_text("utf-8"))}
    named: set[str] = set()
    for dtype in FLOATS:
        frame = letterbox_normalize.LetterboxNormalize(dtype=dtype)
        named.add(frame.launch(1, frame.spec(8, 8)).kernel)
        row, plane = TensorSpec(dtype, (5,)), TensorSpec(dtype, (5, 5))
        for operation, output in (
            (CtcGreedyDecode(characters="c"), plane),
            (ThresholdBitPack(threshold=0.5), plane),
            (SoftmaxTopK(k=1, softmax=True), row),
            (TensorFingerprint(output="y", k=1), row),
            (TensorSamples(output="y"), row),
        ):
            named |= {launch.kernel for launch in operation.launches(1, output)}
    named.add(ResizeNormalizePad().launch(1, TensorSpec("float32", (3, 48, 8))).kernel)
    assert named == exist
