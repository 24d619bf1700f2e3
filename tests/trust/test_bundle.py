"""Bundles hold alone: what is in them is what was signed, and every leaf of a ledger can be proven."""

from __future__ import annotations

import base64
import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import TrustError
from agent.trust import bundle
from agent.trust.statement import Statement
from tests.trust.evidence_world import World, keys


@pytest.fixture(scope="module")
def world(statement: Statement) -> World:
    return World(statement)


@pytest.fixture(scope="module")
def bundles(world: World) -> list[bytes]:
    """Signed once: signatures differ in length from one to the next, and with it the positions in a bundle."""
    return [world.result(), *(world.proof(index) for index in range(3))]


def test_a_result_bundle_says_what_the_unit_said(world: World) -> None:
    assert bundle.verify_result(world.result(), world.units) == world.statements[0]
    assert bundle.verify_result(world.result() + b"\n", world.units) == world.statements[0]


def test_every_leaf_can_be_proven_with_and_without_a_witness(world: World) -> None:
    for index, (kind, leaf) in enumerate(world.leaves):
        proven = bundle.verify_proof(world.proof(index), world.units, world.witnesses)
        assert (proven.kind, proven.index, proven.witnessed) == (kind, index, True)
        assert proven.checkpoint.size == len(world.leaves)
        assert (proven.statement is not None, proven.session is not None) == (kind == "statement", kind != "verdict")
        assert base64.b64encode(proven.payload).decode() in leaf.decode()
        if kind != "verdict":
            assert not bundle.verify_proof(world.proof(index), world.units).witnessed


def test_a_verdict_is_nothing_without_the_dispatchers_key(world: World) -> None:
    with pytest.raises(TrustError, match="none of its keys is trusted"):
        bundle.verify_proof(world.proof(2), world.units)


def test_a_bundle_is_json_with_a_media_type_and_whole_envelopes(world: World) -> None:
    result, proof = json.loads(world.result()), json.loads(world.proof())
    assert result["mediaType"] == "application/vnd.driveway.result-bundle+json"
    assert set(result["statement"]) == {"payload", "payloadType", "signatures"}
    assert proof["mediaType"] == "application/vnd.driveway.proof-bundle+json"
    assert base64.b64decode(proof["leaf"]) == world.leaves[1][1]
    assert (proof["index"], proof["size"], len(proof["checkpoint"]["signatures"])) == (1, 7, 2)
    assert json.loads(world.proof(0))["session"] is None


def test_an_old_leaf_outlives_a_change_of_keys(world: World) -> None:
    """The next key of the unit signs the checkpoint; the session's certificate is still by the one before."""
    successor = world.stranger
    body = world.proof(1, checkpoint=world.checkpoint(signer=successor, keyEpoch=2))
    assert bundle.verify_proof(body, keys(world.unit, successor), world.witnesses).statement == world.statements[0]


def test_a_large_statement_fits(world: World, statement: Statement) -> None:
    first = statement.slices[0]
    slices = tuple(dataclasses.replace(first, index=index) for index in range(130))
    large = world.say(slices=slices, log_index=0)
    envelope = world.sign(large.to_bytes())
    assert len(envelope) > 60_000
    assert bundle.verify_result(bundle.result_bundle(envelope, world.session.certificate), world.units) == large


@settings(deadline=None)
@given(st.data())
def test_a_bent_bundle_is_refused_or_says_the_same(world: World, bundles: list[bytes], data: st.DataObject) -> None:
    """Cut, overwritten or filled with something else anywhere: refused, or (a signature's other spelling) the same."""
    good = data.draw(st.sampled_from(bundles))
    position = data.draw(st.integers(0, len(good) - 1))
    bent = good[:position] + data.draw(st.binary(max_size=4)) + good[position + data.draw(st.integers(0, 4)) :]
    for verify in (
        lambda: bundle.verify_result(bent, world.units),
        lambda: bundle.verify_proof(bent, world.units, world.witnesses),
    ):
        try:
            said = verify()
        except TrustError:
            continue
        if isinstance(said, bundle.ProvenLeaf):
            assert base64.b64encode(said.payload).decode() in "".join(leaf.decode() for _, leaf in world.leaves)
        else:
            assert said in world.statements


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_noise_is_refused(world: World, bundles: list[bytes], body: bytes) -> None:
    for noise in (body, b'{"mediaType":' + body, bundles[0][: len(body)] + body):
        with pytest.raises(TrustError):
            bundle.verify_result(noise, world.units)
        with pytest.raises(TrustError):
            bundle.verify_proof(noise, world.units, world.witnesses)
