"""`driveway verify FILE… --key PEM`: are these signed by a key I trust, and what do they say? Offline.

Takes result bundles, proof bundles, and bare envelopes: session certificates, checkpoints, verdicts (with
`--witness`), and statements (with `--session`). `driveway ledger verify` is the same. Files that hold alone, and that
contradict each other, do not hold.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.cli import exits
from agent.cli.text import paint, print_json
from agent.errors import DrivewayError, TrustError
from agent.printable import printable
from agent.trust import bundle, dsse
from agent.trust.checkpoint import CHECKPOINT_TYPE, Checkpoint, contradicts, verify_checkpoint, verify_countersigned
from agent.trust.contradiction import contradiction
from agent.trust.dsse import VerifyingKey
from agent.trust.keys import keyid, load_verifying_key
from agent.trust.session import SESSION_TYPE, SessionCertificate, verify_session
from agent.trust.statement import PAYLOAD_TYPE, Statement, verify_statement

NEXT_STEP = "check that --key is this unit's key, and ask for the file again"

WHAT = "docs/attestation.md says what can be checked"

KEEP = "keep both files, together they are proof against its key"

Keys = dict[str, VerifyingKey]


@dataclass(frozen=True)
class Trusted:
    """What the caller trusts: the units' keys, the dispatcher's (None: not asked for), and a session certificate."""

    units: Keys
    witnesses: Keys | None
    session: bytes | None


@dataclass
class Found:
    """What came of one file."""

    file: Path
    holds: bool = False
    kind: str = "unknown"
    says: str = ""
    checkpoint: Checkpoint | None = None
    signers: frozenset[str] = frozenset()
    proven: bundle.ProvenLeaf | None = None


def verify(options: argparse.Namespace) -> int:
    """Check every file; fails when one of them does not hold."""
    session = None if options.session is None else _read(options.session)
    witnesses = _keys(options.witness) if options.witness else None
    trusted = Trusted(_keys(options.key), witnesses, session)
    results = [_check(path, trusted) for path in options.files]
    _hold_against_each_other(results)
    if options.json:
        print_json([_as_json(result) for result in results])
    else:
        for result in results:
            mark = paint("holds", "green") if result.holds else paint("does NOT hold", "red")
            print(f"{printable(str(result.file))}: {mark}: {printable(result.says)}")
    return exits.FINE if all(result.holds for result in results) else exits.FAILED


def _as_json(result: Found) -> dict[str, Any]:
    return {"file": str(result.file), "holds": result.holds, "kind": result.kind, "says": result.says}


def _keys(paths: list[Path]) -> Keys:
    keys = {}
    for path in paths:
        try:
            key = load_verifying_key(_read(path).decode("ascii", "replace"))
        except TrustError as error:
            raise TrustError(
                f"{path} is not a public key: {error.what}", hint="give one in PEM, as `driveway keys` prints it"
            ) from error
        keys[keyid(key)] = key
    return keys


def _check(path: Path, trusted: Trusted) -> Found:
    found = Found(path)
    try:
        body = _read(path)
        found.kind, check = _kind(body)
        check(body, trusted, found)
        found.holds = True
    except DrivewayError as error:
        found.says = f"{error.what}; {error.hint or NEXT_STEP}"
    return found


Check = Callable[[bytes, Trusted, Found], None]


def _kind(body: bytes) -> tuple[str, Check]:
    """What a file is by its own word, and what checks that; raises TrustError."""
    match dsse.strict_json(body, bundle.MAX_BYTES):
        case {"mediaType": str(said)}:
            known: dict[str, tuple[str, Check]] = {
                bundle.RESULT_BUNDLE: ("result bundle", _result),
                bundle.PROOF_BUNDLE: ("proof bundle", _proof),
            }
        case {"payloadType": str(said)}:
            known = {
                PAYLOAD_TYPE: ("statement", _statement),
                SESSION_TYPE: ("session", _session),
                CHECKPOINT_TYPE: ("checkpoint", _checkpoint),
                bundle.VERDICT_TYPE: ("verdict", _verdict),
            }
        case _:
            raise TrustError("neither a bundle nor a DSSE envelope", hint=WHAT)
    if said not in known:
        raise TrustError(f"holds a {said[:100]!a}, which is nothing that can be checked here", hint=WHAT)
    return known[said]


def _result(body: bytes, trusted: Trusted, found: Found) -> None:
    found.says = _about(bundle.verify_result(body, trusted.units))


def _proof(body: bytes, trusted: Trusted, found: Found) -> None:
    proven = bundle.verify_proof(body, trusted.units, trusted.witnesses)
    found.checkpoint, found.signers, found.proven = proven.checkpoint, proven.signers, proven
    match proven:
        case bundle.ProvenLeaf(statement=Statement() as statement):
            what = _about(statement)
        case bundle.ProvenLeaf(session=SessionCertificate() as certificate):
            what = _certified(certificate)
        case _:
            what = _judged(proven.payload)
    by = "witnessed by the dispatcher" if proven.witnessed else "not asked who witnessed it (--witness)"
    found.says = f"{what}; leaf {proven.index} of {proven.checkpoint.size}, {by}"


def _statement(body: bytes, trusted: Trusted, found: Found) -> None:
    if trusted.session is None:
        raise TrustError(
            "a statement without its session certificate", hint="give --session FILE, or verify the result bundle"
        )
    statement, _session_of_it = verify_statement(body, trusted.session, trusted.units)
    found.says = _about(statement)


def _session(body: bytes, trusted: Trusted, found: Found) -> None:
    found.says = _certified(verify_session(body, trusted.units).certificate)


def _checkpoint(body: bytes, trusted: Trusted, found: Found) -> None:
    if trusted.witnesses is None:
        said, by = verify_checkpoint(body, trusted.units), "not asked who witnessed it (--witness)"
    else:
        said, by = verify_countersigned(body, trusted.units, trusted.witnesses), "witnessed by the dispatcher"
    found.checkpoint, found.signers = said, frozenset(dsse.signers(body, trusted.units))
    found.says = f"checkpoint of unit {said.unit} at {said.size} leaves, root {said.root}, {by}"


def _verdict(body: bytes, trusted: Trusted, found: Found) -> None:
    if trusted.witnesses is None:
        raise TrustError("a verdict is the dispatcher's word", hint="give its public key with --witness")
    found.says = _judged(dsse.verify(body, bundle.VERDICT_TYPE, trusted.witnesses))


def _hold_against_each_other(results: list[Found]) -> None:
    """Files that hold alone, and together prove that the unit said two things that cannot both be."""
    for position, one in enumerate(results):
        for other in results[position + 1 :]:
            if what := _contradiction(one, other):
                for bad, against in ((one, other), (other, one)):
                    bad.holds = False
                    bad.says = f"contradicts {against.file}: {what} of one unit; {KEEP}"


def _contradiction(one: Found, other: Found) -> str:
    if one.proven is not None and other.proven is not None:
        return contradiction(one.proven, other.proven)
    size = None
    if one.checkpoint is not None and other.checkpoint is not None and one.signers & other.signers:
        size = contradicts(one.checkpoint, other.checkpoint)
    return "" if size is None else f"two roots for the same {size} leaves"


def _about(said: Statement) -> str:
    return (
        f"{said.outcome} of lease {said.lease.job}/{said.lease.epoch} by unit {said.unit}: {len(said.slices)} slices, "
        f"{sum(one.items for one in said.slices)} items, {said.energy.micro_wh / 1e6:.6f} Wh ({said.energy.sensor}), "
        f"key in {said.key_protection}, session {said.session}"
    )


def _certified(said: SessionCertificate) -> str:
    return f"session {said.session} of unit {said.unit} in key epoch {said.key_epoch}, key in {said.key_protection}"


def _judged(payload: bytes) -> str:
    match dsse.strict_json(payload):
        case {"unit": str(unit), "job": str(job), "epoch": int(epoch), "verdict": str(verdict), **rest}:
            paid = rest.get("paid_micro", 0)
            return f"verdict {verdict} on lease {job}/{epoch} to unit {unit}, {paid} millionths paid"
        case _:
            raise TrustError("verdict: unit, job, epoch or verdict is missing")


def _read(path: Path) -> bytes:
    try:
        if not path.is_file() and path.exists():  # one that never ends, or never begins
            raise DrivewayError(f"{path} is no regular file", hint="give files")
        with path.open("rb") as file:
            body = file.read(bundle.MAX_BYTES + 1)
    except OSError as error:
        raise DrivewayError(f"cannot read {path}: {error.strerror}", hint="give files that are there") from error
    return body
