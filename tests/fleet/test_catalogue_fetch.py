"""Fetching a catalogue's files: their size is bounded, and a connection that breaks is taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from agent.errors import FleetError
from agent.fleet.catalogue_fetch import fetch_file
from agent.fleet.channel import Channel, Cut, PausedError, Web
from agent.fleet.retry import Patience
from agent.trust.catalogue import NotThereError, TooLongError
from tests.fleet.site import Site

BODY = bytes(range(256)) * 64
QUICK = Patience(for_s=5.0, fruitless=2, first_s=0.001, longest_s=0.001)


@pytest.fixture
def site() -> Iterator[Site]:
    one = Site()
    yield one
    one.close()


def fetch(url: str, most_bytes: int = 20_000) -> bytes:
    return fetch_file(Channel(Web(allow_loopback_http=True)), url, most_bytes, QUICK)


def test_a_file_is_fetched(site: Site) -> None:
    assert fetch(site.put("/1.root.json", BODY)) == BODY
    assert fetch(site.put("/empty", b"")) == b""


def test_a_file_of_exactly_what_it_may_have(site: Site) -> None:
    assert fetch(site.put("/a", BODY), len(BODY)) == BODY


@pytest.mark.parametrize("status", [403, 404])
def test_a_file_that_is_not_there(site: Site, status: int) -> None:
    with pytest.raises(NotThereError):
        fetch(site.put("/2.root.json", b"no", status=status))
    assert len(site.asked) == 1


def test_a_file_that_says_it_is_too_long_is_not_read(site: Site) -> None:
    with pytest.raises(TooLongError, match="100000 bytes, more than the 20000"):
        fetch(site.put("/a", b"", claimed=100_000))


def test_a_file_without_an_end_is_left(site: Site) -> None:
    sent: list[int] = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while sum(sent) < 200_000_000:
            handler.wfile.write(b"x" * 100_000)
            sent.append(100_000)

    site.pages["/endless"] = endless
    with pytest.raises(TooLongError):
        fetch(f"{site.url}/endless")
    assert sum(sent) < 20_000_000


def broken(site: Site, parts: list[int], *, status: int = 206, shift: int = 0) -> str:
    """A server that hangs up after so many bytes each time, and knows ranges."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range", "bytes=0-")
        first = int(asked.removeprefix("bytes=").rstrip("-"))
        handler.send_response(status if first else 200)
        handler.send_header("Content-Length", str(len(BODY) - first))
        handler.send_header("Content-Range", f"bytes {first + shift}-{len(BODY) - 1}/{len(BODY)}")
        handler.end_headers()
        handler.wfile.write(BODY[first : first + parts.pop(0)])

    site.pages["/broken"] = page
    return f"{site.url}/broken"


def test_a_broken_connection_is_taken_up_where_it_broke(site: Site) -> None:
    parts = [5_000, 5_000, 50_000]
    assert fetch(broken(site, parts)) == BODY
    assert parts == []


def test_another_range_than_was_asked_for_is_not_pasted_in(site: Site) -> None:
    assert fetch(broken(site, [5_000, 5_000, 50_000], shift=1)) == BODY


def test_a_server_that_gives_up_is_left_after_a_few_attempts(site: Site) -> None:
    site.put("/a", b"", status=503)
    with pytest.raises(FleetError, match="answered 503"):
        fetch(f"{site.url}/a")
    assert len(site.asked) == QUICK.fruitless + 1


def test_a_cut_ends_it(site: Site) -> None:
    cut = Cut()
    cut.now()
    with pytest.raises(PausedError):
        fetch_file(Channel(Web(allow_loopback_http=True), cut), site.put("/a", BODY), 10, QUICK)
    assert site.asked == []


def test_a_plain_connection_to_another_machine_is_refused() -> None:
    with pytest.raises(FleetError, match="will not fetch"):
        fetch("http://catalogue.example/timestamp.json")
