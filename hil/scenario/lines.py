"""Where in a TOML file something is: the line of a table, and of a key in it, so that an error can say where.

`tomllib` gives values without places. This finds the headers (`[car]`, `[[step]]`, counted) and the keys below them by
their looks; a value over several lines that looks like a header would mislead it, and costs only the line number.
"""

from __future__ import annotations

import re

HEADER = re.compile(r"^\s*\[{1,2}\s*([A-Za-z0-9_.-]+)\s*\]{1,2}")


class Lines:
    """The lines of one file."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._headers: dict[tuple[str, int], int] = {}
        seen: dict[str, int] = {}
        for number, line in enumerate(self._lines, 1):
            if header := HEADER.match(line):
                name = header[1]
                self._headers[name, seen.get(name, 0)] = number
                seen[name] = seen.get(name, 0) + 1

    def of(self, table: str, index: int = 0, key: str = "") -> int:
        """The line of the key in the `index`th table of this name; of the table where the key is not found."""
        header = self._headers.get((table, index), 0)
        begin = header
        wanted = re.compile(rf"(^|[{{,])\s*\"?{re.escape(key)}\"?\s*=") if key else None
        for number, line in enumerate(self._lines[begin:], begin + 1):
            if HEADER.match(line) and number > header:
                break
            if wanted is not None and wanted.search(line):
                return number
        return header or 1
