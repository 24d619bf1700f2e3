"""The plots of a run as SVG or PNG, and the same in words.

The SVG keeps its text as text: it can be searched and read aloud, and follows the reader's font and colours. Neither
form carries a date or the drawing program's version, so the same record gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

from hil.record import RunRecord
from hil.report.compose import compose, drawing_rules
from hil.report.layout import bands
from hil.report.palette import Tone, themed

_PNG_DPI = 160
_SVG = "http://www.w3.org/2000/svg"
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def inline_svg(record: RunRecord) -> ET.Element:
    """The drawing for the HTML page: no background, colours as the page's variables."""
    root = _svg(record)
    for element in root.iter():
        for name in ("style", "fill", "stroke"):
            if name in element.attrib:
                element.set(name, themed(element.attrib[name]))
    for size in ("width", "height", "version"):
        root.attrib.pop(size)
    return root


def standalone_svg(record: RunRecord) -> str:
    """The drawing as a file of its own, on white."""
    root = _svg(record)
    root.set("xmlns", _SVG)
    root.insert(2, ET.Element("rect", {"width": "100%", "height": "100%", "fill": Tone.PAPER.light}))
    return ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def png(record: RunRecord) -> bytes:
    """The drawing as a PNG, on white."""
    return _drawn(record, "png", facecolor=Tone.PAPER.light, dpi=_PNG_DPI, metadata={"Software": None})


def summary(record: RunRecord) -> str:
    """The plots in words, for readers who do not see them."""
    samples = record.samples
    if not samples:
        return "No samples were recorded."
    gate_s: dict[str, float] = {}
    for band in bands(samples, lambda sample: sample.gate):
        gate_s[band.value] = gate_s.get(band.value, 0.0) + band.end_s - band.start_s
    sentences = [
        "Gate: " + ", ".join(f"{gate} {seconds:.1f} s" for gate, seconds in gate_s.items()) if gate_s else "",
        _range("Die", "°C", 1, [sample.die_c for sample in samples]),
        f"Target {record.die_target_c:g} °C, limit {record.die_limit_c:g} °C",
        _range("Computer", "W", 1, [sample.power_w for sample in samples]),
        _range("Charge", "%", 2, [sample.charge_percent for sample in samples]),
        f"Slices kept: {samples[-1].slices_kept:,}",
        f"{record.counted}: {samples[-1].images_settled:,}",
    ]
    return ". ".join(sentence for sentence in sentences if sentence) + "."


def _range(name: str, unit: str, decimals: int, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return f"{name}: never known"
    missing = (
        f", unknown in {len(values) - len(known):,} of {len(values):,} samples" if len(known) < len(values) else ""
    )
    return f"{name}: {min(known):.{decimals}f} to {max(known):.{decimals}f} {unit}{missing}"


def _svg(record: RunRecord) -> ET.Element:
    """The SVG as plain elements (no namespaces, as HTML wants them), named and described."""
    root = ET.fromstring(_drawn(record, "svg", transparent=True, metadata=_NO_METADATA))  # noqa: S314 - drawn just here
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(name): value for name, value in element.attrib.items()}
    root.set("role", "img")
    root.set("aria-labelledby", "plots-title plots-description")
    for place, (tag, text) in enumerate((("title", f"Plots of {record.title}"), ("desc", summary(record)))):
        element = ET.Element(tag, {"id": "plots-title" if tag == "title" else "plots-description"})
        element.text = text
        root.insert(place, element)
    return root


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _drawn(record: RunRecord, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    with drawing_rules():
        compose(record).savefig(target, format=kind, **options)
    return target.getvalue()
