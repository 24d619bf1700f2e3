"""The command line of `driveway-hil powercut`; it loads nothing that only a run needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

TRANSACTIONS = 20


def add_verb(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to a set of subparsers."""
    about = "cut the power of the real store at every operation, and let every call on its files fail"
    verb: argparse.ArgumentParser = verbs.add_parser("powercut", help=about, description=about)
    verb.add_argument("--seed", type=int, default=1, metavar="S", help="of the work and the sample (default: 1)")
    verb.add_argument(
        "--transactions",
        type=_at_least_ten,
        default=TRANSACTIONS,
        metavar="N",
        help=f"acknowledged in a run (default: {TRANSACTIONS})",
    )
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    return verb


def _at_least_ten(text: str) -> int:
    number = int(text)
    if number < 10:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 10, in which too little happens")
    return number
