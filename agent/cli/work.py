"""`driveway leases | earnings | record`: what was worked, what it earned net of its energy, and a recording of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from agent.cli import exits
from agent.cli.client import ask, socket_path
from agent.cli.nights import Sum, began, by_night, judged, losses, total
from agent.cli.terminal import Screen, screen, wrap
from agent.cli.text import print_json, shown, table, value

PAGE = 1000
"""As many leases the daemon tells at once."""
PAGES_MAX = 50
NEVER_MS = 2**53


def leases(options: argparse.Namespace) -> int:
    """Print the newest leases."""
    data = _leases(options)
    if options.json:
        print_json(data)
        return exits.FINE
    rows = [
        (
            f"{began(row):%Y-%m-%d %H:%M:%S}",
            f"{row['lease']['job']}/{row['lease']['epoch']}",
            row["lease"]["package"] or "-",
            f"{row['lease']['slices_done']}/{row['lease']['slices_wanted']}",
            _ending(row["lease"]),
            value(row["lease"]["verdict"] or row["lease"]["state"]),
            f"{row['net']:.6f}",
        )
        for row in shown(data)
    ]
    heads = ("OPENED", "LEASE", "PACKAGE", "SLICES", "ENDED", "VERDICT", "NET")
    if options.csv:
        _print_csv(heads, rows)
    elif rows:
        print("\n".join(_fitting(table(heads, rows), rows, screen())))
    else:
        print("No lease in this time." if _within(options) else "No lease yet. `driveway why` says what is in the way.")
    return exits.FINE


def earnings(options: argparse.Namespace) -> int:
    """Print what was earned net of its energy: each night, each lease, and which hours made a loss."""
    path = socket_path(options.socket, options.config)
    if options.json:
        print_json(ask(path, "earnings", limit=options.limit or 20, **_within(options)))
        return exits.FINE
    of_all = shown(ask(path, "earnings", limit=1))
    currency = of_all["total"]["currency"]
    data = shown(_leases(options))
    rows = [_money(f"{row['lease']['job']}/{row['lease']['epoch']}", row) for row in data]
    nights = by_night(data)
    if options.csv:
        names = ("name", "energy_wh", "paid", "energy_cost", "net", "currency")
        _print_csv(names, [(*row, currency) for row in ([_sum(one) for one in nights] if options.nights else rows)])
        return exits.FINE
    heads = ("WH", "PAID", "ENERGY COST", "NET")
    on, blocks = screen(), list[str]()
    if nights:
        blocks.append(table(("NIGHT", *heads, "LEASES"), [(*_sum(one), _count(one)) for one in nights]))
    if rows and not options.nights:
        blocks.append(table(("LEASE", *heads), rows))
    blocks += [_loss_text(data, currency, on)] if data else []
    said = of_all["total"]
    named = f"In this time: {_summary(total(data, ''), currency)}\n" if _within(options) else ""
    spent = f"{said['gross']:.6f} paid, {said['energy_cost']:.6f} for {of_all['total_energy_wh']:.4f} Wh"
    blocks.append(f"{named}All leases ever: {said['net']:.6f} {currency} net ({spent})")
    print("\n\n".join(on.show(block) for block in blocks))
    return exits.FINE


def record(options: argparse.Namespace) -> int:
    """Have the recording written, and say where it is."""
    data = ask(socket_path(options.socket, options.config), "record")
    if options.json:
        print_json(data)
        return exits.FINE
    print(f"{data['file']}: {data['bytes'] / 1e6:.1f} MB. Play it again: driveway simulate {data['file']}")
    return exits.FINE


def _leases(options: argparse.Namespace) -> Any:
    """Those that were asked for, newest first; of a time, all of them, a page after the other."""
    path, within = socket_path(options.socket, options.config), _within(options)
    if not within:
        return ask(path, "leases", limit=options.limit or 20)
    most = options.limit or PAGE * PAGES_MAX
    found, known, until_ms = list[Any](), set[tuple[str, int]](), within["until_wall_ms"]
    while len(found) < most:
        page = ask(path, "leases", limit=min(PAGE, most), **{**within, "until_wall_ms": until_ms})
        fresh = [one for one in page if (one["lease"]["job"], one["lease"]["epoch"]) not in known]
        known |= {(one["lease"]["job"], one["lease"]["epoch"]) for one in fresh}
        found += fresh
        if len(page) < min(PAGE, most) or not fresh:
            break
        until_ms = min(one["lease"]["opened_wall_ms"] for one in page) + 1
    return found[:most]


def _within(options: argparse.Namespace) -> dict[str, int]:
    """The time that was asked for; a daemon of before this is asked for none, which it would not know."""
    if options.since is None and options.until is None:
        return {}
    since_ms = 0 if options.since is None else options.since
    until_ms = NEVER_MS if options.until is None else options.until
    if since_ms >= until_ms:
        raise exits.UsageError("--since is not before --until", hint="both are local time")
    return {"since_wall_ms": since_ms, "until_wall_ms": until_ms}


def _money(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    waits = "" if judged(row) else " (no verdict yet)"
    figures = (f"{row['energy_wh']:.4f}", f"{row['gross']:.6f}", f"{row['energy_cost']:.6f}", f"{row['net']:.6f}")
    return name + waits, *figures


def _sum(of: Sum) -> tuple[str, ...]:
    return of.name, f"{of.energy_wh:.4f}", f"{of.gross:.6f}", f"{of.energy_cost:.6f}", f"{of.net:.6f}"


def _count(of: Sum) -> str:
    return f"{of.leases}, {of.waiting} without a verdict" if of.waiting else str(of.leases)


def _summary(of: Sum, currency: str) -> str:
    return f"{of.net:.6f} {currency} net ({of.gross:.6f} paid, {of.energy_cost:.6f} for {of.energy_wh:.4f} Wh)"


def _loss_text(data: Sequence[dict[str, Any]], currency: str, on: Screen) -> str:
    """The hours that cost more than they earned, and what would have left them out."""
    hours = losses(data)
    if not hours:
        return "No hour made a loss."
    lines = [f"{len(hours)} hour{'s' if len(hours) > 1 else ''} made a loss:"]
    for hour in hours:
        price = "" if hour.price_per_kwh is None else f" at {hour.price_per_kwh:.3g} {currency}/kWh"
        lines.append(f"  {hour.name}{price}: {hour.net:.6f} {currency} in {hour.leases} leases")
    lines += wrap("`driveway owner set --price-floor` leaves out hours that do not pay.", on.columns)
    return "\n".join(lines)


def _fitting(drawn: str, rows: Sequence[tuple[str, ...]], on: Screen) -> list[str]:
    """The table; on a terminal that is too narrow for it, two lines a lease."""
    lines = drawn.splitlines()
    if not on.ansi or max(map(len, lines)) <= on.columns:
        return [on.show(line) for line in lines]
    found = list[str]()
    for opened, lease, package, slices, ended, verdict, net in rows:
        found += wrap(f"{opened} {lease}", on.columns, "  ")
        found += wrap(f"  {package}, {slices} slices, {ended}, {verdict}, net {net}", on.columns, "  ")
    return [on.show(line) for line in found]


def _print_csv(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Comma-separated (RFC 4180), with a line of names; a text that a spreadsheet would run as a formula is quoted."""
    import csv  # noqa: PLC0415 - few ask for it

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([head.lower().replace(" ", "_") for head in heads])
    for row in rows:
        writer.writerow([f"'{cell}" if cell[:1] in "=+@" and cell[:1] else cell for cell in row])


def _ending(lease: dict[str, Any]) -> str:
    if lease["kind"] == "result":
        return "finished"
    return f"given back: {lease['why']}" if lease["kind"] == "yield" else "-"
