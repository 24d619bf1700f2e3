"""Answers that are brought away: to the real dispatcher's server through cuts, and to servers that misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import FleetError
from agent.fleet.channel import Channel, PausedError, TransientError, Web
from agent.fleet.messages import UploadRef
from agent.fleet.retry import Patience
from agent.fleet.uploads import put
from hil.dispatcher.objects import Objects
from hil.dispatcher.web import WebServer
from tests.fleet.cutter import Cutter
from tests.fleet.site import Site
from tests.hil.uploading import brought, upload_lease

TOKEN = "t" * 32
RIG = Web(allow_loopback_http=True)
SOON = Patience(for_s=60, first_s=0.001, longest_s=0.001)
ONCE = Patience(for_s=0)
MOST_BYTES = 1_000_000
bodies = st.integers(0, 2**32).map(lambda seed: hashlib.sha256(str(seed).encode()).digest() * 10_000)
"""320,000 bytes, each time others."""


class Dispatcher:
    """The real server of the other side, and the folder that it keeps objects in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.objects = folder, Objects(folder)
        self.web = WebServer(
            0, self.objects, lambda body: body, may_upload={TOKEN: upload_lease(most_bytes=MOST_BYTES)}.get
        )
        self.web.start()

    def has(self, body: bytes) -> bool:
        return brought(self.objects, body)

    def parts(self) -> list[Path]:
        return list((self.folder / "uploads").rglob("*.part"))


@contextmanager
def opened(folder: Path) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(folder)
    yield dispatcher
    dispatcher.web.close()


@pytest.fixture(scope="module")
def dispatcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dispatcher]:
    with opened(tmp_path_factory.mktemp("objects")) as dispatcher:
        yield dispatcher


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def bring(url: str, body: bytes, patience: Patience = SOON, token: str = TOKEN, channel: Channel | None = None) -> None:
    asyncio.run(put(channel or Channel(RIG), UploadRef(url=url, token=token), body, patience))


# --- the honest server --------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(body=bodies, cuts=st.lists(st.integers(1, 321_000), max_size=4), direction=st.sampled_from(["up", "down"]))
def test_wherever_it_is_cut_it_arrives_whole(
    dispatcher: Dispatcher, body: bytes, cuts: list[int], direction: str
) -> None:
    cuts = [1 + cut % 300 for cut in cuts] if direction == "down" else cuts  # an answer is short
    cutter = Cutter(dispatcher.web.url, direction, cuts)  # type: ignore[arg-type]
    try:
        bring(f"{cutter.url}/uploads", body)
    finally:
        cutter.close()
    assert dispatcher.has(body)
    assert dispatcher.parts() == []


def test_what_arrived_is_not_sent_again(tmp_path: Path) -> None:
    body = b"x" * 900_000
    with opened(tmp_path) as dispatcher:
        cutter = Cutter(dispatcher.web.url, "up", [400_000])
        first, second = Channel(RIG), Channel(RIG)
        try:
            with pytest.raises(TransientError):
                bring(f"{cutter.url}/uploads", body, ONCE, channel=first)
            patience = Patience(for_s=60, first_s=0.01, longest_s=0.01, fruitless=1000)  # until it has seen the end
            bring(f"{cutter.url}/uploads", body, patience, channel=second)
        finally:
            cutter.close()
        assert dispatcher.has(body)
    assert second.moved.total()[0] < len(body) - 300_000


def test_what_is_there_already_is_not_sent_at_all(dispatcher: Dispatcher) -> None:
    body, channel = b"answers" * 50_000, Channel(RIG)
    bring(f"{dispatcher.web.url}/uploads", body)
    bring(f"{dispatcher.web.url}/uploads", body, channel=channel)
    assert channel.moved.total()[0] < 1000


@pytest.mark.parametrize(
    ("body", "token", "said"),
    [(b"x" * (MOST_BYTES + 1), TOKEN, "413"), (b"x", "u" * 32, "403"), (b"", TOKEN, "the answers are empty")],
)
def test_what_is_refused_is_told_and_not_tried_again(
    dispatcher: Dispatcher, body: bytes, token: str, said: str
) -> None:
    with pytest.raises(FleetError, match=said) as error:
        bring(f"{dispatcher.web.url}/uploads", body, token=token)
    assert token not in str(error.value)


# --- servers that misbehave ---------------------------------------------------------------------------------------

BODY = b"answers" * 10_000
PLACE = f"/up/{hashlib.sha256(BODY).hexdigest()}"


def upload_site(site: Site, heads: list[tuple[int, dict[str, str]]], puts: list[tuple[int, dict[str, str]]]) -> str:
    """Answer HEADs and PUTs, one after the other, by status and headers; `site.asked` gets each PUT's Content-Range."""
    turns = {"HEAD": iter(heads), "PUT": iter(puts)}

    def page(handler: BaseHTTPRequestHandler) -> None:
        assert handler.headers["Authorization"] == f"Bearer {TOKEN}"
        if handler.command == "PUT":
            span = handler.headers["Content-Range"]
            first = re.match(r"bytes (\d+)-", span)
            assert first is not None
            assert handler.rfile.read(int(handler.headers["Content-Length"])) == BODY[int(first[1]) :]
            site.asked.append(span)
        status, headers = next(turns[handler.command])
        handler.send_response(status)
        for name, value in ({"Content-Length": "0"} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()

    site.pages[PLACE] = page
    return f"{site.url}/up"


def at(offset: object) -> dict[str, str]:
    return {"Upload-Offset": str(offset)}


DONE = (201, at(len(BODY)))
SPAN = f"-{len(BODY) - 1}/{len(BODY)}"


@pytest.mark.parametrize("heads", [[(404, {})], [(200, at(0))], [(409, at(7)), (503, {}), (200, at(0))]])
def test_a_server_that_has_nothing_gets_all(site: Site, heads: list[tuple[int, dict[str, str]]]) -> None:
    bring(upload_site(site, heads, [DONE]), BODY)
    assert site.asked == [f"bytes 0{SPAN}"]


@pytest.mark.parametrize("status", [409, 500, 503, 429, 422])
def test_what_may_pass_is_tried_again_from_where_the_server_is(site: Site, status: int) -> None:
    bring(upload_site(site, [(200, at(7)), (200, at(5000))], [(status, {}), DONE]), BODY)
    assert site.asked == [f"bytes 7{SPAN}", f"bytes 5000{SPAN}"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 302, 307])
def test_what_will_not_is_not(site: Site, status: int) -> None:
    with pytest.raises(FleetError, match=f"was answered {status}"):
        bring(upload_site(site, [(404, {})], [(status, {"Location": f"{site.url}/2"})]), BODY)
    assert len(site.asked) == 1


@pytest.mark.parametrize("said", [{}, at("junk"), at("-1"), at("9" * 30), at(len(BODY) + 1)])
def test_a_server_that_does_not_say_how_much_it_has_is_left(site: Site, said: dict[str, str]) -> None:
    with pytest.raises(FleetError, match="no usable Upload-Offset"):
        bring(upload_site(site, [(200, said)], []), BODY)


@pytest.mark.parametrize("said", [at(len(BODY) - 1), {}])
def test_created_is_believed_only_with_the_whole_length(site: Site, said: dict[str, str]) -> None:
    with pytest.raises(FleetError):
        bring(upload_site(site, [(404, {})], [(201, said)]), BODY)


def test_what_arrives_spoiled_is_sent_once_more_and_not_for_ever(site: Site) -> None:
    with pytest.raises(FleetError, match="did not arrive as it was sent, twice"):
        bring(upload_site(site, [(404, {})] * 9, [(422, {})] * 9), BODY)
    assert len(site.asked) == 2


def test_a_server_that_takes_nothing_is_left_after_a_few_attempts(site: Site) -> None:
    with pytest.raises(FleetError, match="was answered 409"):
        bring(upload_site(site, [(200, at(0))] * 20, [(409, {})] * 20), BODY)
    assert len(site.asked) == SOON.fruitless + 1


def test_a_pause_ends_it_and_what_arrived_stays(dispatcher: Dispatcher) -> None:
    async def story() -> None:
        channel = Channel(RIG)
        channel.cut.now()
        with pytest.raises(PausedError):
            await put(channel, UploadRef(url=f"{dispatcher.web.url}/uploads", token=TOKEN), BODY, SOON)

    asyncio.run(story())
    assert not dispatcher.has(BODY)
