"""What leaves the worker: the answers of a slice as canonical JSON with their digests, and the golden comparison."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import msgspec

from agent.errors import PackageError
from agent.package import Package
from agent.wire import SliceDone, WireError, decode_input
from agent.worker.pipeline import Answer

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
        expected = msgspec.json.decode(package.read(golden.expected), type=list[dict[str, str | int]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"package {package.path}: {golden.expected} is not a list of answers: {error}") from error
    if not expected or len(expected) != len(answers):
        raise PackageError(f"{where}: {len(answers)} answers, expected {len(expected)} (and at least one)")
    for place, (answer, wanted) in enumerate(zip(answers, expected)):  # noqa: B905 - same length, as checked
        if not _agree(answer.body, wanted, golden.tolerance_permille):
            raise PackageError(f"{where}: item {place} gave {answer.body}, expected {wanted}")


def _agree(answer: dict[str, str | int], wanted: dict[str, str | int], tolerance_permille: int) -> bool:
    """Equal, but for a confidence that may differ by the tolerance."""
    mine, theirs = dict(answer), dict(wanted)
    confidence, expected = mine.pop(CONFIDENCE, 0), theirs.pop(CONFIDENCE, 0)
    if not isinstance(confidence, int) or not isinstance(expected, int):
        return False
    return mine == theirs and abs(confidence - expected) <= tolerance_permille


def _common_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that all share, with -1 where they differ; all have the same number of dimensions."""
    return tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes))  # noqa: B905 - see above
