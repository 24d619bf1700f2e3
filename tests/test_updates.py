"""What the daemon says of an update that waits, over the real store; and what the owner is told at the terminal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from agent.cli import exits
from agent.cli.main import main
from agent.control import ControlRequest
from agent.control_server import ControlServer
from agent.core.events import HostSeen
from agent.core.machine import step
from agent.core.policy import Policy, Window
from agent.core.state import State
from agent.errors import DrivewayError
from agent.store import Store, StoreThread
from agent.updates import FORGOTTEN_S, Updates, UpdateView
from tests.conftest import FixedClock
from tests.core.world import Shell

HOUR_MS = 3_600_000
POLICY = Policy(parked_for_s=3, update_defer_max_h=24)


def parked(policy: Policy = POLICY) -> State:
    """A car that is parked and empty, and an agent with nothing to do."""
    shell = Shell()
    shell.state, _ = step(shell.state, HostSeen(at_ms=0, wall_ms=FixedClock(0).wall_ms(), wall_error_ms=1))
    shell.advance(5_000)
    return msgspec.structs.replace(shell.state, policy=policy)


class Car:
    """The daemon's part under test, over a store in a folder; `again` is the next run of the daemon."""

    def __init__(self, folder: Path, state: State | None = None) -> None:
        self.clock = FixedClock(HOUR_MS)
        self.state = parked() if state is None else state
        self._folder = folder
        self.store = StoreThread(folder / "driveway.db")
        self.updates = Updates(state=lambda: self.state, clock=self.clock, store=self.store)

    def again(self) -> None:
        self.updates = Updates(state=lambda: self.state, clock=self.clock, store=self.store)


def run(folder: Path, story: Callable[[Car], Awaitable[None]], state: State | None = None) -> None:
    async def live() -> None:
        car = Car(folder, state)
        await car.store.open()
        try:
            await story(car)
        finally:
            await car.store.close()

    asyncio.run(live())


def test_a_car_that_is_parked_with_nothing_to_do_may_be_updated(tmp_path: Path) -> None:
    async def story(car: Car) -> None:
        assert car.updates.view().version == ""
        assert not car.updates.holds_work()
        said = await car.updates.hear("1.2.3")
        assert (said.ready, said.why, said.lease) == (True, "", "")
        assert car.updates.holds_work()
        car.clock.now_ms += round(FORGOTTEN_S * 1000) + 1
        assert not car.updates.holds_work(), "nobody speaks of it any more"
        assert car.updates.view().version == ""

    run(tmp_path, story)


def test_a_deferral_outlives_a_restart_and_belongs_to_one_version(tmp_path: Path) -> None:
    async def story(car: Car) -> None:
        await car.updates.hear("1.2.3")
        view = await car.updates.defer(2 * HOUR_MS)
        assert not view.ready
        assert "deferred" in view.why
        assert not car.updates.holds_work(), "work goes on while the owner's word is what it waits for"
        car.again()
        assert "deferred" in (await car.updates.hear("1.2.3")).why
        assert (await car.updates.hear("1.2.4")).ready
        view = await car.updates.defer(HOUR_MS)
        assert "deferred" in view.why
        assert (await car.updates.now()).ready
        car.again()
        assert (await car.updates.hear("1.2.4")).ready

    run(tmp_path, story)


def test_the_policy_bounds_a_deferral_and_only_what_waits_can_be_deferred(tmp_path: Path) -> None:
    async def story(car: Car) -> None:
        for word in (car.updates.defer(HOUR_MS), car.updates.now()):
            with pytest.raises(DrivewayError, match="no update waits"):
                await word
        await car.updates.hear("1.2.3")
        with pytest.raises(DrivewayError, match="may be deferred until") as refused:
            await car.updates.defer(25 * HOUR_MS)
        assert "update_defer_max_h is 24" in refused.value.hint
        await car.updates.defer(20 * HOUR_MS)
        car.clock.now_ms += 10 * HOUR_MS
        await car.updates.hear("1.2.3")
        with pytest.raises(DrivewayError, match="may be deferred until"):
            await car.updates.defer(20 * HOUR_MS)  # from now on, past the bound
        for wrong in ("", "1.2.3; rm", "../..", "one"):
            with pytest.raises(DrivewayError, match="is no version"):
                await car.updates.hear(wrong)

    run(tmp_path, story)


def test_the_owners_hours_are_passed_over_by_now(tmp_path: Path) -> None:
    hours = Policy(parked_for_s=3, update_schedule=(Window(start="03:00", end="04:00"),))

    async def story(car: Car) -> None:
        car.state = parked(msgspec.structs.replace(hours, update_schedule=()))
        assert (await car.updates.hear("1.2.3")).ready
        car.state = parked(hours)
        assert "outside the owner's hours" in (await car.updates.hear("1.2.3")).why
        assert (await car.updates.now()).ready

    run(tmp_path, story, parked(hours))


def test_what_the_catalogue_does_not_admit_holds_up_no_work_and_the_owner_cannot_pass_over_it(tmp_path: Path) -> None:
    word = "version 1.2.3 of the agent is denied: it loses slices [agent_denied]"

    async def story(car: Car) -> None:
        async def judge(version: str) -> str:
            return word if version == "1.2.3" else ""

        car.updates = Updates(state=lambda: car.state, clock=car.clock, store=car.store, judge=judge)
        said = await car.updates.hear("1.2.3")
        assert (said.ready, said.why) == (False, word)
        assert not car.updates.holds_work()
        assert (await car.updates.now()).why == word
        assert (await car.updates.hear("1.2.4")).ready

    run(tmp_path, story)


def test_a_word_that_another_version_wrote_and_this_one_does_not_understand_is_none(tmp_path: Path) -> None:
    async def story(car: Car) -> None:
        def write(store: Store) -> None:
            store._db.execute("INSERT INTO meta (key, value) VALUES ('update', '{\"version\": 3}')")

        await car.store.call(write)
        assert (await car.updates.hear("1.2.3")).ready

    run(tmp_path, story)


# --- at the terminal --------------------------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """What the update program wrote."""
    file = tmp_path / "status.json"
    past = [{"version": "1.0.0", "result": "committed", "reason": "installed", "at_wall_s": 0}]
    past.append({"version": "1.1.0", "result": "rolled_back", "reason": "its daemon has failed", "at_wall_s": 9})
    status = {"v": 1, "phase": "waiting", "candidate": "1.2.3", "current": "1.0.0", "good": "1.0.0", "past": past}
    file.write_text(json.dumps(status | {"reason": ""}))
    return file


def served(folder: Path, view: UpdateView, command: list[str]) -> tuple[int, list[ControlRequest]]:
    """Run the command beside a daemon that answers with `view`; the exit code, and what it was asked."""
    asked: list[ControlRequest] = []

    async def answer(request: ControlRequest) -> object:
        asked.append(request)
        return view

    async def serve() -> int:
        server = ControlServer(folder / "control.sock", answer)
        await server.start()
        try:
            return await asyncio.to_thread(main, [*command, "--socket", str(folder / "control.sock")])
        finally:
            await server.close()

    return asyncio.run(serve()), asked


WAITS = UpdateView(
    "1.2.3",
    ready=False,
    why="lease j/1 is being finished",
    at_once=False,
    deferred_until=None,
    latest="2026-11-30T00:00:00Z",
)


def test_status_says_what_waits_for_what_and_what_became_of_others(
    tmp_path: Path, told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, asked = served(tmp_path, WAITS, ["update", "--status-file", str(told)])
    out = capsys.readouterr().out
    assert code == exits.FINE
    assert [one.verb for one in asked] == ["update_show"]
    assert "1.2.3 waits to be installed in place of 1.0.0." in out
    assert "1.2.3 waits: lease j/1 is being finished." in out
    assert "rolled back" in out
    assert "its daemon has failed" in out


def test_the_owners_word_reaches_the_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, asked = served(tmp_path, WAITS, ["update", "defer", "2h"])
    assert [(one.verb, one.for_ms) for one in asked] == [("update_defer", 2 * HOUR_MS)]
    _, asked = served(tmp_path, WAITS, ["update", "now", "--json"])
    assert [one.verb for one in asked] == ["update_now"]
    assert '"why"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "has not run since this computer started"),
        (b"{", "is damaged"),
        (b"[]", "is of another version"),
        (b'{"v": 9, "phase": "hovering"}', "something this version does not know: hovering"),
    ],
)
def test_without_daemon_and_with_any_file_it_says_what_it_can(
    tmp_path: Path, content: bytes | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "status.json"
    if content is not None:
        file.write_bytes(content)
    command = ["update", "--status-file", str(file), "--socket", str(tmp_path / "none"), "status"]
    assert main(command) == exits.FINE
    out = capsys.readouterr().out
    assert says in out
    assert "The daemon says nothing" in out
