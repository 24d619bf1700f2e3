"""The row of the store in which the spent budgets outlive the agent; `agent.core.kept` says what they are.

The row names its boot: boot times of another boot are moved to this one. A row that cannot be read stops nothing: the
budgets count as spent, which is written at once in its place, so that it is told of once.
"""

from __future__ import annotations

import contextlib

import msgspec

from agent.core.kept import after_reboot, everything_spent
from agent.core.model import Kept
from agent.core.policy import Policy
from agent.errors import StoreError
from agent.log import logger
from agent.store import Store, StoreThread

BUDGETS_ROW = "budgets"


class KeptRow(msgspec.Struct, frozen=True):
    """What was spent, and the boot whose times it tells."""

    boot: str
    kept: Kept


def remember(store: Store, boot: str, kept: Kept) -> None:
    """Write down what was spent, in place of what was written before."""
    store.remember(BUDGETS_ROW, KeptRow(boot, kept))


async def recall(store: StoreThread, boot: str, now_ms: int, policy: Policy) -> Kept | None:
    """What earlier runs have spent, in this boot's times; None where there was none. `boot` is '' where unknown."""
    try:
        row = await store.call(Store.recall, BUDGETS_ROW, KeptRow)
    except StoreError as error:
        spent = everything_spent(policy, now_ms)
        logger().warning("budgets_unreadable", detail=str(error), taken_as="spent")
        with contextlib.suppress(StoreError):  # a disk that takes no writes is told of as the storage gate
            await store.call(remember, boot, spent)
        return spent
    if row is None:
        return None
    same_boot = bool(boot) and row.boot == boot and row.kept.at_ms <= now_ms
    return row.kept if same_boot else after_reboot(row.kept, now_ms)
