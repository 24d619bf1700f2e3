"""The command line of `driveway-hil run | list | report | doctor`, without what only playing needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

RIGS = ("sim", "sil", "vm", "bench")


def add_verbs(verbs: Any) -> None:
    """Add the verbs to the rig engineer's command."""
    about = "play scenarios on a rig; every limit is judged, and one folder says everything"
    verb = verbs.add_parser("run", help=about, description=about)
    verb.add_argument("scenario", nargs="*", metavar="SCENARIO", help="its name, or a TOML file")
    verb.add_argument("--all", action="store_true", help="all of them; those that cannot be played say why")
    verb.add_argument("--rig", choices=RIGS, default="sim", help="default: sim, in virtual time")
    verb.add_argument(
        "--out", type=Path, default=Path("build/scenarios"), metavar="DIR", help="default: build/scenarios"
    )
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON, too")
    verb.set_defaults(verb=_run)
    about = "list the scenarios, and the rigs that can play them"
    verb = verbs.add_parser("list", help=about, description=about)
    verb.add_argument("--markdown", action="store_true", help="as the table of docs/scenarios.md")
    verb.add_argument("--why", action="store_true", help="say why a rig cannot play one")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")
    verb.set_defaults(verb=_list)
    about = "compare two runs, or print the trend over many; exit status 1 when the newest is worse"
    verb = verbs.add_parser("report", help=about, description=about)
    verb.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder of `driveway-hil run --out`")
    verb.set_defaults(verb=_report)
    about = "look whether a bench is wired as its description says; sends nothing"
    verb = verbs.add_parser("doctor", help=about, description=about)
    verb.add_argument("rig", type=Path, metavar="RIG.toml", help="the bench's description (docs/scenarios.md)")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON")
    verb.set_defaults(verb=_doctor)


def _run(options: argparse.Namespace) -> int:
    from hil.scenario import command  # noqa: PLC0415 - imports the rigs

    return command.run(options)


def _list(options: argparse.Namespace) -> int:
    from hil.scenario import command  # noqa: PLC0415 - as above

    return command.list_scenarios(options)


def _report(options: argparse.Namespace) -> int:
    from hil.scenario import command  # noqa: PLC0415 - as above

    return command.report(options)


def _doctor(options: argparse.Namespace) -> int:
    from hil.rigs import doctor  # noqa: PLC0415 - of this verb alone

    return doctor.doctor(options)
