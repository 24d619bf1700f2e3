"""Compares runs: what passed before and fails now, and which figures have moved; and the trend over many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hil.rigs.observation import Measurement
from hil.scenario.output import Figures, RunFigures, value_text

MOVED_SHARE = 0.1
"""A figure that changed by less is not told."""
Named = tuple[str, Figures]
Key = tuple[str, str]


def comparison(before: Named, after: Named) -> tuple[list[str], bool]:
    """Lines for people, and whether anything is worse: failed where it passed, or is there no more."""
    was, now = _by_key(before[1]), _by_key(after[1])
    lines = [f"{before[0]} -> {after[0]}"]
    worse = False
    for key in sorted({*was, *now}):
        name = f"{key[0]} on {key[1]}"
        if key not in now:
            worse = True
            lines.append(f"missing  {name}")
        elif key not in was:
            lines.append(f"new      {name}: {now[key].verdict}")
        else:
            if was[key].verdict != now[key].verdict:
                worse = worse or now[key].verdict != "passed"
                lines.append(f"verdict  {name}: {was[key].verdict} -> {now[key].verdict}")
            lines += [f"figure   {name}: {text}" for text in _moved(was[key], now[key])]
    if len(lines) == 1:
        lines.append("nothing has changed")
    return lines, worse


def _moved(was: RunFigures, now: RunFigures) -> Iterator[str]:
    before = {one.name: one for one in was.measurements}
    for one in now.measurements:
        old = before.get(one.name)
        if old is None or old.value is None or one.value is None:
            continue
        if abs(one.value - old.value) > MOVED_SHARE * max(abs(old.value), abs(one.value)):
            yield f"{one.name}: {value_text(old)} -> {value_text(one)}{'' if one.held else ' (does not hold)'}"


def trend(runs: Sequence[Named]) -> tuple[list[str], bool]:
    """Every figure that moved over all runs, oldest first, and whether the newest is worse than the one before."""
    columns = [_by_key(one) for _, one in runs]
    lines = ["over " + ", ".join(name for name, _ in runs)]
    for key in sorted({key for column in columns for key in column}):
        verdicts = " ".join(column[key].verdict if key in column else "-" for column in columns)
        lines.append(f"{key[0]} on {key[1]}: {verdicts}")
        names = dict.fromkeys(one.name for column in columns if key in column for one in column[key].measurements)
        for name in names:
            found = [_find(column.get(key), name) for column in columns]
            values = {one.value for one in found if one is not None}
            if len(values) > 1:
                lines.append(f"    {name}: " + " | ".join("-" if one is None else value_text(one) for one in found))
    _, worse = comparison(runs[-2], runs[-1])
    return lines, worse


def _find(run: RunFigures | None, name: str) -> Measurement | None:
    return None if run is None else next((one for one in run.measurements if one.name == name), None)


def _by_key(found: Figures) -> dict[Key, RunFigures]:
    return {(run.scenario, run.rig): run for run in found.runs}
