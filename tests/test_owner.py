"""The owner's word over the real socket and the real store: taken, shown, and there after restarts and reboots."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from agent.cli import exits
from agent.cli.main import main
from agent.control import ControlRequest, Pause, Wishes
from agent.control_server import ControlServer
from agent.core.events import EventType, HostSeen, OwnerMode, OwnerSet
from agent.core.machine import step
from agent.core.policy import Policy, Window
from agent.core.state import State, initial, resume
from agent.core.world import Owner
from agent.errors import DrivewayError, StoreError
from agent.owner import OwnerDesk, end_pause
from agent.store import Store, StoreThread
from tests.conftest import FixedClock
from tests.guests import ask_as, needs_root, open_folder

HOUR_MS = 3_600_000
STRANGER = 54_321
POLICY = Policy(consent_required_version=3, price_floor_micro_per_kwh=10_000, workload_classes=("ocr",))
NIGHTS = Window(days=("mon", "tue"), start="22:00", end="06:00")


class Agent:
    """One run of an agent: the real desk and store, the real core, and a clock that a test moves."""

    def __init__(
        self, folder: Path, *, boot: str = "boot-1", now_ms: int = HOUR_MS, wall_ms: int | None = None
    ) -> None:
        self.clock = FixedClock(now_ms)
        if wall_ms is not None:
            self.clock.wall_ms = lambda: wall_ms - now_ms + self.clock.now_ms  # type: ignore[method-assign]
        self.store = StoreThread(folder / "driveway.db")
        self.state: State = initial("unit-1", POLICY, now_ms)
        self.events: list[EventType] = []
        self.desk = OwnerDesk(
            state=lambda: self.state, emit=self.emit, clock=self.clock, store=self.store, boot=boot, policy=POLICY
        )

    def emit(self, event: EventType) -> None:
        self.events.append(event)
        self.state, _ = step(self.state, event)

    def synchronised(self, error_ms: int | None = 10) -> None:
        self.emit(HostSeen(at_ms=self.clock.boot_ms(), wall_ms=self.clock.wall_ms(), wall_error_ms=error_ms))

    async def __aenter__(self) -> Self:
        await self.store.open()
        owner, wishes = await self.desk.restore()
        self.state = resume(self.state, (), (), owner)
        self.emit(wishes)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()

    async def pause(self, **ends: int) -> None:
        await self.desk.answer(ControlRequest(verb="pause", pause=Pause(**ends)))


def owner_after(folder: Path, **run: Any) -> Owner:
    """What another run of the agent finds."""

    async def look() -> Owner:
        async with Agent(folder, **run) as agent:
            return agent.state.owner

    return asyncio.run(look())


def told(folder: Path, story: Callable[[Agent], Awaitable[None]], **run: Any) -> None:
    async def tell() -> None:
        async with Agent(folder, **run) as agent:
            await story(agent)

    asyncio.run(tell())


def test_a_pause_with_an_end_survives_a_restart_to_the_millisecond(tmp_path: Path) -> None:
    async def story(agent: Agent) -> None:
        agent.synchronised()
        await agent.pause(for_ms=2 * HOUR_MS)

    told(tmp_path, story)
    owner = owner_after(tmp_path, now_ms=HOUR_MS + 5)
    assert (owner.mode, owner.until_ms) == (OwnerMode.PAUSED, 3 * HOUR_MS)


def test_after_a_reboot_a_pause_ends_at_its_wall_time(tmp_path: Path) -> None:
    async def story(agent: Agent) -> None:
        agent.synchronised()
        await agent.pause(for_ms=2 * HOUR_MS)

    told(tmp_path, story)
    wall_ms = FixedClock(HOUR_MS).wall_ms() + 2 * HOUR_MS
    owner = owner_after(tmp_path, boot="boot-2", now_ms=7)
    assert owner == Owner(OwnerMode.PAUSED, None, wall_ms)
    again = owner_after(tmp_path, boot="boot-2", now_ms=900)
    assert again == owner, "and a restart in that boot changes nothing"


def test_a_pause_said_under_a_clock_that_nobody_kept_begins_anew_after_a_reboot(tmp_path: Path) -> None:
    """It may last too long, never too short: 1970 plus two hours would be over at once."""

    async def story(agent: Agent) -> None:
        agent.synchronised(None)
        await agent.pause(for_ms=2 * HOUR_MS)

    told(tmp_path, story, wall_ms=86_400_000)
    owner = owner_after(tmp_path, boot="boot-2", now_ms=7)
    assert owner == Owner(OwnerMode.PAUSED, 7 + 2 * HOUR_MS, None)
    assert owner_after(tmp_path, boot="boot-2", now_ms=900) == owner


@pytest.mark.parametrize("boot", ["", "boot-2"])
def test_boot_times_of_an_unknown_boot_are_never_compared(tmp_path: Path, boot: str) -> None:
    async def story(agent: Agent) -> None:
        agent.synchronised()
        await agent.pause(for_ms=HOUR_MS)

    told(tmp_path, story, boot="")
    assert owner_after(tmp_path, boot=boot, now_ms=1).until_ms is None


def test_pause_until_a_time_counts_from_this_computers_clock(tmp_path: Path) -> None:
    async def story(agent: Agent) -> None:
        await agent.pause(until_wall_ms=agent.clock.wall_ms() + 5_000)
        assert agent.state.owner.until_ms == HOUR_MS + 5_000
        with pytest.raises(DrivewayError, match="is over already"):
            await agent.pause(until_wall_ms=agent.clock.wall_ms() - 1)
        with pytest.raises(DrivewayError, match="more than a year"):
            await agent.pause(until_wall_ms=agent.clock.wall_ms() + 10**12)
        with pytest.raises(DrivewayError, match="one end"):
            await agent.pause(until_wall_ms=agent.clock.wall_ms() + 5_000, for_ms=5)
        assert agent.state.owner.until_ms == HOUR_MS + 5_000, "what was refused changed nothing"

    told(tmp_path, story)


def test_a_pause_that_ran_out_is_forgotten_and_a_newer_one_is_not(tmp_path: Path) -> None:
    async def story(agent: Agent) -> None:
        await agent.pause(for_ms=1_000)
        old = agent.state.owner
        await agent.pause(for_ms=9_000)
        await agent.store.call(end_pause, old.until_ms, old.until_wall_ms)
        new = agent.state.owner
        assert (await agent.desk.restore())[0] == new
        await agent.store.call(end_pause, new.until_ms, new.until_wall_ms)
        assert (await agent.desk.restore())[0] == Owner()

    told(tmp_path, story)


def test_finish_resume_and_consent_survive(tmp_path: Path) -> None:
    async def finish(agent: Agent) -> None:
        await agent.desk.answer(ControlRequest(verb="finish"))
        await agent.desk.answer(ControlRequest(verb="consent_accept", version=3))

    async def resume_work(agent: Agent) -> None:
        await agent.desk.answer(ControlRequest(verb="resume"))
        with pytest.raises(DrivewayError, match="the terms in force are version 3"):
            await agent.desk.answer(ControlRequest(verb="consent_accept", version=2))

    async def withdraw(agent: Agent) -> None:
        view = await agent.desk.answer(ControlRequest(verb="consent_withdraw"))
        assert (view.consent.required_version, view.consent.given_version) == (3, 0)

    told(tmp_path, finish)
    assert owner_after(tmp_path, boot="boot-2") == Owner(OwnerMode.FINISH, consent_version=3)
    told(tmp_path, resume_work)
    assert owner_after(tmp_path, boot="boot-2") == Owner(consent_version=3)
    told(tmp_path, withdraw)
    assert owner_after(tmp_path) == Owner()


def test_wishes_stand_one_by_one_over_the_configuration(tmp_path: Path) -> None:
    async def story(agent: Agent) -> None:
        first = await agent.desk.answer(ControlRequest(verb="owner_set", wishes=Wishes(schedule=(NIGHTS,))))
        assert (first.schedule.value, first.schedule.source) == ((NIGHTS,), "owner")
        assert (first.classes.value, first.classes.source) == (("ocr",), "configuration")
        await agent.desk.answer(ControlRequest(verb="owner_set", wishes=Wishes(classes=())))

    async def again(agent: Agent) -> None:
        assert (agent.state.policy.schedule, agent.state.policy.workload_classes) == ((NIGHTS,), ())
        assert agent.state.policy.price_floor_micro_per_kwh == 10_000
        cleared = await agent.desk.answer(ControlRequest(verb="owner_clear", clear=("classes",)))
        assert (cleared.classes.value, cleared.schedule.value) == (("ocr",), (NIGHTS,))
        await agent.desk.answer(ControlRequest(verb="owner_clear"))
        assert agent.state.policy == POLICY

    told(tmp_path, story)
    told(tmp_path, again, boot="boot-2")
    told(tmp_path, lambda agent: _holds(isinstance(agent.events[0], OwnerSet) and agent.state.policy == POLICY))


async def _holds(fact: bool) -> None:
    assert fact


def test_a_row_that_is_not_understood_stops_the_start_and_says_so(tmp_path: Path) -> None:
    async def spoil(agent: Agent) -> None:
        def write(store: Store) -> None:
            store._db.execute("INSERT OR REPLACE INTO meta VALUES ('owner', '{\"mode\": \"asleep\"}')")

        await agent.store.call(write)

    told(tmp_path, spoil)
    with pytest.raises(StoreError, match="remembers as 'owner' is not understood"):
        owner_after(tmp_path)


# --- over the socket, as people use it --------------------------------------------------------------------------


class Served:
    """An agent's desk behind its control socket, on a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "control.sock"
        self._folder = folder
        self._up, self._over = threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._up.wait(20)

    async def _serve(self) -> None:
        async with Agent(self._folder) as agent:
            server = ControlServer(self.path, agent.desk.answer)
            await server.start()
            self._up.set()
            await self._over.wait()
            await server.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)
        self._loop.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    running = Served(tmp_path)
    yield running
    running.close()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(served: Served, capsys: pytest.CaptureFixture[str]) -> Run:
    def driveway(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main([*arguments, "--socket", str(served.path)])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return driveway


def test_the_verbs_say_what_holds_after_them(run: Run) -> None:
    code, out, _ = run("pause")
    assert (code, out) == (exits.FINE, "Paused until `driveway resume`.\n")
    _, out, _ = run("pause", "--for", "30m")
    assert out.startswith("Paused until ")
    shown = json.loads(run("owner", "--json")[1])
    assert (shown["mode"], shown["until"][-1]) == ("paused", "Z")
    assert run("finish")[1].startswith("The lease at work is finished")
    assert "Resumed" in run("resume")[1]
    assert run("consent")[1].startswith("You have not agreed to any terms. Version 3 is in force")
    assert "You agreed to version 3" in run("consent", "--accept", "3")[1]
    assert "You took your consent back" in run("consent", "--withdraw")[1]


def test_wishes_from_the_command_line(run: Run) -> None:
    code, out, _ = run(
        *("owner", "set", "--schedule", "mon-fri 22:00-06:00", "--schedule", "sat,sun 00:00-24:00"),
        *("--price-floor", "0.05", "--classes", "ocr,speech"),
    )
    assert code == exits.FINE
    assert "mon-fri 22:00-06:00; sat,sun 00:00-24:00 (UTC) (your wish)" in out
    assert "0.05 USD per kWh (your wish)" in out
    assert "ocr, speech (your wish)" in out
    code, out, _ = run("owner", "clear", "price-floor")
    assert "0.01 USD per kWh\n" in out
    assert "ocr, speech (your wish)" in out
    _, out, _ = run("owner", "set", "--schedule", "always", "--classes", "any")
    assert "at any time (your wish)" in out
    assert "any (your wish)" in out
    _, out, _ = run("owner", "clear")
    assert "your wish" not in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("pause", "--for", "30"), "argument --for: '30' has no unit"),
        (("pause", "--until", "2020-01-01"), "argument --until: '2020-01-01' is over"),
        (("pause", "--until", "soon"), "is no time"),
        (("pause", "--for", "1h", "--until", "07:00"), "not allowed with argument"),
        (("consent", "--accept", "x"), "is no version"),
        (("consent", "--accept", "3", "--withdraw"), "not allowed with argument"),
        (("owner", "set"), "nothing to set"),
        (("owner", "set", "--schedule", "always", "--schedule", "mon 1:00-2:00"), "contradict"),
        (("owner", "set", "--price-floor", "11"), "is not between 0 and 10"),
        (("owner", "clear", "everything"), "is no wish"),
        (("owner", "burn"), "invalid choice"),
    ],
)
def test_what_cannot_be_meant_is_usage(run: Run, arguments: tuple[str, ...], complaint: str) -> None:
    code, out, err = run(*arguments)
    assert code == exits.USAGE
    assert complaint in err
    assert out == ""


def test_terms_that_are_not_in_force_are_refused(run: Run) -> None:
    code, _, err = run("consent", "--accept", "2")
    assert code == exits.FAILED
    assert "version 2 cannot be agreed to: the terms in force are version 3" in err


@pytest.mark.parametrize(
    "request_line",
    [
        b'{"verb":"pause","pause":{"for_ms":0}}',
        b'{"verb":"pause","pause":{"for_ms":99999999999999}}',
        b'{"verb":"pause","pause":{"until":"07:00"}}',
        b'{"verb":"owner_set","wishes":{"schedule":[{"start":"25:00"}]}}',
        b'{"verb":"owner_set","wishes":{"classes":["a b"]}}',
        b'{"verb":"owner_set","wishes":{"price_floor_micro_per_kwh":-1}}',
        b'{"verb":"owner_clear","clear":["everything"]}',
        b'{"verb":"consent_accept","version":0}',
    ],
)
def test_the_socket_takes_nothing_that_the_command_would_not_send(served: Served, request_line: bytes) -> None:
    assert "not a request" in _talk(served.path, request_line)["error"]


CHANGES = ("pause", "resume", "finish", "consent_accept", "consent_withdraw", "owner_set", "owner_clear", "record")


@needs_root
def test_only_root_and_the_daemons_user_may_change_anything() -> None:
    with open_folder() as folder, closing(Served(folder)) as served:
        served.path.chmod(0o666)
        lines = [json.dumps({"verb": verb}) for verb in (*CHANGES, "owner")]
        *refused, owner = asyncio.run(ask_as(STRANGER, served.path, *lines))
    assert [one["error"] for one in refused] == [f"{verb} is for root and the daemon's own user" for verb in CHANGES]
    assert owner["ok"]


def _talk(path: Path, line: bytes) -> dict[str, Any]:
    async def talk() -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(line + b"\n")
        answer = await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        await writer.wait_closed()
        return answer

    answer: dict[str, Any] = msgspec.json.decode(asyncio.run(talk()))
    return answer
