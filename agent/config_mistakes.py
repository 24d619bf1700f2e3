"""Everything that is wrong with a configuration: which key, in which file and line, what was wanted, what to write.

`agent.config` loads what is right and asks here only when something is not, so a daemon that starts pays nothing for
it. Mistakes of one section do not hide those of another: each is converted by itself, and a value that was told is
taken out before the next look.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from agent import config_units
from agent.errors import ConfigError
from agent.toml import Layer, merged
from agent.toml_lines import lines_of

MOST = 50
"""Mistakes told of one section."""
KINDS = {
    "str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "a list",
    "object": "a table", "null": "nothing",
}  # fmt: skip
_WRONG_KIND = re.compile(r"Expected `([^`]+)`, got `(\w+)`")
_RANGE = re.compile(r"Expected `(?:int|float)` (>=|<=|<|>) (\S+)")
_LENGTH = re.compile(r"Expected `(str|array)` of length (>=|<=) (\d+)")
_ENUM = re.compile(r"Invalid enum value '(.*)'", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")
_BOUNDS = {">=": "at least", "<=": "at most", "<": "less than", ">": "more than"}
_INDEX = re.compile(r"\[\d+\]")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class Mistake(msgspec.Struct, frozen=True):
    """One thing that has to be mended: the key, the file and line (0: none), what is wrong, and what to write."""

    key: str
    path: Path
    line: int
    what: str
    hint: str = ""

    def error(self) -> ConfigError:
        """As it is raised."""
        place = f"{self.path}:{self.line}" if self.line else str(self.path)
        return ConfigError(f"{place}: {self.what}", hint=self.hint)


class Places:
    """Finds the file and the line in which a key was last said."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = [
            (layer.path, {layer.prefix + key: line for key, line in lines_of(layer.text).items()})
            for layer in reversed(layers)
        ]
        self._main = layers[0].path

    def of(self, key: str) -> tuple[Path, int]:
        """(file, line) of a key; of the nearest table around it where nobody said it; (main file, 0) else."""
        while key:
            for path, lines in self._layers:
                if key in lines:
                    return path, lines[key]
            key = re.sub(r"(\.|^)[^.\[\]]+$|\[\d+\]$", "", key)
        return self._main, 0

    def said(self, key: str) -> tuple[Path, int] | None:
        """(file, line) where just this key was last said; None where nobody did."""
        for path, lines in self._layers:
            if key in lines:
                return path, lines[key]
        return None


def mistakes(layers: Sequence[Layer], kind: type[msgspec.Struct]) -> list[Mistake]:
    """All that keeps the merged layers from being a `kind`."""
    table, places = copy.deepcopy(merged(layers)), Places(layers)
    return [Mistake(key, *places.of(key), what, hint) for key, what, hint in _all_in(table, kind)]


def _all_in(table: dict[str, Any], kind: type[msgspec.Struct]) -> Iterator[tuple[str, str, str]]:
    """(key, what, hint) of each; takes the table apart on the way."""
    for steps, key, hint in list(_unknown_keys(table, kind, (), "")):
        yield key, f"unknown key {_INDEX.sub('', key)!r}", hint
        _take_out(table, steps)
    for field in msgspec.structs.fields(kind):
        if field.encode_name in table:
            yield from _in_section(table, field.encode_name, field.type)
        elif field.required:
            yield field.name, f"Object missing required field `{field.name}`", ""


def _in_section(table: dict[str, Any], name: str, annotation: Any) -> Iterator[tuple[str, str, str]]:
    told: set[str] = set()
    for _ in range(MOST):
        try:
            msgspec.convert({name: table[name]}, dict[str, annotation])
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$")
            inner = where.strip("`").replace("[...]", "", 1)
            key = name + inner
            steps = tuple(int(index) if index else part for part, index in _STEP.findall(key))
            found = _found(table, steps)
            lacks = _MISSING.search(message)
            if lacks is None or f"{key}.{lacks[1]}" not in told:
                yield key, *_words(key, message, found, _annotation(annotation, steps[1:]))
            told.add(re.sub(r"\[\d+\]$", "", key))
            if len(steps) < 2 or isinstance(found, dict):  # what is missing in a table, or contradicts itself there
                return
            _take_out(table, steps)
        else:
            return


def _unknown_keys(
    table: dict[str, Any], kind: type[msgspec.Struct], steps: tuple[str | int, ...], prefix: str
) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """(steps to it, dotted key, suggestion) for every key that the section `kind` does not have."""
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in fields:
            plain = _INDEX.sub("", f"{prefix}{key}")
            yield (*steps, key), f"{prefix}{key}", config_units.suggestion(plain, value, fields)
            continue
        for inner in structs_in(fields[key]):
            if isinstance(value, dict):
                yield from _unknown_keys(value, inner, (*steps, key), f"{prefix}{key}.")
            for index, row in enumerate(value if isinstance(value, list) else ()):
                if isinstance(row, dict):
                    yield from _unknown_keys(row, inner, (*steps, key, index), f"{prefix}{key}[{index}].")


def structs_in(annotation: Any) -> list[type[msgspec.Struct]]:
    """The section types inside an annotation such as `tuple[BusConfig, ...]` or `TlsFiles | None`."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return [annotation]
    return [inner for part in get_args(annotation) for inner in structs_in(part)]


def _annotation(annotation: Any, steps: Sequence[str | int]) -> Any:
    """What is wanted at the end of the steps; None where that cannot be told."""
    for step in steps:
        if isinstance(step, int):
            inner = [one for part in (annotation, *get_args(annotation)) for one in _rows(part)]
        else:
            structs = structs_in(annotation)
            inner = [field.type for one in structs for field in msgspec.structs.fields(one) if field.name == step]
        if not inner:
            return None
        annotation = inner[0]
    return annotation


def _rows(annotation: Any) -> list[Any]:
    """What a tuple's annotation holds."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return [get_args(annotation)[0]] if get_origin(annotation) is tuple else []


def _choices(annotation: Any) -> Iterator[str]:
    """Every word that is taken here."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif not isinstance(annotation, type):
        for part in get_args(annotation):
            yield from _choices(part)


def _found(table: Any, steps: Sequence[str | int]) -> Any:
    for step in steps:
        try:
            table = table[step]
        except (KeyError, IndexError, TypeError):
            return None
    return table


def _take_out(table: Any, steps: Sequence[str | int]) -> None:
    """Without this key, or the list that this row is in, the rest can be looked at: what is left keeps its place."""
    *way, last = steps
    while isinstance(last, int) and way:
        last = way.pop()
    holder = _found(table, way)
    if isinstance(holder, dict):
        holder.pop(last, None)


def _words(key: str, message: str, found: Any, annotation: Any) -> tuple[str, str]:
    """(what is wrong, what to write), in plain words where msgspec's are not."""
    number = found if isinstance(found, int | float) and not isinstance(found, bool) else None
    if wrong := _WRONG_KIND.search(message):
        wanted = " or ".join(
            KINDS.get(one.strip(), one.strip()) for one in wrong[1].split("|") if one.strip() != "null"
        )
        return f"{key}: {wanted} is wanted, not {KINDS.get(wrong[2], wrong[2])}", _retyped(key, wrong[1], found)
    if bound := _RANGE.search(message):
        hint = config_units.number_of(key, number) if number is not None else ""
        return f"{key}: {found} is not {_BOUNDS[bound[1]]} {float(bound[2]):.12g}", hint
    if length := _LENGTH.search(message):
        many = "characters" if length[1] == "str" else "entries"
        return f"{key}: it has to have {_BOUNDS[length[2]]} {length[3]} {many}", ""
    if enum := _ENUM.search(message):
        words = list(_choices(annotation))
        close = difflib.get_close_matches(enum[1], words, n=1, cutoff=0.5)
        said = f"{key}: Invalid enum value {enum[1]!r}" + (f"; did you mean {close[0]!r}?" if close else "")
        return said, f"known here: {', '.join(words)}" if words else ""
    return f"{key}: {message}", ""


def _retyped(key: str, wanted: str, found: Any) -> str:
    """What to write in place of a value of the wrong kind."""
    if isinstance(found, str) and ("int" in wanted or "float" in wanted):
        return config_units.from_text(key, found)
    if isinstance(found, float) and wanted == "int":
        return config_units.number_of(key, found)
    if wanted == "bool":
        return "write true or false, without quotes"
    if wanted == "array" and isinstance(found, str | int | float):
        name = key.rpartition(".")[2]
        return f"write it as a list: {name} = [{msgspec.json.encode(found).decode()}]"
    if wanted == "str" and isinstance(found, int | float):
        return "write it in quotes"
    return ""


def doubts(layers: Sequence[Layer], told: Collection[str] = ()) -> list[Mistake]:
    """Numbers that are taken, and would be usual only in another unit than their key's; but those that were `told`."""
    places = Places(layers)
    found = []
    for key, value in leaves(merged(layers)):
        if key in told or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        guess, unit = config_units.meant(key, value), config_units.unit_of(key)
        if guess is not None and unit is not None:
            other, would = guess
            what = f"{key}: {value:g} {unit.words} is unusual"
            hint = f"if {value:g} {other.words} is meant, write {key.rpartition('.')[2]} = {would:.12g}"
            found.append(Mistake(key, *places.of(key), what, hint))
    return found


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of everything in a table that is not itself a table or a list of tables."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list | tuple) and value and all(isinstance(one, dict) for one in value):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    else:
        yield path, value
