"""What `driveway status` shows of the catalogue: what is believed of it, until when, and what stands in the way."""

from __future__ import annotations

import msgspec

from agent.stamp import stamp
from agent.trust.catalogue import Catalogue
from agent.trust.time_floor import TimeFloor


class CatalogueView(msgspec.Struct, frozen=True):
    """The catalogue that is believed: the versions of its metadata (None: none yet), and what stands in the way.

    `checked_at` is when it was last refreshed; `clock_behind_s` how far the wall clock is behind what was signed.
    """

    root: int | None = None
    timestamp: int | None = None
    snapshot: int | None = None
    targets: int | None = None
    expires_at: str | None = None
    expired: bool = False
    deny_number: int = 0
    packages: int = 0
    dispatchers: int = 0
    checked_at: str | None = None
    error: str = ""
    time_floor: str = ""
    clock_behind_s: int = 0


def catalogue_view(
    catalogue: Catalogue | None, floor: TimeFloor, *, checked_wall_ms: int | None, error: str
) -> CatalogueView:
    """The block `catalogue`; `checked_wall_ms` is when a refresh went well last, `error` why the newest did not."""
    view = CatalogueView(
        checked_at=None if checked_wall_ms is None else stamp(checked_wall_ms),
        error=error,
        time_floor=stamp(floor.floor_ms),
        clock_behind_s=floor.behind_ms() // 1000,
    )
    if catalogue is None:
        return view
    versions = catalogue.versions
    return msgspec.structs.replace(
        view,
        root=versions.root,
        timestamp=versions.timestamp,
        snapshot=versions.snapshot,
        targets=versions.targets,
        expires_at=stamp(catalogue.expires_ms),
        expired=floor.now_ms() >= catalogue.expires_ms,
        deny_number=catalogue.denied.number,
        packages=len(catalogue.packages),
        dispatchers=0 if catalogue.dispatchers is None else len(catalogue.dispatchers.keys),
    )
