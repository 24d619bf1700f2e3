"""What every event has, whoever tells it; the events themselves are in `agent.core.events` and `fleet_events`."""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """When this computer learned of it: `at_ms`, the CLOCK_BOOTTIME in milliseconds.

    Boot time goes on counting while the car sleeps, where CLOCK_MONOTONIC would lose those hours.
    """

    at_ms: int
