"""`driveway leases | earnings | record`: what was worked, what it earned, and a recording of it."""

from __future__ import annotations

import argparse
from typing import Any

from agent.cli import exits
from agent.cli.client import ask, socket_path
from agent.cli.text import print_json, table, value


def leases(options: argparse.Namespace) -> int:
    """Print the newest leases."""
    data = _fetch(options, "leases")
    if options.json:
        print_json(data)
        return exits.FINE
    rows = [
        (
            row["opened_at"][:19].replace("T", " "),
            f"{row['lease']['job']}/{row['lease']['epoch']}",
            row["lease"]["package"],
            f"{row['lease']['slices_done']}/{row['lease']['slices_wanted']}",
            _ending(row["lease"]),
            value(row["lease"]["verdict"] or row["lease"]["state"]),
        )
        for row in data
    ]
    print(table(("OPENED (UTC)", "LEASE", "PACKAGE", "SLICES", "ENDED", "VERDICT"), rows))
    return exits.FINE


def earnings(options: argparse.Namespace) -> int:
    """Print what the newest leases earned net of their energy, and the total of all."""
    data = _fetch(options, "earnings")
    if options.json:
        print_json(data)
        return exits.FINE
    rows: list[tuple[str, ...]] = [
        (
            f"{row['lease']['job']}/{row['lease']['epoch']}",
            f"{row['energy_wh']:.4f}",
            f"{row['gross']:.6f}",
            f"{row['energy_cost']:.6f}",
            f"{row['net']:.6f}",
            row["lease"]["currency"],
        )
        for row in data["leases"]
    ]
    total = data["total"]
    sums = [f"{total[column]:.6f}" for column in ("gross", "energy_cost", "net")]
    rows.append(("all leases", f"{data['total_energy_wh']:.4f}", *sums, total["currency"]))
    print(table(("LEASE", "WH", "PAID", "ENERGY COST", "NET", "CURRENCY"), rows))
    return exits.FINE


def record(options: argparse.Namespace) -> int:
    """Have the recording written, and say where it is."""
    data = ask(socket_path(options.socket, options.config), "record")
    if options.json:
        print_json(data)
        return exits.FINE
    print(f"{data['file']}: {data['bytes'] / 1e6:.1f} MB. Play it again: driveway simulate {data['file']}")
    return exits.FINE


def _fetch(options: argparse.Namespace, verb: str) -> Any:
    return ask(socket_path(options.socket, options.config), verb, limit=options.limit)


def _ending(lease: dict[str, Any]) -> str:
    if lease["kind"] == "result":
        return "finished"
    return f"given back: {lease['why']}" if lease["kind"] == "yield" else "-"
