"""Evidence files: everything that is needed to check one piece of work, in one file, beside the keys one trusts.

* A **result bundle** holds a statement's envelope and the certificate of the session key that signed it. Who trusts
  the unit's key knows from it what the unit said it computed.
* A **proof bundle** holds a leaf of the unit's ledger, the hashes of its inclusion proof (RFC 9162), and the
  checkpoint that they lead to; for a statement also its session certificate. Who trusts the dispatcher's key as well
  knows from it that the leaf is part of the history which the dispatcher witnessed.

Both are strict JSON in one canonical spelling (a line feed may follow), with a `mediaType` that says which of the two
it is and a version `v`. A leaf is carried as base64 of its exact bytes, because these are what the ledger hashes; the
other envelopes as JSON, as any DSSE tool reads them. Version 1 is the only one: a reader refuses every other, and a
field that it does not know.

Nothing in a bundle is believed for being in it. All failures are `TrustError`; sizes are capped before anything is
parsed. This needs the standard library and `cryptography` alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.checkpoint import Checkpoint, verify_checkpoint, verify_countersigned
from agent.trust.dsse import VerifyingKey, canonical_json
from agent.trust.merkle import leaf_hash, verify_inclusion
from agent.trust.records import Sha256, read, spell, to_json
from agent.trust.session import SessionCertificate, verify_session
from agent.trust.statement import Statement, verify_statement

RESULT_BUNDLE = "application/vnd.driveway.result-bundle+json"
PROOF_BUNDLE = "application/vnd.driveway.proof-bundle+json"
VERDICT_TYPE = "application/vnd.driveway.verdict+json"
"""What a dispatcher's verdict is signed as (`agent.fleet.messages`)."""
VERSION = 1
MAX_BYTES = 4 * dsse.MAX_BYTES
"""A leaf or statement of the largest size in base64, a certificate, a checkpoint, and room."""
MAX_MARKS = 1024
"""Brackets, commas, colons and quotes: three envelopes and the proof of a log of 2^64 leaves make some 450."""
MAX_PROOF = 64

ResultMediaType = Annotated[str, re.compile(re.escape(RESULT_BUNDLE))]
ProofMediaType = Annotated[str, re.compile(re.escape(PROOF_BUNDLE))]
PayloadType = Annotated[str, re.compile(r"[a-z0-9.+/-]{1,128}")]
KeyId = Annotated[str, re.compile(r"[\x20-\x7e]{0,128}")]
Base64 = Annotated[str, re.compile(r"[A-Za-z0-9+/]*={0,2}")]
LeafKind = Annotated[str, re.compile(r"statement|verdict|session")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureEntry:
    """One signature of an envelope; `keyid` only says which key to try."""

    keyid: KeyId
    sig: Base64


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopeEntry:
    """A DSSE envelope."""

    payload: Base64
    payload_type: PayloadType
    signatures: tuple[SignatureEntry, ...]

    def to_bytes(self) -> bytes:
        """The envelope on its own."""
        return canonical_json(to_json(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultBundle:
    """What a unit says it computed, and the certificate of the key that says so."""

    media_type: ResultMediaType
    v: int
    statement: EnvelopeEntry
    session: EnvelopeEntry

    def to_bytes(self) -> bytes:
        """The file's content; raises TrustError when nobody would read it."""
        body = spell(self)
        parse_result(body)
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofBundle:
    """A leaf, and the way from it to a checkpoint's root: `size` is the checkpoint's, `index` the leaf's, from 0.

    `session` is the certificate of the session key that signed a leaf of kind `statement`, and None for the others.
    """

    media_type: ProofMediaType
    v: int
    kind: LeafKind
    index: int
    size: int
    leaf: Base64
    proof: tuple[Sha256, ...]
    checkpoint: EnvelopeEntry
    session: EnvelopeEntry | None

    def to_bytes(self) -> bytes:
        """The file's content; raises TrustError when nobody would read it."""
        body = spell(self)
        parse_proof(body)
        return body


@dataclass(frozen=True, slots=True)
class ProvenLeaf:
    """A leaf that is where the bundle says. `statement` and `session` are there for the kinds that have them.

    `payload` is the signed content of the leaf's envelope; its signature holds, whatever the kind. `witnessed`: the
    checkpoint bears a signature of one of the witnesses that the verifier trusts. `signers`: which of the keys
    that were given for the unit signed the checkpoint; that they are one unit's is the word of whoever gave them.
    """

    kind: str
    index: int
    payload: bytes
    checkpoint: Checkpoint
    witnessed: bool
    signers: frozenset[str]
    statement: Statement | None = None
    session: SessionCertificate | None = None


# --- making ---------------------------------------------------------------------------------------------------------


def result_bundle(statement: bytes, session: bytes) -> bytes:
    """The bundle of a statement's envelope and its session certificate's; raises TrustError. Nothing is verified."""
    return ResultBundle(
        media_type=RESULT_BUNDLE, v=VERSION, statement=entry_of(statement), session=entry_of(session)
    ).to_bytes()


def proof_bundle(
    kind: str, index: int, leaf: bytes, *, proof: Sequence[bytes], size: int, checkpoint: bytes, session: bytes | None
) -> bytes:
    """The bundle of leaf `index` with its inclusion proof in the log of the checkpoint's `size`; raises TrustError."""
    return ProofBundle(
        media_type=PROOF_BUNDLE,
        v=VERSION,
        kind=kind,
        index=index,
        size=size,
        leaf=dsse.to_base64(leaf),
        proof=tuple(one.hex() for one in proof),
        checkpoint=entry_of(checkpoint),
        session=None if session is None else entry_of(session),
    ).to_bytes()


def entry_of(envelope: bytes) -> EnvelopeEntry:
    """An envelope as bundles carry it; raises TrustError when it is none."""
    parsed = dsse.parse(envelope)
    return EnvelopeEntry(
        payload=dsse.to_base64(parsed.payload),
        payload_type=parsed.payload_type,
        signatures=tuple(SignatureEntry(keyid=one.keyid, sig=dsse.to_base64(one.sig)) for one in parsed.signatures),
    )


# --- reading --------------------------------------------------------------------------------------------------------


def parse_result(body: bytes) -> ResultBundle:
    """The result bundle in `body`, which proves nothing yet; raises TrustError."""
    _check_size(body)
    bundle = read(ResultBundle, body.removesuffix(b"\n"), "bundle", MAX_BYTES)
    _check_version(bundle.v)
    return bundle


def parse_proof(body: bytes) -> ProofBundle:
    """The proof bundle in `body`, which proves nothing yet; raises TrustError."""
    _check_size(body)
    bundle = read(ProofBundle, body.removesuffix(b"\n"), "bundle", MAX_BYTES)
    _check_version(bundle.v)
    if len(bundle.proof) > MAX_PROOF:
        raise TrustError(f"bundle.proof: {len(bundle.proof)} hashes, more than {MAX_PROOF}")
    if (bundle.session is not None) != (bundle.kind == "statement"):
        raise TrustError("bundle.session: a statement needs its session certificate, and nothing else has one")
    return bundle


def _check_size(body: bytes) -> None:
    if len(body) > MAX_BYTES:
        raise TrustError(f"bundle: {len(body)} bytes, more than the {MAX_BYTES} that are looked at")
    if (marks := dsse.count_marks(body)) > MAX_MARKS:
        raise TrustError(f"bundle: {marks} brackets, commas, colons and quotes, more than {MAX_MARKS}")


def _check_version(version: int) -> None:
    if version != VERSION:
        raise TrustError(f"bundle: version {version} is not understood here (this side reads {VERSION})")


# --- verifying ------------------------------------------------------------------------------------------------------


def verify_result(body: bytes, unit_keys: Mapping[str, VerifyingKey]) -> Statement:
    """The statement in a result bundle, of a session that one of the unit's keys certified; raises TrustError."""
    bundle = parse_result(body)
    statement, _session = verify_statement(bundle.statement.to_bytes(), bundle.session.to_bytes(), unit_keys)
    return statement


def verify_proof(
    body: bytes,
    unit_keys: Mapping[str, VerifyingKey],
    witness_keys: Mapping[str, VerifyingKey] | None = None,
) -> ProvenLeaf:
    """The leaf in a proof bundle: its signature holds, and it is in the log of the checkpoint. Raises TrustError.

    With `witness_keys` the checkpoint has to bear one of their signatures, besides the unit's. A verdict is the
    dispatcher's word, so it can only be verified with them.
    """
    bundle = parse_proof(body)
    envelope, leaf = bundle.checkpoint.to_bytes(), dsse.from_base64(bundle.leaf)
    if witness_keys is None:
        checkpoint = verify_checkpoint(envelope, unit_keys)
    else:
        checkpoint = verify_countersigned(envelope, unit_keys, witness_keys)
    if checkpoint.size != bundle.size:
        raise TrustError(f"bundle.size: is {bundle.size}, and its checkpoint's is {checkpoint.size}")
    proof = [bytes.fromhex(one) for one in bundle.proof]
    verify_inclusion(leaf_hash(leaf), bundle.index, checkpoint.size, proof, bytes.fromhex(checkpoint.root))
    proven = ProvenLeaf(
        bundle.kind,
        bundle.index,
        dsse.parse(leaf).payload,
        checkpoint,
        witnessed=witness_keys is not None,
        signers=frozenset(dsse.signers(envelope, unit_keys)),
    )
    match bundle.kind:
        case "verdict":
            return _verdict(proven, leaf, witness_keys)
        case "session":
            return _session(proven, leaf, bundle, unit_keys)
        case _:
            return _statement(proven, leaf, bundle, unit_keys)


def _statement(
    proven: ProvenLeaf,
    leaf: bytes,
    bundle: ProofBundle,
    unit_keys: Mapping[str, VerifyingKey],
) -> ProvenLeaf:
    assert bundle.session is not None
    session = bundle.session.to_bytes()
    statement, certified = verify_statement(leaf, session, unit_keys)
    _check_session(certified.certificate, session, proven.checkpoint, bundle, unit_keys)
    if statement.log_index != proven.index:
        raise TrustError(f"statement: logIndex is {statement.log_index}, and the leaf is at {proven.index}")
    return replace(proven, statement=statement, session=certified.certificate)


def _session(proven: ProvenLeaf, leaf: bytes, bundle: ProofBundle, unit_keys: Mapping[str, VerifyingKey]) -> ProvenLeaf:
    certificate = verify_session(leaf, unit_keys).certificate
    _check_session(certificate, leaf, proven.checkpoint, bundle, unit_keys)
    return replace(proven, session=certificate)


def _verdict(proven: ProvenLeaf, leaf: bytes, witness_keys: Mapping[str, VerifyingKey] | None) -> ProvenLeaf:
    if witness_keys is None:
        raise TrustError(
            "a verdict is the dispatcher's word, and none of its keys is trusted here",
            hint="give the dispatcher's public key (--witness)",
        )
    match dsse.strict_json(dsse.verify(leaf, VERDICT_TYPE, witness_keys)):
        case {"unit": str(unit)} if unit == proven.checkpoint.unit:
            return proven
        case _:
            raise TrustError(f"verdict: not for {proven.checkpoint.unit}, whose checkpoint this is")


def _check_session(
    certificate: SessionCertificate,
    session: bytes,
    checkpoint: Checkpoint,
    bundle: ProofBundle,
    unit_keys: Mapping[str, VerifyingKey],
) -> None:
    """The session is of the unit whose log this is, and of a key epoch that the checkpoint's can come after.

    A key has one epoch: certificate and checkpoint are of the same epoch if one key signed both, and only then.
    """
    if certificate.unit != checkpoint.unit:
        raise TrustError(f"session: of unit {certificate.unit}, and the checkpoint is of {checkpoint.unit}")
    one_key = dsse.signers(session, unit_keys) & dsse.signers(bundle.checkpoint.to_bytes(), unit_keys)
    if certificate.key_epoch > checkpoint.key_epoch or bool(one_key) != (certificate.key_epoch == checkpoint.key_epoch):
        raise TrustError(
            f"session: of key epoch {certificate.key_epoch}, which does not fit the checkpoint's {checkpoint.key_epoch}"
        )
