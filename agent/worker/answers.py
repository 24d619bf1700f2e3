"""What came of one item: its answer, and the digest of what the engine gave for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.tensor_answers import little_endian

NO_OUTPUT = hashlib.sha256(b"none[]\n").digest()
"""The digest of an item that the engine was not asked about."""
MIXED = "mixed"


@dataclass(frozen=True)
class Answer:
    """The answer's JSON object, and the digest, dtype and shape of the engine's output (None: there was none)."""

    body: dict[str, Any]
    raw_sha256: bytes
    raw_dtype: str | None = None
    raw_shape: tuple[int, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the item has no result."""
        return "error" in self.body


def no_answer(reason: str) -> Answer:
    """The answer to an item that was no good."""
    return Answer({"error": reason}, NO_OUTPUT)


def answer(body: dict[str, Any], outputs: Sequence[NDArray[np.generic]]) -> Answer:
    """The answer to one item, with the digest of its engine outputs as `agent.wire.SliceDone` defines it."""
    digest = hashlib.sha256()
    for raw in outputs:
        shape = ",".join(str(size) for size in raw.shape)
        digest.update(f"{raw.dtype.name}[{shape}]\n".encode("ascii"))
        digest.update(little_endian(raw).data)
    if len(outputs) == 1:
        return Answer(body, digest.digest(), outputs[0].dtype.name, outputs[0].shape)
    kinds = {raw.dtype.name for raw in outputs}
    return Answer(body, digest.digest(), kinds.pop() if len(kinds) == 1 else MIXED)
