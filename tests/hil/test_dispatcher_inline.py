"""A small input travels inside its grant; a long one, or one beside a long list of slices, by its address alone."""

from __future__ import annotations

import hashlib

import pytest

from agent.fleet.inline import InlineInputs
from agent.fleet.messages import INLINE_INPUT_BYTES
from hil.dispatcher.inputs import INLINE_SLICES, input_ref
from hil.dispatcher.leases import Places


@pytest.mark.parametrize(
    ("length", "slices", "inside"),
    [
        (INLINE_INPUT_BYTES, INLINE_SLICES, True),
        (INLINE_INPUT_BYTES + 1, 1, False),
        (10, INLINE_SLICES + 1, False),
    ],
)
def test_an_input_travels_in_its_grant_where_there_is_room(length: int, slices: int, *, inside: bool) -> None:
    body = b"x" * length
    sha256 = hashlib.sha256(body).hexdigest()
    places = Places(object_url=lambda name: f"https://objects/{name}", small={sha256: body}.get)
    found = input_ref({"input_sha256": sha256, "input_bytes": length, "sealed": 0}, tuple(range(slices)), places)
    assert (found.url, found.bytes) == (f"https://objects/{sha256}", length)
    car = InlineInputs()
    car.keep(found)
    assert car.get(sha256) == (body if inside else None)
