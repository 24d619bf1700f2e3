"""The report of a run: one HTML file that a rig engineer and a car maker's engineer read without anything else at hand.

    RunRecord ──> figure.py (panels.py, layout.py) ──> one SVG or PNG, all plots on one time axis
             └──> page.py   (palette.py)           ──> the HTML around it: verdict, figures, limits, tables

The file refers to nothing outside itself and forbids the browser to load or run anything. What customers' images said
is untrusted: the page is built as a tree of elements, never by pasting text, and characters that could not be shown
(control characters, half surrogates) become U+FFFD first. The same record always gives the same bytes. matplotlib is
imported only when something is written. Fails with `StoreError` when the disk does not take the file.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from agent.errors import ConfigError, StoreError
from hil.record import RunRecord

# Everything XML 1.0 forbids, and the C1 control characters: https://www.w3.org/TR/xml/#charsets
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_report(record: RunRecord, path: Path) -> None:
    """Write the whole report as one HTML file; raises `StoreError` when it cannot be written."""
    from hil.report.figure import inline_svg  # noqa: PLC0415 - matplotlib takes a second to import
    from hil.report.page import page  # noqa: PLC0415 - beside the figure it is written with

    record = _printable(record)
    _write(path, page(record, inline_svg(record)).encode())


def write_figure(record: RunRecord, path: Path) -> None:
    """Write the plots alone as PNG or SVG, as the suffix says, on white.

    Raises `ConfigError` for another suffix, `StoreError` when it cannot be written.
    """
    from hil.report.figure import png, standalone_svg  # noqa: PLC0415 - matplotlib takes a second to import

    record = _printable(record)
    match path.suffix:
        case ".png":
            _write(path, png(record))
        case ".svg":
            _write(path, standalone_svg(record).encode())
        case suffix:
            raise ConfigError(f"{path.name}: cannot draw a figure as {suffix!r}", hint="name it .png or .svg")


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StoreError(f"{path} was not written: {error.strerror}", hint="name a file in a folder that is") from error


def _printable(record: RunRecord) -> RunRecord:
    """The same record with U+FFFD for every character that neither HTML nor XML can carry."""
    return msgspec.convert(_clean(msgspec.to_builtins(record)), RunRecord)


def _clean(value: object) -> object:
    match value:
        case str():
            return _UNPRINTABLE.sub("\ufffd", value)
        case list() | tuple():
            return [_clean(item) for item in value]
        case dict():
            return {_clean(key): _clean(item) for key, item in value.items()}
        case _:
            return value
