"""docs/attestation.md and its schema say what the code does: every field, and honest evidence fits the schema."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from agent.trust import bundle, checkpoint, session, statement
from hil import attestation_schema
from tests.trust.evidence_world import World, payload_of

LATER = {"precision", "batch", "selfTest"}
"""What statements of before had not; that they come together only `agent.trust` checks."""
PAGE = (Path(__file__).parents[2] / "docs" / "attestation.md").read_text("utf-8")


@pytest.fixture(scope="module")
def world(statement: statement.Statement) -> World:
    return World(statement)


def test_the_schema_is_current() -> None:
    assert attestation_schema.FILE.read_text("utf-8") == attestation_schema.text(), (
        "python -m hil.attestation_schema --write"
    )


def validator(name: str) -> Draft202012Validator:
    document = attestation_schema.schema()
    Draft202012Validator.check_schema(document)
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": document["$defs"]})


def honest(world: World) -> list[tuple[str, Any]]:
    return [
        ("InTotoStatement", json.loads(payload_of(world.leaves[1][1]))),
        ("SessionCertificate", json.loads(payload_of(world.session.certificate))),
        ("Checkpoint", json.loads(payload_of(world.checkpoint()))),
        ("ResultBundle", json.loads(world.result())),
        ("ProofBundle", json.loads(world.proof(1))),
        ("ProofBundle", json.loads(world.proof(2))),
    ]


def paths(value: Any, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every field at every depth."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, entry in entries:
        yield (*before, name)
        yield from paths(entry, (*before, name))


def test_honest_evidence_fits_the_schema_and_nothing_with_a_field_less_or_more(world: World) -> None:
    for name, value in honest(world):
        check = validator(name)
        assert check.is_valid(value), list(check.iter_errors(value))
        for path in paths(value):
            if isinstance(path[-1], str):
                assert check.is_valid(bent(value, path, remove=True)) == (path[-1] in LATER), path
                assert not check.is_valid(bent(value, path, remove=False)), path


def bent(value: Any, path: tuple[str | int, ...], *, remove: bool) -> Any:
    """Without a field, or with one that nobody knows beside it."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for step in path[:-1]:
        inner = inner[step]
    if remove:
        del inner[path[-1]]
    else:
        inner["bonus"] = 1
    return copy


def test_every_field_of_the_predicate_is_in_the_table(world: World) -> None:
    predicate = json.loads(payload_of(world.leaves[1][1]))["predicate"]
    fields = set()
    for path in paths(predicate):
        named = "".join("[]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
        fields.add(named)
    leaves = {one for one in fields if not any(other.startswith((f"{one}.", f"{one}[")) for other in fields)}
    table = set(re.findall(r"^\| `([A-Za-z0-9.\[\]]+)` \|", PAGE.split("## The strict profile")[0], re.MULTILINE))
    assert leaves == table


def test_every_field_of_certificates_checkpoints_and_bundles_is_named(world: World) -> None:
    for name, value in honest(world)[1:]:
        for field in value:
            assert f"`{field}`" in PAGE, f"{name}.{field}"


def test_types_limits_and_topics_are_those_of_the_code() -> None:
    for said in (
        *(statement.PAYLOAD_TYPE, statement.PREDICATE_TYPE, session.SESSION_TYPE, checkpoint.CHECKPOINT_TYPE),
        *(bundle.RESULT_BUNDLE, bundle.PROOF_BUNDLE, bundle.VERDICT_TYPE),
        *("dw/v1/u/{cell}/{unit}/checkpoint", "dw/v1/d/{unit}/witness"),
        f"{bundle.MAX_BYTES // 1024} KiB",
    ):
        assert said in PAGE


def test_the_equivalence_class_is_what_the_page_says(world: World) -> None:
    said = world.statements[0]
    told: dict[str, Any] = {
        "batch": list(said.engine.batch or ()),
        "device": said.device.class_,
        "driver": said.device.driver,
        "executor": said.engine.executor,
        "kernels": said.engine.kernels_sha256,
        "model": said.model_sha256,
        "precision": said.engine.precision,
        "version": said.engine.version,
    }
    body = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(body).hexdigest() == said.equivalence_class
    assert "{" + ", ".join(told) + "}" in PAGE


def test_the_example_of_the_library_runs(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "unit.pub").write_text(world.unit.public_key_pem())
    (tmp_path / "lease.result.json").write_bytes(world.result())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/attestation.md", "exec"), names)
    assert names["statement"] == world.statements[0]


def test_a_leaf_is_its_exact_bytes(world: World) -> None:
    assert base64.b64decode(json.loads(world.proof(2))["leaf"]) == world.leaves[2][1]
