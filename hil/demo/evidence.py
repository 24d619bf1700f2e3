"""The evidence of a run, as files that anybody can check again, and checked with `driveway verify` as they would.

For every accepted hand-in a result bundle (with the bare envelopes beside it, for other tools), and for every statement
that the dispatcher has witnessed a proof that it is in the car's ledger. `driveway verify` runs in a process of its own
and is given nothing but these files and the two public keys.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.errors import DrivewayError
from agent.trust.bundle import result_bundle
from hil.dispatcher.view import View
from hil.rig import Rig

VERIFY_TIMEOUT_S = 60.0
UNIT_KEY, DISPATCHER_KEY = "unit.pub", "dispatcher.pub"


class Evidence(msgspec.Struct, frozen=True):
    """How many bundles there are, and how many of them `driveway verify` said hold."""

    results: int
    results_verified: int
    proofs: int
    proofs_verified: int


def keep_evidence(folder: Path, view: View, rig: Rig) -> Evidence:
    """Write the evidence into a new folder, while the daemon runs, and have it verified; raises DrivewayError."""
    folder.mkdir()
    results = _results(folder, view)
    proofs = _proofs(folder, rig)
    (folder / DISPATCHER_KEY).write_bytes((rig.folder / "dispatcher" / "dispatcher.pub").read_bytes())
    return Evidence(
        results=len(results),
        results_verified=_verified(folder, results, ["verify"]),
        proofs=len(proofs),
        proofs_verified=_verified(folder, proofs, ["ledger", "verify", "--witness", str(folder / DISPATCHER_KEY)]),
    )


def _results(folder: Path, view: View) -> list[Path]:
    """Every accepted hand-in: its result bundle, its envelopes on their own, and the unit's key."""
    files = []
    for number, attestation in enumerate(view.attestations(), start=1):
        if attestation.session is None:
            raise DrivewayError(f"{attestation.job}/{attestation.epoch} was handed in without its session certificate")
        name = f"{number:02d}-{attestation.job}-{attestation.epoch}"
        (folder / f"{name}.dsse.json").write_bytes(attestation.envelope)
        (folder / f"{name}.session.json").write_bytes(attestation.session)
        (folder / UNIT_KEY).write_text(attestation.public_key_pem, "ascii")
        files.append(folder / f"{name}.result.json")
        files[-1].write_bytes(result_bundle(attestation.envelope, attestation.session))
    return files


def _proofs(folder: Path, rig: Rig) -> list[Path]:
    """A proof of every statement in the part of the ledger that is witnessed."""
    shown, files = rig.ask("ledger", limit=1000), []
    for leaf in shown["leaves"]:
        if leaf["kind"] == "statement" and leaf["index"] < shown["ledger"]["witnessed"]:
            proof = rig.ask("ledger_prove", leaf=leaf["index"])
            files.append(folder / f"leaf-{leaf['index']:04d}.proof.json")
            files[-1].write_text(proof["bundle"], "ascii")
    return files


def _verified(folder: Path, files: Sequence[Path], verb: list[str]) -> int:
    """How many of the files hold, by a `driveway` that knows only them and the keys."""
    if not files:
        return 0
    command = [sys.executable, "-m", "agent", *verb, "--json", "--key", str(folder / UNIT_KEY), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=VERIFY_TIMEOUT_S, check=False)
    if done.returncode not in {0, 1}:
        raise DrivewayError(f"`driveway {' '.join(verb)}` failed: {done.stderr.strip()}")
    return sum(result["holds"] for result in json.loads(done.stdout))
