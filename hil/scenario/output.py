"""What a run leaves: one folder that says everything, to programs and to people.

    DIR/
      junit.xml  measurements.json  versions.json  index.json
      SCENARIO-RIG/  report.html  recording…  logs  candump.log  frames.asc  attestations/

`measurements.json` has every figure with its limit (and is what `driveway-hil report` compares), `junit.xml` what a CI
reads. Each run's own folder has its report, and whatever its rig left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec

from agent.errors import ConfigError, StoreError
from hil.rigs.observation import Measurement
from hil.scenario.run import Run, Verdict

FORMAT = "driveway/scenario-runs/1"


class RunFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as `measurements.json` keeps it."""

    scenario: str
    title: str
    rig: str
    verdict: Verdict
    why: str
    started_at: str
    wall_s: float
    lasted_s: float
    measurements: tuple[Measurement, ...]
    versions: dict[str, str]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Every run of one call of `driveway-hil run`."""

    format: str = FORMAT
    runs: tuple[RunFigures, ...]


def figures(runs: Iterable[Run]) -> Figures:
    """What counts of these runs."""
    return Figures(
        runs=tuple(
            RunFigures(
                scenario=run.scenario.name,
                title=run.scenario.title,
                rig=run.rig,
                verdict=run.verdict,
                why=run.why,
                started_at=run.started_at,
                wall_s=round(run.wall_s, 3),
                lasted_s=run.lasted_ms / 1000,
                measurements=run.measurements,
                versions=run.evidence.versions,
            )
            for run in runs
        )
    )


def write_summary(runs: Sequence[Run], folder: Path) -> None:
    """The three files beside the runs' own folders. Raises StoreError."""
    found = figures(runs)
    versions = {f"{run.scenario}-{run.rig}": run.versions for run in found.runs if run.versions}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "measurements.json").write_bytes(_json(found))
        (folder / "versions.json").write_bytes(_json(versions))
        (folder / "junit.xml").write_bytes(junit(found))
    except OSError as error:
        raise StoreError(f"cannot write into {folder}: {error.strerror}", hint="give another folder") from error


def read_figures(path: Path) -> Figures:
    """`measurements.json`, or the folder that it is in. Raises ConfigError."""
    file = path / "measurements.json" if path.is_dir() else path
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Figures)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{file} is no run: {error}", hint="give a folder of `driveway-hil run --out`") from error
    if found.format != FORMAT:
        raise ConfigError(f"{file} has the format {found.format!r}", hint=f"this version reads {FORMAT}")
    return found


def junit(found: Figures) -> bytes:
    """One test case a run; its failures are the limits that did not hold. The form that CI servers read."""
    counts = [run.verdict for run in found.runs]
    suite = ET.Element(
        "testsuite",
        name="driveway scenarios",
        tests=str(len(counts)),
        failures=str(counts.count(Verdict.FAILED)),
        errors=str(counts.count(Verdict.ERROR)),
        skipped=str(counts.count(Verdict.SKIPPED)),
        time=f"{sum(run.wall_s for run in found.runs):.3f}",
    )
    for run in found.runs:
        case = ET.SubElement(suite, "testcase", classname=run.rig, name=run.scenario, time=f"{run.wall_s:.3f}")
        match run.verdict:
            case Verdict.SKIPPED:
                ET.SubElement(case, "skipped", message=run.why)
            case Verdict.ERROR:
                ET.SubElement(case, "error", message=run.why)
            case Verdict.FAILED:
                missed = [one for one in run.measurements if not one.held]
                failure = ET.SubElement(case, "failure", message=f"{len(missed)} limits did not hold")
                failure.text = "\n".join(in_line(one) for one in missed)
            case Verdict.PASSED:
                pass
    body: bytes = ET.tostring(suite, encoding="utf-8", xml_declaration=True)
    return body


def in_line(one: Measurement) -> str:
    """A measurement with its limit, in one line."""
    return f"{one.name}: {value_text(one)}, limit {limit_text(one)}{f' ({one.detail})' if one.detail else ''}"


def value_text(one: Measurement) -> str:
    """What was measured."""
    return "nothing" if one.value is None else _with_unit(one.value, one.unit)


def limit_text(one: Measurement) -> str:
    """Its limits."""
    low = f"at least {_with_unit(one.at_least, one.unit)}" if one.at_least is not None else ""
    high = f"at most {_with_unit(one.at_most, one.unit)}" if one.at_most is not None else ""
    return " and ".join(part for part in (low, high) if part) or "none"


def _with_unit(value: float, unit: str) -> str:
    """A figure as people say it: times of more than ten seconds, two minutes or two hours in a unit that fits them."""
    seconds = value / 1000 if unit == "ms" else value if unit == "s" else 0.0
    for fits_from_s, length_s, name in ((7_200, 3_600, "h"), (120, 60, "min"), (10, 1, "s")):
        if seconds >= fits_from_s:
            return f"{_number(round(seconds / length_s, 2))} {name}"
    return f"{_number(value)} {unit}".strip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
