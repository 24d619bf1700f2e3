"""The operations of a pipeline: a NumPy reference of each, and the CUDA kernels with the same meaning.

One operation a file: a plain function (the reference, whose docstring fixes shapes, dtypes and rounding) and a frozen
struct with the parameters a package may give it. A package names operations in its manifest; `operation` turns such a
name and its parameters into the typed struct, and refuses what it does not know. Imports nothing of the agent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Union

import msgspec

from kernels.ctc_greedy_decode import CtcGreedyDecode
from kernels.npy_tensor import NpyTensor
from kernels.resize_normalize_pad import ResizeNormalizePad
from kernels.tensor_answers import TensorDigest, TensorValues

Operation = Union[  # noqa: UP007 - Python 3.10 evaluates this line
    ResizeNormalizePad, NpyTensor, CtcGreedyDecode, TensorValues, TensorDigest
]

OPS: Mapping[str, type[Operation]] = {
    "resize_normalize_pad": ResizeNormalizePad,
    "ctc_greedy_decode": CtcGreedyDecode,
    "npy_tensor": NpyTensor,
    "tensor_values": TensorValues,
    "tensor_digest": TensorDigest,
}
"""Every operation a package may name."""


class OperationError(ValueError):
    """An operation that does not exist, or parameters that it does not take."""


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
    """SHA-256 over this package's source files, hex: what a result was computed with.

    Each file in the order of its name: the name, NUL, its length in decimal, NUL, its bytes.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        body = path.read_bytes()
        digest.update(b"%s\0%d\0%s" % (path.name.encode(), len(body), body))
    return digest.hexdigest()
