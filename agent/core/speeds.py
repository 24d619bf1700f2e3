"""How fast this computer is at each package: learned from finished slices, to tell what a lease will take.

A handful of packages is remembered, the one used longest ago is forgotten first, and each a day after its last slice:
what made a slice slow (heat, another user, a bad engine) need not last. A memory that refuses every lease of a package
would never be corrected, so after a few leases of it in a row that were too long it is forgotten, and one gets its try.
Times are at full pace, by the worker's clock; the thermal law's present share of it is laid over them.
"""

from __future__ import annotations

import msgspec

from agent.core.walltime import DAY_MS

PACKAGES_MAX = 16
SHORTS_MAX = 3
"""So many leases of a package in a row are given back for what is remembered of it, before it is forgotten."""
NEWEST_SHARE = 0.3
"""How much a new slice counts against what is known."""


class Speed(msgspec.Struct, frozen=True):
    """The time of one item of a package at full pace, as of `at_ms`; `shorts`: leases since then that were too long."""

    package_sha256: str
    item_ms: float
    at_ms: int
    shorts: int = 0


class Speeds(msgspec.Struct, frozen=True):
    """What is known, the newest last."""

    known: tuple[Speed, ...] = ()

    def learned(self, package_sha256: str, items: int, took_ms: float, at_ms: int) -> Speeds:
        """After a slice of so many items that took so long at full pace."""
        if items <= 0 or took_ms <= 0:
            return self
        item_ms, before = took_ms / items, self.item_ms(package_sha256, at_ms)
        if before is not None:
            item_ms = before + (item_ms - before) * NEWEST_SHARE
        others = tuple(one for one in self.known if one.package_sha256 != package_sha256)
        return Speeds((*others[-(PACKAGES_MAX - 1) :], Speed(package_sha256, item_ms, at_ms)))

    def too_short(self, package_sha256: str) -> Speeds:
        """After a lease of this package for which the time was too short."""
        counted = (
            msgspec.structs.replace(one, shorts=one.shorts + 1) if one.package_sha256 == package_sha256 else one
            for one in self.known
        )
        return Speeds(tuple(one for one in counted if one.shorts < SHORTS_MAX))

    def item_ms(self, package_sha256: str, now_ms: int) -> float | None:
        """The time of one item at full pace; None where it is not known."""
        for one in self.known:
            if one.package_sha256 == package_sha256 and now_ms - one.at_ms < DAY_MS:
                return one.item_ms
        return None
