"""The link's rules without a network: back-off, quarantine, floods, frames."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.fleet.backoff import CAP_S, FIRST_S, OVERLOAD_CODES, TAKEN_OVER, Backoff
from agent.fleet.flood import QUIET_S, FloodGate, ReadingPace
from agent.fleet.metered_socket import HEADER_BYTES, FrameGuard, MeteredSocket
from agent.fleet.quarantine import LOSSES, MOST, Quarantine

TOKENS = st.sampled_from(["", "a", "b", "c"])


def test_waits_grow_to_the_cap_and_begin_anew_after_a_link_that_stood() -> None:
    backoff = Backoff()
    ceilings = [backoff.ceiling_s(up_for_s=None, code=None) for _ in range(40)]
    assert ceilings[:4] == [1, 2, 4, 8]
    assert ceilings[12:] == [CAP_S] * 28
    assert backoff.ceiling_s(up_for_s=4.0, code=None) == CAP_S, "up, and not for long"
    assert backoff.ceiling_s(up_for_s=3_600.0, code=None) == 2 * FIRST_S
    assert backoff.ceiling_s(up_for_s=None, code=None) == 4 * FIRST_S


def test_each_few_seconds_of_being_up_forgive_a_failure() -> None:
    """A broker that dies again half a minute after it came back is no reason to wait for half an hour."""
    backoff = Backoff()
    for _ in range(8):
        backoff.ceiling_s(up_for_s=None, code=None)
    assert backoff.ceiling_s(up_for_s=29.0, code=None) == FIRST_S * 2**4
    assert backoff.ceiling_s(up_for_s=0.2, code=None) == FIRST_S * 2**5, "it fights for its name"


@pytest.mark.parametrize("code", sorted({*OVERLOAD_CODES, TAKEN_OVER}))
def test_a_broker_with_too_much_to_do_is_believed(code: int) -> None:
    assert Backoff().ceiling_s(up_for_s=None, code=code) == CAP_S
    assert Backoff().ceiling_s(up_for_s=9_999.0, code=code) == CAP_S


def test_the_first_attempt_after_an_outage_comes_within_the_spread_and_no_other_does() -> None:
    backoff = Backoff()
    backoff.spread_s = 600.0
    assert backoff.ceiling_s(up_for_s=None, code=None) == 1.0, "it was never up"
    assert backoff.ceiling_s(up_for_s=9_999.0, code=None) == 600.0
    assert backoff.ceiling_s(up_for_s=None, code=None) == 2.0


def test_a_message_in_flight_at_three_losses_is_poison_and_then_at_each() -> None:
    quarantine = Quarantine()
    assert [quarantine.lost(["a"]) for _ in range(LOSSES)] == [[]] * (LOSSES - 1) + [["a"]]
    assert quarantine.lost(["a"]) == ["a"]
    quarantine.acknowledged("a")
    assert quarantine.lost(["a"]) == []


def test_a_message_that_was_sent_again_and_again_over_one_dead_connection_is_lost_once() -> None:
    quarantine = Quarantine()
    assert quarantine.lost(["a"] * (2 * LOSSES)) == []
    assert quarantine.lost(["a"]) == []
    assert quarantine.lost(["a"]) == ["a"]


@given(
    st.lists(st.one_of(st.tuples(st.just("lost"), st.lists(TOKENS, max_size=4)), st.tuples(st.just("took"), TOKENS)))
)
def test_nobody_is_poison_who_was_not_lost_three_times_without_being_taken(steps: list[tuple[str, list[str]]]) -> None:
    quarantine, losses = Quarantine(), dict.fromkeys("abc", 0)
    for step, tokens in steps:
        if step == "took":
            quarantine.acknowledged(str(tokens))
            losses[str(tokens)] = 0
            continue
        poison = quarantine.lost(set(tokens))
        for token in set(tokens) - {""}:
            losses[token] += 1
            assert (token in poison) == (losses[token] >= LOSSES)
        assert "" not in poison
    for token, count in losses.items():
        assert quarantine.admits(token, [], proven=True), "alone it always may go"
        if token:
            assert quarantine.admits(token, ["x"], proven=True) == (count == 0)
            assert quarantine.admits("x", [token], proven=True) == (count == 0)
            assert quarantine.admits(token, [], proven=False) == (count == 0)


def test_suspects_are_bounded() -> None:
    quarantine = Quarantine()
    for n in range(3 * MOST):
        quarantine.lost([str(n)])
    assert len(quarantine._losses) == MOST


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 5)), max_size=200),
    st.floats(0.1, 50),
    st.floats(5, 50),
)
def test_a_gate_lets_through_its_burst_and_its_rate_and_counts_the_rest(
    arrivals: list[tuple[float, float]], per_s: float, burst: float
) -> None:
    gate, passed, last_s = FloodGate(per_s, burst), 0.0, 0.0
    arrivals.sort()
    let_in = 0
    for now_s, units in arrivals:
        if gate.admits(now_s, units):
            passed, let_in, last_s = passed + units, let_in + 1, now_s
    first_s = arrivals[0][0] if arrivals else 0.0
    assert passed <= burst + per_s * (last_s - first_s) + 1e-6
    assert gate.dropped == len(arrivals) - let_in


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 20)), max_size=100), st.floats(0.5, 50), st.floats(1, 50))
def test_who_rests_as_long_as_told_never_reads_faster_than_the_pace(
    readings: list[tuple[float, float]], per_s: float, burst: float
) -> None:
    now_s = read = last = 0.0
    pace = ReadingPace(per_s, burst, now_s)
    for passed_s, units in readings:
        now_s += passed_s
        assert read <= burst + per_s * now_s + 1e-6, "and only the last piece may be beyond it"
        read, last = read + units, units
        now_s += pace.rest_s(now_s, units)
    assert read <= burst + per_s * now_s + last + 1e-6
    assert ReadingPace(0.0, 0.0, 0.0).rest_s(0.0, 1e9) == 0.0


def test_a_flood_is_over_after_a_quiet_while_and_no_limit_is_none() -> None:
    gate = FloodGate(1.0, 1.0)
    assert gate.admits(0.0)
    assert not gate.admits(0.0)
    assert gate.flooded(QUIET_S - 1)
    assert not gate.flooded(QUIET_S)
    assert all(FloodGate(0.0, 0.0).admits(0.0) for _ in range(1000))


def frame(command: int, body: bytes) -> bytes:
    length, rest = bytearray(), len(body)
    while rest >= 128:
        length.append(rest % 128 | 128)
        rest //= 128
    return bytes([command, *length, rest]) + body


FRAMES = st.builds(frame, st.sampled_from([0x20, 0x30, 0x32, 0x3A, 0x40, 0x90, 0xD0, 0xE0]), st.binary(max_size=400))


@given(st.lists(FRAMES, max_size=8), st.integers(1, 50))
def test_good_frames_pass_however_they_are_cut(frames: list[bytes], piece: int) -> None:
    stream, guard = b"".join(frames), FrameGuard(400)
    for at in range(0, len(stream), piece):
        guard.look(stream[at : at + piece])
    assert guard.frames == len(frames)
    assert guard.pubacks == sum(one[0] == 0x40 for one in frames)
    with pytest.raises(ConnectionError, match="no server's"):
        guard.look(b"\x10")


@given(st.lists(FRAMES, max_size=4), st.integers(401, 268_435_455))
def test_the_first_frame_that_is_too_long_is_seen_at_its_length(frames: list[bytes], length: int) -> None:
    guard, header, rest = FrameGuard(400), bytearray(), length
    guard.look(b"".join(frames))
    while rest >= 128:
        header.append(rest % 128 | 128)
        rest //= 128
    with pytest.raises(ConnectionError, match=f"a packet of {length} bytes"):
        guard.look(bytes([0x30, *header, rest]))


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"\x34\0", "QoS 2"),
        (b"\x36\0", "QoS 2"),
        *((bytes([kind, 2, 0, 1]), "an answer to a message with QoS 2") for kind in (0x50, 0x62, 0x70)),
        *((bytes([kind, 0]), "no server's") for kind in (0x00, 0x10, 0x82, 0xA2, 0xB0, 0xC0, 0xF0)),
        (b"\x20\xff\xff\xff\xff", "no number"),
    ],
)
def test_frames_against_the_rules(stream: bytes, why: str) -> None:
    with pytest.raises(ConnectionError, match=why):
        FrameGuard(400).look(stream)


def test_nothing_waits_for_nagle_and_every_piece_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as raw:
        peer, _ = listener.accept()
        with peer:
            made = MeteredSocket(raw, 400)
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert made.send(b"x" * 100) == 100
            peer.sendall(b"\x30\x02ab\xd0\0")
            assert [made.recv(1), made.recv(3), made.recv(9)] == [b"\x30", b"\x02ab", b"\xd0\0"]
            assert (made.sent_bytes, made.received_bytes) == (100 + HEADER_BYTES, 6 + HEADER_BYTES)
            peer.recv(100)
            peer.close()
            assert made.recv(1) == b""
            assert made.fault == "the broker closed the connection"
