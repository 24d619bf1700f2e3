"""The exit codes of `driveway`, and what they mean to a script."""

from __future__ import annotations

FINE = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
DEGRADED = 4
REFUSED = 5
