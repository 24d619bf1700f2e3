"""A unit takes a new key: the old one hands over, the dispatcher takes it, and only then the new one is used.

    1. the new key is made beside the old one                  a power cut leaves a key that the next attempt uses
    2. both sign the succession; it is written down            the old key is the unit's; it is said again
    3. the dispatcher takes it, and its answer may be lost     likewise: the same answer comes once more
    4. the answer is written down                              the next start finishes it (`agent.enrolled.settle`)
    5. the new key is remembered as the unit's, and the succession is forgotten: session and checkpoint are its from now

While this goes on no session is certified, so that the old key's last one is the one that the succession names; the
session in use goes on, and what it signs counts during the overlap. Where nobody answers, the old key goes on as well,
and `KeyKeeper.run` says it again until the dispatcher takes it or refuses.

What else follows from another key is a `Chore`, done at once and tried again until it is done: the new key vouches for
the unit's sealing key (`SealingVouched`), and the old one is removed when its overlap ends (`agent.retiring`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from agent.config import Config
from agent.enrolled import PENDING, forget_pending, keep, kept, pending, settle
from agent.errors import DrivewayError, TrustError
from agent.fleet import enrol
from agent.fleet.channel import Web
from agent.identity import Identity
from agent.log import logger
from agent.ports import Emit
from agent.sealing import Sealing
from agent.trust import dsse
from agent.trust.dsse import VerifyingKey
from agent.trust.hardware import HardwareSigner
from agent.trust.keyring import KeyConfig, hand_over, hardware_signer, successor, write_whole
from agent.trust.succession import MAX_OVERLAP_S, parse_succession
from agent.trust.tpm import MAKE_LIMIT_S

OVERLAP_S = 7 * 86_400
"""A car that stands in a garage for a weekend still hands in what it has."""
RETRY_S = (30.0, 3_600.0)
MAKES = 2.0
"""Making a key and opening two, each within the hardware's own limit."""


class Rotated(msgspec.Struct, frozen=True, kw_only=True):
    """The unit's key now, and how long what the one before signed goes on counting."""

    keyid: str
    epoch: int
    protection: str
    endorsement: str
    former_keyid: str
    overlap_s: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What stays the same while keys come and go: where they are, whose, and who is told. `url` is the enrolment's."""

    key: KeyConfig
    folder: Path
    unit: str
    url: str
    web: Web
    dispatcher_keys: Mapping[str, VerifyingKey]


def home_of(config: Config, identity: Identity, dispatcher_keys: Mapping[str, VerifyingKey]) -> Home:
    """That of the configured unit."""
    return Home(
        key=config.key,
        folder=config.path(config.state_dir),
        unit=config.unit.id,
        url=config.fleet.enrol_url,
        web=identity.web,
        dispatcher_keys=dispatcher_keys,
    )


async def rotate(
    home: Home, key: HardwareSigner, *, reason: str, overlap_s: int, last_session: int
) -> tuple[HardwareSigner, Rotated]:
    """Have `key` succeeded by a new one: that, and what came of it. `last_session` is the last that `key` certified.

    Raises TrustError when a key does not do its part, RefusedError when the dispatcher says no, FleetError when it does
    not answer: then `key` is still the unit's.
    """
    _check(home, overlap_s)
    envelope = await key.apart(
        lambda: hand_over(
            home.key, key.known, unit=home.unit, overlap_s=overlap_s, reason=reason, last_session=last_session
        ),
        limit_s=MAKES * MAKE_LIMIT_S,
    )
    write_whole(home.folder / PENDING, envelope)
    following = successor(key.known, envelope, unit=home.unit)
    new = hardware_signer(home.key, following)
    try:
        enrolled = await enrol.rotate(
            home.web,
            url=home.url,
            succession=envelope,
            unit=home.unit,
            key=new,
            place=home.key.at_epoch(following.epoch).tpm,
            dispatcher_keys=home.dispatcher_keys,
        )
        keep(home.folder, enrolled)
        settle(home.folder, key.known, unit=home.unit)
    except enrol.RefusedError:
        forget_pending(home.folder)
        new.close()
        raise
    except BaseException:
        new.close()
        raise
    logger().info("key_rotated", epoch=following.epoch, keyid=following.keyid, protection=following.protection)
    return new, Rotated(
        keyid=following.keyid,
        epoch=following.epoch,
        protection=following.protection,
        endorsement=enrolled.endorsement,
        former_keyid=key.keyid,
        overlap_s=overlap_s,
        reason=reason,
    )


def _check(home: Home, overlap_s: int) -> None:
    if not home.url or kept(home.folder) is None:
        raise TrustError(
            "this unit is not enrolled with a dispatcher that could take a new key",
            hint="set fleet.enrol_url, and start the daemon once",
        )
    if not 0 <= overlap_s <= MAX_OVERLAP_S:
        raise TrustError(f"an overlap of {overlap_s} s", hint=f"at most {MAX_OVERLAP_S // 86_400} days")


class Certifier(Protocol):
    """Who has sessions certified (`agent.notary.Notary`)."""

    def still(self) -> AbstractAsyncContextManager[None]:
        """While this is held no session is certified."""
        ...

    def succeeded(self, key: HardwareSigner) -> None:
        """From now on this is the unit's key."""
        ...


Chore = Callable[[HardwareSigner], Awaitable[None]]
"""Something to be done for the unit's key of the moment; at once over where nothing is. Raises DrivewayError."""


class SealingVouched:
    """Has the unit's own key vouch for its sealing key, and `tell` the dispatcher so; a Chore."""

    def __init__(self, sealing: Sealing, tell: Callable[[bytes], None]) -> None:
        self._sealing, self._tell = sealing, tell
        self._by = dsse.parse(sealing.announcement).signatures[0].keyid

    async def __call__(self, key: HardwareSigner) -> None:
        """Where it is another key's word that is known, that of `key` is said instead. Raises TrustError."""
        if key.keyid != self._by:
            self._sealing = await self._sealing.vouched_by(key)
            self._by = key.keyid
            self._tell(self._sealing.announcement)
            logger().info("sealing_key_vouched_for", keyid=key.keyid)


class KeyKeeper:
    """Has the unit's key of the moment. A source that emits nothing: it finishes what a rotation left undone."""

    def __init__(
        self,
        home: Home,
        key: HardwareSigner,
        certifier: Certifier,
        last_session: Callable[[int], Awaitable[int]],
        chores: Sequence[Chore] = (),
    ) -> None:
        """`last_session` says which number the last session of a key epoch has."""
        self._home, self._key, self._certifier, self._last_session = home, key, certifier, last_session
        self._chores, self._waiting = tuple(chores), set[int]()
        self._turn = asyncio.Lock()

    @property
    def key(self) -> HardwareSigner:
        """The unit's key now."""
        return self._key

    async def rotate(self, *, reason: str, overlap_s: int) -> Rotated:
        """Take a new key now; raises DrivewayError, as `agent.rotation.rotate` does: then the old one goes on."""
        async with self._turn, self._certifier.still():
            old = self._key
            last = await self._last_session(old.known.epoch)
            self._key, rotated = await rotate(self._home, old, reason=reason, overlap_s=overlap_s, last_session=last)
            self._certifier.succeeded(self._key)
        old.close()
        await self._do_chores()
        return rotated

    async def run(self, emit: Emit) -> None:  # noqa: ARG002 - a source's
        """Say a succession again that was not answered, until cancelled."""
        wait_s, told = RETRY_S[0], False
        while True:
            try:
                await self._finish()
                wait_s, told = RETRY_S[0], False
            except DrivewayError as error:
                if not told:
                    logger().warning("key_not_rotated", error=str(error))
                told, wait_s = True, min(2 * wait_s, RETRY_S[1])
            await self._do_chores()
            await asyncio.sleep(wait_s)

    async def _do_chores(self) -> None:
        """Each of them; one that fails is told of once, and tried again when `run` comes round."""
        async with self._turn:
            for number, chore in enumerate(self._chores):
                try:
                    await chore(self._key)
                except DrivewayError as error:
                    if number not in self._waiting:
                        logger().warning("key_chore_waits", error=str(error))
                    self._waiting.add(number)
                else:
                    if number in self._waiting:
                        logger().info("key_chore_done")
                    self._waiting.discard(number)

    async def _finish(self) -> None:
        envelope = pending(self._home.folder)
        if envelope is None or self._turn.locked():
            return
        said = parse_succession(dsse.parse(envelope).payload)
        await self.rotate(reason=said.reason, overlap_s=said.overlap_s)

    async def close(self) -> None:
        """Let go of the hardware."""
        self._key.close()
