"""The report of a run: a whole HTML file of its own, whatever the record holds."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from agent.errors import ConfigError, StoreError
from hil.record import LeaseSpan, Limit, Moment, RunRecord
from hil.report import write_figure, write_report
from tests.hil.sample_run import a_night, outcome, sample

VOID = {"meta"}
LOADS = {"href", "xlink:href", "src", "srcset", "action", "data", "poster", "background"}
HOSTILE = "</td></svg><script src='https://evil.example/x'>alert(1)</script><b onload=\"x\">&lt;\x00\ud800$x_{$"
SHOWN = HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
PLOTS = (
    "Die temperature, °C",
    "Computer's power, W",
    "Traction battery's charge, %",
    "Power into the traction battery, kW",
    "Leases",
    "Slices kept",
    "Images settled",
)


class Page(HTMLParser):
    """Reads a page strictly: what closes is what was opened last, and nothing is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.svg_attributes: dict[str, str | None] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            self.loads += [value or ""] if name in LOADS else []
            self.loads += re.findall(r"url\(([^)]*)\)", value or "")
            self.ids += [value or ""] if name == "id" else []
        match tag:
            case "svg":
                self.svg_attributes = dict(attrs)
            case "tr":
                self.table.append([])
            case "td" | "th":
                self.table[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        tag = self.open[-1] if self.open else ""
        self.texts.setdefault(tag, []).append(data)
        if tag == "style":
            self.loads += re.findall(r"@import|url\([^)]*\)", data)
        if tag == "caption":
            self.tables[self.texts["h2"][-1]] = []
        if tag in {"td", "th"}:
            self.table[-1][-1] += data

    @property
    def table(self) -> list[list[str]]:
        """The table being read: sections hold one each."""
        return self.tables[self.texts["h2"][-1]]


def read_report(record: RunRecord, folder: Path) -> tuple[str, Page]:
    path = folder / "report.html"
    write_report(record, path)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def an_empty_run() -> RunRecord:
    return msgspec.structs.replace(a_night(), samples=[], moments=[], leases=[], limits=[], versions={}, examples=[])


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return read_report(a_night(), tmp_path_factory.mktemp("night"))


def test_it_stands_alone(night: tuple[str, Page]) -> None:
    text, page = night
    assert page.loads, "the SVG refers to its own clip paths"
    assert all(load.startswith("#") for load in page.loads), page.loads
    assert {load[1:] for load in page.loads} <= set(page.ids)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "://" not in text
    assert "default-src 'none'" in text
    assert len(page.ids) == len(set(page.ids))


def test_it_draws_every_plot_and_says_what_they_show(night: tuple[str, Page]) -> None:
    _, page = night
    drawn = page.texts["text"]
    assert set(PLOTS) <= set(drawn)
    assert {"gate", "agent", "reason", "open", "closed", "running", "door_open", "power cap"} <= set(drawn)
    assert {"limit 95 °C", "target 85 °C"} <= {text.strip() for text in drawn}
    assert "seconds since the run began" in drawn
    assert page.svg_attributes["role"] == "img"
    assert set((page.svg_attributes["aria-labelledby"] or "").split()) <= set(page.ids)
    assert page.texts["title"][1].startswith("Plots of Demo")
    assert "Die: 36.6 to 72.6 °C, unknown in 6 of 181 samples" in page.texts["desc"][0]


def test_every_moment_is_marked_in_the_plots_and_listed(night: tuple[str, Page]) -> None:
    _, page = night
    listed = page.tables["Moments"][1:]
    assert [row[0] for row in listed] == [str(number) for number in range(1, 11)]
    assert listed[2] == ["3", "22.10 s", "driver", "pulls the door handle"]
    for number, _, who, what in listed:
        assert any(text.startswith(f"{number} {who}: {what[:20]}") for text in page.texts["text"]), what


def test_its_tables_hold_the_figures(night: tuple[str, Page]) -> None:
    _, page = night
    assert page.tables["Limits"][1] == ["time to vacate", "23.4 ms", "≤ 100 ms", "✓ yes"]
    figures = dict(page.tables["Figures"][1:])
    assert figures["Characters read correctly"] == "98.44 %"
    assert figures["Time to vacate"] == "23.4 ms"
    assert figures["Earned, net"] == "0.019134 EUR"
    assert page.tables["Leases"][2][1:] == [
        "scan-0008/1",
        "16.40 s",
        "22.13 s",
        "given back: driver",
        "3 of 4",
        "0.0489 Wh",
        "0.004785 EUR",
    ]
    assert page.tables["What was vacated, and when"][1:] == [
        ["scan-0008/1", "22.13 s", "driver", "pulls the door handle, 0.03 s earlier", "closed: door_open", "3 of 4"]
    ]
    assert page.tables["Why the gate was shut"][2] == ["hold", "17.00 s", "17.75 s", "tariff_peak"]
    assert [row[2] for row in page.tables["Example answers"][1:]] == ["✓ yes", "✗ no", "", "✓ yes"]
    assert ["package", "ocr-lines 1"] in page.tables["Versions"]


@pytest.mark.parametrize(
    ("held", "words", "look"),
    [
        ([], "No limits were set", "unjudged"),
        ([True], "✓ The one limit held", "held"),
        ([True, True], "✓ All 2 limits held", "held"),
        ([True, False], "✗ 1 of 2 limits did not hold: limit 1", "missed"),
    ],
)
def test_the_verdict_follows_the_limits(held: list[bool], words: str, look: str, tmp_path: Path) -> None:
    limits = [Limit(name=f"limit {i}", value="1", limit="2", held=kept) for i, kept in enumerate(held)]
    text, page = read_report(msgspec.structs.replace(an_empty_run(), limits=limits), tmp_path)
    assert any(paragraph.startswith(words) for paragraph in page.texts["p"])
    assert f'class="verdict {look}"' in text


def test_hostile_text_stays_text(night: tuple[str, Page], tmp_path: Path) -> None:
    lease = LeaseSpan(
        job=HOSTILE,
        epoch=1,
        start_s=0,
        end_s=5,
        outcome=HOSTILE,
        slices_done=0,
        slices_wanted=1,
        energy_wh=0,
        net=0,
    )
    record = RunRecord(
        title=HOSTILE,
        started_at=HOSTILE,
        samples=[sample(float(i), state=HOSTILE, gate=HOSTILE, reason=HOSTILE, lease=HOSTILE) for i in range(60)],
        moments=[Moment(t_s=1, who=HOSTILE, what=HOSTILE), Moment(t_s=2, who="", what="読み取り\n مرحبا")],
        leases=[lease],
        outcome=outcome(currency=HOSTILE),
        limits=[Limit(name=HOSTILE, value=HOSTILE, limit=HOSTILE, held=False)],
        versions={HOSTILE: HOSTILE},
        die_limit_c=95,
        die_target_c=85,
        examples=[(HOSTILE, HOSTILE)],
    )
    text, page = read_report(record, tmp_path)
    assert set(page.tags) <= set(night[1].tags)
    assert "<script" not in text
    assert page.tables["Example answers"][1][0] == SHOWN
    assert page.texts["h1"] == [SHOWN]
    assert page.texts["title"][0] == SHOWN
    assert SHOWN in page.texts["text"], "the bands' names are drawn as they are, without mathematics"
    write_figure(record, tmp_path / "hostile.svg")
    ET.parse(tmp_path / "hostile.svg")
    write_figure(record, tmp_path / "hostile.png")


def test_an_empty_run_still_makes_a_page(tmp_path: Path) -> None:
    _, page = read_report(an_empty_run(), tmp_path)
    assert set(PLOTS) <= set(page.texts["text"])
    assert {"no readings", "no leases", "no samples"} <= set(page.texts["text"])
    assert page.texts["desc"] == ["No samples were recorded."]
    assert set(page.tables) == {"Figures"}


def test_a_single_sample_makes_a_page(tmp_path: Path) -> None:
    record = msgspec.structs.replace(an_empty_run(), samples=[sample(0.0, die_c=None)])
    _, page = read_report(record, tmp_path)
    assert "Die: never known" in page.texts["desc"][0]


def test_what_nobody_knew_is_a_gap_in_the_line(tmp_path: Path) -> None:
    """Die temperatures of 0 to 9 s, unknown at 3, 4, 5 and 7 s: a line in two pieces, and a dot at 6 s between."""
    values = [50.0, 51.0, 52.0, None, None, None, 53.0, None, 54.0, 55.0]
    samples = [sample(float(i), die_c=value) for i, value in enumerate(values)]
    path = tmp_path / "gaps.svg"
    write_figure(msgspec.structs.replace(an_empty_run(), samples=samples), path)
    heat = [element for element in ET.parse(path).iter() if "stroke: #c04a00" in element.get("style", "")]
    lines = [element.get("d", "") for element in heat if element.tag.endswith("path") and "clip-path" in element.attrib]
    pieces = [piece.count("L") + 1 for line in lines for piece in line.split("M")[1:]]
    assert pieces == [3, 1, 2], "of three points, one that only the dot shows, and two"
    assert len([element for element in heat if element.tag.endswith("use")]) == 1


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, write in (("a.html", write_report), ("a.svg", write_figure), ("a.png", write_figure)):
        write(a_night(), tmp_path / name)
        first = (tmp_path / name).read_bytes()
        write(a_night(), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first


def test_the_figure_alone(tmp_path: Path) -> None:
    write_figure(a_night(), tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG\r\n")
    write_figure(a_night(), tmp_path / "run.svg")
    root = ET.parse(tmp_path / "run.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert set(PLOTS) <= {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert "var(" not in (tmp_path / "run.svg").read_text(encoding="utf-8")


def test_failures_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name it \.png or \.svg"):
        write_figure(a_night(), tmp_path / "run.gif")
    with pytest.raises(StoreError, match=r"missing/report\.html was not written: No such file"):
        write_report(an_empty_run(), tmp_path / "missing" / "report.html")
