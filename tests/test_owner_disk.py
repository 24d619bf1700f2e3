"""The owner's word while the disk takes nothing: what stops the work counts at once, what lets it begin does not."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from agent.control import ControlRequest, Wishes
from agent.core.events import OwnerMode
from agent.core.world import Owner
from agent.errors import StoreError
from agent.store import Store
from tests.test_owner import POLICY, Agent, owner_after, told


def full(store: Store) -> None:
    """From now on SQLite refuses every write, as on a full disk."""
    store._db.execute("PRAGMA query_only = 1")


@pytest.mark.parametrize("disk", ["full", "hung"])
def test_no_disk_keeps_the_owner_from_stopping_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    monkeypatch.setattr("agent.owner.WRITE_S", 0.05 if disk == "hung" else 60.0)
    freed = threading.Event()

    async def story(agent: Agent) -> None:
        await agent.desk.answer(ControlRequest(verb="consent_accept", version=3))
        blocked = asyncio.ensure_future(agent.store.call(full if disk == "full" else lambda _store: freed.wait(20)))
        await asyncio.sleep(0)
        try:
            for verb, mode in (("pause", OwnerMode.PAUSED), ("finish", OwnerMode.FINISH)):
                with pytest.raises(StoreError, match="counts now, but only until the agent ends"):
                    await agent.desk.answer(ControlRequest(verb=verb))  # type: ignore[arg-type]
                assert agent.state.owner.mode is mode
            with pytest.raises(StoreError, match="counts now"):
                await agent.desk.answer(ControlRequest(verb="consent_withdraw"))
            assert agent.state.owner.consent_version == 0
            assert agent.desk.view().consent.given_version == 0
            for verb in ("resume", "consent_accept", "owner_set"):
                request = ControlRequest(verb=verb, version=3, wishes=Wishes(classes=()))  # type: ignore[arg-type]
                with pytest.raises(StoreError, match=r"^(?!this counts)"):
                    await agent.desk.answer(request)
            assert agent.state.owner == Owner(OwnerMode.FINISH), "what lets work begin is written first, or not at all"
            assert agent.state.policy == POLICY
        finally:
            freed.set()
            await blocked

    told(tmp_path, story)
    assert owner_after(tmp_path) == Owner(consent_version=3), "as the owner was told: it held until the agent ended"
