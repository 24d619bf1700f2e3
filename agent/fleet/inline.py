"""Small inputs that came inside their grant: kept beside the core until their lease fetches them.

They are a customer's data, so they are in no state, no recording and no row; only a few are kept, in memory. One that
was dropped meanwhile is fetched where the grant says, as a large one is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict

from agent.fleet.messages import INLINE_INPUT_BYTES, MessageError, ObjectRef
from agent.trust.sealing import SealedObject

KEPT = 4
"""A car asks for one lease at a time; the rest is for duplicates and answers that nobody waits for any more."""


class InlineInputs:
    """The newest inputs that came in grants, by their digest; sealed ones by their name, sealed as they came."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[str, bytes] = OrderedDict()

    def keep(self, reference: ObjectRef, sealed: SealedObject | None = None) -> None:
        """Keep the input that a signed grant brought, if it did; raises MessageError when it is not what it says.

        Of a sealed one only the length can be said yet.
        """
        if not reference.body:
            return
        try:
            body = base64.b64decode(reference.body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise MessageError(f"the input in the grant is not base64: {error}") from error
        if sealed is None:
            found, expected = hashlib.sha256(body).hexdigest(), (reference.bytes, reference.sha256)
        else:
            found, expected = sealed.name, (sealed.sealed_bytes, sealed.name)
        if (len(body), found) != expected or len(body) > INLINE_INPUT_BYTES:
            raise MessageError("the input in the grant is not the one that it names")
        self._bodies[found] = body
        self._bodies.move_to_end(found)
        while len(self._bodies) > KEPT:
            self._bodies.popitem(last=False)

    def get(self, name: str) -> bytes | None:
        """The input of this digest, or the sealed one of this name, if it is here."""
        return self._bodies.get(name)
