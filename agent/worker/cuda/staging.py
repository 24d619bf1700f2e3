"""Where the items of a micro-batch wait for the device: images of any size, or tensors of fixed sizes.

One buffer a slot, so that one copy brings everything over. Staging begins anew after each submit: what was staged for
the one before is gone then, and a row that was not staged again computes as zeros, never as another item's data.

Images lie as `kernels.operation.IMAGE` says: the list of them first, then their pixels one after the other. A slot has
room for one image of the largest size, or for a whole batch of images with twice the pixels of the engine's input,
whichever is more. When an image does not fit beside the others the slot is full (SlotFullError): it is submitted as it
is, and the image goes to another. So every image is computed, whatever company it comes in, and little is pinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from agent.worker.cuda.memory import Arena, aligned
from agent.worker.executor import ExecutorError, SlotFullError
from agent.worker.images import MAX_PIXELS
from kernels.operation import IMAGE, IMAGES, PIXELS, Array, TensorSpec

_CHANNELS = 3
_ROOM = 2
"""How many times the engine's input a full batch of images may have in pixels, on average."""
_PIXEL_ALIGNMENT_BYTES = 16


class ImageStaging:
    """The images of one slot."""

    def __init__(self, arena: Arena, what: str, items: int, row: TensorSpec) -> None:
        """Room for `items` images that become rows like `row`; raises ExecutorError."""
        self._pixels_at = aligned(items * IMAGE.itemsize)
        self._room_bytes = _pixel_room_bytes(items, row)
        self.buffer = arena.staged(f"{what}, images", self._pixels_at + self._room_bytes)
        self.addresses = {IMAGES: self.buffer.address, PIXELS: self.buffer.address + self._pixels_at}
        self._images = self.buffer.host[: items * IMAGE.itemsize].view(IMAGE)
        self._pixels = self.buffer.host[self._pixels_at :]
        self._used_bytes = 0

    def begin(self) -> None:
        """Forget what is staged."""
        self._images["rows"] = 0
        self._used_bytes = 0

    def put(self, row: int, image: NDArray[np.uint8]) -> None:
        """Stage an image (rows x columns x 3 uint8); raises SlotFullError, or ExecutorError for what is no image."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != _CHANNELS or not image.size:
            raise ExecutorError(f"an image of {image.dtype} {image.shape}, not rows x columns x {_CHANNELS} uint8")
        if image.size > MAX_PIXELS * _CHANNELS:
            raise ExecutorError(f"an image of {image.shape[0]} x {image.shape[1]} pixels, more than {MAX_PIXELS}")
        end = self._used_bytes + image.size
        if end > self._room_bytes:
            raise SlotFullError(f"{image.size} bytes of pixels beside {self._used_bytes} of {self._room_bytes}")
        self._pixels[self._used_bytes : end].reshape(image.shape)[...] = image
        self._images[row] = (self._used_bytes, image.shape[0], image.shape[1])
        self._used_bytes = -(-end // _PIXEL_ALIGNMENT_BYTES) * _PIXEL_ALIGNMENT_BYTES

    def seal(self, items: int) -> int:
        """Leave only the first `items` rows; how many bytes of the buffer the device needs."""
        self._images["rows"][items:] = 0
        return min(self._pixels_at + self._used_bytes, self.buffer.nbytes)


class TensorStaging:
    """The engine's inputs of one slot: what is staged is what the engine reads."""

    def __init__(self, arena: Arena, what: str, inputs: Mapping[str, TensorSpec], items: int | None) -> None:
        """Room for `items` rows of each input along a first axis; None: one item, without such an axis."""
        offsets: dict[str, int] = {}
        end = 0
        for name, spec in inputs.items():
            offsets[name] = end
            end = aligned(end + (items or 1) * spec.nbytes)
        self.buffer = arena.staged(f"{what}, inputs", end)
        self.addresses = {name: self.buffer.address + offset for name, offset in offsets.items()}
        self._tensors = [
            tensor_view(self.buffer.host, offsets[name], spec, items or 1) for name, spec in inputs.items()
        ]
        self._staged = np.zeros(items or 1, dtype=bool)
        self._dirty = self._staged.copy()

    def begin(self) -> None:
        """Forget what is staged; `seal` zeroes it."""
        self._staged[:] = False

    def put(self, row: int, tensors: Sequence[Array]) -> None:
        """Stage one item's tensors in the order of the inputs; raises ExecutorError when they are others."""
        wanted = [(rows.dtype, rows.shape[1:]) for rows in self._tensors]
        given = [(tensor.dtype, tensor.shape) for tensor in tensors]
        if given != wanted:
            raise ExecutorError(f"tensors {_named(given)}, not {_named(wanted)}")
        for rows, tensor in zip(self._tensors, tensors, strict=True):
            rows[row] = tensor
        self._staged[row] = self._dirty[row] = True

    def seal(self, items: int) -> int:
        """Zero every row but the staged ones of the first `items`; the whole buffer goes to the device."""
        self._staged[items:] = False
        stale = self._dirty & ~self._staged
        if stale.any():
            for rows in self._tensors:
                rows[stale] = 0
            self._dirty &= self._staged
        return self.buffer.nbytes


def tensor_view(host: NDArray[np.uint8], offset: int, spec: TensorSpec, items: int) -> Array:
    """Bytes of a buffer as `items` tensors along a first axis."""
    flat = host[offset : offset + items * spec.nbytes].view(spec.dtype)
    return flat.reshape((items, *spec.shape))


def _pixel_room_bytes(items: int, row: TensorSpec) -> int:
    """As the head of this file says; a row's elements are as many as an RGB image of its size has bytes."""
    largest = MAX_PIXELS * _CHANNELS + _PIXEL_ALIGNMENT_BYTES
    elements = int(np.prod(row.shape, dtype=np.int64))
    return min(items * largest, max(largest, _ROOM * items * elements))


def _named(tensors: Sequence[tuple[np.dtype[np.generic], tuple[int, ...]]]) -> str:
    return ", ".join(f"{dtype} {shape}" for dtype, shape in tensors) or "none"
