"""Decoding images from people we do not know."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agent.worker.images import MAX_PIXELS, ImageError, decode_image
from hil.images import drawn_lines


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims its size and then holds next to no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_colours_come_red_first() -> None:
    pixels = decode_image(encoded(Image.new("RGB", (3, 2), (200, 100, 50))))
    assert pixels.shape == (2, 3, 3)
    assert pixels.dtype == np.uint8
    assert pixels[1, 2].tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_png_mode_gives_three_channels(mode: str) -> None:
    assert (decode_image(encoded(Image.new("RGB", (4, 4), "white").convert(mode))) == 255).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_jpeg_mode_gives_three_channels(mode: str) -> None:
    assert decode_image(encoded(Image.new("RGB", (4, 4), "white").convert(mode), "JPEG")).shape == (4, 4, 3)


def test_transparency_is_white_paper() -> None:
    assert decode_image(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 0))))[0, 0].tolist() == [255, 255, 255]
    assert decode_image(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 255))))[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_other_formats_are_not_decoded(kind: str) -> None:
    with pytest.raises(ImageError, match=r"^not a readable PNG or JPEG image$"):
        decode_image(encoded(Image.new("RGB", (4, 4)), kind))


def test_size_is_checked_before_pixels_are_decoded() -> None:
    with pytest.raises(ImageError, match=rf"the image has {MAX_PIXELS + 1024} pixels, more than {MAX_PIXELS}"):
        decode_image(png_of_size(1024, MAX_PIXELS // 1024 + 1))
    for side in (30_000, 2**31 - 1):
        with pytest.raises(ImageError):
            decode_image(png_of_size(side, side))


def test_half_an_image_is_no_image() -> None:
    png = encoded(Image.effect_noise((64, 64), 50))
    for body in (b"", png[:40], png[: len(png) // 2], png_of_size(10, 10)):
        with pytest.raises(ImageError, match=r"^not a readable PNG or JPEG image$"):
            decode_image(body)


@given(st.binary(max_size=200))
def test_random_bytes_are_no_image(body: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(body)


@settings(max_examples=50)
@given(st.data())
def test_a_damaged_image_is_an_image_or_an_image_error(data: st.DataObject) -> None:
    body = bytearray(drawn_lines(1, 5)[0].png)
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert decode_image(bytes(body)).shape[2] == 3
