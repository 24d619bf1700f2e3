"""The command line of `driveway-hil faults`; it loads nothing that only a run needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DEFAULT_FOLDER = Path("build/faults")


def add_verb(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to a set of subparsers."""
    about = "jobs through real processes under continuous faults; fails when anything is lost or paid twice"
    verb: argparse.ArgumentParser = verbs.add_parser("faults", help=about, description=about)
    verb.add_argument("--jobs", type=_at_least_one, default=200, metavar="N", help="default: 200")
    verb.add_argument("--seed", type=int, default=1, metavar="S", help="the same seed, the same faults (default: 1)")
    verb.add_argument(
        "--broker", choices=("mosquitto", "embedded", "both"), default="mosquitto", help="default: mosquitto"
    )
    verb.add_argument("--cars", type=_at_least_one, default=5, metavar="K", help="each a daemon (default: 5)")
    verb.add_argument("--dispatchers", type=_at_least_one, default=2, metavar="M", help="replicas (default: 2)")
    verb.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="default: sqlite")
    verb.add_argument("--minutes", type=float, default=15.0, metavar="M", help="for all jobs (default: 15)")
    verb.add_argument(
        "--dir", type=Path, default=DEFAULT_FOLDER, help=f"made anew each run (default: {DEFAULT_FOLDER})"
    )
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    return verb


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 1")
    return number
