"""What came of one item: its answer, and the digest of its raw results."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kernels.operation import Array, TensorSpec
from kernels.tensor_answers import little_endian

NO_OUTPUT = hashlib.sha256(b"none[]\n").digest()
"""The digest of an item that the engine was not asked about."""
MIXED = "mixed"
_encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode
_AS_IT_LIES = sys.byteorder == "little"


@dataclass(frozen=True)
class Answer:
    """The answer's JSON object, and the digest, dtype and shape of the item's raw results (None: there were none)."""

    body: dict[str, Any]
    raw_sha256: bytes
    raw_dtype: str | None = None
    raw_shape: tuple[int, ...] = ()

    @cached_property
    def encoded(self) -> bytes:
        """The body as it leaves the worker: JSON, compact, keys sorted, ASCII. The same body gives the same bytes."""
        return _encode(self.body).encode("ascii")

    @property
    def failed(self) -> bool:
        """Whether the item has no result."""
        return "error" in self.body


def no_answer(reason: str) -> Answer:
    """The answer to an item that was no good."""
    return Answer({"error": reason}, NO_OUTPUT)


class RawForm:
    """What the raw results of every item of a bucket look like, and how they are digested.

    The digest is `agent.wire.SliceDone`'s: of each result its dtype, its shape and its values. All but the values is
    the same for all items, so it is put into words once: that costs more than digesting what a small model gives.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.specs = tuple(specs)
        self._headers = [f"{one.dtype}[{','.join(map(str, one.shape))}]\n".encode("ascii") for one in self.specs]
        kinds = {one.dtype for one in self.specs}
        self.dtype = kinds.pop() if len(kinds) == 1 else MIXED
        self.shape = self.specs[0].shape if len(self.specs) == 1 else ()

    def sha256(self, results: Sequence[tuple[Array, ...]]) -> bytes:
        """The digest of one item's raw results."""
        digest = hashlib.sha256()
        for header, one in zip(self._headers, (one for result in results for one in result), strict=True):
            digest.update(header)
            digest.update(one.data if _AS_IT_LIES and one.flags.c_contiguous else little_endian(one).data)
        return digest.digest()

    def answer(self, body: dict[str, Any], results: Sequence[tuple[Array, ...]]) -> Answer:
        """The answer to one item."""
        return Answer(body, self.sha256(results), self.dtype, self.shape)
