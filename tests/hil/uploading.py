"""Leases that may bring answers, and what they have brought, for the tests of bulk data."""

from __future__ import annotations

import hashlib
from pathlib import Path

from agent.core.model import JobKey
from hil.dispatcher.objects import Objects
from hil.dispatcher.staging import WHOLE, Staging
from hil.dispatcher.upload_rights import UploadLease


def upload_lease(
    unit: str = "car-1", job: str = "job-1", *, slices: int = 1_000_000, most_bytes: int = 1_000_000
) -> UploadLease:
    """A lease that may bring so much."""
    key = JobKey(job, 1)
    return UploadLease(unit=unit, key=key, slices=slices, items=4, slice_items=4, most_bytes=most_bytes)


def brought(objects: Objects, body: bytes, lease: UploadLease | None = None) -> bool:
    """Whether the lease has brought all of `body`, and nothing else under its name."""
    whose, name = lease or upload_lease(), hashlib.sha256(body).hexdigest()
    found = [path.read_bytes() for path in Staging(objects).folder(whose.unit, whose.key).glob(f"{name}.*{WHOLE}")]
    assert found in ([], [body])
    return found == [body]


def files(folder: Path) -> list[Path]:
    """All that lies anywhere in a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
