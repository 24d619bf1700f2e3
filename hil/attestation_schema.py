"""docs/attestation.schema.json: the JSON Schema of everything that is signed about work, made from the dataclasses.

    python -m hil.attestation_schema            prints it
    python -m hil.attestation_schema --write    writes docs/attestation.schema.json

It says what a generic validator can check: fields, types, ranges, forms. The rules that span fields, and the canonical
spelling, are in docs/attestation.md and checked by `agent.trust` alone.
"""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from agent.trust import records
from agent.trust.bundle import ProofBundle, ResultBundle
from agent.trust.checkpoint import Checkpoint
from agent.trust.dsse import MAX_INTEGER
from agent.trust.session import SessionCertificate
from agent.trust.statement import PREDICATE_TYPE, STATEMENT_TYPE, Statement

FILE = Path(__file__).resolve().parents[1] / "docs" / "attestation.schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ROOTS = (Statement, SessionCertificate, Checkpoint, ResultBundle, ProofBundle)
DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def schema() -> dict[str, Any]:
    """The document. `$defs` has an entry for each dataclass; a file is validated against the one that it is."""
    definitions: dict[str, Any] = {}
    for root in ROOTS:
        _define(root, definitions)
    definitions["InTotoStatement"] = _in_toto()
    return {
        "$schema": DIALECT,
        "title": "What a Driveway unit signs about its work",
        "description": "The predicate, the in-toto Statement around it, session certificates, checkpoints, bundles.",
        "anyOf": [
            {"$ref": f"#/$defs/{name}"}
            for name in ("InTotoStatement", *(root.__name__ for root in ROOTS if root is not Statement))
        ],
        "$defs": dict(sorted(definitions.items())),
    }


def text() -> str:
    """The document as it is kept."""
    return json.dumps(schema(), indent=2) + "\n"


def _in_toto() -> dict[str, Any]:
    """The Statement of in-toto with our predicate: what a DSSE envelope of type application/vnd.in-toto+json holds."""
    subject = {
        "name": {"type": "string", "pattern": "^slice-[0-9]+$"},
        "digest": _object({"sha256": DIGEST}),
    }
    return _object(
        {
            "_type": {"const": STATEMENT_TYPE},
            "subject": {"type": "array", "minItems": 1, "maxItems": records.MAX_LIST, "items": _object(subject)},
            "predicateType": {"const": PREDICATE_TYPE},
            "predicate": {"$ref": "#/$defs/Statement"},
        }
    )


def _object(properties: dict[str, Any], optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _define(kind: type[Any], definitions: dict[str, Any]) -> dict[str, str]:
    """A reference to a dataclass, which is defined once."""
    name = kind.__name__
    if name not in definitions:
        definitions[name] = {}
        hints = get_type_hints(kind, include_extras=True)
        optional = frozenset(records.camel(one.name) for one in fields(kind) if records.is_optional(one))
        properties = {
            records.camel(one.name): _of(
                _present(hints[one.name]) if records.is_optional(one) else hints[one.name], definitions
            )
            for one in fields(kind)
        }
        definitions[name] = {"description": inspect.cleandoc(kind.__doc__ or ""), **_object(properties, optional)}
    return {"$ref": f"#/$defs/{name}"}


def _of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field, by the same types that `agent.trust.records` reads it by."""
    if hint is int:
        return {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER}
    if hint is bool:
        return {"type": "boolean"}
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return dict(_define(hint, definitions))
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        return {"type": "array", "maxItems": records.MAX_LIST, "items": _of(arguments[0], definitions)}
    if get_origin(hint) in (UnionType, Union):
        return {"anyOf": [_of(_present(hint), definitions), {"type": "null"}]}
    return {"type": "string", "pattern": f"^(?:{arguments[1].pattern})$"}


def _present(hint: Any) -> Any:
    """What a field is that may be None, when it is not."""
    (one,) = (kind for kind in get_args(hint) if kind is not NoneType)
    return one


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(text(), "utf-8")
    else:
        print(text(), end="")
