"""Why what a broker brought is not acted on: the few words by which it is counted, and shown by `driveway status`."""

from __future__ import annotations

import enum


class Refusal(enum.StrEnum):
    """Why a message may not be acted on, in one word, for counting."""

    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    FORGED = "forged"
    """Not an envelope, of another type, or not signed by the dispatcher over these bytes."""
    FOREIGN = "foreign"
    """For another unit or cell."""
    REPLAY = "replay"
    """Older than what is known, or from the future."""
    UNEXPECTED = "unexpected"
    """On a topic on which nothing is said."""
    FLOOD = "flood"
