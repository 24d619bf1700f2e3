"""Signed records: frozen dataclasses to canonical JSON and back, every field checked, one spelling for each value.

What this car signs, and what others sign for it, is a dataclass whose field types say what is taken: whole numbers from
0 up, yes or no (`bool`), strings of a pattern (`Annotated[str, re.compile(...)]`), other such dataclasses, tuples of
these, and any of them or nothing (`| None`, in JSON null). The JSON name of a field is its Python name in camelCase.
Reading refuses a field that is missing, unknown or out of range, and a body that is not spelled as `spell` spells it,
so that nothing signed has two readings. A field that came later has the default None: then it is left out, never null,
so that what was signed before it still reads. All failures are `TrustError`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from agent.errors import TrustError
from agent.trust.dsse import MAX_BYTES, JsonValue, canonical_json, strict_json

MAX_LIST = 1024
MAX_TEXT = 512

Sha256 = Annotated[str, re.compile(r"[0-9a-f]{64}")]
Sha256OrNone = Annotated[str, re.compile(r"([0-9a-f]{64})?")]
Nonce = Annotated[str, re.compile(r"[0-9a-f]{16,64}")]
Identifier = Annotated[str, re.compile(r"[A-Za-z0-9_-]{1,64}")]
Text = Annotated[str, re.compile(rf"[^\x00-\x1f]{{0,{MAX_TEXT}}}")]
KeyProtection = Annotated[str, re.compile(r"tpm|ftpm|pkcs11|file")]

Record = TypeVar("Record")


def spell(record: Any) -> bytes:
    """The one spelling of a record: canonical JSON."""
    return canonical_json(to_json(record))


def read(kind: type[Record], body: bytes, name: str, max_bytes: int = MAX_BYTES) -> Record:
    """The record in `body`; raises TrustError that names the first field at fault."""
    record = from_json(kind, strict_json(body, max_bytes), name)
    if spell(record) != body:
        raise TrustError(f"{name}: not in its canonical spelling")
    return record


def to_json(value: Any) -> JsonValue:
    """A record, or a value of one of its fields, as JSON."""
    if is_dataclass(value):
        said = ((field, getattr(value, field.name)) for field in fields(value))
        return {camel(field.name): to_json(one) for field, one in said if not (is_optional(field) and one is None)}
    if isinstance(value, tuple):
        return [to_json(entry) for entry in value]
    assert value is None or isinstance(value, int | str)
    return value


def from_json(kind: type[Record], value: JsonValue, where: str) -> Record:
    """`value` as the dataclass `kind`, with exactly its fields; raises TrustError."""
    if not isinstance(value, dict):
        raise TrustError(f"{where}: not an object")
    readers = _readers(kind)  # type: ignore[arg-type]  # every class is hashable
    names, optional = {camel(name) for name in readers}, _optional(kind)  # type: ignore[arg-type]  # as above
    for problem, odd in (("missing", names - optional - value.keys()), ("unknown", value.keys() - names)):
        if odd:
            raise TrustError(f"{where}: field {min(odd)!a} is {problem}")
    given = {name: take for name, take in readers.items() if camel(name) in value}
    return kind(**{name: take(value[camel(name)], f"{where}.{camel(name)}") for name, take in given.items()})


def is_optional(field: Field[Any]) -> bool:
    """Whether a field may be left out: it came later than its record."""
    return field.default is None


@functools.cache
def _optional(kind: type[Any]) -> frozenset[str]:
    """The JSON names of the fields that may be left out."""
    return frozenset(camel(field.name) for field in fields(kind) if is_optional(field))


@functools.cache
def _readers(kind: type[Any]) -> dict[str, Callable[[JsonValue, str], Any]]:
    """What reads each field of a dataclass; type hints are slow to resolve, and always the same."""
    return {name: _reader(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}


def _reader(hint: Any) -> Callable[[JsonValue, str], Any]:
    """What reads a field of type `hint`: a count, a bool, a string, a dataclass, a tuple of these, or one or None."""
    if hint is int:
        return _count
    if hint is bool:
        return _yes_or_no
    if get_origin(hint) is Annotated:
        pattern: re.Pattern[str] = get_args(hint)[1]
        return lambda value, where: _text(value, where, pattern)
    if get_origin(hint) is tuple:
        entry = _reader(get_args(hint)[0])
        return lambda value, where: _entries(value, where, entry)
    if get_origin(hint) in (UnionType, Union):
        (one,) = (_reader(kind) for kind in get_args(hint) if kind is not NoneType)
        return lambda value, where: None if value is None else one(value, where)
    return lambda value, where: from_json(hint, value, where)


def _count(value: JsonValue, where: str) -> int:
    if type(value) is not int or value < 0:
        raise TrustError(f"{where}: not a whole number from 0 up")
    return value


def _yes_or_no(value: JsonValue, where: str) -> bool:
    if not isinstance(value, bool):
        raise TrustError(f"{where}: neither true nor false")
    return value


def _text(value: JsonValue, where: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise TrustError(f"{where}: does not have the form {pattern.pattern}")
    return value


def _entries(value: JsonValue, where: str, take: Callable[[JsonValue, str], Any]) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) > MAX_LIST:
        raise TrustError(f"{where}: not a list of at most {MAX_LIST}")
    return tuple(take(entry, f"{where}[{position}]") for position, entry in enumerate(value))


@functools.cache
def camel(name: str) -> str:
    """`ticket_sha256` -> `ticketSha256`; a trailing underscore, which avoids a Python keyword, goes."""
    head, *tail = name.rstrip("_").split("_")
    return head + "".join(word.capitalize() for word in tail)
