"""An input inside its grant is taken when it is what the grant says, and only kept for as long as it may be wanted."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from pathlib import Path

import msgspec
import pytest

from agent.errors import FleetError
from agent.fleet.channel import Web
from agent.fleet.inline import KEPT, InlineInputs
from agent.fleet.messages import INLINE_INPUT_BYTES, MessageError, ObjectRef
from agent.fleet.partials import Partials
from agent.fleet.retry import Patience
from agent.transfers import Transfers
from tests.core.world import grant
from tests.fleet.test_objects import taken


def reference(body: bytes, inside: str | None = None) -> ObjectRef:
    text = base64.b64encode(body).decode("ascii") if inside is None else inside
    return ObjectRef(url="https://nowhere", sha256=hashlib.sha256(body).hexdigest(), bytes=len(body), body=text)


def test_it_is_there_by_its_digest() -> None:
    inputs = InlineInputs()
    inputs.keep(reference(b"an input"))
    assert inputs.get(hashlib.sha256(b"an input").hexdigest()) == b"an input"
    assert inputs.get("0" * 64) is None


@pytest.mark.parametrize("inside", ["b3RoZXI=", "not base64!", "YW4gaW5wdXQ=YW4gaW5wdXQ="])
def test_what_is_not_what_the_grant_names_is_refused(inside: str) -> None:
    inputs = InlineInputs()
    with pytest.raises(MessageError, match="the input in the grant"):
        inputs.keep(reference(b"an input", inside))
    assert inputs.get(reference(b"an input").sha256) is None


def test_more_than_a_few_are_not_kept() -> None:
    inputs, bodies = InlineInputs(), [bytes([n]) * INLINE_INPUT_BYTES for n in range(KEPT + 2)]
    for body in bodies:
        inputs.keep(reference(body))
    kept = [body for body in bodies if inputs.get(reference(body).sha256) == body]
    assert kept == bodies[-KEPT:]


def test_a_lease_takes_it_without_a_connection(tmp_path: Path) -> None:
    inputs, input_here = InlineInputs(), reference(b"an input")
    inputs.keep(input_here)
    transfers = Transfers(Web(), Partials(tmp_path), inline=inputs.get, input_patience=lambda _: Patience(for_s=0))
    one = msgspec.structs.replace(grant(1), input_url="https://nowhere", input_sha256=input_here.sha256)
    assert taken(asyncio.run(transfers.input_of(transfers.channel(), one))) == b"an input"
    with pytest.raises(FleetError, match="nowhere"):
        asyncio.run(transfers.input_of(transfers.channel(), msgspec.structs.replace(one, input_sha256="0" * 64)))
