"""Coverage-guided fuzzing of everything that takes bytes from strangers: nothing but a refusal or the truth comes out.

    python tests/fuzz/trust.py TARGET [CORPUS…] [-runs=N] [-seed=N] [-max_total_time=S] …      (libFuzzer's options)

`tests/fuzz/targets.py` says what the targets are, and what each may answer. The first seeds are honest bytes, so that
the fuzzer starts behind the front doors. `tests/fuzz/test_trust.py` runs each target for a short while; left alone, a
target runs until it finds something or is stopped.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

import atheris

GUIDED = [
    "agent.trust",
    "agent.fleet.messages",
    "hil.dispatcher.credential",
    "hil.dispatcher.endorsement",
    "tuf.api",
    "tuf.ngclient",
]
"""The code whose branches guide the fuzzer."""

with atheris.instrument_imports(include=GUIDED):
    from tests.fuzz import targets

ELSEWHERE = {
    "catalogue": ("tests.fuzz.catalogue_target", "refresh"),
    "tpm": ("tests.fuzz.tpm_targets", "replies"),
    "evidence": ("tests.fuzz.tpm_targets", "evidence"),
}
"""Imported where they are fuzzed, since that takes a second or two."""
TARGETS = sorted((*targets.targets(), *ELSEWHERE))


def made(name: str) -> targets.Target:
    """The target of this name."""
    if name not in ELSEWHERE:
        return targets.targets()[name]()
    module, function = ELSEWHERE[name]
    with atheris.instrument_imports(include=GUIDED):
        target: targets.Target = getattr(importlib.import_module(module), function)()
    return target


def main(arguments: list[str]) -> None:
    """Fuzz the target that the first argument names; the process ends with it."""
    target = made(arguments[1])
    assert target.try_once(target.seeds[0]), "what is honest is taken"

    def one(body: bytes) -> None:
        target.try_once(body)

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(target.seeds):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        atheris.Setup([arguments[0], *arguments[2:], folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
