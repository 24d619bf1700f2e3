"""`driveway verify FILE… --key PEM`: are these signed by a key I trust, and what do they say? Offline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.cli import exits
from agent.cli.text import paint, print_json
from agent.errors import DrivewayError, TrustError
from agent.trust import dsse, statement
from agent.trust.keys import keyid, load_public_key


def verify(options: argparse.Namespace) -> int:
    """Check every file; fails when one of them does not hold."""
    keys = _keys(options.key)
    results = [_check(path, keys) for path in options.files]
    if options.json:
        print_json(results)
    else:
        for result in results:
            mark = paint("holds", "green") if result["holds"] else paint("does NOT hold", "red")
            print(f"{result['file']}: {mark}: {result['says']}")
    return exits.FINE if all(result["holds"] for result in results) else exits.FAILED


def _keys(paths: list[Path]) -> dict[str, EllipticCurvePublicKey]:
    keys = {}
    for path in paths:
        try:
            key = load_public_key(_read(path).decode("ascii", "replace"))
        except TrustError as error:
            raise TrustError(f"{path} is not a public key: {error.what}", hint=error.hint) from error
        keys[keyid(key)] = key
    return keys


def _check(path: Path, keys: dict[str, EllipticCurvePublicKey]) -> dict[str, Any]:
    try:
        payload = dsse.verify(_read(path), statement.PAYLOAD_TYPE, keys)
        said = statement.parse_statement(payload)
    except DrivewayError as error:
        return {"file": str(path), "holds": False, "says": str(error)}
    says = (
        f"{said.outcome} of lease {said.lease.job}/{said.lease.epoch} by unit {said.unit}: {len(said.slices)} slices, "
        f"{sum(one.items for one in said.slices)} items, {said.energy.micro_wh / 1e6:.6f} Wh ({said.energy.sensor}), "
        f"key in {said.key_protection}"
    )
    return {"file": str(path), "holds": True, "says": says}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DrivewayError(f"cannot read {path}: {error.strerror}") from error
