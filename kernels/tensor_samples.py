"""A few values of a tensor, always at the same places: how precisely it was computed, for 24 bytes an item.

Two engines never give the same bits, but what they lose differs by orders of magnitude: float32 in another order of
sums moves a value by millionths of the tensor's size, half precision by thousandths. So a handful of values says in
which precision all that led to them was computed, and nobody can know them who did not compute it so. It is the idea
of activation fingerprints (Activation-DiFR, arXiv 2511.20621), with places in the stead of projections: a projection
would read the whole tensor again for the same evidence.

Where the largest values stand, and so which model it was, `tensor_fingerprint` shows. The places follow from the
tensor's size alone, spread by SplitMix64 (Steele, Lea and Flood 2014). The kernel and the reference agree exactly.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

from kernels.float_outputs import NOT_A_NUMBER, count_values
from kernels.operation import OUTPUT, Answerer, Array, Buffer, Int32, Json, Launch, OperationError, ReadFile, TensorSpec

MAX_SAMPLES = 64
THREADS = 64
PPM = 1_000_000
_WORD = 2**64 - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""SplitMix64's constants; they stand in tensor_samples.cu as well."""


class TensorSamples(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: the model's output, and how many of its values."""

    output: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    k: Annotated[int, msgspec.Meta(ge=1, le=MAX_SAMPLES)] = 6

    def results(self, output: TensorSpec) -> tuple[TensorSpec, ...]:
        """The values (float32)."""
        count_values(output, "tensor_samples")
        return (TensorSpec("float32", (self.k,)),)

    def scratch_bytes(self, items: int, output: TensorSpec) -> int:
        """None."""
        del items, output
        return 0

    def reference(self, output: Array) -> tuple[Array, ...]:
        """Items x k."""
        rows = output.reshape(len(output), -1)
        return (np.ascontiguousarray(rows[:, sample_places(self.k, rows.shape[1])], dtype=np.float32),)

    def launches(self, items: int, output: TensorSpec) -> tuple[Launch, ...]:
        """A block for each item, a thread for each value."""
        launch = Launch(
            kernel=f"tensor_samples_{output.dtype}",
            grid=(items, 1, 1),
            block=(THREADS, 1, 1),
            arguments=(Buffer(OUTPUT), Buffer("result0"), Int32(math.prod(output.shape)), Int32(self.k)),
        )
        return (launch,)

    def answerer(self, read: ReadFile, output: TensorSpec) -> Answerer:
        """`samples`: base64 of the values as little-endian float32."""
        del read, output

        def answer(results: tuple[Array, ...]) -> dict[str, Json]:
            (values,) = results
            if not np.isfinite(values).all():
                raise OperationError(NOT_A_NUMBER)
            return {"samples": base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")}

        return answer


def sample_places(k: int, count: int) -> list[int]:
    """The flat indices of the k values of a tensor of `count`; a small tensor may have one twice."""
    return [_mixed((place + 1) * _STEP & _WORD) % count for place in range(k)]


def _mixed(word: int) -> int:
    """SplitMix64's output for a state."""
    word = (word ^ (word >> 30)) * _FIRST & _WORD
    word = (word ^ (word >> 27)) * _SECOND & _WORD
    return word ^ (word >> 31)


def samples_drift_ppm(mine: object, theirs: object) -> float:
    """How far two samples of one tensor are apart: the root mean square of their differences, in ppm of their own.

    Infinity for what is no pair of samples of equal number, or holds what is no finite number. The same either way
    round. 0.0 for equal ones, also where all values are zero.
    """
    one, other = _values(mine), _values(theirs)
    if one is None or other is None or len(one) != len(other):
        return math.inf
    apart = math.fsum((left - right) ** 2 for left, right in zip(one, other, strict=True))
    size = math.fsum(value**2 for value in (*one, *other)) / 2
    if apart == 0:
        return 0.0
    return math.sqrt(apart / size) * PPM if size > 0 else math.inf


def _values(samples: object) -> Sequence[float] | None:
    """What an answer holds under `samples`; None where that is no such thing. Untrusted."""
    if not isinstance(samples, str) or len(samples) > 4 * MAX_SAMPLES * 4 // 3 + 4:
        return None
    try:
        body = base64.b64decode(samples, validate=True)
    except (binascii.Error, ValueError):
        return None
    if not body or len(body) % 4:
        return None
    values = np.frombuffer(body, "<f4").astype(np.float64)
    return values.tolist() if bool(np.isfinite(values).all()) else None
