from __future__ import annotations

import contextlib
import itertools
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import wire
from agent.wire import WireError

counts = st.integers(0, 2**53 - 1)
details = st.text(max_size=40)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
executors = st.sampled_from(("onnxruntime", "tensorrt", "tensorrt_rtx"))
resources = {"threads": st.integers(1, 64), "memory_mb": st.integers(64, 9999)}
confinements = st.lists(st.builds(wire.Confinement, name=details, state=details), max_size=3).map(tuple)
platforms = st.builds(
    wire.Platform,
    executor=details,
    version=details,
    driver=details,
    compute_capability=details,
    device=details,
    memory_mb=counts,
    integrated=st.booleans(),
)
worker_frames = st.one_of(
    st.builds(wire.Hello, pid=counts, version=counts, confinement=confinements),
    st.just(wire.Beat()),
    st.builds(wire.Surveyed, platform=platforms, needs_plan=st.booleans()),
    st.builds(wire.Building, phase=details, done_permille=st.integers(0, 1000)),
    st.builds(wire.Built, plan_bytes=st.integers(1, wire.MAX_PLAN_BYTES), timing_bytes=st.integers(0, 2**20)),
    st.builds(
        wire.Loaded,
        executor=details,
        device=details,
        micro_batch_ms=st.floats(0, 3.6e6),
        package_sha256=digests,
        kernels_sha256=digests,
        precision=st.sampled_from(["float32", "tf32", "int8"]),
        batch=st.lists(st.integers(1, 256), min_size=1, max_size=wire.MAX_LANES).map(tuple),
        golden_raw_sha256=digests,
        notes=st.lists(details.map(lambda text: text[: wire.MAX_TEXT]), max_size=wire.MAX_NOTES).map(tuple),
    ),
    st.builds(wire.Refused, detail=details, stale_plan=st.booleans(), unavailable=st.booleans()),
    st.builds(wire.Progress, index=counts, done=counts),
    st.builds(
        wire.SliceDone,
        index=counts,
        items=counts,
        failed_items=counts,
        output=st.binary(max_size=200),
        output_sha256=digests,
        raw_sha256=digests,
        raw_dtype=st.just("float32"),
        raw_shape=st.lists(st.integers(-1, 100), max_size=4).map(tuple),
        compute_ms=st.integers(0, 86_400_000),
    ),
    st.builds(wire.SliceError, index=counts, detail=details),
    st.just(wire.Idle()),
)
daemon_frames = st.one_of(
    st.builds(wire.Survey, executor=executors),
    st.builds(
        wire.Build,
        path=details,
        executor=executors,
        timing_bytes=st.integers(0, wire.MAX_TIMING_BYTES),
        **resources,
    ),
    st.builds(
        wire.Load, path=details, executor=executors, drain_ms=st.integers(1, 9999), plan_bytes=counts, **resources
    ),
    st.builds(wire.Input, items=counts, bytes=counts),
    st.builds(wire.Run, index=counts, first=counts, last=counts),
    st.just(wire.Forget()),
    st.builds(wire.Pace, duty_permille=st.integers(0, 1000)),
    st.just(wire.Stop()),
)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """The stream in pieces, cut at `places` (modulo its length)."""
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(worker_frames, max_size=6), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split_of_the_stream_gives_the_same_messages(messages: list[wire.WorkerMessage], places: list[int]) -> None:
    decoder = wire.worker_messages()
    stream = b"".join(wire.encode(message) for message in messages)
    assert [message for piece in cut(stream, places) for message in decoder.feed(piece)] == messages


@given(st.lists(daemon_frames, max_size=6))
def test_one_byte_at_a_time(messages: list[wire.DaemonMessage]) -> None:
    decoder = wire.daemon_messages()
    stream = b"".join(wire.encode(message) for message in messages)
    assert [message for byte in stream for message in decoder.feed(bytes([byte]))] == messages


@given(st.binary(max_size=300))
def test_random_bytes_only_ever_raise_wire_errors(data: bytes) -> None:
    for decoder in (wire.worker_messages(), wire.daemon_messages()):
        with contextlib.suppress(WireError):
            assert decoder.feed(data) == []


@given(st.binary(max_size=300))
def test_random_bodies_only_ever_raise_wire_errors(body: bytes) -> None:
    frame = struct.pack(">I", len(body)) + body
    for decoder in (wire.worker_messages(), wire.daemon_messages()):
        with pytest.raises(WireError):
            decoder.feed(frame)
    with contextlib.suppress(WireError):
        wire.decode_input(body)


@given(worker_frames, st.data())
def test_a_flipped_byte_is_an_error_or_another_message(message: wire.WorkerMessage, data: st.DataObject) -> None:
    frame = bytearray(wire.encode(message))
    place = data.draw(st.integers(4, len(frame) - 1))
    frame[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(WireError):
        for other in wire.worker_messages().feed(bytes(frame)):
            assert isinstance(other, msgspec.Struct)


def test_the_length_is_capped_before_anything_is_kept() -> None:
    with pytest.raises(WireError, match=r"a frame of 1048577 bytes, more than 1048576"):
        wire.worker_messages().feed(struct.pack(">I", 1024 * 1024 + 1))
    with pytest.raises(WireError, match=r"a SliceDone frame of \d+ bytes, more than 1048576"):
        wire.encode(
            wire.SliceDone(
                index=0,
                items=1,
                failed_items=0,
                output=b"x" * (1024 * 1024),
                output_sha256="0" * 64,
                raw_sha256="0" * 64,
                raw_dtype="float32",
                raw_shape=(1,),
                compute_ms=1,
            )
        )


def frame(body: object) -> bytes:
    packed = msgspec.msgpack.encode(body)
    return struct.pack(">I", len(packed)) + packed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"type": "Stop"}, "Invalid value 'Stop'"),
        ({"type": "Hello", "pid": 1}, "missing required field `version`"),
        ({"type": "Hello", "pid": -1, "version": 1}, r">= 0 - at `\$.pid`"),
        ({"type": "Hello", "pid": 1, "version": 1, "more": 2}, "unknown field `more`"),
        ({"type": "Refused", "detail": "x" * 3000}, "length <= 2048"),
        ([1, 2], "Expected `object`"),
    ],
)
def test_messages_are_checked(body: object, message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.worker_messages().feed(frame(body))


LOADED = {"type": "Loaded", "executor": "x", "device": "", "package_sha256": "0" * 64, "kernels_sha256": "0" * 64}


@pytest.mark.parametrize("micro_batch_ms", [-1.0, 3_600_001.0, float("inf"), float("nan")])
def test_no_number_of_a_worker_is_more_than_it_can_be(micro_batch_ms: float) -> None:
    with pytest.raises(WireError, match="micro_batch_ms"):
        wire.worker_messages().feed(frame(LOADED | {"micro_batch_ms": micro_batch_ms}))


def test_of_many_messages_only_so_many_come_at_a_time_and_the_rest_waits() -> None:
    decoder = wire.worker_messages()
    beats = wire.encode(wire.Beat()) * 250
    counts = [len(decoder.feed(data, 100)) for data in (beats[:-1], b"", b"", beats[-1:], b"")]
    assert counts == [100, 100, 49, 1, 0]


def test_deep_nesting_is_refused() -> None:
    body = b"\x91" * 100_000 + b"\x90"
    with pytest.raises(WireError):
        wire.worker_messages().feed(struct.pack(">I", len(body)) + body)
    with pytest.raises(WireError):
        wire.decode_input(body)


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_inputs_come_back(items: list[bytes]) -> None:
    assert wire.decode_input(wire.encode_input(items)) == items
