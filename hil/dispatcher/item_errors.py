"""What counts as an answer, in one place for who pays for it and who collects it.

An item has failed when what the package says of it is an object with a text `error`; anything else is its answer.
"""

from __future__ import annotations

import msgspec


def error_of(answer: object) -> str | None:
    """Why the item has no answer, None when this is one."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return error if isinstance(error, str) else None


def failed_in(body: bytes) -> int:
    """How many of the answers in this JSON array have failed; raises msgspec.DecodeError for what is none."""
    return count_failed(msgspec.json.decode(body, type=list[msgspec.Raw]))


def count_failed(answers: list[msgspec.Raw]) -> int:
    """How many of these have failed; raises msgspec.DecodeError for what is no JSON.

    Most answers are passed over unread: a key `error` is spelt so, or with an escape.
    """
    return sum(
        error_of(msgspec.json.decode(raw)) is not None
        for raw in map(bytes, answers)
        if raw[:1] == b"{" and (b'"error"' in raw or b"\\u" in raw)
    )
