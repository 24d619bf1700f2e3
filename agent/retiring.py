"""The end of a key that handed over: what is left of it is removed once nobody needs it, and that is told once.

    retired-keys.json     the keys that handed over and are still there: epoch, keyid, and when their overlap ends

A key is written down here before its successor is the unit's (`agent.enrolled.settle`), so no power cut forgets it. It
is removed (`agent.trust.keyring.remove_key`) when all of these hold:

* the unit's key is a later one, and the dispatcher's last answer names that one;
* the overlap is over, by a wall clock that can be trusted: a clock that is late only keeps the key for longer;
* nothing that it vouched for is owed: no hand-in that waits for a verdict, no checkpoint that is still to be witnessed
  and not the session in use, was certified or signed by it (`Owing`).

Hardware that is away, or refuses, is asked again after an hour. A file that is unlinked may still be on a flash chip:
only hardware removes a key for good. Public parts stay in `unit-key.json`, since what was signed is still verified.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.enrolled import RetiredKey, kept, retired, write_retired
from agent.errors import TrustError
from agent.fleet.messages import Envelope
from agent.log import logger
from agent.ports import Clock
from agent.store import Store, StoreThread
from agent.trust import dsse
from agent.trust.checkpoint import parse_checkpoint
from agent.trust.hardware import HardwareSigner
from agent.trust.keyring import KeyConfig, remove_key
from agent.trust.keys import Removal
from agent.trust.session import parse_certificate
from agent.trust.tpm import MAKE_LIMIT_S

AGAIN_MS = 3_600_000
"""After hardware that did not remove it."""
LOOK_MS = 600_000
"""Nothing becomes due sooner than people notice."""

Owing = Callable[[], Awaitable[int | None]]
"""The lowest key epoch that vouched for something that is still owed; None: nothing is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What says that a key may go. `is_clock_trusted`: whether the wall clock may be believed now."""

    clock: Clock
    is_clock_trusted: Callable[[], bool]
    owing: Owing


class _HandIn(msgspec.Struct, frozen=True):
    """What a result and a yield have in common (`agent.fleet.messages`)."""

    session: Envelope | None = None


class Retiring:
    """Asked now and then with the unit's key of the moment; see `agent.rotation.Chore`."""

    def __init__(self, config: KeyConfig, folder: Path, circumstances: Circumstances) -> None:
        self._config, self._folder, self._at = config, folder, circumstances
        self._look_at_ms = 0

    async def __call__(self, key: HardwareSigner) -> None:
        """Remove what is due; raises TrustError or StoreError, and is to be asked again."""
        now_ms = self._at.clock.boot_ms()
        if now_ms < self._look_at_ms:
            return
        self._look_at_ms = now_ms + LOOK_MS
        for one in await self._due(key):
            self._look_at_ms = now_ms + AGAIN_MS
            await self._remove(key, one)
        self._look_at_ms = now_ms + LOOK_MS

    async def _due(self, key: HardwareSigner) -> list[RetiredKey]:
        """The keys that nobody needs any more."""
        confirmed = kept(self._folder)
        if confirmed is None or confirmed.keyid != key.keyid or not self._at.is_clock_trusted():
            return []
        wall_ms, epoch = self._at.clock.wall_ms(), key.known.epoch
        over = [one for one in retired(self._folder) if one.epoch < epoch and wall_ms >= one.ends_wall_ms]
        owing = await self._at.owing() if over else None
        return [one for one in over if owing is None or one.epoch < owing]

    async def _remove(self, key: HardwareSigner, one: RetiredKey) -> None:
        """On the key's thread, while it is closed: a token takes one login of a process."""
        place = self._config.at_epoch(one.epoch)
        removal = await key.apart(lambda: remove_key(place, one.keyid), limit_s=MAKE_LIMIT_S)
        rest = tuple(left for left in retired(self._folder) if left != one)
        write_retired(self._folder, rest)
        if removal is Removal.FOREIGN:
            logger().warning("former_key_not_there", epoch=one.epoch, keyid=one.keyid, detail="another key is: left")
        else:
            logger().info("former_key_removed", epoch=one.epoch, keyid=one.keyid, was_there=removal is Removal.DONE)


async def lowest_epoch_owing(store: StoreThread, session: bytes | None) -> int | None:
    """See `Owing`: from the outbox, the newest checkpoint, and the certificate of the session in use (None: none)."""
    certificates = [] if session is None else [session]
    for row in await store.call(Store.outbox):
        found = await store.call(Store.outbox_message, row.key)
        if found is not None:
            certificates += _certificate(found[1])
    epochs = [parse_certificate(dsse.parse(one).payload).key_epoch for one in certificates]
    newest = await store.call(Store.checkpoint)
    if newest is not None and not newest.witnessed:
        epochs.append(parse_checkpoint(dsse.parse(newest.envelope).payload).key_epoch)
    return min(epochs, default=None)


def _certificate(message: bytes) -> list[bytes]:
    """The session certificate that goes with a hand-in; none with a yield without a statement."""
    try:
        found = msgspec.json.decode(message, type=_HandIn).session
    except msgspec.DecodeError as error:
        raise TrustError(f"a hand-in in the outbox cannot be read: {error}") from error
    return [] if found is None else [msgspec.json.encode(found)]
