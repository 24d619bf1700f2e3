"""Reads candump logs: what `candump -L` writes, what can-utils and python-can replay, plain or gzipped.

    (1436509052.249713) can0 044#2A366C2BBA          data, standard id (three digits)
    (1436509052.449847) can0 1ABCDEF0#0102           data, extended id (eight digits)
    (1436509052.650004) can1 213##311223344          CAN FD: two '#', one digit of flags, up to 64 bytes
    (1436509052.850102) can0 123#R8                  remote frame, with the length it asks for
    (1436509053.050201) can0 20000040#0000000000000000 error frame: eight digits with CAN_ERR_FLAG

A trailing `R` or `T` (candump -x), or ` ... 8 dlc` (`_` before the raw length code) is passed over. A log is input from
a stranger: a line that is no frame is counted with its number and skipped, never believed and never raised about; only
a file that cannot be read at all is an error. Times are kept as they stand in the log: mostly rising, not always.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.errors import ConfigError
from agent.vehicle.decoder import Frame

LINE = re.compile(
    rb"\((?P<s>\d{1,12})\.(?P<fraction>\d{1,9})\) +(?P<interface>[\x21-\x7e]{1,64}) +"
    rb"(?P<id>[0-9A-Fa-f]{8}|[0-9A-Fa-f]{3})#(?:(?P<remote>[Rr])[0-8]?|(?P<fd>#[0-9A-Fa-f])?(?P<data>(?:[0-9A-Fa-f]{2}){0,64}))"
    rb"(?:_[0-9A-Fa-f])?(?: +[RT])?\s*"
)
"""One whole line; anything else is none. Data of more than eight bytes needs the mark of CAN FD."""
MAX_LINE_BYTES = 4096
MAX_BAD_LINES_KEPT = 100
ERROR_FLAG, EXTENDED_MASK, ERROR_MASK, STANDARD_MAX = 0x2000_0000, 0x1FFF_FFFF, 0x1FFF_FFFF, 0x7FF
FD_LENGTHS = frozenset({*range(9), 12, 16, 20, 24, 32, 48, 64})
"""The lengths that a CAN FD frame can have."""


class CandumpFrame(msgspec.Struct, frozen=True, gc=False):
    """One frame of a log. `at_us` is the log's own time, in microseconds: since 1970, or since the log began."""

    at_us: int
    interface: str
    frame: Frame


class BadLines:
    """The lines that were no frames: how many, and the numbers of the first hundred (counted from 1)."""

    def __init__(self) -> None:
        self.count = 0
        self.numbers: list[int] = []

    def add(self, number: int) -> None:
        """Note line `number`."""
        self.count += 1
        if len(self.numbers) < MAX_BAD_LINES_KEPT:
            self.numbers.append(number)


def read_candump(path: Path, bad_lines: BadLines | None = None) -> Iterator[CandumpFrame]:
    """The frames of a log, in its order; lines that are none go to `bad_lines`.

    Blank lines and comments (`#`) are neither. Raises ConfigError when the file cannot be opened, or a gzipped one
    cannot be unpacked further; a log that is cut off gives what it has.
    """
    bad_lines = BadLines() if bad_lines is None else bad_lines
    try:
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as log:
            number = 0
            while line := log.readline(MAX_LINE_BYTES):
                number += 1
                if not line.strip() or line.startswith(b"#"):
                    continue
                frame = parse_line(line)
                if frame is None:
                    bad_lines.add(number)
                else:
                    yield frame
    except EOFError:
        return  # a recorder that lost its power writes no gzip trailer
    except (OSError, zlib.error) as error:
        raise ConfigError(f"cannot read the candump log {path}: {error}") from error


def parse_line(line: bytes) -> CandumpFrame | None:
    """The frame in one line; None when it is none."""
    match = LINE.fullmatch(line)
    if match is None:
        return None
    data = bytes.fromhex((match["data"] or b"").decode("ascii"))
    if len(data) not in FD_LENGTHS or (match["fd"] is None and len(data) > 8):
        return None
    flagged_id = int(match["id"], 16)
    extended = len(match["id"]) == 8
    error = extended and bool(flagged_id & ERROR_FLAG)
    if not error and flagged_id > (EXTENDED_MASK if extended else STANDARD_MAX):
        return None
    at_us = int(match["s"]) * 1_000_000 + int(match["fraction"].ljust(6, b"0")[:6])
    frame = Frame(
        can_id=flagged_id & (ERROR_MASK if error else EXTENDED_MASK),
        data=data,
        extended=extended and not error,
        remote=match["remote"] is not None,
        error=error,
    )
    return CandumpFrame(at_us, match["interface"].decode("ascii"), frame)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
