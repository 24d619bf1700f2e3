"""What reaches the journal: by a socket in its place, read as its documentation says it reads."""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agent import log
from agent.journal import FIELDS, VALUE_BYTES, JournalLogger, encode_fields


def parsed(data: bytes) -> dict[str, str]:
    """The fields of one message, by the journal's own grammar."""
    fields = {}
    while data:
        end = data.index(b"\n")
        name, is_plain, value = data[:end].partition(b"=")
        data = data[end + 1 :]
        if not is_plain:
            (length,) = struct.unpack_from("<Q", data)
            value, rest = data[8 : 8 + length], data[8 + length :]
            assert rest[:1] == b"\n"
            data = rest[1:]
        fields[name.decode("ascii")] = value.decode()
    return fields


class Journal:
    """systemd-journald's socket."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "journal")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.setblocking(False)

    def read(self) -> dict[str, str]:
        """The next message, as a datagram or in the memory that rides with an empty one."""
        data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 1)
        if data:
            return parsed(data)
        (descriptor,) = descriptors
        try:
            with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as memory:
                return parsed(memory[:])
        finally:
            os.close(descriptor)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    one = Journal(tmp_path)
    yield one
    one.socket.close()


def test_an_event_of_the_daemons_is_found_by_its_fields(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    here = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{here.st_dev}:{here.st_ino}")
    before = structlog.get_config()
    try:
        log.configure(journal=journal.address)
        log.logger().warning("lease_closed", lease="L-1", slices=3, paid=True, jobs=["a", "b"], hint="one\ntwo")
        assert journal.read() == {
            "MESSAGE": 'lease_closed lease=L-1 slices=3 paid=true jobs=["a","b"] hint=one\ntwo',
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "driveway",
            "DRIVEWAY_EVENT": "lease_closed",
            "DRIVEWAY_LEASE": "L-1",
            "DRIVEWAY_SLICES": "3",
            "DRIVEWAY_PAID": "true",
            "DRIVEWAY_JOBS": '["a","b"]',
            "DRIVEWAY_HINT": "one\ntwo",
        }
        assert capfd.readouterr().err == "", "not twice"
        Path(journal.address).unlink()  # the journal is gone: it is told as everywhere else
        log.logger().error("store_failed", error="disk")
        line = json.loads(capfd.readouterr().err)
        assert (line["event"], line["error"], line["level"]) == ("store_failed", "disk", "error")
        structlog.get_config()["logger_factory"]().close()
    finally:
        structlog.configure(**before)


def test_without_the_journal_it_is_a_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    before = structlog.get_config()
    try:
        log.configure()
        log.logger().info("started", unit="u")
        assert json.loads(capsys.readouterr().err)["event"] == "started"
    finally:
        structlog.configure(**before)


def test_what_a_datagram_cannot_hold_comes_in_sealed_memory(journal: Journal) -> None:
    journal.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    event = {"event": "core_failed", "level": "error", **{f"part_{n}": "x" * VALUE_BYTES for n in range(6)}}
    logger = JournalLogger(journal.address)
    fields = encode_fields(event)
    logger.msg(fields, "spare")
    logger.close()
    found = journal.read()
    assert found["DRIVEWAY_PART_5"] == "x" * VALUE_BYTES
    assert found["PRIORITY"] == "3"


def test_what_a_peer_may_say_is_bounded() -> None:
    event = {"event": "refused", **{f"field_{n}": "y" * (2 * VALUE_BYTES) for n in range(2 * FIELDS)}}
    found = parsed(encode_fields(event))
    assert sum(name.startswith("DRIVEWAY_FIELD") for name in found) == FIELDS
    assert all(len(value.encode()) <= VALUE_BYTES + 3 for value in found.values())


@given(
    event=st.dictionaries(
        st.text(min_size=1, max_size=80),
        st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.binary(max_size=20), st.lists(st.text())),
        max_size=8,
    )
)
def test_whatever_is_said_is_a_message_that_the_journal_reads(event: dict[str, object]) -> None:
    found = parsed(encode_fields(event))
    assert {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "DRIVEWAY_EVENT"} <= set(found)
    for name in found:
        assert len(name) <= 64
        assert name.replace("_", "A").isalnum()
        assert name.isupper()


def test_no_value_can_forge_a_field() -> None:
    found = parsed(encode_fields({"event": "x", "detail": "a\nPRIORITY=0\n_UID=0"}))
    assert found["PRIORITY"] == "6"
    assert "_UID" not in found
    assert encode_fields({"event": "x"}).endswith(b"DRIVEWAY_EVENT=x\n")
