"""What our source touches of TensorRT's interface, read from the source itself.

The folder keeps to one rule that makes this possible: an object of the library is called by the same name everywhere
(OBJECTS), and whatever is annotated `Any` is such an object or listed in OTHERS.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "agent" / "worker" / "tensorrt"
OBJECTS = {
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "tensor": "ITensor",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "complaint": "ParserError",
    "cache": "ITimingCache",
}
OTHERS = {"trt", "code", "severity", "return"}


@dataclass
class Touched:
    """Class -> members; calls as (class, method, number of arguments); names that break the rule."""

    members: dict[str, set[str]] = field(default_factory=dict)
    calls: set[tuple[str, str, int]] = field(default_factory=set)
    unnamed: set[str] = field(default_factory=set)

    def touch(self, kind: str, member: str = "") -> None:
        found = self.members.setdefault(kind, set())
        if member and not member.startswith("__"):
            found.add(member)


def touched(sources: list[str]) -> Touched:
    """What these sources touch."""
    found = Touched()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute):
                _attribute(found, node.value, node.attr)
            elif isinstance(node, ast.Call):
                _call(found, node)
            elif isinstance(node, ast.ClassDef):
                for base in node.bases:
                    if isinstance(base, ast.Attribute) and _end(base.value) == "trt":
                        found.touch(base.attr)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = [(one.arg, one.annotation) for one in (*node.args.args, *node.args.kwonlyargs)]
                found.unnamed |= {name for name, kind in given if _is_any(kind)} - OTHERS - OBJECTS.keys()
    return found


def our_sources() -> list[str]:
    return [path.read_text("utf-8") for path in sorted(FOLDER.glob("*.py"))]


def _attribute(found: Touched, value: ast.expr, member: str) -> None:
    kind = OBJECTS.get(_end(value))
    if kind is not None:
        found.touch(kind, member)
    elif _end(value) == "trt" and member[0].isupper():
        found.touch(member)
    elif isinstance(value, ast.Attribute) and _end(value.value) == "trt":
        found.touch(value.attr, member)


def _call(found: Touched, node: ast.Call) -> None:
    function, arguments = node.func, node.args
    if isinstance(function, ast.Name) and function.id in {"hasattr", "getattr"}:
        if len(arguments) > 1 and isinstance(arguments[1], ast.Constant):
            _attribute(found, arguments[0], str(arguments[1].value))
    elif isinstance(function, ast.Attribute):
        kind = OBJECTS.get(_end(function.value))
        if kind is not None:
            found.calls.add((kind, function.attr, len(arguments)))
        elif function.attr == "made" and isinstance(arguments[0], ast.Constant):
            found.touch(str(arguments[0].value))


def _end(value: ast.expr) -> str:
    """The last name of `self._flavour.trt`, without leading underscores."""
    if isinstance(value, ast.Name):
        return value.id.lstrip("_")
    return value.attr.lstrip("_") if isinstance(value, ast.Attribute) else ""


def _is_any(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "Any"
