"""Bits of a mask against counting pixel by pixel."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from kernels import OperationError, operation
from kernels.operation import Float32, ResultOperation, TensorSpec
from kernels.threshold_bit_pack import MAX_COLUMNS, MAX_ROWS, ThresholdBitPack

maps = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 30)),
    elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)


def mask_of(output: NDArray[np.float32], threshold: float = 0.5) -> dict[str, object]:
    one = ThresholdBitPack(threshold=threshold)
    results = tuple(each[0] for each in one.reference(output))
    mask = one.answerer(_no_file, TensorSpec("float32", output.shape[1:]))(results)["mask"]
    assert isinstance(mask, dict)
    return dict(mask)


def _no_file(name: str) -> bytes:
    raise AssertionError(name)


@given(maps)
def test_each_bit_is_one_pixel(output: NDArray[np.float32]) -> None:
    bits, _ = ThresholdBitPack(threshold=0.5).reference(output)
    items, rows, columns = output.shape
    assert bits.shape == (items, rows, (columns + 7) // 8)
    for item in range(items):
        for y in range(rows):
            for x in range(bits.shape[2] * 8):
                bit = int(bits[item, y, x // 8]) >> (7 - x % 8) & 1
                assert bit == (x < columns and output[item, y, x] > 0.5)


@given(maps)
def test_a_reader_gets_the_mask_back(output: NDArray[np.float32]) -> None:
    mask = mask_of(output)
    rows, columns = output.shape[1:]
    assert (mask["rows"], mask["columns"]) == (rows, columns)
    packed = np.frombuffer(base64.b64decode(str(mask["bits"]), validate=True), dtype=np.uint8)
    assert (np.unpackbits(packed.reshape(rows, -1), axis=1, count=columns) == (output[0] > 0.5)).all()


def test_the_threshold_is_compared_in_single_precision() -> None:
    one = ThresholdBitPack(threshold=0.3)
    at = np.float32(0.3)
    output = np.array([[[at, np.nextafter(at, np.float32(1)), np.nextafter(at, np.float32(0))]]], dtype=np.float32)
    assert one.reference(output)[0].tolist() == [[[0b0100_0000]]]
    (launch,) = one.launches(1, TensorSpec("float32", (1, 3)))
    assert launch.arguments[-1] == Float32(float(at))


def test_what_is_no_number_is_no_mask() -> None:
    output = np.zeros((2, 3, 9), dtype=np.float32)
    output[0, 1, 8] = np.nan
    bits, not_numbers = ThresholdBitPack(threshold=0.5).reference(output)
    assert not bits.any()
    assert not_numbers.tolist() == [[0, 1, 0], [0, 0, 0]]
    with pytest.raises(OperationError, match="not a number"):
        mask_of(output)
    assert mask_of(output[1:])["rows"] == 3


def test_infinity_is_above() -> None:
    assert mask_of(np.array([[[np.inf, -np.inf]]], dtype=np.float32))["bits"] == base64.b64encode(b"\x80").decode()


@pytest.mark.parametrize("shape", [(7, 9), (1, 7, 9)])
def test_maps_with_and_without_a_channel(shape: tuple[int, ...]) -> None:
    one: ResultOperation = ThresholdBitPack(threshold=0.5)
    spec = TensorSpec("float16", shape)
    assert one.results(spec) == (TensorSpec("uint8", (7, 2)), TensorSpec("uint8", (7,)))
    assert [each.shape for each in one.reference(np.zeros((3, *shape), dtype=np.float16))] == [(3, 7, 2), (3, 7)]
    (launch,) = one.launches(3, spec)
    assert (launch.kernel, launch.grid, one.scratch_bytes(3, spec)) == ("threshold_bit_pack_float16", (1, 3, 1), 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("uint8", (4, 4)), "not an output of uint8"),
        (TensorSpec("float32", (4,)), "reads rows x columns"),
        (TensorSpec("float32", (2, 4, 4)), "reads rows x columns"),
        (TensorSpec("float32", (4, 0)), "cannot read an output of shape"),
        (TensorSpec("float32", (2**16, 2**16)), "at most 2147483647 values"),
        (TensorSpec("float32", (1, MAX_COLUMNS + 1)), "rows and 2147483520 columns, not 1 x 2147483521"),
        (TensorSpec("float16", (1, MAX_ROWS + 1, 1)), "at most 2147483640 rows"),
    ],
)
def test_outputs_that_are_no_map_are_refused(spec: TensorSpec, message: str) -> None:
    with pytest.raises(OperationError, match=message):
        ThresholdBitPack(threshold=0.5).results(spec)


def test_the_largest_maps_leave_room_for_the_kernels_indices() -> None:
    """What the loop over a row, and the rows of the last block, come to at most is still an `int`."""
    one, highest = ThresholdBitPack(threshold=0.5), 2**31 - 1
    for rows, columns in ((1, MAX_COLUMNS), (MAX_ROWS, 1)):
        spec = TensorSpec("float32", (rows, columns))
        assert one.results(spec)[0].shape == (rows, (columns + 7) // 8)
        (launch,) = one.launches(1, spec)
        assert (launch.grid[0] - 1) * 8 + 7 <= highest
        assert (columns - 1) + 4 * 32 <= highest


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan"), "0.5"])
def test_a_threshold_is_a_probability(threshold: object) -> None:
    with pytest.raises(OperationError, match=r"`\$.threshold`"):
        operation("threshold_bit_pack", {"threshold": threshold})
