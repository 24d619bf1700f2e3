"""Does the fuzzer find what only coverage leads to? A planted bug, and the same without the branches that lead there.

    python tests/fuzz/planted.py guided|blind [-runs=N] [-seed=N] …

The bug is four doors deep: each opens to one byte in 256, so that chance alone needs four thousand million bodies, and
each is a branch of its own. Arithmetic stands where a comparison would tell the fuzzer which byte is wanted. `blind`
runs the very same, and does not see the doors.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

SEED = b"doors"


class PlantedError(Exception):
    """What is to be found."""


def planted(body: bytes) -> None:
    """Breaks on few of the bodies: nested, for one branch each."""
    if len(body) >= len(SEED) and body[0] * 7 % 256 == 23:  # noqa: SIM102 - any numbers would do
        if body[1] * 11 % 256 == 94:  # noqa: SIM102 - as above
            if body[2] * 13 % 256 == 41:  # noqa: SIM102 - as above
                if body[3] * 17 % 256 == 200:
                    raise PlantedError


def main(arguments: list[str]) -> None:
    """Run the planted reader; the process ends with it."""
    reader = atheris.instrument_func(planted) if arguments[1] == "guided" else planted
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "seed").write_bytes(SEED)
        atheris.Setup([arguments[0], "-keep_seed=1", *arguments[2:], folder], reader)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
