"""How many items a slice may have, so that its answers fit into the frame that brings them."""

from __future__ import annotations

import msgspec

from agent.errors import PackageError
from agent.package import Package

SLICE_OUTPUT_BYTES = 512 * 1024
"""Half of what a frame holds (`agent.wire.MAX_FRAME_BYTES`): answers may be longer than the golden ones."""


def fitting_items(package: Package, at_most: int) -> int:
    """So many items of the longest golden answer fit, at least one; raises PackageError for a damaged package."""
    name = package.manifest.golden.expected
    try:
        answers = msgspec.json.decode(package.read(name), type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"package {package.path}: {name} is not a list of answers: {error}") from error
    longest = max((len(bytes(answer)) for answer in answers), default=1)
    return max(1, min(at_most, SLICE_OUTPUT_BYTES // max(1, longest)))
