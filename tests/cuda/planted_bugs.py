"""Bugs that somebody could write into the kernels, each as a change of their text.

A change names text that must occur exactly once, so a table that no longer fits the sources fails its test. `alone`:
the bug reads or writes where it may not, so it only ever runs in a sanitised process.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cuda.host_kernels import CACHE, SOURCES


@dataclass(frozen=True)
class Bug:
    """One bug: what it is, the file and text it changes, and the .cu file whose cases must show it."""

    name: str
    file: str
    old: str
    new: str
    shown_by: str
    alone: bool = False


class StaleBugError(Exception):
    """The sources no longer hold the text that a planted bug changes, or hold it more than once."""


def plant(bug: Bug) -> Path:
    """A copy of the kernels' sources with the bug in it; raises StaleBugError."""
    folder = CACHE / "planted" / bug.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh")):
        shutil.copy(path, folder)
    text = (folder / bug.file).read_text("utf-8")
    if text.count(bug.old) != 1:
        raise StaleBugError(f"{bug.file} holds {text.count(bug.old)} times, not once: {bug.old}")
    (folder / bug.file).write_text(text.replace(bug.old, bug.new), "utf-8")
    return folder


RESIZE, LETTERBOX, CTC = "resize_normalize_pad.cu", "letterbox_normalize.cu", "ctc_greedy_decode.cu"
SOFTMAX, THRESHOLD, FINGERPRINT = "softmax_top_k.cu", "threshold_bit_pack.cu", "tensor_fingerprint.cu"
SAMPLES = "tensor_samples.cu"
SYNC = "__syncthreads();"

BUGS: Sequence[Bug] = (
    # What all share.
    Bug(
        "NaN below numbers",
        "common.cuh",
        "return value != value ? 0xffffffffu : rank;  // chosen",
        "return value != value ? 1u : rank;  // chosen",
        CTC,
    ),
    Bug("minus zero below zero", "common.cuh", "__fadd_rn(value, 0.0f)", "value", CTC),
    Bug(
        "a warp's upper half forgotten",
        "common.cuh",
        "lanes = WARP / 2; lanes > 0; lanes /= 2) key",
        "lanes = WARP / 4; lanes > 0; lanes /= 2) key",
        CTC,
    ),
    Bug("the last value forgotten", "common.cuh", "+ thread; at < count;", "+ thread; at + 1 < count;", CTC),
    Bug("the first values forgotten", "common.cuh", "if (thread < head)", "if (thread + 1 < head)", CTC),
    Bug("misaligned loads of 16 bytes", "common.cuh", "(SIZE - past) % SIZE", "0u * past", CTC, alone=True),
    Bug("the sign left in a magnitude", "common.cuh", "& 0x7fffffffu", "& 0xffffffffu", FINGERPRINT),
    # Resizing.
    Bug(
        "no half-pixel centres",
        "resize.cuh",
        "__fadd_rn(static_cast<float>(at), 0.5f)",
        "static_cast<float>(at)",
        RESIZE,
    ),
    Bug("a tap past the image's edge", "resize.cuh", "min(low + 1, inputs - 1)", "low + 1", RESIZE, alone=True),
    Bug(
        "taps rounded to the nearest",
        "resize.cuh",
        "static_cast<int>(source)",
        "static_cast<int>(source + 0.5f)",
        RESIZE,
    ),
    Bug(
        "multiply and add contracted",
        "resize.cuh",
        "__fsub_rn(__fmul_rn(blended, colours.factor[channel]), colours.offset[channel])",
        "fmaf(blended, colours.factor[channel], -colours.offset[channel])",
        LETTERBOX,
    ),
    Bug(
        "a blend contracted",
        "resize.cuh",
        "__fadd_rn(first, __fmul_rn(__fsub_rn(second, first), weight))",
        "fmaf(__fsub_rn(second, first), weight, first)",
        RESIZE,
    ),
    Bug("columns past the row", "resize.cuh", "if (x >= width) return;", "", RESIZE, alone=True),
    Bug(
        "rows past the band",
        "resize.cuh",
        "min(first + ROWS_PER_THREAD, height)",
        "first + ROWS_PER_THREAD",
        RESIZE,
        alone=True,
    ),
    Bug(
        "one column too many",
        "resize.cuh",
        "x >= place.left + place.columns",
        "x > place.left + place.columns",
        LETTERBOX,
    ),
    Bug("one row too few", "resize.cuh", "y >= place.top + place.rows", "y >= place.top + place.rows - 1", LETTERBOX),
    Bug("a stale source row", "resize.cuh", "if (below.at != down.high)", "if (below.at < 0)", RESIZE),
    Bug("the width rounded down", RESIZE, "image.columns + image.rows - 1)", "image.columns)", RESIZE),
    Bug("long lines not squeezed", RESIZE, "min(fitted, static_cast<long long>(width))", "fitted", RESIZE),
    Bug(
        "the next item's row",
        RESIZE,
        "static_cast<long long>(blockIdx.z) * CHANNELS",
        "static_cast<long long>(gridDim.z - 1 - blockIdx.z) * CHANNELS",
        RESIZE,
    ),
    Bug("the line's place read early", RESIZE, SYNC, "", RESIZE),
    Bug("red and blue exchanged", RESIZE, "0.0f}, true}", "0.0f}, false}", RESIZE),
    Bug("the frame read early", LETTERBOX, SYNC, "", LETTERBOX),
    Bug("a side rounded down", LETTERBOX, "(2LL * a * b + c) / (2LL * c)", "1LL * a * b / c", LETTERBOX),
    Bug("a side of no pixels", LETTERBOX, "max(rounded, 1LL)", "rounded", LETTERBOX),
    Bug("fill colour without an image", LETTERBOX, "if (image.rows == 0) {\n", "if (image.rows < 0) {\n", LETTERBOX),
    Bug("a short batch divided by zero", LETTERBOX, "if (image.rows == 0) return place;", "", LETTERBOX, alone=True),
    Bug("the odd pixel on top", LETTERBOX, "(height - place.rows) / 2", "(height - place.rows + 1) / 2", LETTERBOX),
    # The likeliest class.
    Bug("warps read early", CTC, SYNC, "", CTC),
    Bug("the highest of equal classes", "common.cuh", "other_rank > rank", "other_rank >= rank", CTC),
    Bug("a ninth warp", CTC, "threadIdx.x < THREADS / WARP ?", "threadIdx.x <= THREADS / WARP ?", CTC, alone=True),
    Bug("only the first item", CTC, "static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x", "blockIdx.x", CTC),
    # The mask.
    Bug("at the threshold counts", THRESHOLD, "values[vote] > threshold", "values[vote] >= threshold", THRESHOLD),
    Bug("bits behind the last column", THRESHOLD, ": threshold;", ": 2.0f;", THRESHOLD),
    Bug(
        "columns past the map",
        THRESHOLD,
        "x < columns ? as_float(output[row * columns + x]) : threshold",
        "as_float(output[row * columns + x])",
        THRESHOLD,
        alone=True,
    ),
    Bug("rows past the map", THRESHOLD, "if (y >= rows) return;", "", THRESHOLD, alone=True),
    Bug("a byte too many", THRESHOLD, "at < bytes)", "at <= bytes)", THRESHOLD),
    Bug("the first pixel in the lowest bit", THRESHOLD, "__brev(above)", "above", THRESHOLD),
    Bug(
        "only one lane's NaN",
        THRESHOLD,
        "not_numbers[row] = flagged != 0",
        "not_numbers[row] = flagged != 0 && not_a_number",
        THRESHOLD,
    ),
    Bug("rows rounded down to bytes", THRESHOLD, "(columns + 7) / 8", "max(columns / 8, 1)", THRESHOLD),
    # The k largest.
    Bug(
        "a sort that reads early",
        "top_k.cuh",
        f"exchange[thread] = key;\n                {SYNC}",
        "exchange[thread] = key;",
        SOFTMAX,
        alone=True,
    ),
    Bug(
        "a sort that writes early",
        "top_k.cuh",
        f"exchange[thread ^ stride];\n                {SYNC}",
        "exchange[thread ^ stride];",
        SOFTMAX,
    ),
    Bug(
        "a threshold one too high",
        "top_k.cuh",
        "if (thread == k - 1) shared.threshold = larger(sorted, shared.best[k - 1]);",
        "if (thread == max(k - 2, 0)) shared.threshold = larger(sorted, shared.best[k - 1]);",
        SOFTMAX,
        alone=True,
    ),
    Bug(
        "the threshold left out",
        "top_k.cuh",
        "key != 0 && key >= threshold",
        "key != 0 && key > threshold",
        SOFTMAX,
        alone=True,
    ),
    Bug(
        "a threshold read early",
        "top_k.cuh",
        f"{SYNC}\n        const Key threshold",
        "const Key threshold",
        SOFTMAX,
        alone=True,
    ),
    Bug("candidates read early", "top_k.cuh", f"{SYNC}\n        for (int merged", "for (int merged", FINGERPRINT),
    Bug("candidates passed over", "top_k.cuh", "merged += SELECT_THREADS - k", "merged += SELECT_THREADS", FINGERPRINT),
    Bug("candidates never counted anew", "top_k.cuh", "if (thread == 0) shared.count = 0;", "", SOFTMAX, alone=True),
    Bug(
        "too few places for candidates",
        "top_k.cuh",
        "candidates[MAX_K * KEYS_PER_THREAD];",
        "candidates[MAX_K];",
        FINGERPRINT,
        alone=True,
    ),
    Bug(
        "later rounds forgotten",
        "top_k.cuh",
        "begin - thread < count; begin += SELECT_THREADS * KEYS_PER_THREAD)",
        "begin - thread < 1; begin += SELECT_THREADS * KEYS_PER_THREAD)",
        FINGERPRINT,
    ),
    Bug(
        "old bests looked at again",
        "top_k.cuh",
        f"if (thread < k) shared.best[thread] = 0;\n    {SYNC}",
        f"{SYNC}",
        SOFTMAX,
    ),
    Bug("groups read early", "top_k.cuh", f"shared.best[thread] = 0;\n    {SYNC}", "shared.best[thread] = 0;", SOFTMAX),
    Bug("bests read early", "top_k.cuh", f"    }}\n    {SYNC}\n}}", "    }\n}", SOFTMAX, alone=True),
    Bug("values of the next row", "top_k.cuh", "largest == 0 || index >= count", "largest == 0", SOFTMAX),
    Bug(
        "the group's first value",
        SOFTMAX,
        "key_of(rank_of(values[turn]), static_cast<unsigned>(place))",
        "key_of(rank_of(values[turn]), static_cast<unsigned>(at * GROUP))",
        SOFTMAX,
    ),
    Bug("groups of minus infinity", SOFTMAX, "if (largest != lowest)", "if (largest == largest)", SOFTMAX),
    Bug("sums read early", SOFTMAX, SYNC, "", SOFTMAX),
    Bug("a softmax over one warp", SOFTMAX, "warp < SELECT_THREADS / WARP", "warp < 1", SOFTMAX),
    Bug(
        "a softmax without its shift",
        SOFTMAX,
        "__fdiv_rn(expf(__fsub_rn(value, largest)), sum)",
        "__fdiv_rn(expf(value), sum)",
        SOFTMAX,
    ),
    Bug(
        "classes past the row",
        SOFTMAX,
        "place < classes ? as_float(row[place]) : lowest",
        "as_float(row[place])",
        SOFTMAX,
        alone=True,
    ),
    Bug("sums of another group", SOFTMAX, "* groups + at] = sum", "* groups] = sum", SOFTMAX),
    Bug("indices in no order", FINGERPRINT, "block_sort(complement, shared.exchange)", "complement", FINGERPRINT),
    Bug("indices within the group", FINGERPRINT, "static_cast<unsigned>(begin) + place", "place", FINGERPRINT),
    Bug("samples of the first item alone", SAMPLES, "output[item * count +", "output[", SAMPLES),
    Bug("samples at the state itself", SAMPLES, "mixed((static_cast", "((static_cast", SAMPLES),
    Bug(
        "a group past the tensor", FINGERPRINT, "min(1 << shift, count - begin)", "1 << shift", FINGERPRINT, alone=True
    ),
)
