"""Wall-clock milliseconds as people and programs are shown them."""

from __future__ import annotations

import datetime as dt


def stamp(wall_ms: int) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    moment = dt.datetime.fromtimestamp(wall_ms / 1000, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
