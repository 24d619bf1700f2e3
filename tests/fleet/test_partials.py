"""Partial files: few, bounded, believed in nothing, and never at the cost of the store's disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent.fleet.channel import Channel, Cut, PausedError, Web
from agent.fleet.objects import fetch
from agent.fleet.partials import MOST_FILES, Partial, Partials
from tests.fleet.site import Site
from tests.fleet.test_objects import taken
from tests.fleet.test_resume import OBJECT, ONCE, wanted

LENGTH = 100


def name(number: int) -> str:
    return f"{number:064x}"


def partials(folder: Path, **changes: Any) -> Partials:
    return Partials(folder, **{"reserve_bytes": 0, "worth_bytes": 1} | changes)


def begun(folder: Partials, number: int, data: bytes = b"begun", length: int = LENGTH) -> None:
    with folder.open(name(number), length, Cut()) as partial:
        partial.add(data)


def body(partial: Partial) -> bytes:
    assert partial._memory is not None
    return partial._memory.read()


def left(folder: Path) -> dict[int, bytes]:
    return {int(path.stem, 16): path.read_bytes() for path in folder.iterdir()}


def test_what_was_begun_is_there_the_next_time(tmp_path: Path) -> None:
    folder = partials(tmp_path / "transfers")
    begun(folder, 1)
    with folder.open(name(1), LENGTH, Cut()) as partial:
        assert (body(partial), partial.received, partial.resumed) == (b"begun", 5, 5)
        assert partial.sha256 == hashlib.sha256(b"begun").hexdigest()
        partial.add(b" and gone on")
    assert left(tmp_path / "transfers") == {1: b"begun and gone on"}
    with folder.open(name(1), LENGTH, Cut()) as partial:
        partial.drop()
    assert left(tmp_path / "transfers") == {}


def test_nothing_leaves_nothing_and_what_is_too_long_is_anothers(tmp_path: Path) -> None:
    folder = partials(tmp_path)
    begun(folder, 1, b"")
    assert left(tmp_path) == {}
    begun(folder, 1, b"x" * 50)
    with folder.open(name(1), 20, Cut()) as partial:
        assert body(partial) == b""


def test_short_objects_are_not_worth_a_file(tmp_path: Path) -> None:
    folder = partials(tmp_path / "transfers", worth_bytes=LENGTH)
    begun(folder, 1, length=LENGTH - 1)
    assert not (tmp_path / "transfers").exists()
    begun(folder, 1, length=LENGTH)
    assert left(tmp_path / "transfers") == {1: b"begun"}


def test_the_oldest_make_room(tmp_path: Path) -> None:
    folder = partials(tmp_path)
    for number in range(MOST_FILES + 2):
        begun(folder, number)
        os.utime(tmp_path / f"{name(number)}.part", (number, number))
    assert set(left(tmp_path)) == set(range(2, MOST_FILES + 2))
    begun(folder, 3, b" again")
    assert left(tmp_path)[3] == b"begun again", "one that is there needs no new room"


def test_their_bytes_are_bounded_too(tmp_path: Path) -> None:
    folder = partials(tmp_path, most_bytes=250)
    for number in range(3):
        begun(folder, number, b"x" * LENGTH)
        os.utime(tmp_path / f"{name(number)}.part", (number, number))
    assert set(left(tmp_path)) == {1, 2}


def test_a_disk_with_no_room_beside_the_reserve_costs_the_file_and_no_more(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    folder = partials(tmp_path, reserve_bytes=free.f_blocks * free.f_frsize * 2)
    with folder.open(name(1), LENGTH, Cut()) as partial:
        partial.add(b"in memory")
        partial.add(b" all the same")
        assert body(partial) == b"in memory all the same"
        assert left(tmp_path) == {}, "and nothing is left on a full disk"
    assert folder.unwritten == 1


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), OSError(5, "Input/output error")])
def test_a_disk_that_refuses_hurts_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError) -> None:
    def refuse(_self: Partials, _more: int) -> bool:
        raise fault

    folder, site = partials(tmp_path), Site()
    monkeypatch.setattr(Partials, "has_room", refuse)
    try:
        url = site.put("/1", OBJECT)
        memory = asyncio.run(fetch(Channel(Web(allow_loopback_http=True)), folder, wanted(url), ONCE))
    finally:
        site.close()
    assert taken(memory) == OBJECT
    assert folder.unwritten == 1
    assert left(tmp_path) == {}


def test_a_disk_that_refuses_is_told_of_once_and_so_is_its_recovery(tmp_path: Path) -> None:
    folder = partials(tmp_path / "transfers")
    with structlog.testing.capture_logs() as told:
        (tmp_path / "transfers").write_text("a file")
        for number in (1, 2):
            begun(folder, number)
        (tmp_path / "transfers").unlink()
        for number in (1, 2):
            begun(folder, number)
    assert [one["event"] for one in told] == ["transfer_not_kept", "transfers_kept_again"]
    assert folder.unwritten == 2


def test_a_folder_that_cannot_be_made_hurts_none_either(tmp_path: Path) -> None:
    (tmp_path / "transfers").write_text("a file")
    folder = partials(tmp_path / "transfers")
    with folder.open(name(1), LENGTH, Cut()) as partial:
        partial.add(b"x")
        assert body(partial) == b"x"
    assert folder.unwritten == 1


@pytest.mark.parametrize("odd", ["", "x", "../" + "a" * 61, "A" * 64, "a" * 65])
def test_only_a_digest_names_a_file(tmp_path: Path, odd: str) -> None:
    with pytest.raises(ValueError, match="names no object"), partials(tmp_path).open(odd, LENGTH, Cut()):
        pass


def test_one_is_open_at_a_time_and_who_waits_can_be_cut(tmp_path: Path) -> None:
    folder, cut = partials(tmp_path), Cut()
    raised: list[Exception] = []

    def wait() -> None:
        try:
            begun_late(folder, cut)
        except PausedError as error:
            raised.append(error)

    with folder.open(name(1), LENGTH, Cut()) as first:
        thread = threading.Thread(target=wait)
        thread.start()
        cut.now()
        thread.join()
        first.add(b"still here")
    assert len(raised) == 1
    assert left(tmp_path) == {1: b"still here"}
    begun_late(folder, Cut())
    assert left(tmp_path) == {1: b"still here, late"}


def begun_late(folder: Partials, cut: Cut) -> None:
    with folder.open(name(1), LENGTH, cut) as partial:
        assert isinstance(partial, Partial)
        partial.add(b", late")
