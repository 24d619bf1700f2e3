"""What is signed here, verified by libraries that share no code with it: securesystemslib, in-toto, pymerkle, sigstore.

Each is also shown something that must not hold, so that a verifier which accepts everything is found out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key
from google.protobuf.json_format import ParseDict
from hypothesis import given, settings
from hypothesis import strategies as st
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as OtherStatement
from pymerkle import InmemoryTree, InvalidProof, verify_consistency
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer._key import Key, SSlibKey

from agent.trust import ledger, merkle
from agent.trust.keys import FileSigner
from agent.trust.statement import Statement
from tests.tools import lacking
from tests.trust.evidence_world import World, payload_of, with_payload
from tests.trust.test_ledger import LONGEST

SIGSTORE = Path("build/sigstore")
SCRIPT = Path(__file__).parent / "sigstore" / "verify.mjs"


@pytest.fixture(scope="module")
def world(statement: Statement) -> World:
    return World(statement)


# --- securesystemslib and in-toto -----------------------------------------------------------------------------------


def other_key(signer: FileSigner) -> SSlibKey:
    return SSlibKey.from_crypto(signer.public_key(), keyid=signer.keyid)


def session_key(world: World) -> SSlibKey:
    """The key in the certificate, read without our code."""
    der = base64.b64decode(json.loads(payload_of(world.session.certificate))["publicKey"])
    return SSlibKey.from_crypto(load_der_public_key(der), keyid=hashlib.sha256(der).hexdigest())


def accepted(envelope: bytes, keys: list[Key], threshold: int = 1) -> bool:
    try:
        found = OtherEnvelope.from_dict(json.loads(envelope)).verify(keys, threshold)
    except VerificationError:
        return False
    return len(found) >= threshold


def test_securesystemslib_follows_the_chain_from_the_units_key_to_the_statement(world: World) -> None:
    unit, session = other_key(world.unit), session_key(world)
    assert accepted(world.session.certificate, [unit])
    assert accepted(world.leaves[1][1], [session])
    assert not accepted(world.leaves[1][1], [unit])
    assert not accepted(world.session.certificate, [other_key(world.stranger)])
    assert not accepted(with_payload(world.leaves[1][1], payload_of(world.leaves[3][1])), [session])


def test_securesystemslib_wants_both_signatures_on_a_countersigned_checkpoint(world: World) -> None:
    unit, witness, stranger = map(other_key, (world.unit, world.dispatcher, world.stranger))
    assert accepted(world.checkpoint(), [unit, witness], 2)
    assert not accepted(world.checkpoint(), [unit, stranger], 2)
    assert not accepted(world.checkpoint(witness=world.stranger), [unit, witness], 2)
    assert not accepted(world.checkpoint(signer=world.dispatcher), [unit, witness], 2)


def test_in_toto_attestation_validates_what_is_in_the_bundle(world: World) -> None:
    bundle = json.loads(world.result())
    message = ParseDict(json.loads(base64.b64decode(bundle["statement"]["payload"])), statement_pb2.Statement())
    OtherStatement.copy_from_pb(message).validate()
    del message.subject[:]
    with pytest.raises(ValueError, match="subject"):
        OtherStatement.copy_from_pb(message).validate()


# --- pymerkle -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_tree() -> InmemoryTree:
    """The log of `LONGEST`, kept by pymerkle."""
    tree = InmemoryTree(algorithm="sha256")
    for index in range(len(LONGEST.leaves)):
        tree.append_entry(hashlib.sha256(str(index).encode()).digest())
    return tree


@settings(deadline=None)
@given(size=st.integers(1, 300), data=st.data())
def test_pymerkle_agrees_on_roots_and_inclusion(other_tree: InmemoryTree, size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    root = ledger.root(LONGEST.node, size)
    assert other_tree.get_root(size) == root
    others = other_tree.prove_inclusion(index + 1, size).path
    assert others[0] == LONGEST.leaves[index]
    assert sorted(others[1:]) == sorted(ledger.inclusion(LONGEST.node, index, size))
    merkle.verify_inclusion(others[0], index, size, ledger.inclusion(LONGEST.node, index, size), root)


@settings(deadline=None)
@given(size2=st.integers(1, 300), data=st.data())
def test_pymerkle_agrees_on_consistency(other_tree: InmemoryTree, size2: int, data: st.DataObject) -> None:
    size1 = data.draw(st.integers(1, size2))
    merkle.verify_consistency(
        size1,
        size2,
        other_tree.get_root(size1),
        other_tree.get_root(size2),
        ledger.consistency(LONGEST.node, size1, size2),
    )
    root1, root2 = ledger.root(LONGEST.node, size1), ledger.root(LONGEST.node, size2)
    verify_consistency(root1, root2, other_tree.prove_consistency(size1, size2), size1, size2)
    with pytest.raises(InvalidProof):
        verify_consistency(merkle.EMPTY_ROOT, root2, other_tree.prove_consistency(size1, size2), size1, size2)


# --- sigstore -------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """An envelope, the key that should have signed it, and whether it did."""

    envelope: bytes
    keyid: str
    pem: str
    holds: bool


def cases(world: World) -> list[Case]:
    session = (world.session.key.keyid, world.session.key.public_key_pem())
    unit = (world.unit.keyid, world.unit.public_key_pem())
    witness = (world.dispatcher.keyid, world.dispatcher.public_key_pem())
    statement, certificate, checkpoint = world.leaves[1][1], world.session.certificate, world.checkpoint()
    return [
        Case(statement, *session, True),
        Case(certificate, *unit, True),
        Case(checkpoint, *unit, True),
        Case(checkpoint, *witness, True),
        Case(world.leaves[2][1], *witness, True),
        Case(with_payload(statement, payload_of(world.leaves[3][1])), *session, False),
        Case(statement.replace(b"in-toto", b"in-otto"), *session, False),
        Case(certificate, world.unit.keyid, world.stranger.public_key_pem(), False),
    ]


def test_sigstores_libraries_verify_it_all(world: World) -> None:
    node = shutil.which("node")
    if node is None:
        lacking("there is no node here to run sigstore's libraries")
    if not (SIGSTORE / "node_modules" / "@sigstore" / "verify").is_dir():
        lacking("sigstore's libraries are not in build/sigstore: run `make packages` where npm can reach a registry")
    asked = cases(world)
    told: list[dict[str, Any]] = [
        {"envelope": json.loads(one.envelope), "keyid": one.keyid, "pem": one.pem} for one in asked
    ]
    command = [node, str(SCRIPT), str(SIGSTORE)]
    done = subprocess.run(command, input=json.dumps(told), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [(one["verify"], one["core"]) for one in answers] == [(one.holds, one.holds) for one in asked], answers
