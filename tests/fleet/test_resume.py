"""Downloads that break off go on where they were: whatever the cuts, the object arrives whole, and nothing twice."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import FleetError
from agent.fleet import retry
from agent.fleet.channel import Channel, Limits, PausedError, TransientError, Web
from agent.fleet.https import HEAD_BYTES
from agent.fleet.objects import ObjectWanted, fetch
from agent.fleet.partials import Partials
from agent.fleet.retry import Patience
from hil.dispatcher.objects import Objects
from hil.dispatcher.web import WebServer
from tests.fleet.cutter import Cutter
from tests.fleet.site import Site
from tests.fleet.test_objects import taken

OBJECT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(OBJECT).hexdigest()
RIG = Web(allow_loopback_http=True)
SOON = Patience(for_s=60, first_s=0.001, longest_s=0.001)
ONCE = Patience(for_s=0)


def wanted(url: str, body: bytes = OBJECT) -> ObjectWanted:
    return ObjectWanted(url, hashlib.sha256(body).hexdigest(), len(body))


def kept(folder: Path) -> Partials:
    """Partial files of any length, on a disk however full."""
    return Partials(folder, reserve_bytes=0, worth_bytes=1)


def get(url: str, partials: Partials, patience: Patience = SOON, channel: Channel | None = None) -> bytes:
    return taken(asyncio.run(fetch(channel or Channel(RIG), partials, wanted(url), patience)))


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@contextmanager
def dispatcher(folder: Path) -> Iterator[WebServer]:
    """The real server of the other side, which serves OBJECT."""
    objects = Objects(folder)
    objects.put(OBJECT)
    web = WebServer(0, objects, lambda body: body)
    web.start()
    yield web
    web.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dispatcher(tmp_path_factory.mktemp("objects")) as web:
        yield web.url


# --- cuts --------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, len(OBJECT) + 400), max_size=4))
def test_wherever_it_is_cut_it_arrives_whole_and_no_byte_twice(served: str, cuts: list[int]) -> None:
    cutter, channel = Cutter(served, "down", cuts), Channel(RIG)
    try:
        with TemporaryDirectory() as folder:
            assert get(f"{cutter.url}/objects/{SHA256}", kept(Path(folder)), channel=channel) == OBJECT
            assert list(Path(folder).iterdir()) == [], "the partial file is gone"
    finally:
        cutter.close()
    _, received = channel.moved.total()
    heads = received - len(OBJECT)
    assert heads % HEAD_BYTES == 0
    assert 1 <= heads // HEAD_BYTES <= cutter.connections, "every byte came once, and one head an answer"


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(400, len(OBJECT) + 400), min_size=1, max_size=4))
def test_a_transfer_that_fails_leaves_what_came_to_the_next(served: str, cuts: list[int]) -> None:
    """As over a restart: each transfer has but one attempt, and knows of the last by its file alone."""
    cutter, channel = Cutter(served, "down", cuts), Channel(RIG)
    url = f"{cutter.url}/objects/{SHA256}"
    try:
        with TemporaryDirectory() as folder:
            for _ in range(len(cuts) + 1):
                before = channel.moved.total()[1]
                try:
                    assert get(url, kept(Path(folder)), ONCE, channel) == OBJECT
                    break
                except TransientError:
                    assert channel.moved.total()[1] >= before
                    assert all(OBJECT.startswith(part.read_bytes()) for part in Path(folder).iterdir())
            else:
                pytest.fail("it never arrived")
    finally:
        cutter.close()
    assert (channel.moved.total()[1] - len(OBJECT)) % HEAD_BYTES == 0


def test_a_process_that_is_killed_in_the_middle_leaves_what_came(served: str, tmp_path: Path) -> None:
    """A spoiled tail, as a power cut may leave it, costs a second fetch and no more."""
    url = f"{served}/objects/{SHA256}"
    (tmp_path / f"{SHA256}.part").write_bytes(OBJECT[:100_000])
    channel = Channel(RIG)
    assert get(url, kept(tmp_path), ONCE, channel) == OBJECT
    assert channel.moved.total()[1] == len(OBJECT) - 100_000 + HEAD_BYTES
    (tmp_path / f"{SHA256}.part").write_bytes(OBJECT[:90_000] + b"\0" * 10_000)
    assert get(url, kept(tmp_path), ONCE) == OBJECT
    for size in (len(OBJECT), len(OBJECT) + 1):
        (tmp_path / f"{SHA256}.part").write_bytes(b"\0" * size)
        assert get(url, kept(tmp_path), ONCE) == OBJECT


def test_what_is_here_already_is_not_asked_for(site: Site, tmp_path: Path) -> None:
    (tmp_path / f"{SHA256}.part").write_bytes(OBJECT)
    assert get(f"{site.url}/nowhere", kept(tmp_path)) == OBJECT
    assert site.asked == []


# --- servers that misbehave ---------------------------------------------------------------------------------------


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, *, most: int | None = None, **headers: str) -> None:
    """An answer of which only `most` bytes come."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body[:most])


def script(site: Site, *answers: object) -> str:
    """Answer one request after the other by these functions of (handler, where its range begins)."""
    turns = iter(answers)

    def page(handler: BaseHTTPRequestHandler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", "bytes=0-"))
        assert asked is not None
        next(turns)(handler, int(asked[1]))  # type: ignore[operator]

    site.pages["/1"] = page
    return f"{site.url}/1"


def whole(handler: BaseHTTPRequestHandler, _first: int) -> None:
    send(handler, 200, OBJECT)


def half(handler: BaseHTTPRequestHandler, _first: int) -> None:
    send(handler, 200, OBJECT, most=len(OBJECT) // 2)


def rest(handler: BaseHTTPRequestHandler, first: int) -> None:
    send(handler, 206, OBJECT[first:], Content_Range=f"bytes {first}-{len(OBJECT) - 1}/{len(OBJECT)}")


def test_a_server_that_knows_no_ranges_is_read_again_and_what_is_here_is_not_lost(site: Site, tmp_path: Path) -> None:
    def little(handler: BaseHTTPRequestHandler, _first: int) -> None:
        send(handler, 200, OBJECT, most=1000)

    assert get(script(site, half, little, whole), kept(tmp_path)) == OBJECT

    def rest_of_half(handler: BaseHTTPRequestHandler, first: int) -> None:
        assert first > 1000, "the short answer took nothing away"
        rest(handler, first)

    assert get(script(site, half, little, rest_of_half), kept(tmp_path), Patience(for_s=60, fruitless=2)) == OBJECT


def test_a_range_that_is_not_satisfiable_begins_anew(site: Site, tmp_path: Path) -> None:
    def behind(handler: BaseHTTPRequestHandler, first: int) -> None:
        assert first > 0
        send(handler, 416, b"", Content_Range=f"bytes */{len(OBJECT)}")

    def anew(handler: BaseHTTPRequestHandler, first: int) -> None:
        assert first == 0
        whole(handler, first)

    assert get(script(site, half, behind, anew), kept(tmp_path)) == OBJECT


@pytest.mark.parametrize("content_range", ["bytes 0-{last}/{length}", "bytes {first}-{first}/{length}", "junk", ""])
def test_another_range_than_was_asked_for_begins_anew(site: Site, tmp_path: Path, content_range: str) -> None:
    def other(handler: BaseHTTPRequestHandler, first: int) -> None:
        said = content_range.format(first=first, last=len(OBJECT) - 1, length=len(OBJECT))
        send(handler, 206, OBJECT[first:], Content_Range=said)

    assert get(script(site, half, other, whole), kept(tmp_path)) == OBJECT


def test_a_range_of_a_longer_object_is_refused(site: Site, tmp_path: Path) -> None:
    def longer(handler: BaseHTTPRequestHandler, first: int) -> None:
        send(handler, 206, OBJECT[first:], Content_Range=f"bytes {first}-{len(OBJECT) - 1}/{len(OBJECT) + 1}")

    with pytest.raises(FleetError, match="bytes long that were promised"):
        get(script(site, half, longer), kept(tmp_path))


def test_wrong_bytes_are_dropped_and_told(site: Site, tmp_path: Path) -> None:
    def wrong(handler: BaseHTTPRequestHandler, first: int) -> None:
        send(handler, 206, b"x" * (len(OBJECT) - first), Content_Range=f"bytes {first}-{len(OBJECT) - 1}/*")

    with pytest.raises(FleetError, match=f"{SHA256[:16]}… was promised"):
        get(script(site, half, wrong), kept(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_no_byte_is_read_behind_the_end(site: Site, tmp_path: Path) -> None:
    """A server that sends without a length, and more than was promised."""

    def endless(handler: BaseHTTPRequestHandler, _first: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(4):
            handler.wfile.write(OBJECT)

    channel = Channel(RIG)
    with pytest.raises(FleetError, match="bytes long that were promised"):
        get(script(site, endless), kept(tmp_path), channel=channel)
    assert channel.moved.total()[1] == len(OBJECT) + 1 + HEAD_BYTES


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_what_may_pass_is_tried_again(site: Site, tmp_path: Path, status: int) -> None:
    def refuse(handler: BaseHTTPRequestHandler, _first: int) -> None:
        send(handler, status, b"")

    assert get(script(site, refuse, refuse, whole), kept(tmp_path)) == OBJECT


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 410])
def test_what_will_not_is_not(site: Site, tmp_path: Path, status: int) -> None:
    def refuse(handler: BaseHTTPRequestHandler, _first: int) -> None:
        send(handler, status, b"", Location=f"{site.url}/2")

    with pytest.raises(FleetError, match=f"was answered {status}"):
        get(script(site, refuse, whole), kept(tmp_path))
    assert len(site.asked) == 1


def test_a_drip_is_cut_and_what_it_gave_is_kept(site: Site, tmp_path: Path) -> None:
    def drip(handler: BaseHTTPRequestHandler, _first: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(OBJECT)))
        handler.end_headers()
        for index in range(2000):
            handler.wfile.write(OBJECT[index : index + 1])
            if site.closing.wait(0.005):
                return

    channel = Channel(Web(allow_loopback_http=True, limits=Limits(progress_s=0.1)))
    assert get(script(site, drip, rest), kept(tmp_path), channel=channel) == OBJECT
    assert len(site.asked) == 2
    assert channel.moved.total()[1] == len(OBJECT) + 2 * HEAD_BYTES


# --- patience -----------------------------------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, in a time that waiting alone moves; the jitter is as large as can be."""
    waited: list[float] = []

    def wait(_cut: object, seconds: float) -> bool:
        waited.append(seconds)
        return False

    monkeypatch.setattr("agent.fleet.channel.Cut.wait", wait)
    monkeypatch.setattr(retry, "boot_s", lambda: sum(waited))
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    return waited


def always(site: Site, status: int) -> str:
    site.pages["/1"] = lambda handler: send(handler, status, b"")
    return f"{site.url}/1"


def test_a_server_that_gives_nothing_is_left_after_a_few_attempts(
    site: Site, tmp_path: Path, waits: list[float]
) -> None:
    with pytest.raises(FleetError, match="was answered 503"):
        get(always(site, 503), kept(tmp_path), Patience(for_s=10_000))
    assert waits == [1, 2, 4, 8, 16, 32]
    assert len(site.asked) == 7


def test_nothing_is_tried_beyond_the_time_that_the_lease_has(site: Site, tmp_path: Path, waits: list[float]) -> None:
    with pytest.raises(FleetError, match="was answered 503"):
        get(always(site, 503), kept(tmp_path), Patience(for_s=5))
    assert waits == [1, 2]


@pytest.mark.parametrize(("said", "waited"), [("30", 30), ("99999", 300), ("junk", 0), ("-1", 0), ("1e3", 0)])
def test_retry_after_is_honoured_up_to_a_cap(
    site: Site, tmp_path: Path, waits: list[float], said: str, waited: float
) -> None:
    def later(handler: BaseHTTPRequestHandler, _first: int) -> None:
        send(handler, 503, b"", Retry_After=said)

    assert get(script(site, later, whole), kept(tmp_path), Patience(for_s=10_000)) == OBJECT
    assert waits == [waited + 1]


def test_progress_begins_the_waits_anew(site: Site, tmp_path: Path, waits: list[float]) -> None:
    def piece(handler: BaseHTTPRequestHandler, first: int) -> None:
        last = len(OBJECT) - 1
        send(handler, 206, OBJECT[first:], most=1000, Content_Range=f"bytes {first}-{last}/{len(OBJECT)}")

    assert get(script(site, half, *[piece] * 20, rest), kept(tmp_path), Patience(for_s=10_000)) == OBJECT
    assert waits == [1] * 21


# --- cutting off from this side -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["head", "body", "wait"])
def test_a_pause_ends_it_at_once_and_the_next_goes_on(site: Site, tmp_path: Path, where: str) -> None:
    channel, reached = Channel(RIG), threading.Event()

    def hang(handler: BaseHTTPRequestHandler, _first: int) -> None:
        if where == "wait":
            send(handler, 503, b"", Retry_After="200")
        elif where == "body":
            send(handler, 200, OBJECT, most=1000)
        handler.wfile.flush()
        reached.set()
        if where != "wait":
            assert site.closing.wait(20)

    async def story() -> None:
        url = script(site, hang, rest if where == "body" else whole)
        task = asyncio.ensure_future(fetch(channel, kept(tmp_path), wanted(url), Patience(for_s=1000)))
        await asyncio.to_thread(reached.wait)
        if where == "body":
            while channel.moved.total()[1] < 1000 + HEAD_BYTES:  # noqa: ASYNC110 - another thread's count
                await asyncio.sleep(0.001)
        began_s = time.monotonic()
        channel.cut.now()
        with pytest.raises(PausedError, match="paused"):
            await task
        assert time.monotonic() - began_s < 5, "and not when the server's time is up"
        assert not [one for one in threading.enumerate() if one.name == "transfer-watch"]

    asyncio.run(story())
    again = Channel(RIG)
    assert get(f"{site.url}/1", kept(tmp_path), ONCE, again) == OBJECT
    assert again.moved.total()[1] == len(OBJECT) - (1000 if where == "body" else 0) + HEAD_BYTES


def test_a_cancelled_fetch_ends_its_thread(site: Site, tmp_path: Path) -> None:
    reached, partials = threading.Event(), kept(tmp_path)

    def hang(_handler: BaseHTTPRequestHandler, _first: int) -> None:
        reached.set()
        assert site.closing.wait(20)

    async def story() -> None:
        url = script(site, hang, whole)
        task = asyncio.ensure_future(fetch(Channel(RIG), partials, wanted(url), SOON))
        await asyncio.to_thread(reached.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert taken(await fetch(Channel(RIG), partials, wanted(url), ONCE)) == OBJECT, "its file is free again"

    asyncio.run(story())


def test_what_was_cut_opens_no_connection_any_more(site: Site, tmp_path: Path) -> None:
    channel = Channel(RIG)
    channel.cut.now()
    with pytest.raises(PausedError):
        get(script(site, whole), kept(tmp_path), channel=channel)
    assert site.asked == []
