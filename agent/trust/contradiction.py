"""Two pieces of evidence that each hold, and cannot both be of one honest unit: together they convict its key.

Nobody but the holder of the key can have made them, so a third party needs nothing else. `agent.trust.bundle` verifies
each piece first. What honest units never do: two roots for one size of their log, two statements with one counter of a
key epoch, two keys for one session number, two leaves in one place, sessions between which their TPM's clock runs back.

Only what one key signed convicts it: else any unit could sign in another's name, and what it wrote would be held
against that one's evidence. So what two epochs of a unit's key signed is not compared.
"""

from __future__ import annotations

from agent.trust.bundle import ProvenLeaf
from agent.trust.checkpoint import contradicts
from agent.trust.session import clock_ran_back


def contradiction(one: ProvenLeaf, other: ProvenLeaf) -> str:
    """What cannot be, in words; "" where both can be true. Both have to be verified already."""
    if one.checkpoint.unit != other.checkpoint.unit or not one.signers & other.signers:
        return ""
    size = contradicts(one.checkpoint, other.checkpoint)
    if size is not None:
        return f"two roots for the same {size} leaves"
    if one.index == other.index and one.payload != other.payload:
        return f"two leaves at {one.index}"
    return _in_session(one, other)


def _in_session(one: ProvenLeaf, other: ProvenLeaf) -> str:
    """The same for what the two sessions' keys said: numbers and counters are those of a key epoch."""
    if one.session is None or other.session is None or one.session.key_epoch != other.session.key_epoch:
        return ""
    if one.session.session == other.session.session and one.session.public_key != other.session.public_key:
        return f"two keys for session {one.session.session}"
    if back := clock_ran_back(one.session, other.session):
        return back
    if one.statement is None or other.statement is None or one.payload == other.payload:
        return ""
    if one.statement.counter == other.statement.counter:
        return f"two statements with counter {one.statement.counter}"
    return ""
