"""Statements: one spelling, independent validation, and a refusal for every field that is bent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as OtherStatement

from agent.errors import TrustError
from agent.trust.dsse import canonical_json
from agent.trust.statement import Statement, equivalence_class, parse_statement


def test_round_trip_and_form(statement: Statement) -> None:
    body = statement.to_bytes()
    assert parse_statement(body) == statement
    assert body.isascii()
    raw = json.loads(body)
    assert json.dumps(raw, sort_keys=True, separators=(",", ":")).encode() == body
    assert raw["predicate"]["device"] == {"class": "cpu-x86_64", "driver": ""}
    assert raw["predicate"]["energy"] == {"microWh": 12_345, "sensor": "simulated"}
    assert raw["predicate"]["lease"]["ticketSha256"] == "a1" * 32
    assert raw["subject"] == [
        {"name": "slice-0", "digest": {"sha256": "07" * 32}},
        {"name": "slice-2", "digest": {"sha256": "29" * 32}},
    ]


def test_in_toto_attestation_validates_it(statement: Statement) -> None:
    message = ParseDict(json.loads(statement.to_bytes()), statement_pb2.Statement())
    OtherStatement.copy_from_pb(message).validate()
    assert message.subject[1].digest["sha256"] == "29" * 32


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every leaf of a JSON value."""
    match value:
        case dict():
            for key, entry in value.items():
                yield from leaves(entry, (*path, key))
        case list():
            for position, entry in enumerate(value):
                yield from leaves(entry, (*path, position))
        case _:
            yield path


def replaced(value: Any, path: tuple[str | int, ...], new: object) -> Any:
    copy = json.loads(json.dumps(value))
    inner = copy
    for step in path[:-1]:
        inner = inner[step]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copy


def test_every_field_is_needed_and_checked(statement: Statement) -> None:
    """Each leaf gone, of another type, out of range or in another alphabet: refused, every time."""
    good = json.loads(statement.to_bytes())
    paths = list(leaves(good))
    assert len(paths) > 40
    bends: list[object] = [..., None, True, -1, "\n", [], {}, "x" * 600, "Ä\n"]
    for path in paths:
        for new in bends:
            with pytest.raises(TrustError):
                pytest.fail(f"accepted {path} = {new!r}: {parse_statement(canonical_json(replaced(good, path, new)))}")


def test_unknown_fields_and_other_spellings_are_refused(statement: Statement) -> None:
    good = json.loads(statement.to_bytes())
    for path in [("extra",), ("predicate", "extra"), ("predicate", "lease", "extra"), ("subject", 0, "uri")]:
        with pytest.raises(TrustError):
            parse_statement(canonical_json(replaced(good, path, 1)))
    with pytest.raises(TrustError, match="canonical"):
        parse_statement(json.dumps(good, sort_keys=True).encode())
    with pytest.raises(TrustError):
        parse_statement(statement.to_bytes().replace(b'"counter":41', b'"counter":41,"COUNTER":40'))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"outcome": "maybe"}, "outcome"),
        ({"slices": ()}, "slices"),
        ({"counter": 2**53}, "2\\*\\*53|integer"),
        ({"counter": -1}, "counter"),
        ({"key_protection": "sticky note"}, "keyProtection"),
        ({"unit": "a/b"}, "unit"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(statement: Statement, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(TrustError, match=reason):
        dataclasses.replace(statement, **change).to_bytes()


def before_precision(statement: Statement) -> Statement:
    """The same as an agent stated it before statements told precision, batches and the last golden vector."""
    engine = dataclasses.replace(statement.engine, precision=None, batch=None)
    told = equivalence_class(statement.model_sha256, engine, statement.device)
    return dataclasses.replace(statement, engine=engine, self_test=None, equivalence_class=told)


def test_statements_of_before_still_read_and_have_the_class_that_they_had(statement: Statement) -> None:
    old = before_precision(statement)
    body = old.to_bytes()
    assert parse_statement(body) == old
    assert not any(name in body for name in (b"precision", b"batch", b"selfTest"))
    assert old.equivalence_class == "fc9ce57fb25e9b675fba09f958e2f6cbc941f0dc48fa2a8278c0b936c5e39eb8"
    assert old.equivalence_class != statement.equivalence_class


def test_what_came_later_is_all_there_or_not_at_all(statement: Statement) -> None:
    engine = statement.engine
    for half in (
        dataclasses.replace(statement, self_test=None),
        dataclasses.replace(statement, engine=dataclasses.replace(engine, batch=None)),
        dataclasses.replace(statement, engine=dataclasses.replace(engine, precision=None)),
        dataclasses.replace(before_precision(statement), self_test=statement.self_test),
    ):
        told = equivalence_class(half.model_sha256, half.engine, half.device)
        with pytest.raises(TrustError, match="come together or not at all"):
            dataclasses.replace(half, equivalence_class=told).to_bytes()


@pytest.mark.parametrize("batch", [(), (0,), (1, 0), (1,) * 65])
def test_batches_that_no_engine_has_are_refused(statement: Statement, batch: tuple[int, ...]) -> None:
    engine = dataclasses.replace(statement.engine, batch=batch)
    told = equivalence_class(statement.model_sha256, engine, statement.device)
    with pytest.raises(TrustError, match=r"engine\.batch"):
        dataclasses.replace(statement, engine=engine, equivalence_class=told).to_bytes()


def test_precision_and_batches_are_part_of_the_class(statement: Statement) -> None:
    engine = statement.engine
    others = [dataclasses.replace(engine, precision="tf32"), dataclasses.replace(engine, batch=(1, 1))]
    told = {equivalence_class(statement.model_sha256, one, statement.device) for one in others}
    assert len(told | {statement.equivalence_class}) == 3
    with pytest.raises(TrustError, match="equivalenceClass"):
        dataclasses.replace(statement, engine=others[0]).to_bytes()


def test_rules_that_span_fields(statement: Statement) -> None:
    first, second = statement.slices
    times = dataclasses.replace(statement.times, finished_boot_ms=999)
    for bent in (
        dataclasses.replace(statement, slices=(second, first)),
        dataclasses.replace(statement, slices=(first, first)),
        dataclasses.replace(statement, slices=(dataclasses.replace(first, items=0),)),
        dataclasses.replace(statement, slices=(dataclasses.replace(first, failed_items=5),)),
        dataclasses.replace(statement, times=times),
    ):
        with pytest.raises(TrustError):
            bent.to_bytes()


def test_subjects_have_to_be_the_slices(statement: Statement) -> None:
    good = json.loads(statement.to_bytes())
    bends: list[tuple[tuple[str | int, ...], object]] = [
        (("subject", 0, "name"), "slice-1"),
        (("subject", 0, "digest", "sha256"), "00" * 32),
        (("subject", 1), ...),
    ]
    for path, new in bends:
        with pytest.raises(TrustError, match="subjects"):
            parse_statement(canonical_json(replaced(good, path, new)))


@given(st.data())
def test_a_bent_statement_is_refused_or_is_one(statement: Statement, data: st.DataObject) -> None:
    good = statement.to_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    bent = good[:position] + data.draw(st.binary(max_size=4)) + good[position + data.draw(st.integers(0, 4)) :]
    try:
        parsed = parse_statement(bent)
    except TrustError:
        return
    assert parsed.to_bytes() == bent
