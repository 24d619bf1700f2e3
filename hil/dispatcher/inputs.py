"""How a lease's input is named in its grant: where it is, whether it is there already, and whether it is sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.errors import StoreError
from agent.fleet.messages import INLINE_INPUT_BYTES, ObjectRef
from agent.trust.dsse import to_base64
from agent.trust.sealing import TAG_BYTES, SealedObject
from hil.dispatcher.database import Row
from hil.dispatcher.sealing import KnownKey

if TYPE_CHECKING:
    from hil.dispatcher.leases import Places

INLINE_SLICES = 256
"""More slices than these are a list too long to leave room for an input in a message of 16 KiB."""


def input_ref(job: Row, slices: tuple[int, ...], places: Places, seal_to: KnownKey | None = None) -> ObjectRef:
    """The lease's input, in the grant itself where both it and the list of slices are short; sealed where it must be.

    Raises StoreError for one that must be sealed and cannot.
    """
    sha256, length = job["input_sha256"], job["input_bytes"]
    sealing = places.sealing
    if job["sealed"] and (sealing is None or seal_to is None):
        raise StoreError(f"the job {job['job']} wants its input sealed, and nothing is here to seal it with")
    sealed = sealing is not None and seal_to is not None and (job["sealed"] or sealing.every)
    short = length + (TAG_BYTES if sealed else 0) <= INLINE_INPUT_BYTES and len(slices) <= INLINE_SLICES
    body = places.small(sha256) if short else None
    if sealed and sealing is not None and seal_to is not None:
        what = SealedObject(job=job["job"], epoch=job["epoch"], sha256=sha256, length=length)
        return ObjectRef(
            url=places.object_url(sealing.path(what)),
            sha256=sha256,
            bytes=length,
            body="" if body is None else to_base64(sealing.small(what, body)),
            sealed=sealing.reference(what, seal_to),
        )
    inside = "" if body is None else to_base64(body)
    return ObjectRef(url=places.object_url(sha256), sha256=sha256, bytes=length, body=inside)
