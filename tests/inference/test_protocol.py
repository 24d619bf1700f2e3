"""What a worker owes, and that nothing else is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import wire
from agent.inference.protocol import Protocol
from agent.wire import WireError

HELLO = wire.Hello(pid=1, version=wire.VERSION)
SURVEY = wire.Survey(executor="tensorrt")
BUILD = wire.Build(path="/p", executor="tensorrt", threads=1, memory_mb=64)
LOAD = wire.Load(path="/p", executor="tensorrt", threads=1, memory_mb=64, drain_ms=10)
RUN = wire.Run(index=3, first=4, last=8)
SURVEYED = wire.Surveyed(
    platform=wire.Platform(
        executor="tensorrt",
        version="",
        driver="",
        compute_capability="",
        device="",
        memory_mb=0,
        integrated=False,
    ),
    needs_plan=True,
)
BUILDING, BUILT = wire.Building(phase="", done_permille=0), wire.Built(plan_bytes=1, timing_bytes=0)
LOADED = wire.Loaded(
    executor="x",
    device="",
    micro_batch_ms=1.0,
    package_sha256="0" * 64,
    kernels_sha256="0" * 64,
    precision="float32",
    batch=(1,),
    golden_raw_sha256="0" * 64,
)
REFUSED, FAILED = wire.Refused(detail=""), wire.SliceError(index=3, detail="")
PROGRESS = wire.Progress(index=3, done=4)
STOP, IDLE, BEAT = wire.Stop(), wire.Idle(), wire.Beat()
SAYINGS = (HELLO, BEAT, SURVEYED, BUILDING, BUILT, LOADED, REFUSED, PROGRESS, FAILED, IDLE)
ORDERS = (SURVEY, BUILD, LOAD, RUN, STOP, wire.Pace(duty_permille=0), wire.Forget(), wire.Input(items=1, bytes=1))

Step = wire.DaemonMessage | wire.WorkerMessage


def done(index: int = 3, items: int = 4, failed_items: int = 0) -> wire.SliceDone:
    return wire.SliceDone(
        index=index,
        items=items,
        failed_items=failed_items,
        output=b"",
        output_sha256="0" * 64,
        raw_sha256="0" * 64,
        raw_dtype="none",
        raw_shape=(),
        compute_ms=0,
    )


def play(*steps: Step) -> Protocol:
    protocol = Protocol()
    for step in steps:
        if isinstance(step, ORDER_TYPES):
            protocol.sent(step)
        else:
            protocol.heard(step)
    return protocol


ORDER_TYPES = (
    wire.Require,
    wire.Survey,
    wire.Build,
    wire.Load,
    wire.Input,
    wire.Run,
    wire.Forget,
    wire.Pace,
    wire.Stop,
)


@pytest.mark.parametrize(
    "story",
    [
        (HELLO, BEAT, SURVEY, SURVEYED),
        (SURVEY, HELLO, REFUSED),
        (BUILD, HELLO, BUILDING, BEAT, BUILDING, BUILT, STOP, IDLE),
        (LOAD, HELLO, LOADED, RUN, PROGRESS, PROGRESS, done(), RUN, FAILED, STOP, BEAT, IDLE),
        (LOAD, HELLO, LOADED, RUN, wire.Run(index=5, first=0, last=1), done(), done(5, 1)),
        (LOAD, HELLO, REFUSED, STOP, IDLE),
        (LOAD, HELLO, STOP, LOADED, IDLE),
        (STOP, HELLO, IDLE),
        (HELLO, LOAD, LOADED, RUN, STOP, done(), IDLE),
    ],
)
def test_what_is_owed_may_be_said(story: tuple[Step, ...]) -> None:
    play(*story)


@pytest.mark.parametrize(
    "story",
    [
        (BEAT,),
        (IDLE,),
        (HELLO, HELLO),
        (HELLO, IDLE),
        (HELLO, LOADED),
        (HELLO, REFUSED),
        (HELLO, SURVEYED),
        (HELLO, BUILT),
        (HELLO, BUILDING),
        (HELLO, done()),
        (HELLO, FAILED),
        (HELLO, PROGRESS),
        (HELLO, LOAD, SURVEYED),
        (HELLO, LOAD, BUILT),
        (HELLO, SURVEY, LOADED),
        (HELLO, SURVEY, BUILDING),
        (HELLO, BUILD, SURVEYED),
        (HELLO, SURVEY, SURVEYED, SURVEYED),
        (HELLO, SURVEY, SURVEYED, BEAT),
        (HELLO, SURVEY, SURVEYED, IDLE),
        (HELLO, BUILD, BUILT, BUILDING),
        (HELLO, LOAD, LOADED, LOADED),
        (HELLO, LOAD, LOADED, REFUSED),
        (HELLO, LOAD, REFUSED, LOADED),
        (HELLO, LOAD, RUN, done()),
        (HELLO, LOAD, LOADED, RUN, done(), done()),
        (HELLO, LOAD, LOADED, RUN, FAILED, done()),
        (HELLO, LOAD, LOADED, RUN, done(index=4)),
        (HELLO, LOAD, LOADED, RUN, done(items=3)),
        (HELLO, LOAD, LOADED, RUN, done(failed_items=5)),
        (HELLO, LOAD, LOADED, RUN, wire.SliceError(index=4, detail="")),
        (HELLO, LOAD, LOADED, RUN, wire.Progress(index=4, done=1)),
        (HELLO, LOAD, LOADED, RUN, wire.Progress(index=3, done=5)),
        (HELLO, LOAD, LOADED, RUN, wire.Run(index=5, first=0, last=1), done(5, 1)),
        (HELLO, STOP, IDLE, IDLE),
        (HELLO, STOP, IDLE, BEAT),
        (HELLO, LOAD, LOADED, RUN, STOP, IDLE, done()),
    ],
)
def test_what_is_not_owed_is_not_believed(story: tuple[Step, ...]) -> None:
    protocol = play(*story[:-1])
    last = story[-1]
    assert not isinstance(last, ORDER_TYPES)
    with pytest.raises(WireError):
        protocol.heard(last)


@given(st.lists(st.sampled_from((*ORDERS, *SAYINGS, done())), max_size=30))
def test_nothing_is_answered_more_often_than_it_was_ordered(steps: list[Step]) -> None:
    protocol, ordered, believed = Protocol(), 0, 0
    for step in steps:
        if isinstance(step, ORDER_TYPES):
            protocol.sent(step)
            ordered += isinstance(step, wire.Survey | wire.Build | wire.Load | wire.Run | wire.Stop)
            continue
        try:
            protocol.heard(step)
        except WireError:
            break
        believed += not isinstance(step, wire.Hello | wire.Beat | wire.Building | wire.Progress)
        assert believed <= ordered
        assert protocol.is_loading <= (LOAD in steps)
