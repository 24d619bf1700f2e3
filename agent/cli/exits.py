"""The exit codes of `driveway`, and what they mean to a script."""

from __future__ import annotations

from agent.errors import DrivewayError

FINE = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
DEGRADED = 4
REFUSED = 5


class UsageError(DrivewayError):
    """Arguments that contradict each other, or say nothing: exit code 2."""
