"""What leaves the worker: the answers of a slice as canonical JSON with their digests, and the golden comparison."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from agent.errors import PackageError
from agent.package import Package
from agent.wire import SliceDone, WireError, decode_input
from agent.worker.answers import Answer

CONFIDENCE = "confidence_permille"


def canonical(answers: Sequence[Answer]) -> bytes:
    """The answers as a JSON array: compact, keys sorted, ASCII. The same answers are always the same bytes."""
    return json.dumps([answer.body for answer in answers], separators=(",", ":"), sort_keys=True).encode("ascii")


def slice_done(index: int, answers: Sequence[Answer], compute_ms: int) -> SliceDone:
    """The frame for a finished slice; `agent.wire.SliceDone` defines the digests."""
    output = canonical(answers)
    computed = [answer for answer in answers if answer.raw_dtype is not None]
    return SliceDone(
        index=index,
        items=len(answers),
        failed_items=sum(answer.failed for answer in answers),
        output=output,
        output_sha256=hashlib.sha256(output).hexdigest(),
        raw_sha256=hashlib.sha256(b"".join(answer.raw_sha256 for answer in answers)).hexdigest(),
        raw_dtype=(computed[0].raw_dtype or "none") if computed else "none",
        raw_shape=_common_shape([answer.raw_shape for answer in computed]),
        compute_ms=compute_ms,
    )


def golden_items(package: Package) -> list[bytes]:
    """The items of the golden input; raises PackageError when the file is no input."""
    name = package.manifest.golden.input
    try:
        return decode_input(package.read(name))
    except WireError as error:
        raise PackageError(f"package {package.path}: {name}: {error.what}") from error


def check_golden(package: Package, answers: Sequence[Answer]) -> None:
    """Raise PackageError, which says what differs, unless the golden answers came out within their tolerance."""
    golden = package.manifest.golden
    where = f"package {package.path}: golden vector"
    try:
        expected = msgspec.json.decode(package.read(golden.expected), type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"package {package.path}: {golden.expected} is not a list of answers: {error}") from error
    if not expected or len(expected) != len(answers):
        raise PackageError(f"{where}: {len(answers)} answers, expected {len(expected)} (and at least one)")
    for place, (answer, wanted) in enumerate(zip(answers, expected)):  # noqa: B905 - same length, as checked
        if not _agree(answer.body, wanted, golden.tolerance_permille):
            raise PackageError(f"{where}: item {place} gave {answer.body}, expected {wanted}")


def _agree(answer: object, wanted: object, tolerance_permille: int) -> bool:
    """Equal, but for a confidence, and the floats of a tensor, which may differ by the tolerance."""
    if isinstance(answer, dict) and isinstance(wanted, dict):
        if answer.keys() != wanted.keys():
            return False
        return all(
            _close(answer[key], wanted[key], tolerance_permille)
            if key == CONFIDENCE
            else _agree(answer[key], wanted[key], tolerance_permille)
            for key in wanted
        )
    if isinstance(answer, float) or isinstance(wanted, (float, list)):
        mine, theirs = _leaves(answer), _leaves(wanted)
        numbers = [abs(value) for value in theirs if isinstance(value, float)]
        scale = max(numbers, default=0.0)
        return _shape(answer) == _shape(wanted) and all(
            abs(one - other) * 1000 <= tolerance_permille * scale
            if isinstance(one, float) and isinstance(other, float)
            else type(one) is type(other) and one == other
            for one, other in zip(mine, theirs)  # noqa: B905 - as many, since the shapes are the same
        )
    return type(answer) is type(wanted) and answer == wanted


def _close(answer: object, wanted: object, tolerance: int) -> bool:
    return isinstance(answer, int) and isinstance(wanted, int) and abs(answer - wanted) <= tolerance


def _leaves(value: object) -> list[object]:
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, list) else [value]


def _shape(value: object) -> object:
    return [_shape(part) for part in value] if isinstance(value, list) else None


def _common_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that all share, with -1 where they differ; all have the same number of dimensions."""
    return tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes))  # noqa: B905 - see above
