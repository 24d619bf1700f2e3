"""The report of a night as text: a line a change of the gate, then the sums, then the promises."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator

from agent.simulate.report import Change, Report

Paint = Callable[[str, str], str]
"""Puts a text into a colour, where there are colours."""
COLOURS = {"open": "green", "hold": "yellow", "closed": "red"}
BLINK_S, BLINK_SHARE = 2.0, 0.001
"""A line that would stand for less than this, or than this share of the night, where the state is the same before and
after, is left out."""
NAMED = 3
"""Of leaves that were never seen, so many are named."""
SHORTEST_S = 0.05
"""What stood in the way for less is not listed."""


def render(report: Report, paint: Paint = lambda text, _colour: text) -> str:
    """The whole report."""
    parts = [
        _head(report),
        *_timeline(report, paint),
        "",
        *_reasons(report),
        *_sums(report),
        "",
        *_promises(report, paint),
    ]
    parts += [f"note     {remark}" for remark in report.remarks]
    return "\n".join(parts)


def _head(report: Report) -> str:
    when = "at a time the trace does not tell" if report.started is None else f"from {_date(report.started)}"
    zone = "" if report.started is None else f" {report.started[11:16]} ({report.time_zone})"
    return f"{report.trace}: {span(report.hours * 3600)} {when}{zone}, against {report.policy}\n"


# --- the timeline ----------------------------------------------------------------------------------------------------


def _timeline(report: Report, paint: Paint) -> Iterator[str]:
    lines = _without_blinks(report.timeline)
    last_date = report.started[:10] if report.started else None
    for line, until_ms in zip(lines, [*(one.at_ms for one in lines[1:]), None], strict=True):
        end_ms = report.timeline[-1].at_ms + report.timeline[-1].seconds * 1000 if until_ms is None else until_ms
        if line.at is not None and line.at[:10] != last_date:
            last_date = line.at[:10]
            yield f"  {_date(line.at)}"
        clock = _elapsed(line.at_ms) if line.at is None else line.at[11:19]
        state = paint(line.state.ljust(6), COLOURS[line.state])
        vacated = next((one for one in report.vacates if line.at_ms <= one.at_ms < end_ms), None)
        gave_back = f" Given back in {vacated.idle_ms} ms." if vacated is not None and line.state == "closed" else ""
        yield f"  {clock:>8}  {state}  {span((end_ms - line.at_ms) / 1000):>10}  {line.text}{gave_back}"


def _without_blinks(timeline: tuple[Change, ...]) -> list[Change]:
    """The timeline without the moments in which one reason gives way to the next; what changed the state stays."""
    kept: list[Change] = []
    blink_s = min(BLINK_S, BLINK_SHARE * sum(one.seconds for one in timeline))
    for one, following in zip(timeline, [*timeline[1:], None], strict=True):
        changes = bool(kept) and kept[-1].state != one.state
        if changes or one.seconds >= blink_s or following is None or following.state != one.state:
            kept.append(one)
    return kept


# --- the sums --------------------------------------------------------------------------------------------------------


def _reasons(report: Report) -> Iterator[str]:
    total_s = report.hours * 3600
    open_s = report.open_minutes * 60
    share = f" ({open_s / total_s:.0%})" if total_s else ""
    shut = f"on hold {span(report.hold_minutes * 60)}, closed {span(report.closed_minutes * 60)}"
    yield f"open     {span(open_s)}{share}, {shut}"
    if report.asleep_hours:
        yield f"asleep   {span(report.asleep_hours * 3600)}"
    if not report.ever_parked:
        yield "parked   never: at no moment did every sign agree that the car was parked and empty"
    if report.never_seen:
        more = f" and {len(report.never_seen) - NAMED} more" if len(report.never_seen) > NAMED else ""
        yield f"unseen   {', '.join(report.never_seen[:NAMED])}{more}: the gates wait for them"
    if report.reasons:
        standing = [one for one in report.reasons if one.minutes * 60 >= SHORTEST_S]
        width = max((len(one.code) for one in standing), default=0)
        yield f"\n  {'IN THE WAY'.ljust(width)}  {'FOR':>10}  {'ALONE':>10}"
        for one in standing:
            yield f"  {one.code.ljust(width)}  {span(one.minutes * 60):>10}  {span(one.alone_minutes * 60):>10}"
        yield ""


def _sums(report: Report) -> Iterator[str]:
    work = report.work
    yield f"work     {span(work.minutes * 60)}: {count(work.slices, 'slice')} in {count(work.leases, 'lease')}" + (
        f", {work.unsettled_slices} not settled when the trace ends" if work.unsettled_slices else ""
    )
    yield f"energy   {work.energy_wh:.1f} Wh for the work, {work.computer_wh:.1f} Wh for the whole computer"
    yield (f"money    {work.net:.4f} {work.currency} net: {work.paid:.4f} paid, {work.cost:.4f} for energy and wear")
    if report.vacates:
        worst = max(report.vacates, key=lambda one: one.idle_ms)
        free_ms = max(one.gone_ms for one in report.vacates)
        causes = ", ".join(dict.fromkeys(one.cause for one in report.vacates))
        yield (
            f"vacates  {len(report.vacates)} ({causes}): at most {worst.idle_ms} ms from the sign to idle, "
            f"{free_ms} ms to free"
        )
    else:
        yield "vacates  none"
    die = "not read" if report.highest_die_c is None else f"{report.highest_die_c:.1f} °C at most"
    charge = report.lowest_charge_percent
    yield f"car      die {die}, charge {'not known' if charge is None else f'{charge:.1f} % at least'}"
    if report.supposed is not None:
        one = report.supposed
        yield (
            f"supposed there is always work, in slices of {one.slice_s:g} s at {_plain(one.slice_price_micro / 1e6)} "
            f"{work.currency}; {one.work_w:g} W at full work, {one.load_s:g} s to load"
        )


def _promises(report: Report, paint: Paint) -> Iterator[str]:
    kept = [promise for promise in report.promises if promise.held]
    if report.held:
        yield f"promises {paint(f'all {len(kept)} held', 'green')}"
        return
    yield f"promises {paint(f'{len(report.promises) - len(kept)} of {len(report.promises)} BROKEN', 'red')}"
    for promise in report.promises:
        for breach in promise.broken[:5]:
            clock = _elapsed(breach.at_ms) if breach.at is None else breach.at[11:23]
            yield f"  {clock}  {paint(promise.name, 'red')}: {breach.detail}"
        if len(promise.broken) > 5:
            yield f"  and {len(promise.broken) - 5} times more: {promise.name}"


# --- words -----------------------------------------------------------------------------------------------------------


def span(seconds: float) -> str:
    """A time span as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest_s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest_s:02d} s" if rest_s and minutes < 10 else "")
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, what: str) -> str:
    """`1 slice`, `2 slices`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _plain(amount: float) -> str:
    return f"{amount:.6f}".rstrip("0").rstrip(".")


def _elapsed(at_ms: int) -> str:
    hours, rest_s = divmod(at_ms // 1000, 3600)
    return f"+{hours}:{rest_s // 60:02d}:{rest_s % 60:02d}"


def _date(stamp: str) -> str:
    return dt.date.fromisoformat(stamp[:10]).strftime("%A %-d %B %Y")
