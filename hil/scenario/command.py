"""`driveway-hil run | list | report`: plays scenarios on a rig, lists what can be played where, compares runs.

Exit codes: 0 every scenario passed (skipped ones count for nothing), 1 one did not.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.errors import ConfigError
from hil.rigs.registry import rig_named, why_not
from hil.scenario.compare import comparison, trend
from hil.scenario.loader import find, load_all
from hil.scenario.model import RIG_NAMES, Scenario
from hil.scenario.output import figures, in_line, read_figures, write_summary
from hil.scenario.page import name_of, write_report
from hil.scenario.run import Run, Verdict, play
from hil.scenario.table import markdown


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario, and why it cannot be played on each rig (empty: it can)."""

    name: str
    title: str
    proves: tuple[str, ...]
    length_s: float
    rigs: dict[str, str]


def run(options: argparse.Namespace) -> int:
    """Play them; raises ConfigError."""
    scenarios = load_all() if options.all else [find(name) for name in options.scenario]
    if not scenarios:
        raise ConfigError("no scenario was named", hint="name one, or use --all; `driveway-hil list` shows them")
    kind = rig_named(options.rig)
    runs: list[Run] = []
    for scenario in scenarios:
        folder = options.out / name_of(scenario, options.rig)
        shutil.rmtree(folder, ignore_errors=True)
        one = play(scenario, kind, folder)
        runs.append(one)
        _tell(one)
        if one.verdict is not Verdict.SKIPPED:
            folder.mkdir(parents=True, exist_ok=True)
            write_report(one, folder / "report.html")
    write_summary(runs, options.out)
    _write(options.json, figures(runs))
    verdicts = [one.verdict for one in runs]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in Verdict if verdict in verdicts)
    print(f"{counts}; see {options.out}")
    return 1 if {Verdict.FAILED, Verdict.ERROR} & set(verdicts) else 0


def _tell(one: Run) -> None:
    """One line, and one for each limit that did not hold."""
    why = f": {one.why}" if one.why else ""
    print(f"{one.verdict:8} {one.scenario.name} on {one.rig} ({one.wall_s:.1f} s){why}", flush=True)
    for measured in one.measurements:
        if not measured.held:
            print(f"         {in_line(measured)}")


def listed(scenarios: Sequence[Scenario]) -> list[Listed]:
    """Which scenario can be played where, and why not elsewhere."""
    return [
        Listed(
            name=one.name,
            title=one.title,
            proves=one.proves,
            length_s=one.length_s,
            rigs={rig: why_not(rig, one) or "" for rig in RIG_NAMES},
        )
        for one in scenarios
    ]


def list_scenarios(options: argparse.Namespace) -> int:
    """Print the table, with a reason for every gap."""
    if options.markdown:
        print(markdown(load_all()), end="")
        return 0
    found = listed(load_all())
    width = max(len(one.name) for one in found)
    print(f"{'scenario':{width}}  {'  '.join(f'{rig:5}' for rig in RIG_NAMES)}  title")
    for one in found:
        marks = "  ".join(f"{'yes' if not one.rigs[rig] else '-':5}" for rig in RIG_NAMES)
        print(f"{one.name:{width}}  {marks}  {one.title}")
    if options.why:
        for one in found:
            for rig, why in one.rigs.items():
                if why:
                    print(f"{one.name} not on {rig}: {why}")
    _write(options.json, found)
    return 0


def report(options: argparse.Namespace) -> int:
    """Compare two runs, or show the trend over many; 1 when the newest is worse than the one before."""
    runs = [(str(path), read_figures(path)) for path in options.runs]
    if len(runs) == 1:
        for one in runs[0][1].runs:
            print(f"{one.verdict:8} {one.scenario} on {one.rig} ({one.wall_s:.1f} s)")
        return 0
    lines, worse = comparison(runs[-2], runs[-1]) if len(runs) == 2 else trend(runs)
    print("\n".join(lines))
    return 1 if worse else 0


def _write(path: Path | None, value: object) -> None:
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
