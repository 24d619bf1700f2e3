"""What a log must not hold: keys, tokens, passwords, identifiers of the car. The last word before an event is written.

By type: a log takes text, numbers, truth values and lists of these. Bytes are refused whatever they are, and so is any
other object: its `repr` may show more than its author thought of.

    data=b"..."                        <refused: 32 bytes>
    key=<EllipticCurvePrivateKey>      <refused: ECPrivateKey>
    token="...", password="..."        <refused: token>                  by the field's name (`SECRET_FIELDS`)

By what text looks like, since errors quote what they were given: private keys in PEM, `Bearer ...`, `token=...`, user
and query of an address, bytes as Python writes them, a vehicle identification number. And by value: what `keep_secret`
was told of is never written, wherever it stands.

It costs some tens of microseconds an event, and a mistake here may cost a word of an error, never a secret.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import PurePath
from typing import Any

SECRET_FIELDS = re.compile(
    r"(?:^|_)(?:token|secret|password|passwd|passphrase|pin|private|credentials?|authorization|enrol_code|envelope|vin)$",
    re.IGNORECASE,
)
SHORTEST_SECRET = 6
"""Characters; a shorter one would blank out half of every line."""
TEXT_CHARACTERS = 32_768
"""A longer text is cut first: it may come from outside, and searching takes time."""
DEPTH = 4
ITEMS = 64
_NAMED = r"(?:token|secret|password|passwd|passphrase|authorization|enrol_code|api_key|pin)"
_ADDRESS = re.compile(r"""(?<![^\s'"])[^\s'"]*?://[^\s'"]*""")
_USER = re.compile(r"(://)[^\s/?#@]+@")
_QUERY = re.compile(r"[?#]")


def _address(found: re.Match[str]) -> str:
    """An address without its user and its query."""
    scheme, mark, rest = _USER.sub(r"\1<user>@", found[0]).partition("://")
    place, *query = _QUERY.split(rest, maxsplit=1)
    return f"{scheme}{mark}{place}{'?<query>' if query else ''}"


_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (
        ("-----BEGIN",),
        re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        "<key>",
    ),
    (
        ("b'", 'b"'),
        re.compile(r"""(?<![\w'])b'(?:[^'\\]|\\.)*'|(?<![\w"])b"(?:[^"\\]|\\.)*\"""", re.DOTALL),
        "<bytes>",
    ),
    (("://",), _ADDRESS, _address),
    ((" ",), re.compile(r"\b(Bearer|Basic) +[^\s'\",;]+", re.IGNORECASE), r"\1 <token>"),
    (
        ("=", ":"),
        re.compile(rf"(\b\w*{_NAMED}['\"]?\s*[=:]\s*)(?!<)(?:'[^']*'|\"[^\"]*\"|[^\s,;)}}\]]+)", re.IGNORECASE),
        r"\1<secret>",
    ),
    (
        tuple("0123456789"),
        re.compile(r"(?<![A-Za-z0-9])(?=[A-Z0-9]*[0-9])(?=[A-Z0-9]*[A-Z])[A-HJ-NPR-Z0-9]{17}(?![A-Za-z0-9])"),
        "<VIN>",
    ),
)
"""What a text has to hold for a pattern to be looked for, the pattern, and what stands in its place. Each looks at a
character a bounded number of times, whatever the text."""


class Safe:
    """A processor of structlog; `keep_secret` adds values that are known to be secret in this process."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def keep_secret(self, *values: str) -> None:
        """Never write these, wherever they stand."""
        self._known |= {value for value in values if len(value) >= SHORTEST_SECRET}

    def __call__(self, _logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """The same event, as it may be written."""
        return {self.text(name): self._field(name, value) for name, value in event.items()}

    def text(self, text: str) -> str:
        """The text without what looks like a secret, or is known to be one."""
        if len(text) > TEXT_CHARACTERS:
            text = text[:TEXT_CHARACTERS] + "…"
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, "<secret>")
        for hints, pattern, instead in _PATTERNS:
            if any(hint in text for hint in hints):
                text = pattern.sub(instead, text)
        return text

    def _field(self, name: str, value: object) -> object:
        if SECRET_FIELDS.search(name) and not isinstance(value, bool | int):
            return f"<refused: {name}>"
        return self._value(value, DEPTH)

    def _value(self, value: object, depth: int) -> object:  # noqa: PLR0911 - one answer a type
        match value:
            case enum.Enum():
                return self._value(value.value, depth)
            case None | bool() | int() | float():
                return value
            case str():
                return self.text(value)
            case PurePath() | BaseException():
                return self.text(str(value) if isinstance(value, PurePath) else repr(value))
            case bytes() | bytearray() | memoryview():
                return f"<refused: {len(value)} bytes>"
            case Mapping() if depth:
                rows = list(value.items())[:ITEMS]
                return {self.text(str(name)): self._field_in(str(name), one, depth - 1) for name, one in rows}
            case list() | tuple() | set() | frozenset() if depth:
                return [self._value(one, depth - 1) for one in list(value)[:ITEMS]]
            case _:
                return f"<refused: {type(value).__name__}>"

    def _field_in(self, name: str, value: object, depth: int) -> object:
        return f"<refused: {name}>" if SECRET_FIELDS.search(name) else self._value(value, depth)
