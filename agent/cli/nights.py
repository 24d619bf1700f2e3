"""What leases come to: by night, and which hours made a loss. Pure; the money is what the daemon says of each lease.

A night goes from noon to noon in local time, so an evening and its morning are one. A lease counts where it began. One
that has no verdict yet is neither a gain nor a loss: it is counted apart, since its energy is spent and its pay is not
known. An hour that cost more than it earned is named with the price of its energy at the plug, so that the owner sees
which hours a price floor (`driveway owner set --price-floor`) would have left out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, NamedTuple

NOON_H = 12


class Sum(NamedTuple):
    """Leases put together. Money is in units of the currency; `waiting` of them have no verdict yet."""

    name: str
    leases: int
    waiting: int
    slices: int
    energy_wh: float
    gross: float
    energy_cost: float

    @property
    def net(self) -> float:
        """What remains of the pay after its energy."""
        return self.gross - self.energy_cost

    @property
    def price_per_kwh(self) -> float | None:
        """What its energy cost, a kWh as measured at the computer; None where none was measured."""
        return self.energy_cost / self.energy_wh * 1000 if self.energy_wh > 0 else None


def began(lease: dict[str, Any]) -> dt.datetime:
    """When it was opened, in local time."""
    return dt.datetime.fromisoformat(lease["opened_at"]).astimezone()


def judged(lease: dict[str, Any]) -> bool:
    """Whether its verdict is in."""
    return lease["lease"]["verdict"] is not None


def by_night(leases: Iterable[dict[str, Any]]) -> list[Sum]:
    """A sum for each night, oldest first, named by the date of its evening and that of its morning."""
    return _by(leases, lambda at: _night((at - dt.timedelta(hours=NOON_H)).date()))


def losses(leases: Iterable[dict[str, Any]]) -> list[Sum]:
    """The hours whose judged leases cost more than they earned, oldest first: `2026-11-23 02:00-03:00`."""
    hours = _by((one for one in leases if judged(one)), _hour)
    return [hour for hour in hours if hour.net < 0]


def total(leases: Iterable[dict[str, Any]], name: str) -> Sum:
    """All of them as one."""
    return _sum(name, list(leases))


def _by(leases: Iterable[dict[str, Any]], name: Any) -> list[Sum]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in sorted(leases, key=lambda lease: str(lease["opened_at"])):
        groups.setdefault(name(began(one)), []).append(one)
    return [_sum(of, some) for of, some in groups.items()]


def _sum(name: str, leases: list[dict[str, Any]]) -> Sum:
    return Sum(
        name,
        len(leases),
        sum(not judged(one) for one in leases),
        sum(one["lease"]["slices_done"] for one in leases),
        sum(one["energy_wh"] for one in leases),
        sum(one["gross"] for one in leases),
        sum(one["energy_cost"] for one in leases),
    )


def _night(evening: dt.date) -> str:
    morning = evening + dt.timedelta(days=1)
    return f"{evening:%a %Y-%m-%d} to {morning:%a %d}"


def _hour(at: dt.datetime) -> str:
    begin = at.replace(minute=0, second=0, microsecond=0)
    end = (begin.astimezone(dt.UTC) + dt.timedelta(hours=1)).astimezone()
    return f"{begin:%a %Y-%m-%d %H:%M}-{end:%H:%M}"
