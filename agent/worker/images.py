"""Decode one image from an untrusted byte string.

Only PNG and JPEG decoders are reachable, the pixel count is checked before a pixel is decoded, and whatever a
decoder throws becomes one plain sentence: it ends up in signed results, so it may not hold addresses or paths.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 2 * 1024 * 1024
"""A text line needs far less; this decodes in well under a tenth of a second on a slow core."""


class ImageError(ValueError):
    """An item that is no image we take; the text is the same on every computer."""


def decode_image(item: bytes) -> NDArray[np.uint8]:
    """The image as H x W x 3 uint8, red first; transparent parts are white. Raises ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning is for programmers; the outcome is an image or an error
            with Image.open(io.BytesIO(item), formats=FORMATS) as image:
                pixels = image.width * image.height
                if pixels > MAX_PIXELS:
                    raise ImageError(f"the image has {pixels} pixels, more than {MAX_PIXELS}")  # noqa: TRY301
                return np.asarray(_as_rgb(image))
    except ImageError:
        raise
    except Exception as error:  # decoders fed with hostile bytes raise almost anything
        raise ImageError("not a readable PNG or JPEG image") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    """Three channels, on white paper."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    paper = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(paper, layer).convert("RGB")
