"""DBC files as cantools can take them: only the messages that are asked for, templates with what they import.

A production DBC has a hundred messages and the profile asks for ten, so everything else is left out before it is
parsed: faster, and what cannot be parsed in a message that nobody asked for does no harm. Two habits of opendbc's files
are mended, since opendbc's own parser takes them and cantools does not:

* an id of more than 11 bits without the flag for extended ids (vw_meb.dbc) gets the flag;
* a template (`generator/*/*.dbc`) names what it builds on in `CM_ "IMPORT file";`.

opendbc's own parser is no alternative on a vehicle: importing `opendbc.can` runs `opendbc.car`, which needs pycapnp,
NumPy and pycryptodome (80 MB) for things that have nothing to do with DBC files. Of the wheel only text is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from agent.errors import ConfigError
from agent.vehicle.can_database import Database, DatabaseError, load_string

IMPORT = re.compile(r'^CM_ "IMPORT ([\w.-]+)";[ \t]*$', re.MULTILINE)
COMMENT = re.compile(r'^[ \t]*CM_\s[^;"]*"(?:[^"\\]|\\.)*"\s*;', re.MULTILINE)
MESSAGE = re.compile(r"^BO_ (\d+) (\w+) *:")
STATEMENT = re.compile(r"^(?:VAL_|SIG_VALTYPE_|SG_MUL_VAL_) (\d+) ")
EXTENDED = 0x8000_0000
STANDARD_MAX = 0x7FF


def load_dbc(path: Path, wanted: Collection[str] | None = None) -> Database:
    """The CAN database in `path`, or only the messages `wanted` of it. Raises ConfigError."""
    try:
        text = with_imports(path)
        if wanted is not None:
            text = cut_to(text, wanted)
        database = load_string(text, "dbc")
    except (DatabaseError, OSError, ValueError) as error:
        raise ConfigError(f"DBC {path} cannot be used: {error}") from error
    if not isinstance(database, Database):
        raise ConfigError(f"DBC {path} is no CAN database")
    return database


def message_names(path: Path) -> list[str]:
    """The names of every message in the file, for suggestions."""
    return [match[2] for line in with_imports(path).splitlines() if (match := MESSAGE.match(line.strip()))]


def with_imports(path: Path) -> str:
    """The file's text, each import replaced by the file that it names, which lies beside it."""
    text = path.read_text("cp1252", "replace")
    return IMPORT.sub(lambda match: (path.parent / match[1]).read_text("cp1252", "replace"), text)


def cut_to(text: str, wanted: Collection[str]) -> str:
    """The text with only these messages and what is said of them, and their ids flagged as extended where they are."""
    kept, ids, taking = ['VERSION ""', "BU_: Vector__XXX"], set[str](), False
    for line in map(str.strip, COMMENT.sub("", text).splitlines()):
        if message := MESSAGE.match(line):
            taking = message[2] in wanted
            if taking:
                ids.add(message[1])
                kept.append(f"BO_ {_flagged(message[1])} {line.split(None, 2)[2]}")
        elif line.startswith("SG_ "):
            if taking:
                kept.append(f" {line}")
        elif (statement := STATEMENT.match(line)) and statement[1] in ids:
            kept.append(line.replace(f" {statement[1]} ", f" {_flagged(statement[1])} ", 1))
    return "\n".join(kept) + "\n"


def _flagged(number: str) -> str:
    can_id = int(number)
    return str(can_id | EXTENDED if can_id > STANDARD_MAX else can_id)
