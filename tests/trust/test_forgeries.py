"""Planted forgeries: each is refused, and each for its own reason, so that no check hides behind another.

The forger has a unit's honest evidence, keys of his own, and where it is said the unit's own session key: a unit that
lies about itself is a forger too.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from agent.errors import TrustError
from agent.trust import bundle, dsse
from agent.trust.contradiction import contradiction
from agent.trust.merkle import inclusion_proof
from agent.trust.session import SESSION_TYPE
from agent.trust.statement import Statement
from tests.trust.evidence_world import World, payload_of, with_payload


class Forgery(NamedTuple):
    """A file that must not hold, and the reason that has to be given."""

    name: str
    make: Callable[[World], bytes]
    reason: str


def bent(body: bytes, *path: str | int, to: object) -> bytes:
    """A bundle with another value in one place, spelled as bundles are."""
    parsed: Any = json.loads(body)
    inner = parsed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = to
    return dsse.canonical_json(parsed)


def signed(world: World, payload: bytes) -> bytes:
    """A result bundle in which the unit's own session key signed this."""
    return bundle.result_bundle(world.sign(payload), world.session.certificate)


def respelled(old: str, new: str) -> Callable[[World], bytes]:
    """The unit signs its statement with a piece of it spelled otherwise."""

    def make(world: World) -> bytes:
        good = world.statements[0].to_bytes()
        assert old.encode() in good
        return signed(world, good.replace(old.encode(), new.encode(), 1))

    return make


def stated(**changes: Any) -> Callable[[World], bytes]:
    """The unit signs a statement with other values: written past the checks that would not let it."""

    def make(world: World) -> bytes:
        said = json.loads(world.statements[0].to_bytes())
        said["predicate"].update(changes)
        return signed(world, dsse.canonical_json(said))

    return make


def in_session(**session: Any) -> Callable[[World], bytes]:
    """The statement is signed in a session that is certified, and is not the one that it names."""

    def make(world: World) -> bytes:
        other = world.begin(**session)
        return bundle.result_bundle(world.sign(world.statements[0].to_bytes(), other), other.certificate)

    return make


def by_a_stranger(world: World) -> bytes:
    return bundle.result_bundle(world.leaves[1][1], world.begin(world.stranger).certificate)


def another_type(world: World) -> bytes:
    envelope = world.sign(world.statements[0].to_bytes(), payload_type="application/json")
    return bundle.result_bundle(envelope, world.session.certificate)


def relabelled(world: World) -> bytes:
    """A checkpoint's envelope in the place of the certificate: every signature on it is real."""
    return bundle.result_bundle(world.leaves[1][1], world.checkpoint())


def swapped_payload(world: World) -> bytes:
    other = payload_of(world.leaves[3][1])
    return bundle.result_bundle(with_payload(world.leaves[1][1], other), world.session.certificate)


def raw_signature(world: World) -> bytes:
    """The right signature as r||s, as JOSE and WebCrypto have it."""
    parsed = json.loads(world.result())
    entry = parsed["statement"]["signatures"][0]
    r, s = decode_dss_signature(base64.b64decode(entry["sig"]))
    entry["sig"] = base64.b64encode(r.to_bytes(32) + s.to_bytes(32)).decode()
    return dsse.canonical_json(parsed)


def non_canonical_base64(world: World) -> bytes:
    """A signature with a bit that means nothing set in its last character."""
    for _ in range(200):  # until the signature's length leaves such bits
        body = bundle.result_bundle(world.sign(world.statements[0].to_bytes()), world.session.certificate)
        sig = json.loads(body)["statement"]["signatures"][0]["sig"]
        if sig.endswith("="):
            stem = sig.rstrip("=")
            return bent(
                body,
                "statement",
                "signatures",
                0,
                "sig",
                to=stem[:-1] + chr(ord(stem[-1]) + 1) + "=" * (len(sig) - len(stem)),
            )
    raise AssertionError("no signature of a length that needs padding")


def duplicate_key(world: World) -> bytes:
    return world.result().replace(b'"v":1', b'"v":1,"v":1')


def case_variant(world: World) -> bytes:
    return world.result().replace(b'"v":1', b'"V":2,"v":1')


def too_deep(world: World) -> bytes:
    return world.result().replace(b'"v":1', b'"v":' + b"[" * 17 + b"]" * 17)


def oversized(world: World) -> bytes:
    return bent(world.result(), "statement", "payload", to="A" * bundle.MAX_BYTES)


def many_values(world: World) -> bytes:
    return bent(world.result(), "statement", "signatures", to=[{"keyid": "", "sig": ""}] * 500)


RESULTS = [
    Forgery("wrong payload type", another_type, "holds a 'application/json', expected"),
    Forgery("a checkpoint instead of the certificate", relabelled, "holds a '.*checkpoint.json', expected '.*session"),
    Forgery("swapped payload", swapped_payload, "no signature .* over these bytes"),
    Forgery("certified by another key", by_a_stranger, "no signature .* trusted key"),
    Forgery("signed in another session of the unit", in_session(number=4), "session is 3, and its session's is 4"),
    Forgery(
        "a certificate of another unit's name", in_session(unit="unit-8"), "unit is unit-7, and its session's is unit-8"
    ),
    Forgery(
        "key protection made better", stated(keyProtection="tpm"), "keyProtection is tpm, and its session's is file"
    ),
    Forgery("duplicate key in the bundle", duplicate_key, "'v' occurs twice"),
    Forgery("case-variant key in the bundle", case_variant, "'v' occurs twice .upper and lower case"),
    Forgery(
        "duplicate key in the statement", respelled('"counter":1', '"counter":1,"counter":2'), "'counter' occurs twice"
    ),
    Forgery(
        "case-variant key in the statement",
        respelled('"counter":1', '"COUNTER":9,"counter":1'),
        "'counter' occurs twice",
    ),
    Forgery(
        "an integer of 2^53",
        respelled('"counter":1', '"counter":9007199254740992'),
        "9007199254740992 is not an integer",
    ),
    Forgery("a float", respelled('"counter":1', '"counter":1.5'), "1.5 is not an integer"),
    Forgery("not a number", respelled('"counter":1', '"counter":NaN'), "NaN is not an integer"),
    Forgery("a lone surrogate", respelled('"sensor":"simulated"', '"sensor":"\\ud800"'), "surrogates not allowed"),
    Forgery("a negative count", respelled('"counter":1', '"counter":-1'), "counter: not a whole number"),
    Forgery("spaces", respelled('"counter":1', '"counter": 1'), "not canonical"),
    Forgery("an unknown field", stated(bonus=1), "field 'bonus' is unknown"),
    Forgery("deep nesting", too_deep, "nested deeper"),
    Forgery("oversized", oversized, "bytes, more than"),
    Forgery("thousands of tiny values", many_values, "bundle: [0-9]+ brackets, commas, colons"),
    Forgery("non-canonical base64", non_canonical_base64, "base64 in its canonical spelling"),
    Forgery("a raw r||s signature", raw_signature, "no signature .* over these bytes"),
    Forgery("another version", lambda world: bent(world.result(), "v", to=2), "version 2 is not understood"),
    Forgery(
        "no signature", lambda world: bent(world.result(), "statement", "signatures", to=[]), "signatures is missing"
    ),
    Forgery("another equivalence class", stated(equivalenceClass="ab" * 32), "equivalenceClass: not that of"),
    Forgery(
        "another class's driver", stated(device={"class": "cpu-x86_64", "driver": "9"}), "equivalenceClass: not that of"
    ),
    Forgery("another kind of statement", respelled("Statement/v1", "Statement/v2"), "_type is"),
    Forgery("another predicate", respelled("inference-result/v1", "inference-result/v9"), "predicateType"),
    Forgery(
        "subjects that are not the slices'", respelled('"sha256":"' + "07" * 32, '"sha256":"' + "08" * 32), "subjects"
    ),
    Forgery("slices out of order", lambda world: signed(world, _turned(world)), "rising order"),
    Forgery(
        "finished before it started", respelled('"finishedBootMs":3000', '"finishedBootMs":999'), "before it started"
    ),
    Forgery("a proof where a result was asked for", lambda world: world.proof(), "is unknown|is missing"),
]


def _turned(world: World) -> bytes:
    """Slices and subjects in the other order, and consistent with each other."""
    said = json.loads(world.statements[0].to_bytes())
    said["subject"].reverse()
    said["predicate"]["slices"].reverse()
    return dsse.canonical_json(said)


@pytest.fixture(scope="module")
def world(statement: Statement) -> World:
    return World(statement)


@pytest.mark.parametrize("forgery", RESULTS, ids=lambda forgery: forgery.name)
def test_a_forged_result_is_refused_for_its_own_reason(world: World, forgery: Forgery) -> None:
    assert bundle.verify_result(world.result(), world.units), "the honest one holds"
    with pytest.raises(TrustError, match=forgery.reason):
        pytest.fail(f"accepted: {bundle.verify_result(forgery.make(world), world.units)}")


# --- proofs ---------------------------------------------------------------------------------------------------------


def proof_hashes(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[World], bytes]:
    return lambda world: world.proof(1, proof=change(inclusion_proof(world.hashes(), 1)))


def statement_moved(world: World) -> bytes:
    """A leaf of the unit's own ledger, whose statement says that it stands elsewhere."""
    moved = World(world.template, leases=1)
    moved.leaves[1] = ("statement", moved.sign(moved.say(log_index=7).to_bytes()))
    world.unit, world.dispatcher = moved.unit, moved.dispatcher
    return moved.proof(1)


def replayed(world: World) -> bytes:
    """One statement as two leaves: the second is not where it says."""
    again = World(world.template, leases=1)
    again.leaves.append(again.leaves[1])
    world.unit, world.dispatcher = again.unit, again.dispatcher
    return again.proof(3)


def of_another_unit(world: World) -> bytes:
    """The session and statement of a unit whose key is trusted as well, in this unit's ledger."""
    other = World(world.template, leases=0)
    session = other.begin(other.unit, unit="unit-8")
    world.leaves[0] = ("session", session.certificate)
    world.units_too = other.units
    return world.proof(0)


def verdict_of_another(world: World) -> bytes:
    world.leaves[2] = ("verdict", world.verdict("job-0", unit="unit-8"))
    return world.proof(2)


def verdict_by_the_unit(world: World) -> bytes:
    """The unit pays itself."""
    world.leaves[2] = ("verdict", dsse.sign(bundle.VERDICT_TYPE, payload_of(world.leaves[2][1]), world.unit))
    return world.proof(2)


def old_epoch(world: World) -> bytes:
    """A session that says it is of an older key epoch, by the key of this one."""
    world.leaves[0] = ("session", world.begin(epoch=1).certificate)
    return world.proof(0, checkpoint=world.checkpoint(keyEpoch=2))


def later_epoch(world: World) -> bytes:
    world.leaves[0] = ("session", world.begin(epoch=2).certificate)
    return world.proof(0)


def a_cheap_curve(world: World) -> bytes:
    said = json.loads(payload_of(world.session.certificate))
    said["publicKey"] = "A" * 120
    world.leaves[0] = ("session", dsse.sign(SESSION_TYPE, dsse.canonical_json(said), world.unit))
    return world.proof(0)


def witnessed_by_itself(world: World) -> bytes:
    world.dispatcher = world.unit
    return world.proof(0)


PROOFS = [
    Forgery("a truncated proof", proof_hashes(lambda hashes: hashes[:-1]), "fewer hashes than"),
    Forgery("an extended proof", proof_hashes(lambda hashes: [*hashes, b"\0" * 32]), "more hashes than"),
    Forgery("a bent proof", proof_hashes(lambda hashes: [b"\0" * 32, *hashes[1:]]), "leads to another root"),
    Forgery("65 hashes", lambda world: bent(world.proof(), "proof", to=["00" * 32] * 65), "65 hashes, more than 64"),
    Forgery("a leaf beyond the log", lambda world: bent(world.proof(), "index", to=7), "no leaf 7 in a log of 7"),
    Forgery("another size than the checkpoint's", lambda world: world.proof(1, size=8), "size: is 8"),
    Forgery("another leaf", lambda world: world.proof(1, leaf=world.leaves[3][1]), "leads to another root"),
    Forgery(
        "a kind that it is not",
        lambda world: world.proof(2, kind="session"),
        "holds a '.*verdict.json', expected '.*session",
    ),
    Forgery(
        "a statement without its certificate",
        lambda world: bent(world.proof(), "session", to=None),
        "needs its session",
    ),
    Forgery(
        "a checkpoint of an empty log", lambda world: world.proof(1, checkpoint=world.checkpoint(size=0)), "empty log"
    ),
    Forgery(
        "a checkpoint of another version",
        lambda world: world.proof(1, checkpoint=world.checkpoint(v=2)),
        "version 2 is",
    ),
    Forgery(
        "a checkpoint of another unit",
        lambda world: world.proof(1, checkpoint=world.checkpoint(unit="unit-8")),
        "is of unit-8",
    ),
    Forgery(
        "a checkpoint by a stranger",
        lambda world: world.proof(1, checkpoint=world.checkpoint(signer=world.stranger)),
        "trusted key",
    ),
    Forgery(
        "a witness that nobody trusts",
        lambda world: world.proof(1, checkpoint=world.checkpoint(witness=world.stranger)),
        "trusted key",
    ),
    Forgery("a unit that witnesses itself", witnessed_by_itself, "the unit's key and the witness's are the same"),
    Forgery("a statement of another place", statement_moved, "logIndex is 7, and the leaf is at 1"),
    Forgery("a statement replayed as another leaf", replayed, "logIndex is 1, and the leaf is at 3"),
    Forgery("another unit's session", of_another_unit, "of unit unit-8, and the checkpoint is of unit-7"),
    Forgery("a verdict to another unit", verdict_of_another, "verdict: not for unit-7"),
    Forgery("a verdict by the unit itself", verdict_by_the_unit, "trusted key"),
    Forgery("a session of an older key epoch", old_epoch, "key epoch 1, which does not fit the checkpoint's 2"),
    Forgery("a session of a later key epoch", later_epoch, "key epoch 2, which does not fit the checkpoint's 1"),
    Forgery("a session key that is none", a_cheap_curve, "publicKey: not a public key"),
    Forgery(
        "a digest in capitals", lambda world: bent(world.proof(), "proof", 0, to="AB" * 32), "does not have the form"
    ),
]


@pytest.mark.parametrize("forgery", PROOFS, ids=lambda forgery: forgery.name)
def test_a_forged_proof_is_refused_for_its_own_reason(statement: Statement, forgery: Forgery) -> None:
    world = World(statement)
    assert bundle.verify_proof(world.proof(), world.units, world.witnesses), "the honest one holds"
    made = forgery.make(world)
    with pytest.raises(TrustError, match=forgery.reason):
        pytest.fail(f"accepted: {bundle.verify_proof(made, {**world.units, **world.units_too}, world.witnesses)}")


def test_no_two_reasons_of_one_table_are_given_by_chance() -> None:
    """More than twenty of each, and few that share a reason (a signature that does not hold has only one)."""
    for table in (RESULTS, PROOFS):
        assert len(table) > 20
        assert len({forgery.name for forgery in table}) == len(table)
        assert len({forgery.reason for forgery in table}) > 0.75 * len(table)


# --- what only shows beside something else ---------------------------------------------------------------------------


def proven(world: World, index: int) -> bundle.ProvenLeaf:
    return bundle.verify_proof(world.proof(index), world.units, world.witnesses)


def test_a_counter_used_twice_shows_in_the_ledger(statement: Statement) -> None:
    world = World(statement, leases=2)
    again = dataclasses.replace(world.say(counter=world.statements[0].counter), outcome="yield")
    world.leaves.append(("statement", world.sign(again.to_bytes())))
    assert contradiction(proven(world, 1), proven(world, 5)) == "two statements with counter 1"
    assert contradiction(proven(world, 1), proven(world, 3)) == ""
    assert contradiction(proven(world, 1), proven(world, 1)) == ""


def test_a_session_number_given_twice_shows(statement: Statement) -> None:
    world = World(statement, leases=1)
    world.leaves.append(("session", world.begin().certificate))
    assert contradiction(proven(world, 0), proven(world, 3)) == "two keys for session 3"
    world.leaves[3] = ("session", world.begin(number=4).certificate)
    assert contradiction(proven(world, 0), proven(world, 3)) == ""


def test_nobody_convicts_another_by_signing_in_his_name(statement: Statement) -> None:
    """Who was given the keys of two units: what one signs about "unit-7" is no evidence against the other."""
    honest, framer = World(statement, leases=1), World(statement, leases=2)
    both = honest.units | framer.units
    mine, made_up = (bundle.verify_proof(one.proof(0), both, one.witnesses) for one in (honest, framer))
    assert mine.checkpoint.unit == made_up.checkpoint.unit == "unit-7"
    assert contradiction(mine, made_up) == ""


def test_a_second_ledger_shows(statement: Statement) -> None:
    world = World(statement, leases=1)
    honest, kept = proven(world, 0), proven(world, 1)
    world.leaves[2] = ("verdict", world.verdict("job-0", paid_micro=9))
    assert contradiction(honest, proven(world, 0)) == "two roots for the same 3 leaves"
    world.leaves[1] = ("statement", world.sign(world.say(log_index=1, counter=9).to_bytes()))
    world.leaves.append(("verdict", world.verdict("job-1")))
    assert contradiction(kept, proven(world, 1)) == "two leaves at 1"
