"""No bytes and no JSON, as a manifest or as an operation's parameters, do anything but be taken or refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.errors import PackageError
from agent.package import MANIFEST, Package, open_package
from agent.worker.executor import ModelTensor
from agent.worker.program import compile_program
from hil.packages.nothing import build_nothing_package
from kernels import OPS, operation
from kernels.operation import OperationError, TensorSpec

SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True, deadline=None)

SIZES = st.integers(-1, 70) | st.sampled_from([320, 16_384, 2**31, 2**63])
TEXTS = st.sampled_from(["", "y", "3", "1,3", "0", "float32", "labels.txt", "../x", "/etc/passwd", "\0"]) | st.text(
    max_size=5
)
VALUES = st.none() | st.booleans() | SIZES | st.floats() | TEXTS
JSON = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
NAMES = sorted({field for kind in OPS.values() for field in kind.__struct_fields__})
PARAMS = st.dictionaries(st.sampled_from(NAMES) | TEXTS, VALUES | JSON, max_size=6)
SPECS = st.builds(
    TensorSpec,
    dtype=st.sampled_from(["float32", "float16", "int64", "uint8", "bool"]),
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return build_nothing_package(tmp_path_factory.mktemp("fuzz") / "nothing")


@contextlib.contextmanager
def rewritten(package: Package, body: bytes) -> Iterator[Path]:
    """The package's folder with another manifest."""
    try:
        (package.path / MANIFEST).write_bytes(body)
        yield package.path
    finally:
        (package.path / MANIFEST).write_bytes(package.manifest_bytes)


@SAME_FOLDER
@given(st.binary(max_size=400))
@example(b"")
@example(b"[" * 5000)
@example(b'{"v":1' + b" " * 300_000)
@example('{"v": "\ud800"}'.encode("utf-8", "surrogatepass"))
def test_no_bytes_are_a_manifest_by_chance(package: Package, body: bytes) -> None:
    with rewritten(package, body) as path, pytest.raises(PackageError):
        open_package(path)


@st.composite
def changes(draw: st.DrawFn) -> Any:
    """A function that changes a manifest somewhere: a value replaced, a key or an element gone or added."""
    depth = draw(st.integers(1, 5))
    picks = draw(st.lists(st.integers(0, 30), min_size=depth, max_size=depth))
    new, how = draw(JSON), draw(st.sampled_from(["replace", "drop", "add", "rename"]))
    name = draw(TEXTS)

    def change(manifest: Any) -> Any:
        at: Any = {"root": manifest}
        key: Any = "root"
        for pick in picks:
            inner = at[key]
            if not isinstance(inner, dict | list) or not inner:
                break
            at = inner
            key = sorted(inner)[pick % len(inner)] if isinstance(inner, dict) else pick % len(inner)
        match how, at:
            case "drop", _:
                del at[key]
            case "add", list():
                at.append(new)
            case "add" | "rename", dict():
                at[name] = new if how == "add" else at.pop(key)
            case _:
                at[key] = new
        return manifest

    return change


@SAME_FOLDER
@given(st.lists(changes(), min_size=1, max_size=3))
def test_a_changed_manifest_opens_and_compiles_or_is_refused(package: Package, made: list[Any]) -> None:
    manifest = json.loads(package.manifest_bytes)
    for change in made:
        manifest = change(manifest)
    tensors = {"x": ModelTensor("int64", (None,))}, {"y": ModelTensor("int64", (None,))}
    body = json.dumps(manifest).encode()
    with rewritten(package, body) as path, contextlib.suppress(PackageError):
        compile_program(open_package(path), *tensors)


def right_params(kind: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Parameters that are mostly right, so that what an operation does with them is reached."""
    known: dict[str, st.SearchStrategy[Any]] = {
        "k": st.integers(1, 9),
        "softmax": st.booleans(),
        "threshold": st.floats(0, 1),
        "stacked": st.booleans(),
        "dtype": st.sampled_from(["float32", "float16", "int64"]),
        "shape": st.sampled_from(["", "3", "2,2"]),
        "height": st.integers(8, 70),
        "characters": st.sampled_from(["two.txt", "none.txt"]),
        "labels": st.sampled_from(["two.txt", "none.txt"]),
    }
    needed = {name: known[name] for name in kind.__struct_fields__ if name in known}
    return st.fixed_dictionaries(needed, optional={name: TEXTS for name in kind.__struct_fields__ if name not in known})


def read(name: str) -> bytes:
    """The package's files, as an operation reads them."""
    return b"one\ntwo\n" if name == "two.txt" else b"\xff"


@pytest.mark.parametrize("name", OPS)
@settings(derandomize=True, deadline=None)
@given(data=st.data())
def test_an_operation_takes_parameters_and_tensors_or_refuses_them(name: str, data: st.DataObject) -> None:
    """What it takes it also carries through: zeros become results as promised, and an answer."""
    params = data.draw(PARAMS | right_params(OPS[name]))
    with contextlib.suppress(OperationError):
        one: Any = operation(name, params)
        if hasattr(one, "fits"):
            rows, columns = data.draw(st.integers(8, 70)), data.draw(st.integers(8, 70))
            row = one.spec(rows, columns)
            written = np.full(row.shape, np.nan, row.dtype)
            one.reference(np.zeros((3, 5, 3), np.uint8), written)
            assert not np.isnan(written).any()
            assert one.launch(2, row).kernel
        if hasattr(one, "answerer"):
            output = data.draw(SPECS)
            promised = one.results(output)
            found = one.reference(np.zeros((2, *output.shape), output.dtype))
            assert [(each.dtype.name, each.shape) for each in found] == [(s.dtype, (2, *s.shape)) for s in promised]
            assert one.scratch_bytes(2, output) >= 0
            assert all(launch.kernel for launch in one.launches(2, output))
            json.dumps(one.answerer(read, output)(tuple(each[1] for each in found)))


@given(st.text(max_size=20).filter(lambda name: name not in OPS))
def test_no_other_name_is_an_operation(name: str) -> None:
    with pytest.raises(OperationError):
        operation(name, {})
