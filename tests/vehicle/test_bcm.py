"""The broadcast manager by its kernel layouts: a test double reads what we set up and answers as linux/can/bcm.h says.

There is no AF_CAN where these tests run, so the real kernel has never been on the other side.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine

import pytest

from agent.clock import SystemClock
from agent.core.events import EventType, Quality, SignalsSeen, SourceChanged, SourceHeard
from agent.errors import ConfigError
from agent.vehicle import bcm, drain
from agent.vehicle.bcm import HEAD, BcmSource, parse_report, rx_setup, timeout_ms
from agent.vehicle.binding import bind_bus
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.drain import Rounds
from agent.vehicle.layout import Bits, BoundGroup, BoundMessage
from agent.vehicle.profile import Profile, load_profile

MakeFrame = Callable[..., Frame]
GEAR = "Vehicle.Powertrain.Transmission.SelectedGear"
RX_SETUP, RX_TIMEOUT, RX_CHANGED = 5, 11, 12
pytestmark = pytest.mark.skipif(struct.calcsize("l") != 8, reason="the layouts below are those of 64-bit kernels")


def head(opcode: int, can_id: int, frames: int, *, flags: int = 0, timeout_us: int = 0, throttle_us: int = 0) -> bytes:
    """`struct bcm_msg_head` of a 64-bit kernel, field by field: 12 bytes, 4 of padding, two timevals, id and count."""
    return (
        struct.pack("=III4x", opcode, flags, 0)
        + struct.pack("=qqqq", *divmod(timeout_us, 1_000_000), *divmod(throttle_us, 1_000_000))
        + struct.pack("=II", can_id, frames)
    )


def can_frame(can_id: int, data: bytes) -> bytes:
    return struct.pack("=IB3x8s", can_id, len(data), data)


def messages(profile: str, bus: str) -> dict[str, BoundMessage]:
    return {message.name: message for message in bind_bus(bus, [load_profile(profile)])}


def test_the_head_is_as_long_as_the_kernels() -> None:
    assert HEAD.size == len(head(RX_SETUP, 0, 0)) == 56


def test_a_plain_message_is_watched_by_its_mapped_bits_and_for_as_long_as_its_strictest_leaf_allows() -> None:
    gear = messages("tesla-model3", "party")["DI_systemStatus"]
    setup = rx_setup(gear)
    mask = bytes([0, 0, 0xE0, 0, 0, 0, 0, 0])
    expected = head(RX_SETUP, 0x118, 1, flags=0x01 | 0x02 | 0x40 | 0x100, timeout_us=500_000, throttle_us=20_000)
    assert setup == expected + can_frame(0x118, mask)


def test_slow_leaves_may_be_missing_for_longer() -> None:
    energy = messages("driveway-energy", "energy")
    assert timeout_ms(energy["DW_batteryStatus"]) == 60_000
    assert timeout_ms(energy["DW_chargeStatus"]) == 5_000, "the contactors are among its leaves"
    assert (
        head(RX_SETUP, 0x500, 1, flags=0x143, timeout_us=60_000_000, throttle_us=20_000)
        == rx_setup(energy["DW_batteryStatus"])[:56]
    )


def test_a_multiplexed_message_has_the_multiplexers_mask_first_and_then_each_page() -> None:
    switches = messages("tesla-model3", "vehicle")["VCLEFT_switchStatus"]
    body = rx_setup(switches)[56:]
    selector, page_0 = body[:16], body[16:]
    assert selector == can_frame(0x3C2, bytes([0x03, 0, 0, 0, 0, 0, 0, 0]))
    assert page_0 == can_frame(0x3C2, bytes([0x10, 0, 0, 0, 0, 0, 0x0F, 0]))
    power = messages("tesla-model3", "party")["VCFRONT_LVPowerState"]
    body = rx_setup(power)[56:]
    assert body == b"".join(can_frame(0x221, bytes([byte, *bytes(7)])) for byte in (0x1F, 0x60, 0x61))


def test_a_message_of_can_fd_is_set_up_as_one() -> None:
    group = BoundGroup("Long", 0xFF << 8 * 20, ())
    long = BoundMessage(name="Long", key=0x123, length=48, every_page=group)
    signal = messages("tesla-model3", "party")["DI_systemStatus"].groups[0].signals[0]
    long = BoundMessage(name="Long", key=0x123, length=48, every_page=BoundGroup("Long", group.mask, (signal,)))
    setup = rx_setup(long)
    assert len(setup) == 56 + 72
    assert struct.unpack("=I", setup[4:8])[0] & 0x800
    assert setup[56:] == struct.pack("=IB3x64s", 0x123, 48, bytes(20) + b"\xff")


def test_a_multiplexer_beyond_what_the_kernel_compares_is_refused() -> None:
    signal = messages("tesla-model3", "party")["DI_systemStatus"].groups[0].signals[0]
    page = BoundGroup("Far/1", 1, (signal,))
    far = BoundMessage(
        name="Far",
        key=1,
        length=48,
        every_page=None,
        multiplexer=Bits(80, 8),
        pages={1: page},
        known_pages=frozenset({1}),
    )
    with pytest.raises(ConfigError, match="Far is multiplexed beyond byte 8"):
        rx_setup(far)


def test_nothing_that_is_set_up_can_send_a_frame() -> None:
    """Of every message of every bundled profile: the opcode is RX_SETUP, and never TX_SETUP (1) or TX_SEND (4)."""
    for profile, bus in (
        ("tesla-model3", "party"),
        ("tesla-model3", "vehicle"),
        ("driveway-energy", "energy"),
        ("vw-meb", "powertrain"),
        ("nissan-leaf", "car"),
    ):
        for message in messages(profile, bus).values():
            assert struct.unpack("=I", rx_setup(message)[:4])[0] == RX_SETUP


def test_reports_are_told_apart_and_anything_else_is_none() -> None:
    frame = can_frame(0x118, bytes(8))
    changed = parse_report(head(RX_CHANGED, 0x118, 1) + frame)
    assert changed is not None
    assert (changed.key, changed.raw_frame) == (0x118, frame)
    silent = parse_report(head(RX_TIMEOUT, 0x9ABC_DEF0, 0))
    assert silent is not None
    assert (silent.key, silent.raw_frame) == (0x9ABC_DEF0, None)
    for raw in (b"", bytes(55), head(RX_CHANGED, 0x118, 1), head(RX_CHANGED, 0x118, 2) + 2 * frame, head(10, 1, 0)):
        assert parse_report(raw) is None


class Rig:
    """A source on one end of a datagram pair, and the kernel's part played by the test at the other."""

    def __init__(self, decoder: Decoder, clock: SystemClock) -> None:
        self.events: asyncio.Queue[EventType] = asyncio.Queue()
        self.opens: asyncio.Queue[socket.socket] = asyncio.Queue()
        self.opened: list[socket.socket] = []
        self.source = BcmSource("party", decoder, clock, self.open, Rounds())

    def open(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.setblocking(False)
        self.opened.append(ours)
        self.opens.put_nowait(ours)
        return theirs

    async def next_open(self) -> socket.socket:
        kernel = await asyncio.wait_for(self.opens.get(), 5)
        for _ in range(5):
            await asyncio.sleep(0)
        return kernel

    async def next(self, kind: type[EventType]) -> EventType:
        """The next event that is not a repetition, or is one where that is asked for."""
        while True:
            event = await asyncio.wait_for(self.events.get(), 5)
            if kind is SourceHeard or not isinstance(event, SourceHeard):
                assert isinstance(event, kind), event
                return event

    def run(self, scenario: Callable[[], Coroutine[None, None, None]]) -> None:
        async def main() -> None:
            reading = asyncio.create_task(self.source.run(self.events.put_nowait))
            await scenario()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

        asyncio.run(main())
        for one in self.opened:
            one.close()


class SleepyClock(SystemClock):
    """A clock that can jump, as it does when the computer slept."""

    slept_ms = 0

    def boot_ms(self) -> int:
        return super().boot_ms() + self.slept_ms


@pytest.fixture
def clock() -> SleepyClock:
    return SleepyClock()


@pytest.fixture
def rig(profiles: tuple[Profile, ...], clock: SleepyClock, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(drain, "FIRST_BACKOFF_S", 0.001)
    return Rig(Decoder(bind_bus("party", profiles), counters=False), clock)


def changed(frame: Frame) -> bytes:
    return head(RX_CHANGED, frame.can_id, 1) + can_frame(frame.can_id, frame.data)


def test_a_message_is_vouched_for_until_the_kernel_says_that_it_stopped(rig: Rig, make_frame: MakeFrame) -> None:
    async def scenario() -> None:
        kernel = await rig.next_open()
        setups = [struct.unpack_from("=I", kernel.recv(4096))[0] for _ in range(5)]
        assert setups == [RX_SETUP] * 5
        kernel.send(changed(make_frame("party", "DI_systemStatus", DI_gear=1)))
        await rig.next(SourceChanged)
        seen = await rig.next(SignalsSeen)
        assert isinstance(seen, SignalsSeen)
        assert [(sample.path, sample.value) for sample in seen.samples] == [(GEAR, 126.0)]
        for _ in range(3):
            heard = await rig.next(SourceHeard)
            assert isinstance(heard, SourceHeard)
            assert heard.groups == ("DI_systemStatus",)
        kernel.send(head(RX_TIMEOUT, 0x118, 0))
        lost = await rig.next(SignalsSeen)
        assert isinstance(lost, SignalsSeen)
        assert [(sample.path, sample.quality) for sample in lost.samples] == [(GEAR, Quality.UNKNOWN)]
        await asyncio.sleep(0.25)
        assert rig.events.empty(), "nobody vouches for a message that stopped"
        kernel.send(changed(make_frame("party", "DI_systemStatus", DI_gear=1)))
        back = await rig.next(SignalsSeen)
        assert isinstance(back, SignalsSeen)
        assert back.samples[0].value == 126.0

    rig.run(scenario)
    assert rig.source.counts["timeouts"] == 1


def test_a_frame_that_is_refused_ends_the_vouching_for_its_message(rig: Rig, make_frame: MakeFrame) -> None:
    async def scenario() -> None:
        kernel = await rig.next_open()
        good = make_frame("party", "DI_systemStatus", DI_gear=1)
        kernel.send(changed(good))
        await rig.next(SourceChanged)
        await rig.next(SignalsSeen)
        kernel.send(changed(Frame(good.can_id, bytes([good.data[0] ^ 1]) + good.data[1:])))
        kernel.send(b"no report")
        await asyncio.sleep(0.15)
        while not rig.events.empty():
            rig.events.get_nowait()
        await asyncio.sleep(0.15)
        assert rig.events.empty()

    rig.run(scenario)
    counts = rig.source.counts
    assert (counts["dropped_checksum"], counts["dropped_malformed"]) == (1, 1)


def test_after_a_sleep_of_the_computer_everything_is_set_up_anew(
    rig: Rig, clock: SleepyClock, make_frame: MakeFrame
) -> None:
    async def scenario() -> None:
        kernel = await rig.next_open()
        kernel.send(changed(make_frame("party", "DI_systemStatus", DI_gear=1)))
        await rig.next(SourceChanged)
        await rig.next(SignalsSeen)
        clock.slept_ms = bcm.SLEPT_MS + 500
        kernel = await rig.next_open()
        while not rig.events.empty():
            rig.events.get_nowait()
        await asyncio.sleep(0.15)
        assert rig.events.empty(), "what was reported before the sleep counts no longer"
        kernel.send(changed(make_frame("party", "DI_systemStatus", DI_gear=1)))
        await rig.next(SourceHeard)

    rig.run(scenario)


def test_a_report_that_was_lost_has_everything_set_up_anew(
    rig: Rig, make_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = iter([1, 0])
    monkeypatch.setattr(drain, "dropped_by_kernel", lambda _channel: next(dropped, 0))

    async def scenario() -> None:
        kernel = await rig.next_open()
        kernel.send(changed(make_frame("party", "DI_systemStatus", DI_gear=1)))
        await rig.next_open()

    rig.run(scenario)
    assert rig.source.counts["overflowed"] == 1
