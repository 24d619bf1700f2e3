"""The arguments of `driveway-hil updates`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

KINDS = ("good", "crashes", "never_ready", "hangs", "falls_over", "fails_self_test", "migrates", "damaged", "older")
"""What a release may be. `migrates` widens the store and fails its self-test then, `damaged` has a flipped byte,
`older` is a good one with a lower number; the others do what their names say."""
ABOUT = "update a vehicle that is a folder to releases good and bad, and cut the power after every operation"


def add_verb(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb; who calls says what carries it out."""
    verb: argparse.ArgumentParser = verbs.add_parser(
        "updates",
        help=ABOUT,
        description=f"{ABOUT}. Fails unless a working daemon runs after each cut and every planted bug is found.",
    )
    verb.add_argument(
        "--kind", action="append", choices=KINDS, metavar="KIND", help=f"this kind of release alone: {', '.join(KINDS)}"
    )
    verb.add_argument("--every", type=_positive, default=1, metavar="N", help="cut after every Nth operation only")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    return verb


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number
