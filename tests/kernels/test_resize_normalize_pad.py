from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from kernels import OperationError
from kernels.operation import ImageOperation, TensorSpec
from kernels.resize_normalize_pad import ResizeNormalizePad, resize_normalize_pad, resized_width

images = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 60), st.just(3)), elements=st.integers(0, 255)
)


def grey(rows: list[list[int]]) -> NDArray[np.uint8]:
    return np.repeat(np.array(rows, dtype=np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("rows", "columns", "height", "width"),
    [(48, 320, 48, 320), (24, 100, 48, 200), (96, 100, 48, 50), (7, 3, 48, 21), (32, 101, 48, 152), (1000, 1, 48, 1)],
)
def test_width_keeps_the_aspect_and_rounds_up(rows: int, columns: int, height: int, width: int) -> None:
    assert resized_width(rows, columns, height) == width


def test_doubling_two_pixels_by_hand() -> None:
    # 1 x 2 pixels 0 and 255 to 2 x 4: half-pixel centres fall at -0.25 (clamped), 0.25, 0.75 and 1.25 (clamped).
    line = resize_normalize_pad(grey([[0, 255]]), 2, 6)
    assert line.shape == (3, 2, 6)
    assert line.dtype == np.float32
    np.testing.assert_allclose(line[0], [[-1, -0.5, 0.5, 1, 0, 0]] * 2, atol=1e-6)


def test_halving_takes_the_middle_of_each_pair() -> None:
    line = resize_normalize_pad(grey([[0, 100, 200, 0], [0, 100, 200, 0]]), 1, 2)
    np.testing.assert_allclose(line[0], [[50 * 2 / 255 - 1, 100 * 2 / 255 - 1]], atol=1e-6)


def test_rows_are_blended_too() -> None:
    line = resize_normalize_pad(grey([[0], [255]]), 4, 8)
    assert resized_width(2, 1, 4) == 2
    np.testing.assert_allclose(line[0, :, 0], [-1, -0.5, 0.5, 1], atol=1e-6)


def test_a_longer_line_is_squeezed_into_the_bucket() -> None:
    line = resize_normalize_pad(grey([[0, 0, 255, 255]]), 4, 2)
    np.testing.assert_allclose(line[0], [[-1, 1]] * 4, atol=1e-6)


def test_planes_are_blue_green_red() -> None:
    line = resize_normalize_pad(np.array([[[255, 0, 51]]], dtype=np.uint8), 1, 1)
    np.testing.assert_allclose(line[:, 0, 0], [51 * 2 / 255 - 1, -1, 1], atol=1e-6)


@given(images)
def test_no_resize_changes_no_pixel(image: NDArray[np.uint8]) -> None:
    rows, columns = image.shape[:2]
    line = resize_normalize_pad(image, rows, columns + 5)
    expected = (image.astype(np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(line[:, :, :columns].transpose(1, 2, 0)[:, :, ::-1], expected, atol=1e-6)
    assert not line[:, :, columns:].any()


@given(images, st.integers(8, 48), st.integers(1, 200))
def test_values_stay_inside_what_the_image_holds(image: NDArray[np.uint8], height: int, width: int) -> None:
    line = resize_normalize_pad(image, height, width)
    fitted = min(resized_width(image.shape[0], image.shape[1], height), width)
    normalised = image[:, :, ::-1].astype(np.float64) * 2 / 255 - 1
    for plane in range(3):
        assert line[plane, :, :fitted].min() >= normalised[:, :, plane].min() - 1e-5
        assert line[plane, :, :fitted].max() <= normalised[:, :, plane].max() + 1e-5
    assert not line[:, :, fitted:].any()


@given(images, st.integers(8, 48))
def test_a_mirrored_image_gives_the_mirrored_line(image: NDArray[np.uint8], height: int) -> None:
    fitted = resized_width(image.shape[0], image.shape[1], height)
    line = resize_normalize_pad(image, height, fitted)
    mirrored = resize_normalize_pad(np.ascontiguousarray(image[::-1, ::-1]), height, fitted)
    np.testing.assert_allclose(mirrored[:, ::-1, ::-1], line, atol=1e-3)


@pytest.mark.parametrize("height", [None, 48])
def test_a_bucket_has_the_width_and_may_repeat_the_height(height: int | None) -> None:
    operation: ImageOperation = ResizeNormalizePad()
    assert operation.spec(height, 192) == TensorSpec("float32", (3, 48, 192))


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [(None, None, "needs a bucket with a width"), (32, 320, "of height 48 in a bucket of height 32")],
)
def test_other_buckets_are_refused(height: int | None, width: int | None, message: str) -> None:
    with pytest.raises(OperationError, match=message):
        ResizeNormalizePad().spec(height, width)


@pytest.mark.parametrize(("columns", "fits"), [(192, True), (193, False), (1, True)])
def test_a_line_fits_that_need_not_be_squeezed(columns: int, fits: bool) -> None:
    assert ResizeNormalizePad().fits(48, columns, TensorSpec("float32", (3, 48, 192))) == fits


@given(images, st.integers(8, 200))
def test_the_row_is_written_whole(image: NDArray[np.uint8], width: int) -> None:
    operation = ResizeNormalizePad(height=16)
    row = np.full((3, 16, width), np.nan, dtype=np.float32)
    operation.reference(image, row)
    assert (row == resize_normalize_pad(image, 16, width)).all()


def test_the_launch_covers_the_row() -> None:
    launch = ResizeNormalizePad().launch(8, TensorSpec("float32", (3, 48, 320)))
    assert (launch.kernel, launch.grid, launch.block) == ("resize_normalize_pad", (3, 6, 8), (128, 1, 1))
