"""`driveway-hil`: the rig engineer's command. Every verb takes `--json FILE` and writes its figures there.

Exit codes: 0 everything held, 1 something did not (or the run failed), 2 usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from agent import __version__
from agent.errors import DrivewayError

DEFAULT_FOLDER = Path("build/demo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the process's exit code."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.verb(options)
    except (DrivewayError, OSError) as error:
        print(f"driveway-hil: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + 2
    return status


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="driveway-hil", description="Rigs that prove the daemon.")
    top.add_argument("--version", action="version", version=f"driveway-hil {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    about = "a parked car earns, and the driver comes back in the middle; the whole fleet on this machine"
    demo = verbs.add_parser("demo", help=about, description=about)
    demo.set_defaults(verb=_demo)
    demo.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    demo.add_argument("--figure", type=Path, metavar="FILE", help="write the plots as one picture (.svg or .png)")
    demo.add_argument(
        "--dir", type=Path, default=DEFAULT_FOLDER, help=f"made anew each run (default: {DEFAULT_FOLDER})"
    )
    demo.add_argument("--keep", action="store_true", help="leave everything running afterwards, until Ctrl-C")
    return top


def _demo(options: argparse.Namespace) -> int:
    from hil.demo import command  # noqa: PLC0415 - imports the whole rig

    return command.demo(options.dir, options.json, options.figure, keep=options.keep)
