"""`driveway bundle`: says what would be in the archive and what was left out, asks, and writes it.

Nothing leaves the car by itself: the archive is a file that somebody takes away. It is made without a daemon too, of
what lies on this computer. Exit codes: 0 written, 1 it could not be, 2 nobody could be asked (give `--yes`), 5 refused.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from agent.cli import exits
from agent.cli.bundle.allow import Allowed
from agent.cli.bundle.archive import MOST_BYTES, packed, write
from agent.cli.bundle.collect import documents
from agent.cli.text import print_json, table
from agent.errors import DrivewayError
from agent.printable import printable

ABOUT = {
    "about.json": "format and version", "config.json": "configuration in force", "doctor.json": "driveway doctor",
    "keys.json": "state of the unit's key", "leases.json": "newest leases", "ledger.json": "newest leaves",
    "log.jsonl": "newest log events", "packages.json": "packages", "recording.jsonl": "what was seen and decided",
    "redacted.json": "what was left out", "signals.json": "the car's signals", "status.json": "driveway status",
    "units.json": "systemd units", "versions.json": "software versions",
}  # fmt: skip


def bundle(options: argparse.Namespace) -> int:
    """Make the archive, or only say what would be in it."""
    if not options.list and not options.yes and (options.json or not sys.stdin.isatty()):
        raise exits.UsageError("nobody can be asked whether to write it", hint="look with --list, then give --yes")
    out = options.out or Path(time.strftime("driveway-bundle-%Y%m%dT%H%M%SZ.tar.gz", time.gmtime()))
    made, allowed = documents(options, record=not options.list)
    size = sum(map(len, made.values()))
    if size > MOST_BYTES:
        raise DrivewayError(f"the bundle would be {size} bytes, more than {MOST_BYTES}", hint="give fewer --hours")
    content = packed(made)
    if not options.json:
        _tell(made, allowed, len(content))
    if not options.list:
        if not options.yes and not _agreed(out):
            print("Nothing was written.", file=sys.stderr)
            return exits.REFUSED
        write(out, content)
    if options.json:
        files = {name: len(made[name]) for name in sorted(made)}
        left_out = {name: dict(sorted(one.items())) for name, one in sorted(allowed.redacted.items())}
        print_json(
            {
                "v": 1,
                "file": None if options.list else str(out),
                "bytes": len(content),
                "documents": files,
                "redacted": left_out,
            }
        )
    elif not options.list:
        print(f"{printable(str(out))} is written. Look into it before you send it: tar -xzf {printable(str(out))}")
    return exits.FINE


def _tell(made: dict[str, bytes], allowed: Allowed, packed_bytes: int) -> None:
    rows = [
        (name, ABOUT.get(name, ""), f"{len(made[name]) / 1024:.1f}", _left_out(allowed, name)) for name in sorted(made)
    ]
    print(table(("DOCUMENT", "WHAT", "KIB", "LEFT OUT"), rows))
    print(f"{packed_bytes / 1024:.1f} KiB in all, compressed. Keys, tokens, names, places and inputs are not in it.")


def _left_out(allowed: Allowed, name: str) -> str:
    found = allowed.redacted.get(name)
    if not found:
        return "nothing"
    most = [f"{member} ({count})" for member, count in found.most_common(3)]
    return ", ".join(most) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _agreed(out: Path) -> bool:
    print(f"Write {printable(str(out))}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
