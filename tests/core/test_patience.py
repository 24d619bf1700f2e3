"""Nothing spins: how often the core asks, sends and reports, whatever anybody does, and that a night replays."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import owed
from agent.core.effects import (
    EffectType,
    HandIn,
    OpenLease,
    PauseTransfers,
    Report,
    RunSlice,
    SendHandIn,
    SendRenewal,
    SendRequest,
    SetPace,
    StartBuild,
    StartWorker,
    StopWorker,
    UploadSlice,
)
from agent.core.events import (
    BuildProgress,
    BytesMoved,
    CancelSeen,
    EventType,
    GrantSeen,
    HandInStored,
    HandInUndelivered,
    LeaseOpened,
    LeaseRefused,
    LinkChanged,
    PaceSeen,
    PlanBuilt,
    PlansMissing,
    PlanUnusable,
    SliceFailed,
    SliceUploaded,
    Tick,
    TransferFailed,
    VerdictSeen,
    WorkerGone,
    WorkerReady,
)
from agent.core.lease import Pending
from agent.core.machine import step
from agent.core.model import Grant, HandInKind, JobKey, Pace, PaceState, Verdict
from agent.core.state import State, initial, resume
from agent.core.world import FAR_MS, Owner
from tests.core.restless_world import RestlessWorld, policy
from tests.core.stories import ready, until
from tests.core.world import POLICY, SHA256, Shell, car, computer, grant

HOUR_MS = 3_600_000
MINUTE_MS = 60_000


# --- a dispatcher that is gone ------------------------------------------------------------------------------------


def requests_ms(shell: Shell, seconds: int) -> list[int]:
    """When requests go in the coming seconds, which nobody answers."""
    asked: list[int] = []
    for _ in range(seconds * 5 // 2):
        asked += [shell.now_ms for effect in shell.waiting if isinstance(effect, SendRequest)]
        shell.waiting.clear()
        shell.now_ms += 400
        shell.tell(car(shell.now_ms))
        shell.tell(computer(shell.now_ms))
        shell.tell(Tick(at_ms=shell.now_ms))
    return asked


def test_a_dispatcher_that_is_gone_is_asked_less_and_less_and_an_answer_ends_that() -> None:
    shell = ready()
    asked = requests_ms(shell, 1_800)
    assert 6 <= len(asked) <= 25, "half an hour"
    assert max(later - earlier for earlier, later in itertools.pairwise(asked)) > 2 * MINUTE_MS
    while not any(isinstance(effect, SendRequest) for effect in shell.waiting):
        shell.advance(1_000)
    request = shell.waiting.pop()
    assert isinstance(request, SendRequest)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=None, retry_ms=2_000))
    shell.waiting.clear()
    again = requests_ms(shell, 20)
    assert len(again) == 2, "after the wait that was asked for, and after one patience"


def test_cars_that_lost_their_dispatcher_together_do_not_ask_together() -> None:
    third = set()
    for number in range(8):
        shell = Shell()
        shell.state = msgspec.structs.replace(shell.state, name=f"unit-{number}")
        shell.open_the_gate()
        third.add(requests_ms(shell, 90)[2])
    assert max(third) - min(third) > 10_000
    assert len(third) >= 6


def test_a_late_answer_to_the_last_question_still_counts() -> None:
    shell = ready()
    requests_ms(shell, 60)
    assert shell.state.asking is not None
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=shell.state.asking.rid, grant=grant(1), retry_ms=0))
    assert shell.state.have == (JobKey("job1", 1),)


# --- the outbox ---------------------------------------------------------------------------------------------------


def owing(count: int) -> Shell:
    shell = Shell()
    keys = [JobKey(f"job{number:02d}", 1) for number in range(count)]
    shell.outbox = {key: (HandInKind.RESULT, frozenset({0})) for key in keys}
    rows = tuple(Pending(key, HandInKind.RESULT, SHA256, 0) for key in keys)
    shell.state = resume(shell.state, rows, (), Owner())
    return shell


def sent_ms(shell: Shell, seconds: int) -> list[tuple[int, JobKey]]:
    sent: list[tuple[int, JobKey]] = []
    for _ in range(seconds * 10):
        sent += [(shell.now_ms, effect.key) for effect in shell.waiting if isinstance(effect, SendHandIn)]
        shell.waiting.clear()
        shell.advance(100)
    return sent


def test_a_full_outbox_comes_back_one_a_second_and_only_then_is_more_asked_for() -> None:
    shell = owing(12)
    shell.advance(5_000)
    shell.connect()
    sent = sent_ms(shell, 14)
    first = list(dict.fromkeys(key.job for _, key in sent))
    assert first == [f"job{number:02d}" for number in range(12)]
    assert all(later - earlier >= 1_000 for (earlier, _), (later, _) in itertools.pairwise(sent))
    (request,) = (effect for effect in shell.effects if isinstance(effect, SendRequest))
    assert len(request.have) == 12
    position = shell.effects.index(request)
    assert sum(isinstance(effect, SendHandIn) for effect in shell.effects[:position]) >= 12


def test_what_an_earlier_run_may_have_sent_never_asks_for_the_next_lease() -> None:
    """Its verdict may be on its way, and the time of the lease in it has begun nobody knows when."""
    willing = msgspec.structs.replace(ready().state, asking=None)
    row = Pending(JobKey("job7", 1), HandInKind.RESULT, SHA256, willing.now_ms)
    for state, credit in (
        (msgspec.structs.replace(willing, outbox=(row,)), 1),
        (resume(willing, (row,), (), Owner()), 0),
    ):
        _, (sent,) = owed.send_outbox(state)
        assert isinstance(sent, SendHandIn)
        assert sent.credit == credit


def refuse(shell: Shell, key: JobKey, *, poison: bool) -> None:
    shell.tell(HandInUndelivered(at_ms=shell.now_ms, key=key, detail="0x87", poison=poison))


@pytest.mark.parametrize(("poison", "least_ms", "most_ms"), [(False, 90_000, 150_000), (True, 2_700_000, 4_500_000)])
def test_what_the_broker_does_not_take_waits_through_reconnects_and_others_go_on(
    poison: bool, least_ms: int, most_ms: int
) -> None:
    shell = owing(3)
    shell.connect()
    shell.advance(4_000)
    bad, *others = [pending.key for pending in shell.state.outbox]
    shell.waiting.clear()
    refuse(shell, bad, poison=poison)
    refused_ms = shell.now_ms
    waits_ms = shell.state.outbox[0].next_ms - refused_ms
    assert least_ms <= waits_ms <= most_ms
    shell.tell(LinkChanged(at_ms=shell.now_ms, connected=False, broker="b:1"))
    shell.connect()
    sent = {key for _, key in sent_ms(shell, 80)}
    assert sent == set(others)
    refuse(shell, bad, poison=poison)
    told = [effect for effect in shell.effects if isinstance(effect, Report) and effect.name == "hand_in_undelivered"]
    assert len(told) == 1
    refuse(shell, JobKey("nobodys", 1), poison=True)


def test_a_hand_in_that_was_refused_has_asked_for_nothing() -> None:
    shell = ready()
    sent = until(shell, SendHandIn)
    assert isinstance(sent, SendHandIn)
    assert sent.credit == 1
    shell.waiting.clear()
    refuse(shell, sent.key, poison=False)
    shell.advance(1_100)
    assert any(isinstance(effect, SendRequest) for effect in shell.waiting)


# --- the log ------------------------------------------------------------------------------------------------------


def link_news(shell: Shell) -> list[str]:
    return [effect.name for effect in shell.effects if isinstance(effect, Report) and effect.name.startswith("link_")]


def test_a_link_that_stays_down_is_told_of_once_whatever_each_broker_says() -> None:
    shell = Shell()
    shell.connect()
    for number in range(200):
        shell.tell(
            LinkChanged(at_ms=shell.now_ms, connected=False, broker=f"b:{number % 3}", detail=f"no {number % 2}")
        )
        shell.advance(2_000)
    assert link_news(shell) == ["link_up", "link_down"]
    shell.connect()
    assert link_news(shell) == ["link_up", "link_down", "link_up"]
    assert shell.state.link_detail == ""


def test_a_link_that_never_came_up_is_told_of_too() -> None:
    shell = Shell()
    for _ in range(3):
        shell.tell(LinkChanged(at_ms=shell.now_ms, connected=False, broker="b:1", detail="refused"))
    assert link_news(shell) == ["link_down"]


def test_a_link_that_flaps_is_told_of_once_a_minute_and_a_lasting_end_in_the_end() -> None:
    shell = Shell()
    for number in range(120):
        shell.tell(LinkChanged(at_ms=shell.now_ms, connected=number % 2 == 0, broker="b:1"))
        shell.advance(1_000)
    assert len(link_news(shell)) <= 6
    for _ in range(40):
        shell.tell(LinkChanged(at_ms=shell.now_ms, connected=False, broker="b:1"))
        shell.advance(2_000)
    assert link_news(shell)[-1] == "link_down"


def test_a_verdict_on_another_statement_is_told_once() -> None:
    shell = ready()
    sent = until(shell, SendHandIn)
    assert isinstance(sent, SendHandIn)
    for number in range(50):
        shell.tell(verdict(shell.now_ms, sent.key, Verdict.SETTLED, f"{number:064x}"))
    told = [effect for effect in shell.effects if isinstance(effect, Report) and "another" in effect.name]
    assert len(told) == 1


# --- whatever anybody does ----------------------------------------------------------------------------------------


def verdict(now_ms: int, key: JobKey, said: Verdict, sha256: str, following: Grant | None = None) -> VerdictSeen:
    return VerdictSeen(
        at_ms=now_ms,
        key=key,
        verdict=said,
        reason="",
        paid_micro=1,
        statement_sha256=sha256,
        retry_ms=0,
        envelope=b"",
        next_grant=following,
    )


class Hostile:
    """A fleet, a broker and a computer that answer everything at once, and always so that it comes to nothing."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.state: State = initial("unit-1", POLICY, 0)
        self.now_ms = 0
        self.granted = 0
        self.counted: Counter[type[EffectType]] = Counter()
        self.answers: list[Callable[[], EventType]] = []
        self.kind = self.dice.choice(["no work", "useless", "cancels", "refused", "short", "held", "expired", "mixed"])

    def tell(self, event: EventType) -> None:
        self.state, effects = step(self.state, event)
        for effect in effects:
            self.counted[type(effect)] += 1
            self.take(effect)

    def take(self, effect: EffectType) -> None:
        match effect:
            case SendRequest(rid=rid) | SendRenewal(rid=rid):
                self.answers.append(lambda: self.granting(rid))
            case OpenLease(grant=one):
                opened = self.dice.random() < 0.3
                key = one.key
                self.answers.append(
                    lambda: (
                        LeaseOpened(at_ms=self.now_ms, key=key)
                        if opened
                        else LeaseRefused(at_ms=self.now_ms, key=key, detail="404", replayed=self.dice.random() < 0.3)
                    )
                )
            case StartWorker():
                self.answers.append(self.ready)
            case StartBuild(package_sha256=package):
                self.answers += [lambda: self.built(package), lambda: self.gone(expected=True)]
            case StopWorker():
                self.answers.append(lambda: WorkerGone(at_ms=self.now_ms, pid=1, expected=True, detail=""))
            case RunSlice(key=key, index=index):
                self.answers.append(lambda: SliceFailed(at_ms=self.now_ms, key=key, index=index, detail="x"))
            case HandIn(grant=one, kind=kind):
                key = one.key
                self.answers.append(
                    lambda: HandInStored(at_ms=self.now_ms, key=key, kind=kind, statement_sha256="", missing=(0, 1))
                )
            case UploadSlice(key=key, index=index):
                self.answers.append(
                    lambda: TransferFailed(
                        at_ms=self.now_ms, key=key, index=index, detail="x", paused=self.dice.random() < 0.5
                    )
                )
            case SendHandIn(key=key):
                self.answers.append(lambda: verdict(self.now_ms, key, Verdict.LATER, ""))
            case _:
                pass

    def built(self, package: str) -> EventType:
        at_ms = self.now_ms
        match self.dice.randrange(3):
            case 0:
                return PlanBuilt(at_ms=at_ms, package_sha256=package, plan_bytes=1)
            case 1:
                return BuildProgress(at_ms=at_ms, pid=1, package="ocr", phase="x", done_permille=1)
            case _:
                return self.gone(expected=False)

    def gone(self, *, expected: bool) -> WorkerGone:
        return WorkerGone(at_ms=self.now_ms, pid=1, expected=expected, detail="x")

    def ready(self) -> WorkerReady:
        return WorkerReady(at_ms=self.now_ms, pid=1, executor="x", device="x", package="ocr", micro_batch_ms=15.0)

    def granting(self, rid: str) -> GrantSeen:
        kinds = ["no work", "useless", "cancels", "refused", "short", "held", "expired"]
        kind = self.dice.choice(kinds) if self.kind == "mixed" else self.kind
        self.granted += 1
        one = grant(self.granted)
        match kind:
            case "no work":
                return GrantSeen(at_ms=self.now_ms, rid=rid, grant=None, retry_ms=0)
            case "cancels":
                key = one.key
                self.answers.append(lambda: CancelSeen(at_ms=self.now_ms, key=key, grace_ms=0, why=""))
            case "short":
                one = msgspec.structs.replace(one, expected_ms=10**8)
            case "held" if self.state.have:
                one = msgspec.structs.replace(one, job=self.state.have[0].job, epoch=self.state.have[0].epoch)
            case "expired":
                one = msgspec.structs.replace(one, ttl_ms=1, renew_ms=1)
            case _:
                pass
        return GrantSeen(at_ms=self.now_ms, rid=rid, grant=one, retry_ms=0)

    def noise(self) -> EventType:
        """Somebody says something that nobody asked for."""
        at_ms, dice = self.now_ms, self.dice
        key = dice.choice([*self.state.have, JobKey("nobodys", 1)])
        pace = Pace(dice.choice([*PaceState]), 0, dice.choice([100, 1000]))
        noises: list[EventType] = [
            LinkChanged(at_ms=at_ms, connected=dice.random() < 0.8, broker="b:1", detail=str(dice.random())),
            GrantSeen(at_ms=at_ms, rid=f"unit-1-{dice.randrange(1 + self.state.asked)}", grant=grant(1), retry_ms=0),
            verdict(at_ms, key, dice.choice([*Verdict]), "f" * 64, grant(2)),
            CancelSeen(at_ms=at_ms, key=key, grace_ms=dice.randrange(9_000), why="x"),
            PaceSeen(at_ms=at_ms, pace=pace),
            SliceUploaded(at_ms=at_ms, key=key, index=7),
            TransferFailed(at_ms=at_ms, key=key, index=0, detail="x", paused=True),
            BytesMoved(at_ms=at_ms, sent=0, received=10),
            PlansMissing(at_ms=at_ms, packages=tuple(dice.sample(["d" * 64, "a" * 64], dice.randrange(3)))),
            PlanUnusable(at_ms=at_ms, package_sha256="a" * 64, detail="stale"),
        ]
        return dice.choice(noises)

    def live(self, until_ms: int, *, noisy: bool) -> None:
        self.tell(LinkChanged(at_ms=0, connected=True, broker="b:1"))
        while self.now_ms < until_ms:
            due_ms = min(self.state.due_ms, self.now_ms + 400)
            self.now_ms = max(self.now_ms + 1, due_ms)
            self.tell(car(self.now_ms))
            self.tell(computer(self.now_ms))
            if noisy:
                self.tell(self.noise())
            answers, self.answers = self.answers, []
            for one in answers:
                self.tell(one())
            self.tell(Tick(at_ms=self.now_ms))


MINUTES = 2
MOST_A_MINUTE: dict[type[EffectType], int] = {
    SendRequest: 60,
    SendHandIn: 60,
    SendRenewal: 60,
    UploadSlice: 60,
    OpenLease: 30,
    StartWorker: 40,
    StartBuild: 5,
    RunSlice: 60,
    HandIn: 30,
    PauseTransfers: 30,
}


@settings(max_examples=16, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_nothing_spins_whatever_anybody_does(seed: int, noisy: bool) -> None:
    world = Hostile(seed)
    world.live(MINUTES * MINUTE_MS, noisy=noisy)
    for kind, most in MOST_A_MINUTE.items():
        assert world.counted[kind] <= most * MINUTES + 20, (world.kind, kind, world.counted[kind])
    assert len(world.state.outbox) <= 17
    if not noisy:
        assert sum(world.counted[kind] for kind in MOST_A_MINUTE) <= 600
        assert world.counted[SendRequest] >= 1


# --- the same night again -----------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_the_same_events_give_the_same_effects_and_a_due_time_that_lies_ahead(seed: int) -> None:
    world, dice = RestlessWorld(seed), random.Random(seed)
    chosen = policy(dice)
    hostile = Hostile(seed)
    events = world.begins()
    state = initial("unit-9", chosen, 0)
    effects: list[EffectType] = []
    now_ms = 0
    told: list[EventType] = []
    for _ in range(250):
        hostile.state, hostile.now_ms = state, now_ms
        for event in events:
            told.append(event)
            state, more = step(state, event)
            effects += more
            for effect in more:
                hostile.state = state
                hostile.take(effect)
        assert state.due_ms > state.now_ms or state.due_ms <= FAR_MS
        now_ms += dice.choice([1, 50, 400, 5_000, HOUR_MS])
        hostile.state, hostile.now_ms = state, now_ms
        events = world.next(now_ms)
        answers, hostile.answers = hostile.answers, []
        events += [one() for one in answers if dice.random() < 0.8]
        if dice.random() < 0.2:
            events.append(hostile.noise())
        events.append(Tick(at_ms=now_ms))
    again, replayed = initial("unit-9", chosen, 0), list[EffectType]()
    for event in told:
        again, more = step(again, event)
        replayed += more
    assert replayed == effects
    assert again == state
    assert any(isinstance(effect, SetPace | Report) for effect in effects)
