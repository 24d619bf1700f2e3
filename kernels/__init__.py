"""The operations of a pipeline: a NumPy reference of each, and the CUDA kernels with the same meaning.

One operation a file: a frozen struct with the parameters a package may give it, which follows `kernels/operation.py`
(the reference fixes shapes, dtypes and rounding), and beside it the .cu file with its kernels. A package names
operations in its manifest; `operation` turns such a name and its parameters into the typed struct, and refuses what it
does not know. Imports nothing of the agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Union

import msgspec

from kernels.ctc_greedy_decode import CtcGreedyDecode
from kernels.digest import CUDA_SUFFIXES, files_sha256, read_files
from kernels.letterbox_normalize import LetterboxNormalize
from kernels.npy_tensor import NpyTensor
from kernels.operation import OperationError
from kernels.resize_normalize_pad import ResizeNormalizePad
from kernels.softmax_top_k import SoftmaxTopK
from kernels.tensor_answers import TensorDigest, TensorValues
from kernels.tensor_fingerprint import TensorFingerprint
from kernels.tensor_samples import TensorSamples
from kernels.threshold_bit_pack import ThresholdBitPack

__all__ = ["OPS", "Operation", "OperationError", "kernels_sha256", "operation"]

Operation = Union[  # noqa: UP007 - Python 3.10 evaluates this line
    ResizeNormalizePad,
    LetterboxNormalize,
    NpyTensor,
    CtcGreedyDecode,
    SoftmaxTopK,
    ThresholdBitPack,
    TensorFingerprint,
    TensorSamples,
    TensorValues,
    TensorDigest,
]

OPS: Mapping[str, type[Operation]] = {
    "resize_normalize_pad": ResizeNormalizePad,
    "letterbox_normalize": LetterboxNormalize,
    "npy_tensor": NpyTensor,
    "ctc_greedy_decode": CtcGreedyDecode,
    "softmax_top_k": SoftmaxTopK,
    "threshold_bit_pack": ThresholdBitPack,
    "tensor_fingerprint": TensorFingerprint,
    "tensor_samples": TensorSamples,
    "tensor_values": TensorValues,
    "tensor_digest": TensorDigest,
}
"""Every operation a package may name."""

SOURCE_SUFFIXES = (".py", *CUDA_SUFFIXES)


def operation(name: str, params: Mapping[str, object]) -> Operation:
    """The operation `name` with its typed parameters.

    Raises OperationError, which names the operation or the parameter at fault.
    """
    kind = OPS.get(name)
    if kind is None:
        raise OperationError(f"no operation is called {name!r} (there are {', '.join(sorted(OPS))})")
    try:
        return msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise OperationError(f"operation {name}: {error}") from error


def kernels_sha256() -> str:
    """`files_sha256` of this package's sources (Python and CUDA): what a result was computed with without a GPU."""
    return files_sha256(read_files(Path(__file__).parent, SOURCE_SUFFIXES))
