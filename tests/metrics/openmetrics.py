"""A strict reader of OpenMetrics 1.0, written from its ABNF and its rules, for tests: anything else is an error.

Held here: the grammar of every line; `# EOF` at the end and nowhere else; metadata before samples, once, TYPE and UNIT
and HELP of one family together; a family's samples together; names that fit the type; units at the end of names; no
two samples with the same labels; counters that are no negative and no NaN; known escapes alone.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r"[a-zA-Z_][a-zA-Z0-9_]*"
QUOTED = r'"((?:[^"\\\n]|\\["\\n])*)"'
NUMBER = r"(?:[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?Inf|NaN)"
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}={QUOTED}(?:,{LABEL}={QUOTED})*)\}})? ({NUMBER})")
PAIR = re.compile(rf"({LABEL})={QUOTED}")
META = re.compile(rf"# (TYPE|UNIT|HELP) ({NAME}) (.*)")
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "info": ("_info",), "summary": ("", "_count", "_sum")}


@dataclass
class Read:
    """One family as it was read: samples by name and labels."""

    kind: str = ""
    unit: str = ""
    help: str = ""
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)


def read(text: str) -> dict[str, Read]:
    """The families by name; raises AssertionError where the text is not OpenMetrics."""
    assert text.endswith("# EOF\n"), "it ends with # EOF"
    *lines, last = text.removesuffix("\n").split("\n")
    assert last == "# EOF"
    families: dict[str, Read] = {}
    now = ""
    for line in lines:
        assert line, "no empty line"
        if line.startswith("#"):
            now = _meta(line, families, now)
        else:
            _sample(line, families[now], now)
    for name, family in families.items():
        assert family.samples, f"{name} has samples"
        assert not family.unit or name.endswith(f"_{family.unit}"), f"{name} ends with its unit"
        assert family.help, f"{name} says what it is"
    return families


def _meta(line: str, families: dict[str, Read], now: str) -> str:
    found = META.fullmatch(line)
    assert found is not None, line
    word, name, text = found.groups()
    if name != now:
        assert name not in families, f"{name}: the lines of a family stand together"
        families[name] = Read()
    family = families[name]
    assert not family.samples, f"{name}: its metadata comes first"
    attribute = {"TYPE": "kind", "UNIT": "unit", "HELP": "help"}[word]
    assert not getattr(family, attribute), f"{name} has one {word}"
    assert re.fullmatch(r'(?:[^"\\\n]|\\["\\n])*', text), f"{line}: escapes"
    setattr(family, attribute, text)
    assert word != "TYPE" or text in SUFFIXES, line
    return name


def _sample(line: str, family: Read, family_name: str) -> None:
    found = SAMPLE.fullmatch(line)
    assert found is not None, line
    name, pairs, number = found[1], found[2] or "", found[found.lastindex or 0]
    assert name in {family_name + suffix for suffix in SUFFIXES[family.kind]}, f"{name} in {family_name}"
    labels = tuple((pair[1], pair[2]) for pair in PAIR.finditer(pairs))
    assert len({label for label, _ in labels}) == len(labels), f"{line}: a label once"
    assert not any(label.startswith("__") for label, _ in labels)
    assert (name, labels) not in family.samples, f"{line} is there twice"
    value = float(number.replace("Inf", "inf"))
    if family.kind == "counter":
        assert value >= 0, line
        assert not math.isnan(value), line
    if family.kind == "info":
        assert value == 1, line
    if family.kind == "summary" and name == family_name:
        assert [label for label, _ in labels] == ["quantile"], line
        assert 0 <= float(labels[0][1]) <= 1, line
    family.samples[name, labels] = value
