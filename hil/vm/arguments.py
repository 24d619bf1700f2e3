"""The command line of `driveway-hil vm`; it loads nothing that only a run needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

VERBS = {
    "build": "make the image, and prepare the vehicle once (booted; installed, where there is a package)",
    "up": "start a vehicle with the package, a fleet and a car around it, and leave it running until Ctrl-C",
    "shell": "run a command in the vehicle that `up` started (default: what its agent says)",
    "measure": "boot, restore, installation, start to READY, a lease, vacates, memory, wake-ups and writes, in figures",
}


def add_verb(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to a set of subparsers."""
    about = "a vehicle in a VM: " + "; ".join(f"{name}: {text}" for name, text in VERBS.items())
    verb: argparse.ArgumentParser = verbs.add_parser("vm", help="a vehicle in a VM", description=about)
    verb.add_argument("what", choices=tuple(VERBS), metavar="WHAT", help=", ".join(VERBS))
    verb.add_argument("command", nargs="*", help="of shell: the command line")
    verb.add_argument("--dir", type=Path, default=Path("build/vm/up"), help="of up and shell (default: build/vm/up)")
    verb.add_argument("--rounds", type=int, default=5, metavar="N", help="of measure: vacates (default: 5)")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    return verb
