"""What is said to systemd, by the datagrams that arrive; and what its environment says, held against its manuals."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import sd


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and what it puts into $NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@driveway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1))
        listening.setblocking(False)
        yield listening, name


def test_what_is_said_arrives_a_datagram_each(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    notifier = sd.Notifier.of({"NOTIFY_SOCKET": name})
    assert notifier.is_heard
    assert notifier.ready()
    assert notifier.status("blocked: parked:\nWATCHDOG=1")  # nobody smuggles a second line into it
    assert notifier.alive()
    assert notifier.stopping()
    said = [listening.recv(4096) for _ in range(4)]
    assert said == [b"READY=1", b"STATUS=blocked: parked: WATCHDOG=1", b"WATCHDOG=1", b"STOPPING=1"]
    notifier.close()
    notifier.close()


def test_a_manager_that_does_not_read_holds_up_nobody(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    notifier = sd.Notifier(name)
    taken = [notifier.alive() for _ in range(10_000)]
    assert taken[0]
    assert not taken[-1], "its queue is full, and that is told instead of waited for"
    listening.recv(100)
    assert notifier.alive()
    notifier.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative", "/nowhere/notify"])
def test_where_nobody_listens_nothing_happens(address: str) -> None:
    notifier = sd.Notifier(address)
    assert not notifier.ready()
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "expected_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "7"}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
    ],
)
def test_the_watchdogs_time(environment: dict[str, str], expected_s: float | None) -> None:
    assert sd.watchdog_s(environment, pid=7) == expected_s


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        ({"LISTEN_FDS": "1"}, {}),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "8"}, {}),
        ({"LISTEN_FDS": "x", "LISTEN_PID": "7"}, {}),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "7"}, {3: "unknown", 4: "unknown"}),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "7", "LISTEN_FDNAMES": "control:other"}, {3: "control", 4: "other"}),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "7", "LISTEN_FDNAMES": "one"}, {3: "unknown", 4: "unknown"}),
    ],
)
def test_the_descriptors_that_it_passes(environment: dict[str, str], expected: dict[int, str]) -> None:
    assert sd.listen_fds(environment, pid=7) == expected


def test_whether_a_descriptor_leads_to_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        found = os.fstat(stream.fileno())
        assert sd.is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}, stream.fileno())
        assert not sd.is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"}, stream.fileno())
        assert not sd.is_journal({}, stream.fileno())
        closed = stream.fileno()
    assert not sd.is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}, closed)
