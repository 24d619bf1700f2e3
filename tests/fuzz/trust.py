"""Coverage-guided fuzzing of every parser and verifier that takes bytes from strangers: only TrustError may come out.

    python tests/fuzz/trust.py TARGET [CORPUS…] [-runs=N] [-seed=N] [-max_total_time=S] …      (libFuzzer's options)

The first seeds are honest bytes, so that the fuzzer starts behind the front doors. `tests/fuzz/test_trust.py` runs each
target for a short while; left alone, a target runs until it finds something or is stopped.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["agent.trust"]):
    from agent.errors import TrustError
    from agent.trust import bundle, checkpoint, dsse, session, statement

from tests.trust.conftest import sample_statement
from tests.trust.evidence_world import World, payload_of

Target = Callable[[bytes], object]


def targets(world: World) -> dict[str, tuple[Target, list[bytes]]]:
    """Each parser with honest bytes to start from; verifiers trust a key, and payloads skip the signature."""
    return {
        "dsse": (dsse.parse, [world.leaves[1][1], world.checkpoint()]),
        "statement": (statement.parse_statement, [payload_of(world.leaves[1][1])]),
        "session": (session.parse_certificate, [payload_of(world.session.certificate)]),
        "checkpoint": (checkpoint.parse_checkpoint, [payload_of(world.checkpoint())]),
        "result": (lambda body: bundle.verify_result(body, world.units), [world.result()]),
        "proof": (
            lambda body: bundle.verify_proof(body, world.units, world.witnesses),
            [world.proof(index) for index in range(3)],
        ),
    }


def main(arguments: list[str]) -> None:
    """Fuzz the target that the first argument names; the process ends with it."""
    world = World(sample_statement(), leases=1)
    target, seeds = targets(world)[arguments[1]]

    def one(body: bytes) -> None:
        try:
            target(body)
        except TrustError:
            return

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        atheris.Setup([arguments[0], *arguments[2:], folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
