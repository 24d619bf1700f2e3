from __future__ import annotations

import gzip
from pathlib import Path

import can
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from agent.vehicle.candump import BadLines, CandumpFrame, parse_line, read_candump
from agent.vehicle.decoder import Frame

LOG = b"""\
(1436509052.249713) can0 044#2A366C2BBA
(1436509052.449847) can0 1ABCDEF0#0102
(1436509052.650004) can1 213##311223344
# a comment, and an empty line

(1436509052.850102) can0 123#R8
(1436509053.050201) vcan0 20000040#0000000000000000
(0.5) can0 7FF#
(1436509054.000000) can0 12#00
(1436509054.000000) can0 123#0
(1436509054.000000) can0 123#001122334455667788
(1436509054.000000) can0 800#00
(1436509054.000000) can0 123##0001122334455667788
nonsense
(1436509055.1) can0 100#DEADBEEF R
(1436509055.2) can0 100#DEADBEEF_9
"""
FRAMES = [
    CandumpFrame(1436509052249713, "can0", Frame(0x44, bytes.fromhex("2A366C2BBA"))),
    CandumpFrame(1436509052449847, "can0", Frame(0x1ABCDEF0, b"\x01\x02", extended=True)),
    CandumpFrame(1436509052650004, "can1", Frame(0x213, bytes.fromhex("11223344"))),
    CandumpFrame(1436509052850102, "can0", Frame(0x123, b"", remote=True)),
    CandumpFrame(1436509053050201, "vcan0", Frame(0x2000_0040 & 0x1FFF_FFFF, bytes(8), error=True)),
    CandumpFrame(500_000, "can0", Frame(0x7FF, b"")),
    CandumpFrame(1436509055100000, "can0", Frame(0x100, bytes.fromhex("DEADBEEF"))),
    CandumpFrame(1436509055200000, "can0", Frame(0x100, bytes.fromhex("DEADBEEF"))),
]


def test_every_form_of_line_is_read_and_what_is_none_is_counted_by_number(tmp_path: Path) -> None:
    path = tmp_path / "night.log"
    path.write_bytes(LOG)
    bad = BadLines()
    assert list(read_candump(path, bad)) == FRAMES
    assert (bad.count, bad.numbers) == (6, [9, 10, 11, 12, 13, 14])


def test_a_gzipped_log_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    path = tmp_path / "night.log"
    path.write_bytes(gzip.compress(LOG))
    assert list(read_candump(path)) == FRAMES


def test_a_gzipped_log_that_was_cut_off_gives_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "night.log.gz"
    path.write_bytes(gzip.compress(LOG * 2000)[:-200])
    assert len(list(read_candump(path))) > len(FRAMES) * 1000


def test_a_log_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the candump log"):
        list(read_candump(tmp_path / "none.log"))
    broken = tmp_path / "broken.gz"
    packed = bytearray(gzip.compress(LOG * 2000))
    packed[100:200] = bytes(100)
    broken.write_bytes(packed)
    with pytest.raises(ConfigError, match=r"broken\.gz"):
        list(read_candump(broken))


def test_a_line_without_end_is_many_bad_lines_and_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "one-line.log"
    path.write_bytes(b"(1.0) can0 123#" + b"00" * 100_000)
    bad = BadLines()
    assert list(read_candump(path, bad)) == []
    assert bad.count > 10


def test_what_python_can_writes_we_read(tmp_path: Path) -> None:
    path = tmp_path / "written.log"
    sent = [
        can.Message(timestamp=1.5, arbitration_id=0x118, data=b"\x01\x02", is_extended_id=False, channel="can0"),
        can.Message(timestamp=2.25, arbitration_id=0x1234567, data=bytes(8), is_extended_id=True, channel="can0"),
        can.Message(
            timestamp=3.0, arbitration_id=0xFC, data=bytes(48), is_extended_id=False, is_fd=True, channel="can0"
        ),
        can.Message(timestamp=3.5, arbitration_id=0x10, is_remote_frame=True, is_extended_id=False, channel="can0"),
    ]
    with can.CanutilsLogWriter(path) as writer:
        for message in sent:
            writer.on_message_received(message)
    bad = BadLines()
    read = list(read_candump(path, bad))
    assert bad.count == 0
    assert [(one.at_us, one.frame.can_id, one.frame.data, one.frame.extended, one.frame.remote) for one in read] == [
        (round(one.timestamp * 1e6), one.arbitration_id, bytes(one.data), one.is_extended_id, one.is_remote_frame)
        for one in sent
    ]


line_like = st.from_regex(
    rb"\(\d{1,13}\.\d{1,10}\) +[a-z0-9]{1,8} +[0-9A-F]{1,9}##?[0-9A-FR]{0,140}(?: R)?\n", fullmatch=True
)


@given(line=st.binary(max_size=200) | line_like)
def test_no_line_raises_and_a_frame_is_always_one_that_a_bus_can_carry(line: bytes) -> None:
    read = parse_line(line)
    if read is None:
        return
    frame = read.frame
    assert frame.can_id <= (0x1FFF_FFFF if frame.extended or frame.error else 0x7FF)
    assert len(frame.data) <= 64
    assert read.at_us >= 0
    assert read.interface


@given(content=st.lists(st.binary(max_size=60) | line_like, max_size=20).map(b"\n".join))
def test_no_file_raises_and_every_line_is_a_frame_or_counted(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.log"
    path.write_bytes(content if not content.startswith(b"\x1f\x8b") else b"x" + content)
    bad = BadLines()
    frames = list(read_candump(path, bad))
    lines = [line for line in content.split(b"\n") if line.strip() and not line.startswith(b"#")]
    assert len(frames) + bad.count == len(lines)
