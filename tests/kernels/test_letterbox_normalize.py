"""Where an image goes in its frame, and what its pixels become, against plain arithmetic in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import OperationError, operation
from kernels.letterbox_normalize import LetterboxNormalize, placement
from kernels.operation import Float32, ImageOperation, TensorSpec

sides = st.integers(1, 400)
frames = st.integers(1, 300)


def row_of(one: LetterboxNormalize, image: NDArray[np.uint8], height: int, width: int) -> NDArray[Any]:
    spec = one.spec(height, width)
    row: NDArray[Any] = np.full(spec.shape, np.nan, dtype=spec.dtype)
    one.reference(image, row)
    return row


def picture(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def interpolated(image: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float64]:
    """Bilinear with half-pixel centres, pixel by pixel in float64."""

    def taps(at: int, inputs: int, outputs: int) -> tuple[int, int, float]:
        place = min(max((at + 0.5) * inputs / outputs - 0.5, 0.0), inputs - 1.0)
        return math.floor(place), min(math.floor(place) + 1, inputs - 1), place - math.floor(place)

    out = np.zeros((rows, columns, 3))
    for y in range(rows):
        top, bottom, down = taps(y, image.shape[0], rows)
        for x in range(columns):
            left, right, across = taps(x, image.shape[1], columns)
            above = image[top, left] * (1 - across) + image[top, right] * across
            below = image[bottom, left] * (1 - across) + image[bottom, right] * across
            out[y, x] = above * (1 - down) + below * down
    return out


@given(st.tuples(sides, sides), st.tuples(frames, frames), st.booleans(), st.booleans())
def test_the_image_stays_in_the_frame_with_its_aspect(
    image: tuple[int, int], frame: tuple[int, int], centred: bool, enlarge: bool
) -> None:
    (rows, columns), (height, width) = image, frame
    top, left, fitted_rows, fitted_columns = placement(rows, columns, height, width, centred=centred, enlarge=enlarge)
    assert 0 <= top <= top + fitted_rows <= height
    assert 0 <= left <= left + fitted_columns <= width
    assert min(fitted_rows, fitted_columns) >= 1
    scale = min(height / rows, width / columns)
    if not enlarge:
        scale = min(scale, 1.0)
    assert abs(fitted_rows - max(rows * scale, 1)) <= 0.5 + 1e-9
    assert abs(fitted_columns - max(columns * scale, 1)) <= 0.5 + 1e-9
    if centred:
        assert 0 <= (height - fitted_rows - top) - top <= 1
        assert 0 <= (width - fitted_columns - left) - left <= 1
    else:
        assert (top, left) == (0, 0)


@pytest.mark.parametrize(
    ("image", "frame", "expected"),
    [
        ((1080, 1920), (640, 640), (140, 0, 360, 640)),
        ((1920, 1080), (640, 640), (0, 140, 640, 360)),
        ((10, 10), (48, 192), (0, 72, 48, 48)),
        ((1, 1000), (20, 10), (9, 0, 1, 10)),
    ],
)
def test_known_places(image: tuple[int, int], frame: tuple[int, int], expected: tuple[int, int, int, int]) -> None:
    assert placement(*image, *frame, centred=True, enlarge=True) == expected


def test_a_small_image_may_keep_its_size() -> None:
    assert placement(10, 20, 48, 192, centred=False, enlarge=False) == (0, 0, 10, 20)
    row = row_of(LetterboxNormalize(enlarge=False, align="top_left", scale=1.0), picture(10, 20), 48, 192)
    assert (row[:, :10, :20].transpose(1, 2, 0) == picture(10, 20)).all()
    assert not row[:, 10:].any()
    assert not row[:, :, 20:].any()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_resizing_is_bilinear(rows: int, columns: int, height: int, width: int) -> None:
    image = picture(rows, columns, seed=rows)
    row = row_of(LetterboxNormalize(scale=1.0, fill="77"), image, height, width)
    top, left, fitted_rows, fitted_columns = placement(rows, columns, height, width, centred=True, enlarge=True)
    expected = np.full((height, width, 3), 77.0)
    expected[top : top + fitted_rows, left : left + fitted_columns] = interpolated(image, fitted_rows, fitted_columns)
    np.testing.assert_allclose(row.transpose(1, 2, 0), expected, atol=2e-3)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_each_channel_is_normalised_with_its_own_numbers(channels: str) -> None:
    params = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225", "fill": "10,20,30", "channels": channels}
    one = operation("letterbox_normalize", params)
    assert isinstance(one, LetterboxNormalize)
    image = picture(4, 4)
    row = row_of(one, image, 4, 6)
    planes = np.full((4, 6, 3), (10, 20, 30), dtype=np.float64)
    planes[:, 1:5] = image
    ordered = planes[:, :, ::-1] if channels == "bgr" else planes
    expected = (ordered / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(row.transpose(1, 2, 0), expected, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40))
def test_half_precision_is_the_rounded_single(rows: int, columns: int) -> None:
    single = row_of(LetterboxNormalize(mean="0.5", std="0.25"), picture(rows, columns), 16, 24)
    half = row_of(LetterboxNormalize(mean="0.5", std="0.25", dtype="float16"), picture(rows, columns), 16, 24)
    assert (half == single.astype(np.float16)).all()


@given(sides, sides, frames, frames)
def test_an_image_fits_that_need_not_shrink(rows: int, columns: int, height: int, width: int) -> None:
    fits = LetterboxNormalize().fits(rows, columns, TensorSpec("float32", (3, height, width)))
    assert fits == (min(height / rows, width / columns) >= 1)


@given(st.integers(1, 16_384), st.integers(1, 16_384))
def test_the_launch_covers_the_frame(height: int, width: int) -> None:
    one: ImageOperation = LetterboxNormalize(dtype="float16")
    launch = one.launch(7, one.spec(height, width))
    assert launch.kernel == "letterbox_normalize_float16"
    assert launch.grid[2] == 7
    assert 0 <= launch.grid[0] * launch.block[0] - width < launch.block[0]
    assert 0 <= launch.grid[1] * 8 - height < 8
    assert max(launch.grid[1:]) <= 65_535


def test_the_launch_carries_what_the_reference_uses() -> None:
    one = LetterboxNormalize(mean="0.485,0.456,0.406", std="0.229,0.224,0.225", fill="10,20,30", channels="bgr")
    carried = [each.value for each in one.launch(1, one.spec(8, 8)).arguments if isinstance(each, Float32)]
    assert carried == [*one.factors, *one.offsets, *one.surround.tolist()]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"std": "0"}, r"`std` is to be at least"),
        ({"std": "1,0.0000001,1"}, r"`std` is to be at least"),
        ({"std": "-1"}, r"`std` is to be at least"),
        ({"mean": "1,2"}, r"`\$.mean`"),
        ({"mean": "nan"}, r"`\$.mean`"),
        ({"mean": "1e9"}, r"`\$.mean`"),
        ({"mean": "1\n"}, r"`\$.mean`"),
        ({"fill": "256"}, "`fill` is to be at most 255"),
        ({"fill": "0,0,999"}, "`fill` is to be at most 255"),
        ({"fill": "-1"}, r"`\$.fill`"),
        ({"scale": 0}, r"`\$.scale`"),
        ({"scale": math.inf}, r"`\$.scale`"),
        ({"channels": "rbg"}, r"`\$.channels`"),
        ({"align": "center"}, r"`\$.align`"),
        ({"dtype": "int8"}, r"`\$.dtype`"),
        ({"enlarge": 1}, r"`\$.enlarge`"),
        ({"colour": "0"}, "unknown field `colour`"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(OperationError, match=message):
        operation("letterbox_normalize", params)


def test_frames_that_do_not_work_are_refused() -> None:
    one = LetterboxNormalize()
    for height, width in ((None, 8), (8, None), (None, None)):
        with pytest.raises(OperationError, match="needs a bucket with a height and a width"):
            one.spec(height, width)
    for height, width in ((0, 8), (8, 16_385), (-1, 1), (10**9, 10**9)):
        with pytest.raises(OperationError, match="frames of 1 to 16384 pixels a side"):
            one.spec(height, width)
    with pytest.raises(OperationError, match="more than a float16 holds"):
        LetterboxNormalize(scale=1000, dtype="float16").spec(8, 8)


@given(st.floats(allow_nan=True, allow_infinity=True), st.text(max_size=20), st.text(max_size=20))
def test_any_parameters_are_taken_or_refused(scale: float, mean: str, std: str) -> None:
    try:
        one = operation("letterbox_normalize", {"scale": scale, "mean": mean, "std": std})
    except OperationError:
        return
    assert isinstance(one, LetterboxNormalize)
    assert np.isfinite(row_of(one, picture(3, 5), 4, 4)).all()
