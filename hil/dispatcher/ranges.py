"""Byte ranges in HTTP headers (RFC 9110, section 14): which part of an object is wanted, and which one comes.

Only one range is served. One that is malformed, or several of them, are as if nothing was asked: the whole object.
"""

from __future__ import annotations

import re

import msgspec

RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")


class Span(msgspec.Struct, frozen=True):
    """Bytes `first` to `last`, both included, of an object of `length` bytes."""

    first: int
    last: int
    length: int

    @property
    def size(self) -> int:
        """How many bytes that is."""
        return self.last - self.first + 1

    @property
    def header(self) -> str:
        """As a Content-Range."""
        return f"bytes {self.first}-{self.last}/{self.length}"


class UnsatisfiableError(ValueError):
    """A range that begins behind the end of the object."""


def wanted(header: str, length: int) -> Span | None:
    """What a Range header asks for of an object; None: all of it. Raises UnsatisfiableError."""
    found = RANGE.fullmatch(header)
    if found is None or found[1] == found[2] == "":
        return None
    if not found[1]:  # the last so many bytes
        first, last = max(0, length - int(found[2])), length - 1
    else:
        first, last = int(found[1]), min(int(found[2] or length), length - 1)
        if found[2] and int(found[2]) < first:
            return None
    if first >= length:
        raise UnsatisfiableError(f"the object has {length} bytes")
    return Span(first, last, length)


def brought(header: str) -> Span | None:
    """What a Content-Range header says that the body is; None for what cannot be."""
    found = CONTENT_RANGE.fullmatch(header)
    span = None if found is None else Span(*(int(one) for one in found.groups()))
    return span if span is not None and span.first <= span.last < span.length else None
