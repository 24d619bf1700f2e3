"""ONNX Runtime, imported without a word.

While it is imported it looks for graphics cards and complains on standard error about every folder that a process which
is shut in may not list. What the worker writes there is shown as the reason of its end, so it may hold nothing else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["ort"]

_STDERR = 2


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Standard error leads nowhere; into a memfd, since /dev/null may be out of reach."""
    kept = os.dup(_STDERR)
    sink = os.memfd_create("unheard", os.MFD_CLOEXEC)
    try:
        os.dup2(sink, _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(sink)
        os.close(kept)


with _unheard():
    import onnxruntime as ort
