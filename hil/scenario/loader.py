"""Reads scenarios from TOML, strictly: what is not understood is an error that names file, line and key, and the mend.

    title = "The driver opens the door"      what it shows, in a line
    why = "..."                              why anybody should care
    proves = ["gate:occupied", "promise:1"]
    [car]       the car as it begins          [[step]]    what happens, one after the other
    [policy]    what differs from the default [[daily]]   what happens every such day
    [not_on]    rigs that it is not for       [[expect]]  what must be seen

Times are written with their unit: `at_s`, `at_min`, `at_h`; see docs/scenarios.md.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import msgspec

from agent.core.gates import RULES
from agent.core.policy import Policy
from agent.errors import ConfigError
from agent.explain import SENTENCES
from hil.rigs.faults import Fault
from hil.rigs.stimuli import Stimulus
from hil.scenario.claims import missing
from hil.scenario.limits import sum_ms
from hil.scenario.lines import Lines
from hil.scenario.model import BEGIN, END, Condition, Daily, Expectation, Scenario, Setup, Step

FOLDER = Path(__file__).parent.parent / "scenarios"
UNIT_MS = {"_ms": 1, "_s": 1_000, "_min": 60_000, "_h": 3_600_000}
TOP = (
    "title",
    "why",
    "proves",
    "ends_after_s",
    "ends_after_min",
    "ends_after_h",
    "car",
    "policy",
    "not_on",
    "stays_shut",
)
TABLES = ("step", "daily", "expect")
STEP_KEYS = ("when", "mark", "do", "fault")
STEP_TIMES = ("at", "after", "timeout", "lasts")
EXPECT_KEYS = ("what", "see", "always", "never", "total", "after", "until", "at_least", "at_most", "rigs")
EXPECT_TIMES = ("within", "settle")
T = TypeVar("T")


def load_all(folder: Path = FOLDER) -> list[Scenario]:
    """Every scenario of a folder, by name. Raises ConfigError."""
    return [load(path) for path in sorted(folder.glob("*.toml"))]


def find(name: str, folder: Path = FOLDER) -> Scenario:
    """A scenario by its name, or by its file. Raises ConfigError."""
    path = Path(name)
    if path.suffix == ".toml":
        return load(path)
    known = [one.stem for one in folder.glob("*.toml")]
    if name not in known:
        raise ConfigError(f"no scenario is called {name!r}", hint=_nearest(name, known, "`driveway-hil list`"))
    return load(folder / f"{name}.toml")


def load(path: Path) -> Scenario:
    """Read one scenario. Raises ConfigError with file, line and key."""
    try:
        text = path.read_text("utf-8")
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return _Reader(path, table, Lines(text)).scenario()


class _Reader:
    """One file being read."""

    def __init__(self, path: Path, table: dict[str, Any], lines: Lines) -> None:
        self._path, self._table, self._lines = path, table, lines

    def scenario(self) -> Scenario:
        table = self._table
        self._only(table, (*TOP, *TABLES), "", 0)
        for key in ("title", "why", "proves"):
            if key not in table:
                self._wrong(
                    "", 0, key, f"{key} is missing", "every scenario says what it shows, why, and what it proves"
                )
        steps = tuple(self._step(one, index) for index, one in enumerate(self._rows("step")))
        daily = tuple(
            self._convert(one, Daily, "daily", index) for index, one in enumerate(map(_daily, self._rows("daily")))
        )
        length_ms = self._time(table, "ends_after", "", 0)
        if length_ms is None:
            self._wrong("", 0, "ends_after_s", "nothing says when it ends", "ends_after_s = 600")
        expectations = tuple(self._expectation(one, index) for index, one in enumerate(self._rows("expect")))
        self._check_marks(steps, expectations)
        self._check_order(steps, daily)
        if not expectations:
            self._wrong("", 0, "", "nothing is expected", "a scenario without an [[expect]] cannot fail")
        policy = table.get("policy", {})
        self._only(policy, [field.name for field in msgspec.structs.fields(Policy)], "policy", 0)
        scenario = Scenario(
            name=self._path.stem,
            title=self._convert(table["title"], str, "", 0),
            why=self._convert(table["why"], str, "", 0),
            proves=self._convert(table["proves"], tuple[str, ...], "", 0),
            setup=self._setup(table.get("car", {})),
            policy=self._convert(policy, Policy, "policy", 0),
            policy_changes=dict(policy),
            steps=steps,
            daily=daily,
            expectations=expectations,
            length_ms=length_ms,
            not_on=self._convert(table.get("not_on", {}), dict[str, str], "not_on", 0),  # type: ignore[arg-type]
            stays_shut=self._convert(table.get("stays_shut", {}), dict[str, str], "stays_shut", 0),
        )
        for claim, what in missing(scenario):
            self._wrong("", 0, "proves", f"it claims {claim}: {what}", "expect it, or do not claim it")
        return scenario

    # --- the tables ---------------------------------------------------------------------------------------------

    def _setup(self, car: dict[str, Any]) -> Setup:
        self._only(car, [field.name for field in msgspec.structs.fields(Setup)], "car", 0)
        return self._convert(car, Setup, "car", 0)

    def _step(self, row: dict[str, Any], index: int) -> Step:
        times = {name: self._time(row, name, "step", index) for name in STEP_TIMES}
        if times["at"] is not None and times["after"] is not None:
            self._wrong("step", index, "", "a step begins `at` a time or `after` the one before, not both", "")
        rest = {key: value for key, value in row.items() if _time_name(key) not in STEP_TIMES}
        what = {key: value for key, value in rest.items() if key not in {"when", "mark"}}
        stimulus = fault = None
        if "do" in what and "fault" in what:
            self._wrong("step", index, "fault", "a step does one thing", "write two steps")
        if "do" in what:
            stimulus = self._tagged(what, "do", Stimulus, "step", index)
        elif "fault" in what:
            fault = self._tagged(what, "fault", Fault, "step", index)
        else:
            self._only(rest, STEP_KEYS, "step", index)
        if times["lasts"] is not None and fault is None:
            self._wrong("step", index, "lasts", "only a fault lasts", "leave it out")
        return Step(
            at_ms=times["at"],
            after_ms=times["after"] or 0,
            when=self._condition(rest.get("when"), "step", index, "when"),
            timeout_ms=times["timeout"] if times["timeout"] is not None else 60_000,
            mark=self._convert(rest.get("mark", ""), str, "step", index),
            stimulus=stimulus,
            fault=fault,
            lasts_ms=times["lasts"],
            line=self._lines.of("step", index),
        )

    def _expectation(self, row: dict[str, Any], index: int) -> Expectation:
        times = {name: self._time(row, name, "expect", index) for name in EXPECT_TIMES}
        if "within" in row:
            times["within"] = self._sum(row, times["within"], index)
        rest = {key: value for key, value in row.items() if _time_name(key) not in EXPECT_TIMES and key != "within"}
        self._only(rest, EXPECT_KEYS, "expect", index)
        kinds = [kind for kind in ("see", "always", "never", "total") if kind in rest]
        if len(kinds) != 1:
            self._wrong("expect", index, "", "it is of exactly one kind", "see, always, never or total")
        if (kinds == ["see"]) != (times["within"] is not None):
            self._wrong("expect", index, "", "`see` and a time within which go together", "within_s = 10")
        if kinds == ["total"] and "at_least" not in rest and "at_most" not in rest:
            self._wrong("expect", index, "total", "a total without a limit cannot fail", "at_least = 1")
        conditions = {
            kind: self._condition(rest.pop(kind, None), "expect", index, kind) for kind in kinds if kind != "total"
        }
        plain = self._convert(rest, Expectation, "expect", index)
        return msgspec.structs.replace(
            plain,
            **conditions,
            within_ms=times["within"],
            settle_ms=times["settle"] or 0,
            line=self._lines.of("expect", index),
        )

    def _sum(self, row: dict[str, Any], plain_ms: int | None, index: int) -> int:
        """`within = "gate.parked + work"`: see `hil.scenario.limits`."""
        if plain_ms is not None:
            self._wrong("expect", index, "within", "two keys say within which time", "keep one")
        text = self._convert(row["within"], str, "expect", index)
        policy = self._convert(self._table.get("policy", {}), Policy, "policy", 0)
        try:
            return sum_ms(text, policy)
        except ValueError as error:
            self._wrong("expect", index, "within", str(error), 'within = "gate.parked + work"')

    def _condition(self, value: Any, table: str, index: int, key: str) -> Condition | None:
        if value is None:
            return None
        if not isinstance(value, dict) or not value:
            self._wrong(table, index, key, f"{key} says nothing", '{ gate = "open" }')
        self._only(value, [field.name for field in msgspec.structs.fields(Condition)], table, index)
        condition = self._convert(value, Condition, table, index)
        if condition.reason is not None:
            gate, _, code = condition.reason.partition(":")
            if gate not in RULES:
                self._wrong(
                    table, index, "reason", f"no gate is called {gate!r}", _nearest(gate, RULES, "docs/policy.md")
                )
            if code and code not in SENTENCES:
                self._wrong(table, index, "reason", f"no reason is called {code!r}", _nearest(code, SENTENCES, ""))
        return condition

    # --- checks -------------------------------------------------------------------------------------------------

    def _check_marks(self, steps: Iterable[Step], expectations: Iterable[Expectation]) -> None:
        marks = [step.mark for step in steps if step.mark]
        for index, one in enumerate(expectations):
            for key, mark in (("after", one.after), ("until", one.until)):
                if mark not in {BEGIN, END, *marks}:
                    self._wrong(
                        "expect", index, key, f"no step sets the mark {mark!r}", _nearest(mark, marks, "mark =")
                    )
        if twice := next((mark for mark in marks if marks.count(mark) > 1 or mark in {BEGIN, END}), None):
            self._wrong("step", 0, "mark", f"the mark {twice!r} is set twice, or is one that there always is", "")

    def _check_order(self, steps: Iterable[Step], daily: tuple[Daily, ...]) -> None:
        latest_ms = 0
        for index, step in enumerate(steps):
            if daily and (step.at_ms is None or step.when is not None):
                self._wrong(
                    "step", index, "", "beside [[daily]] each step has a time `at`, and waits for nothing", "at_h"
                )
            if step.at_ms is not None and step.at_ms < latest_ms:
                self._wrong("step", index, "at", "it is before the step above", "sort the steps by time")
            latest_ms = step.at_ms if step.at_ms is not None else latest_ms

    # --- reading ------------------------------------------------------------------------------------------------

    def _rows(self, name: str) -> list[dict[str, Any]]:
        rows = self._table.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self._wrong(name, 0, "", f"{name} is a list of tables", f"[[{name}]]")
        return rows

    def _time(self, row: dict[str, Any], name: str, table: str, index: int) -> int | None:
        """The one key `name` with a unit, as milliseconds."""
        found = [key for key in row if _time_name(key) == name]
        if not found:
            return None
        key, value = found[0], row[found[0]]
        if len(found) > 1:
            self._wrong(table, index, found[1], f"{key} and {found[1]} say the same", "keep one")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 10_000_000:
            self._wrong(table, index, key, f"{key} is {value!r}", "a number that is not negative")
        return round(value * UNIT_MS[key.removeprefix(name)])

    def _tagged(self, what: dict[str, Any], tag: str, union: Any, table: str, index: int) -> Any:
        """A stimulus or a fault, by its tag, its keys checked first."""
        kinds = {kind.__struct_config__.tag: kind for kind in get_args(union)}
        name = what[tag]
        if name not in kinds:
            self._wrong(table, index, tag, f"nothing is called {name!r}", _nearest(str(name), kinds, ""))
        fields = [one.name for one in msgspec.structs.fields(kinds[name])]
        self._only(what, [tag, "when", "mark", *fields], table, index)
        return self._convert(what, union, table, index)

    def _convert(self, value: Any, kind: type[T], table: str, index: int) -> T:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$")
            keys = re.findall(r"[a-z_]+", where)
            self._wrong(table, index, keys[-1] if keys else "", message, "docs/scenarios.md")

    def _only(self, row: dict[str, Any], known: Iterable[str], table: str, index: int) -> None:
        known = list(known)
        for key in row:
            if key not in known:
                times = [f"{name}_s" for name in (*STEP_TIMES, *EXPECT_TIMES) if table in {"step", "expect"}]
                self._wrong(table, index, key, f"unknown key {key!r}", _nearest(key, [*known, *times], ""))

    def _wrong(self, table: str, index: int, key: str, what: str, hint: str) -> NoReturn:
        line = self._lines.of(table, index, key)
        place = f"[[{table}]] {index + 1}: " if table in TABLES else f"[{table}]: " if table else ""
        raise ConfigError(f"{self._path}:{line}: {place}{what}", hint=hint)


def _time_name(key: str) -> str:
    """`at` of `at_min`; empty for a key that is no time with a unit."""
    name, _, unit = key.rpartition("_")
    return name if f"_{unit}" in UNIT_MS and name in {*STEP_TIMES, *EXPECT_TIMES, "ends_after"} else ""


def _daily(row: dict[str, Any]) -> dict[str, Any]:
    """A daily row as its value: what is done in a table of its own."""
    plain = {key: value for key, value in row.items() if key in {"days", "local_time"}}
    return {**plain, "stimulus": {key: value for key, value in row.items() if key not in plain}}


def _nearest(name: str, known: Iterable[str], else_see: str) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else else_see or f"known here: {', '.join(known)}"
