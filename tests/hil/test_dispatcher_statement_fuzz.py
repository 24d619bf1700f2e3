"""Any value in any field of a statement that its unit honestly signed: a verdict, no crash, no more than is due.

The statement is bent before it is signed, in one field or several, by values of the right type that nobody would expect
and of wrong types; whatever came of it, the next car is given the job and paid for it, if it is still to be done.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.model import Verdict
from agent.fleet.messages import Envelope, JobGrant, Result
from agent.trust import dsse
from agent.trust.statement import PAYLOAD_TYPE
from hil.dispatcher.memory import MemoryDatabase
from tests.hil.honest_car import PRICE, Car, Desk

ITEMS, SLICE_ITEMS = 2, 1
SURPRISES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([0, 1, -1, 2**31, 2**53 - 1, 2**53, -(2**63), 10**30]),
    st.sampled_from(["", "0", "a" * 64, "0" * 64, "a" * 600, "x\n", "car-1\x00", "\u202e", "result", "yield"]),
    st.text(max_size=12),
    st.integers(-10, 2**53),
    st.sampled_from([None, True, 0.5, [], {}, [{}], {"sha256": "0" * 64}]),
)


class Scene:
    """A dispatcher with a job at a time, and cars that come and go."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.honest, self.cars = desk, desk.new_car("honest"), 0
        self.verdicts: Counter[Verdict] = Counter()

    def new_car(self) -> Car:
        self.cars += 1
        return self.desk.new_car(f"car-{self.cars}")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in it, and to every part."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from places(part, (*path, name))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The same with something else in one place."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


def like(value: Any) -> st.SearchStrategy[Any]:
    """What could stand there as well, for all that its type says."""
    match value:
        case int():
            return st.sampled_from([0, 1, 2, 3, 10**6, 2**31, 2**53 - 1]) | st.integers(0, 2**53 - 1)
        case str() if len(value) == 64:
            return st.sampled_from(["0" * 64, "f" * 64])
        case str():
            return st.sampled_from(["", "0", "open", "closed", "yield", "tpm", "job-9", "x" * 64, "a" * 512])
        case _:
            return SURPRISES


def bent(data: st.DataObject, body: bytes) -> bytes:
    value = json.loads(body)
    for _ in range(data.draw(st.integers(1, 2), "bends")):
        path = data.draw(st.sampled_from(sorted(places(value), key=str)), "place")
        value = put(value, path, data.draw(like(at(value, path)) | SURPRISES, "value"))
    with contextlib.suppress(TypeError, KeyError):  # so that the slices are what is wrong, and not how they are spelled
        slices = value["predicate"]["slices"]
        value["subject"] = [
            {"name": f"slice-{one['index']}", "digest": {"sha256": one["outputSha256"]}} for one in slices
        ]
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def signed(car: Car, grant: JobGrant, honest: Result, body: bytes) -> Result:
    envelope = dsse.sign(PAYLOAD_TYPE, body, car.session.key)
    return msgspec.structs.replace(honest, statement=msgspec.json.decode(envelope, type=Envelope))


def hand_in_bent(scene: Scene, data: st.DataObject) -> None:
    scene.desk.add_job(items=ITEMS, slice_items=SLICE_ITEMS)
    car = scene.new_car()
    grant = car.must_request()
    honest = car.result(grant)
    body = base64.b64decode(honest.statement.payload)
    changed = bent(data, body)
    verdict = car.hand_in(signed(car, grant, honest, changed))
    due = ITEMS * PRICE
    scene.verdicts[verdict.verdict] += 1
    if changed == body:
        assert verdict.verdict is Verdict.SETTLED
    if verdict.verdict is Verdict.SETTLED:
        assert verdict.paid_micro <= due
        return
    assert verdict.verdict in {Verdict.BAD, Verdict.LATER}
    assert verdict.paid_micro == 0
    assert verdict.reason
    if verdict.verdict is Verdict.LATER:  # nothing was proven: the honest copy still counts
        settled = car.hand_in(honest)
    else:
        settled = scene.honest.hand_in(scene.honest.result(scene.honest.must_request()))
    assert (settled.verdict, settled.paid_micro) == (Verdict.SETTLED, due)


def test_whatever_is_signed_is_judged_and_never_overpaid(tmp_path: Path) -> None:
    desk = Desk(tmp_path, database=MemoryDatabase)
    scene = Scene(desk)

    @settings(max_examples=600, deadline=None, derandomize=True)
    @given(data=st.data())
    def bend_and_hand_in(data: st.DataObject) -> None:
        hand_in_bent(scene, data)

    bend_and_hand_in()
    desk.book.close()
    assert desk.service.counts["crashed"] == 0
    reached = (Verdict.SETTLED, Verdict.BAD, Verdict.LATER)
    assert min(scene.verdicts[one] for one in reached) > 10, "all were refused at the door, or none"
