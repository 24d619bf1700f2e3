"""Metric families as text: OpenMetrics 1.0, and Prometheus' older text format (0.0.4), which node_exporter reads.

A family has a name, a kind, a unit and a help text, and samples with labels. The two forms differ in little:

    OpenMetrics 1.0                                    Prometheus 0.0.4
    # TYPE driveway_slices_kept counter                # TYPE driveway_slices_kept_total counter
    # UNIT driveway_link_sent_bytes bytes              (nothing)
    # TYPE driveway_build info                         # TYPE driveway_build_info gauge
    driveway_slices_kept_total 7                       driveway_slices_kept_total 7
    # EOF                                              (nothing)

Sources: the OpenMetrics specification 1.0 (names, escapes, order, units), Prometheus' "Exposition formats". Everything
here is pure. A label's value may hold any text: it is escaped, and cut at LABEL_CHARACTERS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "info", "summary"]
LABEL_CHARACTERS = 128
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Family:
    """One metric. `name` is without `_total` and `_info`, and ends with its unit, where it has one.

    `labels` are the labels that its samples have, each with few values.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()

    @property
    def sample_name(self) -> str:
        """What its samples are called, other than a summary's count."""
        return self.name + {"counter": "_total", "info": "_info", "gauge": "", "summary": ""}[self.kind]


@dataclass(frozen=True)
class Sample:
    """One value. `labels` are in the family's order; `suffix` is `_count` of a summary, else empty."""

    value: float
    labels: tuple[str, ...] = ()
    suffix: str = ""


Collected = Iterable[tuple[Family, Iterable[Sample]]]


def openmetrics(collected: Collected) -> str:
    """OpenMetrics 1.0; families without a sample are left out."""
    lines = []
    for family, samples in collected:
        told = [_line(family, sample) for sample in samples]
        if told:
            lines.append(f"# TYPE {family.name} {family.kind}")
            lines += [f"# UNIT {family.name} {family.unit}"] if family.unit else []
            lines.append(f"# HELP {family.name} {_escaped(family.help)}")
            lines += told
    return "\n".join([*lines, "# EOF", ""])


def prometheus(collected: Collected) -> str:
    """Prometheus' text format 0.0.4; families without a sample are left out."""
    lines = []
    for family, samples in collected:
        told = [_line(family, sample) for sample in samples]
        if told:
            name = family.sample_name
            lines.append(f"# HELP {name} {family.help.replace(chr(92), chr(92) * 2)}")
            lines.append(f"# TYPE {name} {'gauge' if family.kind == 'info' else family.kind}")
            lines += told
    return "\n".join([*lines, ""])


def _line(family: Family, sample: Sample) -> str:
    names = family.labels
    if family.kind == "summary":
        names = () if sample.suffix else ("quantile",)
    assert len(names) == len(sample.labels), f"{family.name} has the labels {names}"
    pairs = ",".join(
        f'{name}="{_escaped(value[:LABEL_CHARACTERS])}"' for name, value in zip(names, sample.labels, strict=True)
    )
    return f"{family.sample_name}{sample.suffix}{'{' + pairs + '}' if pairs else ''} {_number(sample.value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))
