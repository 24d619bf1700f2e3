"""The HTML page around the plots: verdict, figures against limits, what happened, and what the run was made of.

The page is built as a tree of elements and written out once at the end, so nothing in a record can become markup; a
content security policy forbids the browser to run or load anything at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from hil.record import LeaseSpan, Outcome, RunRecord
from hil.report.figure import summary
from hil.report.layout import bands, in_order
from hil.report.palette import style_sheet

if TYPE_CHECKING:
    from hil.scenario.page import Chapters

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_HOW_TO_READ = (
    "All plots share one time axis. Grey: the gate is closed. Upright lines are the numbered moments: unbroken what "
    "the driver did, dotted what the agent did. A gap in a line means that nothing was known."
)
Cell = str | ET.Element


def page(record: RunRecord, plots: ET.Element) -> str:
    """The whole document."""
    head = _element(
        "head",
        _element("meta", charset="utf-8"),
        _element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        _element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _element("title", record.title),
        _element("style", style_sheet()),
    )
    main = _element(
        "main",
        _element(
            "header",
            _element("h1", record.title),
            _element("p", f"Run started {record.started_at}", class_="quiet"),
            _verdict(record),
        ),
        _element(
            "div",
            _section("Limits", _limits(record)),
            _section("Figures", _figures(record.outcome)),
            class_="pair",
        ),
        _over_time(record, plots),
        _section("Moments", _moments(record)),
        _section("What was vacated, and when", _vacated(record)),
        _section("Why the gate was shut", _gate(record)),
        _section("Leases", _leases(record)),
        _section("Example answers", _examples(record)),
        _section("Versions", _table("What took part in the run", ("Part", "Version"), record.versions.items())),
    )
    document = _element("html", head, _element("body", main), lang="en")
    return "<!doctype html>\n" + ET.tostring(document, encoding="unicode", method="html") + "\n"


def scenario_page(chapters: Chapters, record: RunRecord, plots: ET.Element | None) -> str:
    """The document of a scenario's run: its words, its tables, and its plots where anything was seen."""
    head = _element(
        "head",
        _element("meta", charset="utf-8"),
        _element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        _element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _element("title", chapters.title),
        _element("style", style_sheet()),
    )
    verdict = _element("p", chapters.verdict, class_=f"verdict {'held' if chapters.passed else 'missed'}")
    about = [_element("p", text, class_="quiet" if place else "") for place, text in enumerate(chapters.about)]
    limits = [
        (name, _number(value), _number(limit), _held(held=held), remark)
        for name, value, limit, held, remark in chapters.limits
    ]
    heads = ("Limit on", "Value", "Limit", "Held", "Remark")
    main = _element(
        "main",
        _element("header", _element("h1", chapters.title), *about, verdict),
        _section("Limits", _table("Each figure against its limit", heads, limits, numbers=(1, 2))),
        *([] if plots is None else [_over_time(record, plots)]),
        _section("What happened", _table("In the order of time", ("Time", "Who", "What"), chapters.happened)),
        _section(
            "What was vacated, and when",
            _table(
                "From the sign", ("Sign at", "Sign", "Nothing ran after", "All free after"), chapters.vacates, (2, 3)
            ),
        ),
        _section(
            "Leases",
            _table("As the agent held them", ("Lease", "From", "To", "Outcome", "Slices"), chapters.leases),
        ),
        _section("Files", _table("In this folder", ("What", "File"), chapters.files)),
        _section("Versions", _table("What took part in the run", ("Part", "Version"), chapters.versions)),
    )
    document = _element("html", head, _element("body", main), lang="en")
    return "<!doctype html>\n" + ET.tostring(document, encoding="unicode", method="html") + "\n"


def _over_time(record: RunRecord, plots: ET.Element) -> ET.Element:
    return _section(
        "Over time",
        _element("p", summary(record)),
        _element(
            "figure",
            _element("div", plots, class_="scroll", tabindex="0", role="region", aria_label="Plots over time"),
            _element("figcaption", _HOW_TO_READ),
        ),
    )


def _held(*, held: bool) -> ET.Element:
    return _element("td", "✓ yes" if held else "✗ NO", class_="yes" if held else "no")


def _verdict(record: RunRecord) -> ET.Element:
    """One line that says whether the run passed; without limits it passed nothing."""
    missed = [limit.name for limit in record.limits if not limit.held]
    count = len(record.limits)
    if not count:
        return _element("p", "No limits were set: this run proves nothing by itself", class_="verdict unjudged")
    if missed:
        words = f"✗ {len(missed)} of {count} limits did not hold: {', '.join(missed)}"
        return _element("p", words, class_="verdict missed")
    words = "✓ The one limit held" if count == 1 else f"✓ All {count} limits held"
    return _element("p", words, class_="verdict held")


def _limits(record: RunRecord) -> ET.Element:
    rows = [
        (
            limit.name,
            _number(limit.value),
            _number(limit.limit),
            _held(held=limit.held),
        )
        for limit in record.limits
    ]
    return _table("Each figure against its limit", ("Limit on", "Value", "Limit", "Held"), rows, numbers=(1, 2))


def _figures(outcome: Outcome) -> ET.Element:
    """The figures of `--json`, in words and units; money to the millionth, in which it is counted."""
    rows = (
        ("Images settled", f"{outcome.images:,}"),
        ("Characters read correctly", f"{outcome.accuracy:.2%}".replace("%", " %")),
        ("Slices done", f"{outcome.slices_done:,}"),
        ("Slices lost", f"{outcome.slices_lost:,}"),
        ("Time to vacate", f"{outcome.vacate_ms:,.1f} ms"),
        ("Attestations verified", f"{outcome.attestations_verified:,} of {outcome.attestations:,}"),
        ("Energy", f"{outcome.energy_wh:,.3f} Wh"),
        ("Earned, gross", _money(outcome.gross, outcome.currency)),
        ("Cost of the energy", _money(outcome.energy_cost, outcome.currency)),
        ("Earned, net", _money(outcome.net, outcome.currency)),
    )
    return _table("What the run came to", ("Figure", "Value"), [(name, _number(text)) for name, text in rows], (1,))


def _moments(record: RunRecord) -> ET.Element:
    rows = [
        (str(number), _number(f"{moment.t_s:.2f} s"), moment.who, moment.what)
        for number, moment in enumerate(in_order(record), 1)
    ]
    return _table("Numbered as in the plots", ("No.", "Time", "Who", "What"), rows, numbers=(1,))


def _vacated(record: RunRecord) -> ET.Element:
    """Leases given back, with what the driver last did before and what the gate said right after."""
    rows = [
        (
            f"{lease.job}/{lease.epoch}",
            _number(f"{lease.end_s:.2f} s"),
            lease.outcome,
            _last_act(record, lease.end_s),
            _gate_after(record, lease.end_s),
            _number(f"{lease.slices_done} of {lease.slices_wanted}"),
        )
        for lease in sorted(record.leases, key=lambda lease: lease.end_s)
        if lease.outcome != "finished"
    ]
    heads = ("Lease", "Given back", "Why", "The driver's last act before", "The gate right after", "Slices kept")
    return _table("Leases that ended early", heads, rows, numbers=(1, 5))


def _last_act(record: RunRecord, t_s: float) -> str:
    acts = [moment for moment in in_order(record) if moment.who == "driver" and moment.t_s <= t_s]
    return f"{acts[-1].what}, {t_s - acts[-1].t_s:.2f} s earlier" if acts else "none"


def _gate_after(record: RunRecord, t_s: float) -> str:
    sample = next((sample for sample in record.samples if sample.t_s >= t_s), None)
    if sample is None:
        return "not sampled any more"
    return f"{sample.gate}: {sample.reason}" if sample.reason else sample.gate


def _gate(record: RunRecord) -> ET.Element:
    """Each spell in which the gate did not let work run, with its reason."""
    rows = [
        (gate, _number(f"{band.start_s:.2f} s"), _number(f"{band.end_s:.2f} s"), reason)
        for band in bands(record.samples, lambda sample: f"{sample.gate}\0{sample.reason}")
        for gate, _, reason in [band.value.partition("\0")]
        if gate != "open"
    ]
    return _table("Spells of hold and closed, as sampled", ("Gate", "From", "To", "Reason"), rows, numbers=(1, 2))


def _leases(record: RunRecord) -> ET.Element:
    rows = [_lease(number, lease, record.outcome.currency) for number, lease in enumerate(record.leases, 1)]
    heads = ("No.", "Lease", "From", "To", "Outcome", "Slices", "Energy", "Net")
    return _table("Numbered as in the plots", heads, rows, numbers=(2, 3, 5, 6, 7))


def _lease(number: int, lease: LeaseSpan, currency: str) -> tuple[Cell, ...]:
    return (
        str(number),
        f"{lease.job}/{lease.epoch}",
        _number(f"{lease.start_s:.2f} s"),
        _number(f"{lease.end_s:.2f} s"),
        "finished" if lease.outcome == "finished" else f"given back: {lease.outcome}",
        _number(f"{lease.slices_done} of {lease.slices_wanted}"),
        _number(f"{lease.energy_wh:.4f} Wh"),
        _number(_money(lease.net, currency)),
    )


def _examples(record: RunRecord) -> ET.Element:
    rows = [
        (_read(read), _read(truth) if truth else "not known", _judged(read, truth)) for read, truth in record.examples
    ]
    return _table("A few images: what was read from them", ("Read", "Should be", "Same"), rows)


def _judged(read: str, truth: str) -> str:
    if not truth:
        return ""
    return "✓ yes" if read == truth else "✗ no"


def _read(text: str) -> ET.Element:
    """A customer's text, as it is, with its writing direction kept to its own cell."""
    return _element("td", text, class_="read", dir="auto")


def _money(amount: float, currency: str) -> str:
    return f"{amount:,.6f} {currency}"


def _number(text: str) -> ET.Element:
    return _element("td", text, class_="number")


def _section(heading: str, *content: ET.Element) -> ET.Element:
    return _element("section", _element("h2", heading), *content)


def _table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[Cell]], numbers: Sequence[int] = ()
) -> ET.Element:
    """A table whose first column names its rows; `numbers` are the columns set flush right."""
    body = [_row(cells) for cells in rows]
    if not body:
        return _element("p", "None.", class_="quiet")
    head = [
        _element("th", text, scope="col", **({"class_": "number"} if i in numbers else {}))
        for i, text in enumerate(heads)
    ]
    table = _element(
        "table", _element("caption", caption), _element("thead", _element("tr", *head)), _element("tbody", *body)
    )
    return _element("div", table, class_="scroll")


def _row(cells: Sequence[Cell]) -> ET.Element:
    """Text becomes a cell, the first one the row's heading; an element is a cell already."""
    made = [
        cell if isinstance(cell, ET.Element) else _element("td", cell) if i else _element("th", cell, scope="row")
        for i, cell in enumerate(cells)
    ]
    return _element("tr", *made)


def _element(tag: str, *content: Cell, **attributes: str) -> ET.Element:
    """An element with text or children; `class_` and `aria_label` stand for `class` and `aria-label`."""
    element = ET.Element(tag, {name.strip("_").replace("_", "-"): value for name, value in attributes.items()})
    for part in content:
        if isinstance(part, ET.Element):
            element.append(part)
        else:
            element.text = (element.text or "") + part
    return element
