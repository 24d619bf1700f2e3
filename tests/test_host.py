"""What the computer's own system says: its clock's discipline, metered networks, a waiting update."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent import host
from agent.core.events import EventType, HostSeen
from agent.host import Host, default_interfaces, kernel_clock, wall_error_ms
from tests.conftest import FixedClock

V4_HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
V6 = "{to} {length} 00000000000000000000000000000000 00 fe800000000000000000000000000001 {metric} 1 0 {flags} {name}\n"
ANY = "0" * 32


def v4(name: str, *, to: str = "00000000", mask: str = "00000000", metric: int = 100, flags: str = "0003") -> str:
    return f"{name}\t{to}\t0102A8C0\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n"


def v6(name: str, *, to: str = ANY, length: str = "00", metric: str = "00000400", flags: str = "00000003") -> str:
    return V6.format(to=to, length=length, metric=metric, flags=flags, name=name)


def looking(folder: Path, **changes: object) -> Host:
    """A host whose procfs is `folder`, with a clock that somebody keeps."""
    settings: dict[str, object] = {
        "clock": FixedClock(),
        "update_flag": folder / "update-pending",
        "metered_interfaces": ("wwan*", "rmnet*", "usb*"),
        "proc": folder,
        "adjtimex": lambda: (0, 0x2001, 12_001),
    }
    return Host(**(settings | changes))  # type: ignore[arg-type]


def put(folder: Path, ipv4: str = "", ipv6: str = "") -> None:
    (folder / "net").mkdir(exist_ok=True)
    (folder / "net" / "route").write_text(V4_HEAD + ipv4)
    (folder / "net" / "ipv6_route").write_text(ipv6)


@pytest.mark.parametrize(
    ("state", "status", "error_us", "ms"),
    [
        (0, 0x2001, 0, 0),
        (0, 0x2001, 1, 1),
        (0, 0x2001, 15_999_999, 16_000),
        (5, 0x2001, 10, None),  # TIME_ERROR
        (0, 0x2041, 10, None),  # STA_UNSYNC
        (5, 0x0040, 16_000_000, None),
        (1, 0x2011, 500, 1),  # a leap second is due
        (0, 0, -1, None),
    ],
)
def test_the_bound_of_the_clock_counts_only_while_somebody_keeps_it(
    state: int, status: int, error_us: int, ms: int | None
) -> None:
    assert wall_error_ms(state, status, error_us) == ms


def test_this_kernel_answers() -> None:
    try:
        state, status, error_us = kernel_clock()
    except OSError as error:
        pytest.skip(f"this sandbox does not let anybody ask: {error}")
    assert 0 <= state <= 5
    assert status >= 0
    assert 0 <= error_us < 10**12


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "metered"),
    [
        (v4("wlan0"), "", False),
        (v4("wwan0"), "", True),
        (v4("wlan0") + v4("wwan0", metric=700), "", False),
        (v4("wlan0", metric=700) + v4("rmnet_data0"), "", True),
        (v4("wlan0") + v4("usb0"), "", True),  # the kernel may take either
        (v4("wlan0", metric=700) + v4("wwan0", flags="0002"), "", False),  # not up
        (v4("wlan0"), v6("wwan0"), True),
        ("", v6("wlan0"), False),
        ("", v6("lo", flags="00200200") + v6("wlan0"), False),
        ("", v6("wwan0", flags="00200200"), None),  # an unreachable route
        (v4("wwan0", to="0000FEA9", mask="0000FFFF"), "", None),  # not a default route
        (v4("wwan0", mask="00000080"), "", None),  # half of a split default
        ("", v6("wwan0", to="20010db8" + "0" * 24, length="40"), None),
        ("", "", None),
        ("nonsense\n\n\t\t\n", "nonsense\n", None),
        (v4("wlan0", metric=-5), "", False),
    ],
)
def test_metered_is_told_by_the_preferred_default_route(
    tmp_path: Path, ipv4: str, ipv6: str, metered: bool | None
) -> None:
    put(tmp_path, ipv4, ipv6)
    assert looking(tmp_path).read().metered is metered


def test_what_the_configuration_says_counts_before_any_route(tmp_path: Path) -> None:
    put(tmp_path, v4("wwan0"))
    assert looking(tmp_path, metered="no").read().metered is False
    put(tmp_path, v4("eth0"))
    assert looking(tmp_path, metered="yes").read().metered is True


def test_an_update_waits_while_its_file_exists(tmp_path: Path) -> None:
    looked = looking(tmp_path)
    assert not looked.read().update_pending
    (tmp_path / "update-pending").touch()
    assert looked.read().update_pending
    (tmp_path / "update-pending").unlink()
    assert not looked.read().update_pending


def test_what_cannot_be_read_is_unknown_and_told_of_once(tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / "net" / "route").unlink()
    (tmp_path / "net" / "route").mkdir()  # reading a directory fails, for root too
    allowed = False

    def adjtimex() -> tuple[int, int, int]:
        if not allowed:
            raise PermissionError(1, "Operation not permitted")
        return 0, 0, 1_000

    looked = looking(tmp_path, adjtimex=adjtimex)
    with capture_logs() as said:
        for _ in range(3):
            seen = looked.read()
            assert (seen.wall_error_ms, seen.metered) == (None, None)
    assert [line["event"] for line in said] == ["host_unreadable"] * 2
    allowed = True
    with capture_logs() as said:
        assert looked.read().wall_error_ms == 1
    assert [line["event"] for line in said] == ["host_readable"]


def test_both_clocks_are_of_one_moment(tmp_path: Path) -> None:
    class Interrupted(FixedClock):
        """Something else runs for 40 ms within the first reading."""

        first = True

        def wall_ms(self) -> int:
            if self.first:
                self.first = False
                self.now_ms += 40
            return super().wall_ms()

    clock = Interrupted()
    seen = looking(tmp_path, clock=clock).read()
    assert seen.wall_ms - seen.at_ms == FixedClock().wall_ms() - FixedClock().boot_ms()


def test_it_goes_on_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "INTERVAL_S", 0.001)
    seen: list[EventType] = []

    async def story() -> None:
        enough = asyncio.Event()

        def emit(event: EventType) -> None:
            seen.append(event)
            if len(seen) == 3:
                enough.set()

        task = asyncio.create_task(looking(tmp_path).run(emit))
        await asyncio.wait_for(enough.wait(), 20)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(story())
    assert all(isinstance(event, HostSeen) for event in seen)


TABLES = st.one_of(
    st.text(max_size=300),
    st.lists(st.sampled_from([v4("wwan0"), v6("wwan0"), v4("e0")[:20], "\x00", "0 " * 11, "٣ " * 10])).map("".join),
    st.lists(st.lists(st.text("0123456789abcdefx-_ ٣", max_size=9), max_size=12).map("\t".join)).map("\n".join),
)


@given(TABLES, TABLES)
def test_no_table_breaks_the_parser(ipv4: str, ipv6: str) -> None:
    assert all(isinstance(name, str) and name != "lo" for name in default_interfaces(ipv4, ipv6))


def test_an_update_waits_too_while_the_program_that_installs_it_says_so(tmp_path: Path) -> None:
    told = [False]
    looked = Host(clock=FixedClock(), update_flag=tmp_path / "update-pending", update_told=lambda: told[0])
    assert not looked.read().update_pending
    told[0] = True
    assert looked.read().update_pending
