"""The live view as lines: pure, from what the daemon said last to what a terminal of some size shows.

What its lines are made of is in `watch_parts`. What does not fit the height is left out, least important first: the
gate, the reason and the heat stay to the end. A value that the daemon did not tell leaves its line out, so an older one
is no failure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from agent.cli.terminal import Screen, cut, span, wrap
from agent.cli.text import value
from agent.cli.watch_parts import (
    BAR_LEAST,
    COLOURS,
    LABEL,
    Line,
    Part,
    Scene,
    against,
    bar,
    cells,
    clock,
    drawn,
    figure,
)
from agent.cli.when import wall_s

MARKS = {"open": "█", "hold": "▒", "closed": "░"}
SEVERITY = {"open": 0, "hold": 1, "closed": 2}
UNLIKE = (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError, OSError)
"""What an answer of another version, or one that is not as it should be, makes of a section: it is left out."""

CHARGE = "Vehicle.Powertrain.TractionBattery.StateOfCharge.Current"
PACK = "Vehicle.Powertrain.TractionBattery.Temperature.Average"
AMBIENT = "Vehicle.Exterior.AirTemperature"
LOW_VOLTAGE = "Vehicle.LowVoltageBattery.CurrentVoltage"


Section = Callable[[Scene, Screen], Iterator[Line]]


def lines(scene: Scene, on: Screen) -> list[str]:
    """What is drawn: at most `on.rows` lines of at most `on.columns` columns, not counting the colours' codes."""
    found: list[tuple[int, list[Line]]] = []
    for rank, section in SECTIONS:
        try:
            found.append((rank, list(section(scene, on))))
        except UNLIKE:
            continue
    while sum(len(some) for _, some in found) > on.rows and len(found) > 1:
        found.remove(max(found, key=lambda one: one[0]))
    shown = [line for _, some in found for line in some][: on.rows]
    left = on.rows - len(shown)
    with contextlib.suppress(*UNLIKE):
        shown += list(_lately(scene, left))
    return [drawn(line, on) for line in shown[: on.rows]]


# --- the sections -------------------------------------------------------------------------------------------------


def _head(scene: Scene, on: Screen) -> Iterator[Line]:
    now = clock(scene.now_s, "%H:%M:%S")
    status = scene.status
    if status is None:
        yield [Part(cut("driveway", on.columns - 10).ljust(on.columns - 9)), Part(now)]
        return
    state, gate = str(status["state"]), str(status["gate"])
    said = f"{state.upper()}, gate {gate}"
    name = f"driveway {status.get('version', '')}  " if on.columns >= 60 else ""
    room = max(0, on.columns - len(name) - len(said) - len(now))
    yield [Part(name), Part(said, COLOURS.get(gate, "yellow")), Part(" " * room), Part(now, "grey")]


def _trouble(scene: Scene, on: Screen) -> Iterator[Line]:
    if not scene.trouble:
        return
    since = f" What is below is {span(scene.now_s - scene.heard_s)} old." if scene.status is not None else ""
    for line in wrap(cells(f"{scene.trouble}.{since} It is tried again."), on.columns, "  ")[:3]:
        yield [Part(line, "red")]


def _gates(scene: Scene, on: Screen) -> Iterator[Line]:
    """The gate of the last hours, and what its marks mean."""
    timeline = scene.timeline
    if timeline is None:
        return
    width = max(BAR_LEAST, on.columns - LABEL - 1)
    begin_s = scene.now_s - scene.hours * 3600
    changes = [(wall_s(one["at"]), one["state"]) for one in timeline["changes"]]
    if scene.status is not None:
        changes.append((scene.now_s, scene.status["gate"]))
    parts = [Part(f"{f'gate {scene.hours:g} h':<{LABEL}}", "grey")]
    for state, mark in _runs(_history(changes, begin_s, scene.now_s, width)):
        parts.append(Part(mark, COLOURS.get(state, "")))
    yield parts
    ends = clock(begin_s, "%H:%M"), "now"
    legend = " ".join(f"{mark} {state}" for state, mark in MARKS.items())
    if width >= len(legend) + 12:
        yield [Part(f"{'':<{LABEL}}{ends[0]} {legend:^{width - 10}} {ends[1]}", "grey")]


def _history(changes: list[tuple[float, str]], begin_s: float, end_s: float, width: int) -> list[str]:
    """The least open state within each of so many equal spans; "" where nothing is known."""
    found, states = [], [("", begin_s - 1), *((state, at_s) for at_s, state in sorted(changes))]
    step_s = (end_s - begin_s) / width
    for cell in range(width):
        low_s, high_s = begin_s + cell * step_s, begin_s + (cell + 1) * step_s
        before = [state for state, at_s in states if at_s <= low_s]
        inside = [state for state, at_s in states if low_s < at_s <= high_s]
        known = [state for state in (*before[-1:], *inside) if state in SEVERITY]
        found.append(max(known, key=SEVERITY.__getitem__, default=""))
    return found


def _runs(states: list[str]) -> Iterator[tuple[str, str]]:
    start = 0
    for end in range(1, len(states) + 1):
        if end == len(states) or states[end] != states[start]:
            yield states[start], MARKS.get(states[start], " ") * (end - start)
            start = end


def _why(scene: Scene, on: Screen) -> Iterator[Line]:
    """The first reasons, or what else it waits for."""
    status = scene.status
    if status is None:
        return
    most = 2 if on.rows >= 20 else 1
    told = [(one["state"], f"{one['gate']}: {one['text']}", one.get("clears_at")) for one in status["reasons"]]
    if not told:
        idle = [one for one in status.get("idle", []) if one.get("blocks", True)]
        told = [("hold", one["text"], one.get("clears_at")) for one in idle]
        told = told or ([("hold", status["waiting"], None)] if status.get("waiting") else [])
    for number, (state, text, clears_at) in enumerate(told[:most]):
        left = f" (clears in {span(wall_s(clears_at) - scene.now_s)})" if clears_at else ""
        more = f" [{len(told) - most} more]" if number == most - 1 and len(told) > most else ""
        label = Part(f"{'why' if number == 0 else '':<{LABEL}}", "grey")
        room = on.columns - LABEL - len(left) - len(more)
        yield [label, Part(cut(cells(text), max(room, 10)) + left + more, COLOURS.get(state, "yellow"))]


def _heat(scene: Scene, on: Screen) -> Iterator[Line]:
    """Die and power against what they are held to."""
    status, limits = scene.status, (scene.timeline or {}).get("limits")
    if status is None or status["computer"] is None:
        return
    die_c, power_w = status["computer"]["die_c"], status["computer"]["power_w"]
    cap_w = status["power_cap_w"]
    if limits is None:
        yield figure("die", value(die_c, "°C"), "", "")
        yield figure("power", value(power_w, "W"), "", f"cap {value(cap_w, 'W')}")
        return
    yield against(on, "die", die_c, "°C", limits["die"], low=0.0)
    shown = bar(on, power_w, 0.0, limits["power_max_w"], {cap_w: "|"})
    yield figure("power", value(power_w, "W"), shown, f"cap {value(cap_w)} of {value(limits['power_max_w'])}")


def _battery(scene: Scene, on: Screen) -> Iterator[Line]:
    """Charge, pack, air and the small battery, where the car tells them."""
    said = {one["path"]: one for one in scene.signals}
    limits = (scene.timeline or {}).get("limits")
    if limits is None:
        return
    for label, path, unit, limit, low, high in (
        ("charge", CHARGE, "%", "charge", 0.0, 100.0),
        ("pack", PACK, "°C", "pack_hot", -20.0, None),
        ("air", AMBIENT, "°C", "ambient_hot", -20.0, None),
        ("12 V", LOW_VOLTAGE, "V", "low_voltage", 10.0, 16.0),
    ):
        one = said.get(path)
        if one is None or (one["value"] is None and not one["problem"]):
            continue
        if one["problem"]:
            yield figure(label, "-", "", f"{one['problem'].replace('_', ' ')}", "yellow")
        else:
            yield against(on, label, one["value"], unit, limits[limit], low=low, high=high)


def _prices(scene: Scene, on: Screen) -> Iterator[Line]:
    """What energy costs now, and when work is wanted in the coming day."""
    timeline = scene.timeline
    slots = [] if timeline is None else timeline["prices"]
    if timeline is None or not slots:
        return
    now = next((one for one in slots if wall_s(one["start"]) <= scene.now_s < wall_s(one["end"])), slots[0])
    wanted = [one for one in slots if one["chosen"]]
    windows = list(_joined(wanted))
    said = ", ".join(
        f"{clock(begin_s, '%H:%M')}-{clock(end_s, '%H:%M')} at {price:.3g}" for begin_s, end_s, price in windows[:3]
    )
    said = f"work {said}" if windows else "no slot is wanted"
    yield [
        Part(f"{'price':<{LABEL}}", "grey"),
        Part(f"{now['price']:.3g} {timeline['price_unit']} ", "green" if now["chosen"] else "yellow"),
        Part(said + (f", {len(windows) - 3} more" if len(windows) > 3 else "")),
    ]
    width = on.columns - LABEL - 1
    begin_s, end_s = scene.now_s, max(wall_s(one["end"]) for one in slots)
    if width >= 2 * BAR_LEAST and len(slots) > 1:
        step_s = (end_s - begin_s) / width
        marks = [
            "█" if any(low <= begin_s + (cell + 0.5) * step_s < high for low, high, _ in windows) else "·"
            for cell in range(width)
        ]
        yield [Part(f"{'to ' + clock(end_s, '%H:%M'):<{LABEL}}", "grey"), Part("".join(marks), "green")]


def _joined(slots: list[dict[str, Any]]) -> Iterator[tuple[float, float, float]]:
    """The wanted times, those that touch as one, with the dearest price in each."""
    begin_s = end_s = price = None
    for one in slots:
        low_s, high_s = wall_s(one["start"]), wall_s(one["end"])
        if begin_s is not None and end_s is not None and price is not None:
            if low_s <= end_s:
                end_s, price = high_s, max(price, one["price"])
                continue
            yield begin_s, end_s, price
        begin_s, end_s, price = low_s, high_s, one["price"]
    if begin_s is not None and end_s is not None and price is not None:
        yield begin_s, end_s, price


def _lease(scene: Scene, on: Screen) -> Iterator[Line]:
    status = scene.status
    if status is None:
        return
    lease, rate = status["lease"], scene.slices_per_s
    pace = "" if not rate else f", {rate:.1f}/s" if rate >= 0.1 else f", one in {span(1 / rate)}"
    if lease is None:
        kept = status["slices"]["kept"]
        slices = "slice" if kept == 1 else "slices"
        yield [Part(f"{'lease':<{LABEL}}", "grey"), Part(f"none; {kept} {slices} kept since the start{pace}")]
        return
    done, wanted = lease["slices_done"], lease["slices_wanted"]
    shown = bar(on, float(done), 0.0, float(max(1, wanted)), {})
    said = f"{done}/{wanted} slices{pace}, {span(wall_s(lease['expires_at']) - scene.now_s)} left"
    yield [Part(f"{'lease':<{LABEL}}", "grey"), Part(f"[{shown}] " if shown else "", "green"), Part(said)]
    name = f"{lease['job']}/{lease['epoch']} {lease['package']}, {lease['phase']}"
    worker = status["worker"]
    runs = "" if worker is None else f"; {worker['executor']} on {worker['device']}"
    yield [Part(" " * LABEL), Part(name + runs)]


def _fleet(scene: Scene, _on: Screen) -> Iterator[Line]:
    status = scene.status
    if status is None:
        return
    link = status["link"]
    where = f"connected to {link['broker']}" if link["connected"] else f"down: {link['detail'] or '-'}"
    waits = f"; {status['outbox']['pending']} hand-ins wait"
    yield [Part(f"{'link':<{LABEL}}", "grey"), Part(where + waits, "" if link["connected"] else "yellow")]


def _money(scene: Scene, _on: Screen) -> Iterator[Line]:
    status = scene.status
    if status is None:
        return
    earned = status["earnings"]
    said = f"{earned['net']:.4f} {earned['currency']} net, {status['energy_wh']:.1f} Wh"
    yield [Part(f"{'earned':<{LABEL}}", "grey"), Part(said, "" if earned["net"] >= 0 else "red")]


def _vacates(scene: Scene, on: Screen) -> Iterator[Line]:
    """How fast the computer was given back: percentiles, and the histogram."""
    status = scene.status
    if status is None or not status["vacate"]["count"]:
        return
    times = status["vacate"]
    said = f"{times['count']}: p50 {times['p50_ms']}, p99 {times['p99_ms']}, max {times['max_ms']} ms"
    buckets = (scene.timeline or {}).get("vacates", [])
    shown = [one for one in buckets if one["count"]]
    parts = [Part(f"{'vacates':<{LABEL}}", "grey"), Part(said)]
    ups = (f"<={one['up_to_ms']}" if one["up_to_ms"] is not None else "more" for one in shown)
    counts = "  ".join(f"{up}: {one['count']}" for up, one in zip(ups, shown, strict=True))
    yield [*parts, Part(f"   {counts}", "grey")] if counts and on.columns >= 70 else parts


def _lately(scene: Scene, most: int) -> Iterator[Line]:
    """The newest changes of the gate, newest first, in what room is left."""
    changes = (scene.timeline or {}).get("changes", [])
    if most < 2 or not changes:
        return
    yield [Part("of late", "grey")]
    for one in changes[::-1][: most - 1]:
        said = f"{one['state']:<7}{one.get('code', '').replace('_', ' ')}"
        signal = f" ({one['signal']})" if one.get("signal") else ""
        yield [
            Part(f"{clock(wall_s(one['at']), '%H:%M:%S'):<{LABEL}}", "grey"),
            Part(said, COLOURS.get(one["state"], "")),
            Part(signal, "grey"),
        ]


SECTIONS: tuple[tuple[int, Section], ...] = (
    (0, _head),
    (1, _trouble),
    (5, _gates),
    (2, _why),
    (3, _heat),
    (6, _battery),
    (9, _prices),
    (4, _lease),
    (7, _fleet),
    (8, _money),
    (10, _vacates),
)
"""What is told from top to bottom, and its rank: the highest is left out first where the height does not do."""
