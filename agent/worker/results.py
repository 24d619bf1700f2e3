"""What leaves the worker: the answers of a slice as canonical JSON with their digests, and the golden comparison."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from agent.errors import PackageError
from agent.package import Package
from agent.wire import SliceDone, WireError, decode_input
from agent.worker.answers import Answer
from kernels.tensor_fingerprint import Fingerprint, fingerprints_agree
from kernels.tensor_samples import PPM, samples_drift_ppm

PERMILLE = "_permille"
FINGERPRINT = "fingerprint"
MASK = "mask"
OUTPUTS = "outputs"
SAMPLES = "samples"
"""Names in answers that say how a golden value is compared: how they end, and what `kernels` calls its results."""


class _Mask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `kernels.threshold_bit_pack` answers."""

    rows: int
    columns: int
    bits: str


def canonical(answers: Sequence[Answer]) -> bytes:
    """The answers as a JSON array: compact, keys sorted, ASCII. The same answers are always the same bytes."""
    return b"[%s]" % b",".join([answer.encoded for answer in answers])


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
        raw_sha256=raw_sha256(answers),
        raw_dtype=(computed[0].raw_dtype or "none") if computed else "none",
        raw_shape=_common_shape([answer.raw_shape for answer in computed]),
        compute_ms=compute_ms,
    )


def raw_sha256(answers: Sequence[Answer]) -> str:
    """The digest of what left the accelerator for these items."""
    return hashlib.sha256(b"".join(answer.raw_sha256 for answer in answers)).hexdigest()


def golden_items(package: Package) -> list[bytes]:
    """The items of the golden input; raises PackageError when the file is no input."""
    name = package.manifest.golden.input
    try:
        return decode_input(package.read(name))
    except WireError as error:
        raise PackageError(f"package {package.path}: {name}: {error.what}") from error


def check_golden(package: Package, answers: Sequence[Answer], precision: str = "float32") -> None:
    """Raise PackageError, which says what differs, unless the golden answers came out within their tolerance.

    It holds for integers whose name ends in `_permille`, floats of a tensor (thousandths of the largest of them), the
    pixels of a mask (thousandths of all) and fingerprints. Samples keep to the package's band for the precision that
    the engine computes in, so an engine that computes in a lower one than it says is refused. All else has to be equal.
    """
    golden = package.manifest.golden
    band = package.manifest.precisions.get(precision, 0)  # type: ignore[call-overload]  # any text is looked up
    where = f"package {package.path}: golden vector"
    try:
        expected = msgspec.json.decode(package.read(golden.expected), type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"package {package.path}: {golden.expected} is not a list of answers: {error}") from error
    if not expected or len(expected) != len(answers):
        raise PackageError(f"{where}: {len(answers)} answers, expected {len(expected)} (and at least one)")
    for place, (answer, wanted) in enumerate(zip(answers, expected)):  # noqa: B905 - same length, as checked
        if not answers_agree(answer.body, wanted, golden.tolerance_permille, band):
            raise PackageError(f"{where}: item {place} gave {answer.body}, expected {wanted}")


def answers_agree(answer: object, wanted: object, tolerance_permille: int, band_ppm: int = 0) -> bool:
    """Whether an answer, or a part of one, is what was expected.

    Samples (`kernels.tensor_samples`) are held to `band_ppm`; where that is 0, to the tolerance as everything else.
    """
    if isinstance(answer, dict) and isinstance(wanted, dict):
        return answer.keys() == wanted.keys() and all(
            _named_agree(key, answer[key], wanted[key], tolerance_permille, band_ppm) for key in wanted
        )
    if isinstance(answer, float) or isinstance(wanted, (float, list)):
        return _values_agree(answer, wanted, tolerance_permille)
    return type(answer) is type(wanted) and answer == wanted


def _named_agree(name: str, answer: object, wanted: object, tolerance_permille: int, band_ppm: int) -> bool:
    """The same for what stands under a name, which may say how it is to be compared."""
    if name.endswith(PERMILLE):
        return _permille_agree(answer, wanted, tolerance_permille)
    if name == OUTPUTS and isinstance(answer, dict) and isinstance(wanted, dict):  # the names in it are the model's
        return answer.keys() == wanted.keys() and all(
            answers_agree(answer[key], wanted[key], tolerance_permille) for key in wanted
        )
    if name == FINGERPRINT:
        return _fingerprints_agree(answer, wanted, tolerance_permille)
    if name == MASK:
        return _masks_agree(answer, wanted, tolerance_permille)
    if name == SAMPLES:
        return samples_drift_ppm(answer, wanted) <= (band_ppm or tolerance_permille * PPM / 1000)
    return answers_agree(answer, wanted, tolerance_permille)


def _permille_agree(answer: object, wanted: object, tolerance_permille: int) -> bool:
    """Thousandths, or lists of them, that are off by no more than the tolerance."""
    if _shape(answer) != _shape(wanted):
        return False
    return all(
        type(one) is int and type(other) is int and abs(one - other) <= tolerance_permille
        for one, other in zip(_leaves(answer), _leaves(wanted))  # noqa: B905 - as many, since the shapes are the same
    )


def _values_agree(answer: object, wanted: object, tolerance_permille: int) -> bool:
    """A tensor's values: floats that are off by no more than thousandths of the largest, all else the same."""
    mine, theirs = _leaves(answer), _leaves(wanted)
    scale = max((abs(value) for value in theirs if isinstance(value, float)), default=0.0)
    return _shape(answer) == _shape(wanted) and all(
        _value_agrees(one, other, tolerance_permille, scale)
        for one, other in zip(mine, theirs)  # noqa: B905 - as many, since the shapes are the same
    )


def _value_agrees(answer: object, wanted: object, tolerance_permille: int, scale: float) -> bool:
    if isinstance(answer, float) and isinstance(wanted, float):
        return abs(answer - wanted) * 1000 <= tolerance_permille * scale
    if isinstance(answer, dict):
        return answers_agree(answer, wanted, tolerance_permille)
    return type(answer) is type(wanted) and answer == wanted


def _fingerprints_agree(answer: object, wanted: object, tolerance_permille: int) -> bool:
    """Fingerprints that can be of one computation; see `kernels.tensor_fingerprint`."""
    try:
        mine, theirs = (msgspec.convert(one, Fingerprint) for one in (answer, wanted))
    except msgspec.ValidationError:
        return False
    return fingerprints_agree(mine, theirs, tolerance_permille)


def _masks_agree(answer: object, wanted: object, tolerance_permille: int) -> bool:
    """Masks of the same size, of whose pixels no more than thousandths differ: those near the threshold."""
    try:
        mine, theirs = (msgspec.convert(one, _Mask) for one in (answer, wanted))
        bits, others = (base64.b64decode(one.bits, validate=True) for one in (mine, theirs))
    except (msgspec.ValidationError, binascii.Error, ValueError):
        return False
    if (mine.rows, mine.columns, len(bits)) != (theirs.rows, theirs.columns, len(others)):
        return False
    different = (int.from_bytes(bits, "big") ^ int.from_bytes(others, "big")).bit_count()
    return different * 1000 <= tolerance_permille * theirs.rows * theirs.columns


def _leaves(value: object) -> list[object]:
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, list) else [value]


def _shape(value: object) -> object:
    return [_shape(part) for part in value] if isinstance(value, list) else None


def _common_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that all share, with -1 where they differ; all have the same number of dimensions."""
    return tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes))  # noqa: B905 - see above
