"""The dispatcher's bulk data over HTTP: ranges out, pieces in, and whoever asks for what is not theirs is refused."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.model import JobKey
from agent.errors import StoreError
from hil.dispatcher import ranges, staging
from hil.dispatcher.objects import Objects
from hil.dispatcher.ranges import Span, UnsatisfiableError
from hil.dispatcher.staging import Staging
from hil.dispatcher.upload_rights import UploadLease
from hil.dispatcher.uploads import UploadRefusedError, Uploads
from hil.dispatcher.web import WebServer
from tests.hil.uploading import brought, files, upload_lease

OBJECT = bytes(range(256)) * 40
NAME = hashlib.sha256(OBJECT).hexdigest()
TOKEN, OTHER = "t" * 32, "o" * 32
MOST_BYTES = 100_000
BODY = b"answers" * 1000
MINE = upload_lease(most_bytes=MOST_BYTES)
THEIRS = upload_lease("car-2", "job-2", most_bytes=MOST_BYTES)
SMALL = upload_lease("car-2", "job-2", most_bytes=10)


class Site:
    """One dispatcher's web server over a folder that others may share."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.objects = folder, Objects(folder)
        self.web = WebServer(0, self.objects, lambda body: body, may_upload={TOKEN: MINE, OTHER: SMALL}.get)
        self.web.start()

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", int(self.web.url.rpartition(":")[2]), timeout=10)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def piece(self, body: bytes, first: int, last: int, token: str = TOKEN) -> tuple[int, str]:
        """Bring bytes first to last; the status and how much is there."""
        path = f"/uploads/{hashlib.sha256(body).hexdigest()}"
        span = f"bytes {first}-{last}/{len(body)}"
        given = {"Content_Range": span, "Authorization": f"Bearer {token}"}
        status, said, _ = self.ask("PUT", path, body[first : last + 1], **given)
        return status, said.get("Upload-Offset", "")

    def offset(self, body: bytes, token: str = TOKEN) -> tuple[int, str]:
        path = f"/uploads/{hashlib.sha256(body).hexdigest()}"
        status, said, _ = self.ask("HEAD", path, Authorization=f"Bearer {token}")
        return status, said.get("Upload-Offset", "")

    def parts(self) -> list[Path]:
        return files(self.folder / "uploads")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "objects")
    site.objects.put(OBJECT)
    yield site
    site.web.close()


# --- out ----------------------------------------------------------------------------------------------------------


def test_an_object_is_served_whole(site: Site) -> None:
    status, said, body = site.ask("GET", f"/objects/{NAME}")
    assert (status, body, said["Accept-Ranges"]) == (200, OBJECT, "bytes")
    status, said, body = site.ask("HEAD", f"/objects/{NAME}")
    assert (status, body, said["Content-Length"]) == (200, b"", str(len(OBJECT)))


@settings(max_examples=200, deadline=None)
@given(first=st.integers(0, 300) | st.none(), last=st.integers(0, 300) | st.none(), length=st.integers(0, 256))
def test_a_range_is_what_python_would_slice(first: int | None, last: int | None, length: int) -> None:
    body, header = OBJECT[:length], f"bytes={'' if first is None else first}-{'' if last is None else last}"
    if first is None and last is None:
        expected: bytes | None = body
    elif first is None:
        expected = body[-last:] if last else b""
    elif last is not None and last < first:
        expected = body
    else:
        expected = body[first : None if last is None else last + 1]
    try:
        span = ranges.wanted(header, length)
    except UnsatisfiableError:
        assert expected == b""
        return
    assert (body if span is None else body[span.first : span.last + 1]) == expected
    assert span is None or ranges.brought(span.header) == span


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40) | st.from_regex(r"bytes[ =][0-9]{0,20}-[0-9]{0,20}(/[0-9]{0,20})?", fullmatch=True))
def test_no_header_is_more_than_none_or_a_range_within_the_object(text: str) -> None:
    try:
        span = ranges.wanted(text, 100)
    except UnsatisfiableError:
        span = None
    for found in (span, ranges.brought(text)):
        assert found is None or 0 <= found.first <= found.last < found.length


def test_a_part_of_an_object_is_served_and_its_place_said(site: Site) -> None:
    for asked, first, last in (("100-", 100, 10_239), ("0-0", 0, 0), ("-5", 10_235, 10_239), ("7-99999", 7, 10_239)):
        status, said, body = site.ask("GET", f"/objects/{NAME}", Range=f"bytes={asked}")
        assert (status, body) == (206, OBJECT[first : last + 1])
        assert said["Content-Range"] == f"bytes {first}-{last}/{len(OBJECT)}"


def test_a_range_behind_the_end_is_told_how_long_the_object_is(site: Site) -> None:
    status, said, _ = site.ask("GET", f"/objects/{NAME}", Range=f"bytes={len(OBJECT)}-")
    assert (status, said["Content-Range"]) == (416, f"bytes */{len(OBJECT)}")


@pytest.mark.parametrize("header", ["bytes=5-2", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b", "bytes=-", "x" * 5000])
def test_what_is_no_range_is_the_whole_object(site: Site, header: str) -> None:
    assert site.ask("GET", f"/objects/{NAME}", Range=header)[::2] == (200, OBJECT)


@pytest.mark.parametrize(
    "path",
    [
        "/objects/../dispatcher.key",
        "/objects/%2e%2e%2fdispatcher.key",
        "/objects//etc/passwd",
        f"/objects/{NAME}/",
        f"/objects/{NAME}%00",
        f"/objects/{NAME.upper()}",
        "/objects/uploads",
        "/objects/",
        "/uploads/../../dispatcher.key",
        "/uploads/uploads",
    ],
)
def test_no_name_leads_anywhere_else(site: Site, path: str) -> None:
    (site.folder.parent / "dispatcher.key").write_text("secret")
    for method in ("GET", "HEAD", "PUT"):
        body = b"x" if method == "PUT" else None
        status, _, answer = site.ask(method, path, body, Authorization=f"Bearer {TOKEN}", Content_Range="bytes 0-0/1")
        assert status == 404
        assert b"secret" not in answer
    assert site.parts() == []


# --- in -----------------------------------------------------------------------------------------------------------


def test_pieces_become_an_object_once_the_last_is_there(site: Site) -> None:
    assert site.offset(BODY) == (200, "0")
    assert site.piece(BODY, 0, 2999) == (202, "3000")
    assert site.offset(BODY) == (200, "3000")
    assert not brought(site.objects, BODY), "not before it is whole"
    assert site.piece(BODY, 3000, 6999) == (201, "7000")
    assert brought(site.objects, BODY)
    assert site.objects.path(hashlib.sha256(BODY).hexdigest()) is None, "not before a hand-in of it is accepted"
    assert site.offset(BODY) == (200, "7000")
    assert site.piece(BODY, 0, 6999) == (201, "7000"), "again changes nothing"
    assert [path.suffix for path in site.parts()] == [".whole"]


def test_a_piece_elsewhere_is_told_where_to_go_on(site: Site) -> None:
    assert site.piece(BODY, 0, 99)[0] == 202
    for first in (0, 50, 99, 101, 5000):
        assert site.piece(BODY, first, 6999) == (409, "100")
    assert site.piece(BODY, 100, 6999)[0] == 201


def test_other_bytes_than_were_named_never_become_an_object(site: Site) -> None:
    name, other = hashlib.sha256(BODY).hexdigest(), BODY[:-1] + b"x"
    given = {"Content_Range": "bytes 0-6999/7000", "Authorization": f"Bearer {TOKEN}"}
    status, said, answer = site.ask("PUT", f"/uploads/{name}", other, **given)
    assert (status, said["Upload-Offset"]) == (422, "0")
    assert b"has the SHA-256" in answer
    assert site.parts() == []
    assert site.piece(BODY, 0, 6999)[0] == 201, "and it can be brought after that"


def test_each_token_has_parts_of_its_own(site: Site) -> None:
    body = b"0123456789"
    assert site.piece(body, 0, 4, TOKEN) == (202, "5")
    assert site.offset(body, OTHER) == (200, "0")
    assert site.piece(body, 0, 9, OTHER)[0] == 201
    assert site.offset(body, TOKEN) == (200, "5"), "nor is it told what another has brought"


@pytest.mark.parametrize("token", ["", "x" * 32, "operator"])
def test_without_a_leases_token_nothing_is_taken_or_told(site: Site, token: str) -> None:
    site.objects.put(BODY)
    assert site.offset(BODY, token) == (403, "")
    assert site.piece(BODY, 0, 99, token)[0] == 403
    assert site.parts() == []


def test_what_is_too_large_is_refused_before_it_is_read(site: Site) -> None:
    assert site.piece(b"01234567890", 0, 10, OTHER)[0] == 413
    given = {"Content_Range": f"bytes 0-5/{10**12}", "Authorization": f"Bearer {TOKEN}"}
    assert site.ask("PUT", f"/uploads/{'a' * 64}", b"012345", **given)[0] == 413


@pytest.mark.parametrize("span", ["", "bytes 0-5/6", "bytes 5-0/7", "bytes 0-7/7", "bytes */7", "0-6/7", "bytes 0-6/*"])
def test_a_piece_that_is_not_what_it_says_is_refused(site: Site, span: str) -> None:
    given = {"Content_Range": span, "Authorization": f"Bearer {TOKEN}"}
    assert site.ask("PUT", f"/uploads/{'a' * 64}", b"0123456", **given)[0] == 400
    assert site.parts() == []


def test_a_server_without_leases_takes_nothing(tmp_path: Path) -> None:
    web = WebServer(0, Objects(tmp_path), lambda body: body)
    web.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", int(web.url.rpartition(":")[2]), timeout=10)
        connection.request("PUT", f"/uploads/{'a' * 64}", b"x", {"Authorization": f"Bearer {TOKEN}"})
        assert connection.getresponse().status == 404
        connection.close()
    finally:
        web.close()


def raw(site: Site, request: bytes) -> bytes:
    """The first bytes of what the server says to this."""
    with socket.create_connection(("127.0.0.1", int(site.web.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(1000)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"431"),
        (
            b"PUT /uploads/" + b"a" * 64 + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"411",
        ),
        (b"PUT /uploads/" + b"a" * 64 + b" HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"411"),
    ],
)
def test_what_is_no_decent_request_is_refused_and_the_next_is_served(
    site: Site, request_: bytes, status: bytes
) -> None:
    assert status in raw(site, request_).split(b"\r\n")[0]
    assert site.ask("GET", f"/objects/{NAME}")[0] == 200


# --- several at once, and for long ---------------------------------------------------------------------------------


def taking(folder: Path, now_s: float = 0.0) -> Uploads:
    staging = Staging(Objects(folder), lambda: now_s + 1e9)
    return Uploads(staging, {TOKEN: MINE, OTHER: THEIRS}.get)


def once(data: bytes) -> Callable[[int], bytes]:
    """Gives this much, then nothing."""
    left = bytearray(data)

    def read(most: int) -> bytes:
        out = bytes(left[:most])
        del left[:most]
        return out

    return read


def test_two_replicas_write_one_after_the_other(tmp_path: Path) -> None:
    here, there = taking(tmp_path), taking(tmp_path)
    name, whole = hashlib.sha256(BODY).hexdigest(), Span(0, len(BODY) - 1, len(BODY))
    begun, go_on = threading.Event(), threading.Event()
    chunks = iter([BODY[:1000], b""])

    def slowly(_most: int) -> bytes:
        begun.set()
        chunk = next(chunks)
        if not chunk:
            assert go_on.wait(20)
        return chunk

    writer = threading.Thread(target=here.receive, args=(TOKEN, name, whole, slowly))
    writer.start()
    assert begun.wait(20)
    with pytest.raises(UploadRefusedError, match="another request brings this object"):
        there.receive(TOKEN, name, whole, once(BODY))
    with pytest.raises(UploadRefusedError, match="another request brings this object"):
        there.offset(TOKEN, name)
    go_on.set()
    writer.join()
    assert there.offset(TOKEN, name) == 1000
    assert there.receive(TOKEN, name, Span(1000, 6999, 7000), once(BODY[1000:])) == 7000
    assert brought(Objects(tmp_path), BODY)


def test_a_part_that_was_finished_while_another_waited_for_it_is_not_written_to(tmp_path: Path) -> None:
    """Its file is the object by then."""
    here = taking(tmp_path)
    name = hashlib.sha256(BODY).hexdigest()
    here.receive(TOKEN, name, Span(0, 9, len(BODY)), once(BODY[:10]))
    (part,) = files(tmp_path / "uploads")
    real = fcntl.flock

    def finished_first(file: int, how: int) -> None:
        os.truncate(part, 0)
        part.write_bytes(BODY)
        part.rename(part.with_name(f"{name}.0.whole"))
        real(file, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", finished_first)
        with pytest.raises(UploadRefusedError, match="another request"):
            here.receive(TOKEN, name, Span(10, 6999, 7000), once(b"x" * 6990))
    assert brought(Objects(tmp_path), BODY)


@pytest.mark.parametrize("right", [True, False])
def test_a_dispatcher_that_was_killed_before_the_rename_finishes_later(tmp_path: Path, right: bool) -> None:
    here, name = taking(tmp_path), hashlib.sha256(BODY).hexdigest()
    here.receive(TOKEN, name, Span(0, 9, len(BODY)), once(BODY[:10]))
    (part,) = files(tmp_path / "uploads")
    part.write_bytes(BODY if right else b"x" * len(BODY))
    if right:
        assert here.offset(TOKEN, name) == len(BODY)
        assert brought(Objects(tmp_path), BODY)
    else:
        with pytest.raises(UploadRefusedError, match="not the one named"):
            here.offset(TOKEN, name)
        assert here.offset(TOKEN, name) == 0


def begin(here: Uploads, number: int, token: str = TOKEN) -> str:
    """Begin to bring object `number`; its name."""
    name = f"{number:064x}"
    here.receive(token, name, Span(0, 9, 100), once(b"x" * 5))
    return name


def aged(folder: Path, name: str, number: int) -> None:
    """Make what was brought under this name so old, in seconds from a beginning."""
    for path in (folder / "uploads").rglob(f"{name}.*"):
        os.utime(path, (1e9 + number, 1e9 + number))


def test_a_token_has_few_parts(tmp_path: Path) -> None:
    here = taking(tmp_path)
    names = []
    for number in range(staging.MOST_PARTS + 2):
        names.append(begin(here, number))
        aged(tmp_path, names[-1], number)
    other = begin(here, 99, OTHER)
    assert [here.offset(TOKEN, name) for name in names] == [0, 0, 5, 5, 5, 5]
    assert here.offset(OTHER, other) == 5, "one does not push out another's"


def bring_all(here: Uploads, body: bytes, token: str) -> int:
    name = hashlib.sha256(body).hexdigest()
    return here.receive(token, name, Span(0, len(body) - 1, len(body)), once(body))


def test_a_lease_brings_one_object_a_slice(tmp_path: Path) -> None:
    here = Uploads(Staging(Objects(tmp_path)), {TOKEN: upload_lease(slices=2)}.get)
    for body in (b"[1]", b"[2]", b"[1]"):
        assert bring_all(here, body, TOKEN) == 3
    with pytest.raises(UploadRefusedError, match="has 2 slices") as refused:
        bring_all(here, b"[3]", TOKEN)
    assert refused.value.status == 413
    assert len(files(tmp_path)) == 2


def test_a_lease_brings_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "LEASE_BYTES", 100)
    here = taking(tmp_path)
    assert bring_all(here, b"x" * 60, TOKEN) == 60
    with pytest.raises(UploadRefusedError, match="at most 100 bytes"):
        bring_all(here, b"y" * 41, TOKEN)
    assert bring_all(here, b"y" * 40, TOKEN) == 40
    assert bring_all(here, b"y" * 41, OTHER) == 41


@pytest.mark.parametrize("limit", ["MOST_FILES", "MOST_BYTES"])
def test_whoever_has_most_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """However little of what a car has begun is there, and however much it says that it will be."""
    monkeypatch.setattr(staging, limit, {"MOST_FILES": 4, "MOST_BYTES": 119}[limit])
    here = taking(tmp_path)
    greedy = [begin(here, number) for number in range(3)]
    for number, name in enumerate(greedy):
        aged(tmp_path, name, number)
    modest = [begin(here, number, OTHER) for number in (10, 11)]
    assert [here.offset(OTHER, name) for name in modest] == [5, 5]
    assert [here.offset(TOKEN, name) for name in greedy] == [0, 5, 5]


def test_a_part_that_is_not_there_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "MOST_BYTES", 150)
    here = taking(tmp_path)
    names = [f"{number:064x}" for number in range(3)]
    for name in names:
        assert here.receive(TOKEN, name, Span(0, 99, 100), once(b"")) == 0
    assert bring_all(here, b"x" * 100, OTHER) == 100
    assert len(list((tmp_path / "uploads").rglob("*.part"))) == 3


def test_what_is_swept(tmp_path: Path) -> None:
    """Of a lease that is over, after an hour; of any, after a day."""
    objects, here = Objects(tmp_path), taking(tmp_path)
    theirs = begin(here, 1, OTHER)
    assert bring_all(here, BODY, TOKEN) == len(BODY)
    lies = {(one.unit, one.key) for one in (MINE, THEIRS)}
    for path in (tmp_path / "uploads").rglob("*"):
        os.utime(path, (1e9, 1e9))

    def sweep(after_s: float, is_open: set[tuple[str, JobKey]]) -> list[bool]:
        Staging(objects, lambda: 1e9 + after_s).sweep(lambda asked: set(asked) & is_open)
        return [brought(objects, BODY), here.offset(OTHER, theirs) == 5]

    assert sweep(staging.CLOSED_EXPIRES_S - 1, set()) == [True, True]
    assert sweep(staging.CLOSED_EXPIRES_S + 1, {(MINE.unit, MINE.key)}) == [True, False]
    assert sweep(staging.EXPIRES_S - 1, lies) == [True, False]
    assert sweep(staging.EXPIRES_S + 1, lies) == [False, False]
    assert list((tmp_path / "uploads").iterdir()) == []


@settings(max_examples=200, deadline=None)
@given(count=st.integers(0, 8), lengths=st.sets(st.integers(1, 6), max_size=2), spoilt=st.booleans())
def test_answers_are_counted_when_they_come(count: int, lengths: set[int], spoilt: bool) -> None:
    body = b"[%s]" % b",".join([b'{"y": [1, 2]}'] * count) + (b"]" if spoilt else b"")
    assert staging.answers_in(body, lengths) == (count if count in lengths and not spoilt else 0)


@pytest.mark.parametrize("fault", [TimeoutError(), StoreError("the database does not answer")])
def test_a_book_that_does_not_answer_is_later(tmp_path: Path, fault: Exception) -> None:
    def may_upload(_token: str) -> UploadLease | None:
        raise fault

    with pytest.raises(UploadRefusedError) as refused:
        Uploads(Staging(Objects(tmp_path)), may_upload).offset(TOKEN, NAME)
    assert refused.value.status == 503


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, name = taking(tmp_path), hashlib.sha256(BODY).hexdigest()
    here.receive(TOKEN, name, Span(0, 9, len(BODY)), once(BODY[:10]))

    def full(_file: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UploadRefusedError) as refused:
            here.receive(TOKEN, name, Span(10, 6999, 7000), once(BODY[10:]))
    assert refused.value.status == 507
    assert here.offset(TOKEN, name) == 10
