"""docs/logs.md has every event that the daemon logs, and no other: names are read from the source, not from a list."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.model import Readiness
from agent.log import HELD_BACK

ROOT = Path(__file__).parent.parent
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
PASS_ON = {"Report", "BackgroundRows", "report", "_report", "note", "_note", "_tell", "_say_once", "say"}
"""What takes an event's name and has it logged."""
ELSEWHERE = ("agent/simulate/", "agent/update/", "agent/cli/", "agent/worker/")
"""Not the daemon's log."""
NAMED_ELSEWHERE = {
    ("agent/assembly.py", "name"),
    ("agent/background_rows.py", "self._event"),
    ("agent/core/transfers.py", "name"),
    ("agent/diary.py", "name"),
    ("agent/fleet/link.py", "name"),
    ("agent/hands.py", "effect.name"),
}
"""Where a name is only passed on: whoever gives it is found by `PASS_ON`."""
VALUES = {"now.state.value": [one.value for one in Readiness]}
"""What a name is made of that is no constant."""

Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef


def calls(tree: ast.Module) -> Iterator[tuple[Scope, ast.Call]]:
    """Every call with the innermost function around it."""

    def walk(scope: Scope, node: ast.AST) -> Iterator[tuple[Scope, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                yield scope, child
            yield from walk(child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else scope, child)

    yield from walk(tree, tree)


def is_log_call(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in LEVELS
        and isinstance(function.value, ast.Call)
        and ast.unparse(function.value.func) == "logger"
    )


def name_argument(call: ast.Call) -> ast.expr | None:
    """What says the event's name, of a call that logs or passes a name on."""
    if is_log_call(call):
        return call.args[0]
    function = call.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if called not in PASS_ON:
        return None
    named = [keyword.value for keyword in call.keywords if keyword.arg == "name"]
    place = 1 if called == "BackgroundRows" else 0
    return named[0] if named else call.args[place] if len(call.args) > place else None


def assigned(name: str, scope: Scope) -> Iterator[ast.expr]:
    """What is assigned to a name in a scope, alone or as one of several."""
    for node in ast.walk(scope):
        for to in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(to, ast.Name) and to.id == name:
                yield node.value  # type: ignore[attr-defined]  # of an Assign, as the line before says
            elif isinstance(to, ast.Tuple) and isinstance(node.value, ast.Tuple):  # type: ignore[attr-defined]
                pairs = zip(to.elts, node.value.elts, strict=True)  # type: ignore[attr-defined]
                yield from (source for target, source in pairs if isinstance(target, ast.Name) and target.id == name)


def strings(value: ast.expr, scope: Scope) -> set[str] | None:
    """What it may be; None where that is not said here."""
    found: set[str] = set()
    match value:
        case ast.Constant(value=str(text)):
            found = {text}
        case ast.IfExp(body=one, orelse=other):
            found = (strings(one, scope) or set()) | (strings(other, scope) or set())
        case ast.Name(id="HELD_BACK"):
            found = {HELD_BACK}
        case ast.Name(id=name):
            found = set().union(*(strings(one, scope) or set() for one in assigned(name, scope)))
        case ast.JoinedStr(values=[ast.Constant(value=str(start)), ast.FormattedValue(value=inner)]):
            found = {f"{start}{one}" for one in VALUES[ast.unparse(inner)]}
        case ast.Subscript(value=ast.Name(id=name)):
            found = {one for text in assigned(name, scope) for one in re.findall(r"'([a-z_]+)'", ast.unparse(text))}
    return found or None


def events() -> dict[str, set[str]]:
    """Every event's name with the files that log it; raises AssertionError where a name cannot be made out."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "agent").rglob("*.py")):
        file = str(path.relative_to(ROOT))
        if file.startswith(ELSEWHERE):
            continue
        for scope, call in calls(ast.parse(path.read_text("utf-8"))):
            argument = name_argument(call)
            names = None if argument is None else strings(argument, scope)
            if is_log_call(call) and names is None:
                assert (file, ast.unparse(call.args[0])) in NAMED_ELSEWHERE, f"{file}:{call.lineno}: which event is it?"
            for name in names or ():
                if re.fullmatch(r"[a-z]+(_[a-z]+)*", name):
                    found.setdefault(name, set()).add(file)
    return found


def rows() -> dict[str, tuple[str, str, str]]:
    """Of docs/logs.md: level, meaning and what to do, by event."""
    text = (ROOT / "docs" / "logs.md").read_text("utf-8").partition("\n## Events\n")[2]
    found = re.findall(r"^\| `([a-z_]+)` \| ([a-z, ]+) \| (.+?) \| ?(.*?) ?\|$", text, re.MULTILINE)
    assert len({one[0] for one in found}) == len(found), "each event once"
    return {name: (level, meaning, todo) for name, level, meaning, todo in found}


def test_every_event_is_in_the_catalogue_and_every_row_is_an_event() -> None:
    logged, told = events(), rows()
    assert set(told) == set(logged), set(told) ^ set(logged)
    assert len(logged) > 90


def test_bad_news_says_what_to_do() -> None:
    """Of an event that is a warning or an error, either there is something to do or it says that it mends itself."""
    for name, (level, meaning, todo) in rows().items():
        assert meaning
        if "error" in level:
            assert todo or "opened anew" in meaning, name


def test_the_levels_in_the_catalogue_are_those_of_the_source() -> None:
    levels: dict[str, set[str]] = {}
    for path in sorted((ROOT / "agent").rglob("*.py")):
        file = str(path.relative_to(ROOT))
        for scope, call in calls(ast.parse(path.read_text("utf-8"))):
            if is_log_call(call) and not file.startswith(ELSEWHERE):
                assert isinstance(call.func, ast.Attribute)
                for name in strings(call.args[0], scope) or ():
                    levels.setdefault(name, set()).add(call.func.attr)
    told = rows()
    for name, found in levels.items():
        assert set(told[name][0].split(", ")) == found, name


@pytest.mark.parametrize(
    "line",
    ['logger().info("a_new_event")', 'Report(name="a_new_event", fields={})', 'self._say_once("a_new_event", "x")'],
)
def test_a_new_event_would_be_found(line: str) -> None:
    ((scope, call), *_) = [one for one in calls(ast.parse(line)) if name_argument(one[1]) is not None]
    argument = name_argument(call)
    assert argument is not None
    assert strings(argument, scope) == {"a_new_event"}
