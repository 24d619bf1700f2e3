"""A unit with a session and a ledger, and a dispatcher that witnessed it: what forgers start from."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey, generate_private_key

from agent.trust import bundle, dsse
from agent.trust.checkpoint import CHECKPOINT_TYPE, Checkpoint, countersign
from agent.trust.keys import FileSigner
from agent.trust.merkle import inclusion_proof, leaf_hash, tree_root
from agent.trust.session import SESSION_TYPE, Session, SessionKey, certificate_of
from agent.trust.statement import PAYLOAD_TYPE, Statement

Keys = dict[str, EllipticCurvePublicKey]


def new_key() -> FileSigner:
    """A key of its own."""
    return FileSigner(generate_private_key(SECP256R1()))


def keys(*signers: FileSigner) -> Keys:
    """What somebody has who trusts these."""
    return {one.keyid: one.public_key() for one in signers}


class World:
    """A ledger of one session certificate, statements and verdicts, one after the other, in one key epoch.

    Everything is signed with the real keys; `statement` is right in every field for the session and its place.
    """

    def __init__(self, statement: Statement, leases: int = 3) -> None:
        self.unit, self.dispatcher, self.stranger = new_key(), new_key(), new_key()
        self.session = self.begin()
        self.leaves: list[tuple[str, bytes]] = [("session", self.session.certificate)]
        self.template = statement
        self.units_too: Keys = {}
        """Of another unit that the verifier trusts as well."""
        self.statements: list[Statement] = []
        for number in range(leases):
            said = self.say(lease=dataclasses.replace(statement.lease, job=f"job-{number}"), counter=number + 1)
            self.statements.append(said)
            self.leaves.append(("statement", self.sign(said.to_bytes())))
            self.leaves.append(("verdict", self.verdict(f"job-{number}")))

    @property
    def units(self) -> Keys:
        """What a verifier trusts of the unit."""
        return keys(self.unit)

    @property
    def witnesses(self) -> Keys:
        """And of the dispatcher."""
        return keys(self.dispatcher)

    def begin(self, signer: FileSigner | None = None, *, unit: str = "", number: int = 3, epoch: int = 1) -> Session:
        """A session that a key certified, this unit's unless it is said."""
        key = SessionKey("file")
        certificate = certificate_of(
            key, unit=unit or "unit-7", key_epoch=epoch, number=number, boot_id="4b" * 16, boot_ms=900, wall_ms=1
        )
        return Session(number, key, dsse.sign(SESSION_TYPE, certificate.to_bytes(), signer or self.unit))

    def say(self, **changes: Any) -> Statement:
        """The next statement of this ledger."""
        fields = {"session": self.session.number, "log_index": len(self.leaves), **changes}
        return dataclasses.replace(self.template, **fields)

    def sign(self, payload: bytes, session: Session | None = None, payload_type: str = PAYLOAD_TYPE) -> bytes:
        """An envelope by the session's key, whatever is in it."""
        return dsse.sign(payload_type, payload, (session or self.session).key)

    def verdict(self, job: str, **changes: Any) -> bytes:
        """The dispatcher's verdict on a lease of this unit."""
        said: dict[str, Any] = {"v": 1, "rid": "r", "unit": "unit-7", "job": job, "epoch": 3, "verdict": "settled"}
        body = dsse.canonical_json({**said, "paid_micro": 35, **changes})
        return dsse.sign(bundle.VERDICT_TYPE, body, self.dispatcher)

    def checkpoint(
        self, *, signer: FileSigner | None = None, witness: FileSigner | None = None, **changes: Any
    ) -> bytes:
        """The ledger's checkpoint as it is now, signed and countersigned."""
        said = Checkpoint(
            v=1,
            unit="unit-7",
            key_epoch=1,
            size=len(self.leaves),
            root=tree_root(self.hashes()).hex(),
            session=3,
            boot_id="4b" * 16,
            issued_boot_ms=5_000,
            issued_wall_ms=2,
        )
        body = dsse.canonical_json({**_as_json(said), **changes})
        return countersign(dsse.sign(CHECKPOINT_TYPE, body, signer or self.unit), witness or self.dispatcher)

    def hashes(self) -> list[bytes]:
        """Of the leaves."""
        return [leaf_hash(leaf) for _, leaf in self.leaves]

    def result(self) -> bytes:
        """The first statement's result bundle."""
        return bundle.result_bundle(self.leaves[1][1], self.session.certificate)

    def proof(self, index: int = 1, **changes: Any) -> bytes:
        """The proof bundle of a leaf."""
        kind, leaf = self.leaves[index]
        parts: dict[str, Any] = {
            "kind": kind,
            "index": index,
            "leaf": leaf,
            "proof": inclusion_proof(self.hashes(), index),
            "size": len(self.leaves),
            "checkpoint": self.checkpoint(),
            "session": self.session.certificate if kind == "statement" else None,
            **changes,
        }
        return bundle.proof_bundle(parts.pop("kind"), parts.pop("index"), parts.pop("leaf"), **parts)


def _as_json(said: Checkpoint) -> dict[str, Any]:
    body = dsse.strict_json(said.to_bytes())
    assert isinstance(body, dict)
    return dict(body)


def payload_of(envelope: bytes) -> bytes:
    """What an envelope holds."""
    return dsse.parse(envelope).payload


def with_payload(envelope: bytes, payload: bytes) -> bytes:
    """The same signatures over something else."""
    parsed = dsse.strict_json(envelope)
    assert isinstance(parsed, dict)
    return dsse.canonical_json({**parsed, "payload": base64.b64encode(payload).decode("ascii")})
