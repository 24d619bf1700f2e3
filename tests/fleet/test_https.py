"""One connection: cut off at once wherever it waits, watched, used again, and nothing of it left behind."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from agent.fleet import objects
from agent.fleet.channel import Channel, Cut, Limits, PausedError, TransientError, Web
from agent.fleet.https import HANDSHAKE_BYTES, HEAD_BYTES, Answer, Connection
from agent.fleet.objects import on_thread
from agent.fleet.tls import FreshContext
from hil.certificates import Authority
from tests.fleet.site import Site

PATIENCE_S = 20.0


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "transfer-watch"]


def ask(channel: Channel, url: str) -> bytes:
    with Connection(channel, url) as connection:
        return connection.exchange("GET", {}).read_all(1000)


def cut_while(channel: Channel, url: str, waits: Callable[[], bool]) -> None:
    """Cut as soon as it waits; it has to end at once, and not by its own limits."""
    raised: list[Exception] = []

    def work() -> None:
        try:
            ask(channel, url)
        except Exception as error:  # noqa: BLE001 - looked at below
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    ends_s = time.monotonic() + PATIENCE_S
    while not waits() and time.monotonic() < ends_s:
        time.sleep(0.001)
    channel.cut.now()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert [type(error) for error in raised] == [PausedError]
    assert threads() == []


LONG = Limits(wait_s=10 * PATIENCE_S, progress_s=10 * PATIENCE_S)


def test_it_is_cut_off_while_it_connects() -> None:
    """A listener whose queue is full answers no further SYN."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        channel = Channel(Web(allow_loopback_http=True, limits=LONG))
        cut_while(channel, f"http://127.0.0.1:{address[1]}/1", lambda: bool(channel.cut._sockets))
        for one in waiting:
            one.close()


def test_it_is_cut_off_while_it_shakes_hands(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel = Channel(Web(FreshContext(Authority(tmp_path).issue("unit")), limits=LONG))
        taken: list[socket.socket] = []

        def shaking() -> bool:
            if not taken:
                taken.append(listener.accept()[0])
            return any(isinstance(one, ssl.SSLSocket) for one in channel.cut._sockets)

        cut_while(channel, f"https://127.0.0.1:{listener.getsockname()[1]}/1", shaking)
        taken[0].close()


@pytest.mark.parametrize("encrypted", [False, True])
def test_it_is_cut_off_while_it_reads(tmp_path: Path, encrypted: bool) -> None:
    """What is in the socket's buffer then, encrypted, must not come out as the answer's body."""
    tls = Authority(tmp_path).issue("unit")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    site = Site(context if encrypted else None)

    def hang(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "900")
        handler.end_headers()
        handler.wfile.write(b"x" * 100)
        assert site.closing.wait(PATIENCE_S)

    site.pages["/1"] = hang
    channel = Channel(Web(FreshContext(tls), allow_loopback_http=True, limits=LONG))
    handshake = HANDSHAKE_BYTES if encrypted else 0
    try:
        cut_while(channel, f"{site.url}/1", lambda: channel.moved.total()[1] >= handshake + HEAD_BYTES + 100)
    finally:
        site.close()
    assert channel.moved.total()[1] == handshake + HEAD_BYTES + 100


def test_what_is_left_in_the_socket_after_a_cut_is_never_read_undeciphered(tmp_path: Path) -> None:
    """The standard library's TLS socket forgets its keys when it is shut down, and then gives what it finds."""
    tls = Authority(tmp_path).issue("unit")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    site, channel = Site(context), Channel(Web(FreshContext(tls)))
    url, body = site.put("/1", b"x" * 1_000_000), bytearray()

    def read_on(answer: Answer) -> None:
        while chunk := answer.read(1000):
            body.extend(chunk)

    try:
        with Connection(channel, url) as connection:
            answer = connection.exchange("GET", {})
            body += answer.read(10)
            channel.cut.now()
            with pytest.raises(PausedError):
                read_on(answer)
        assert body == b"x" * len(body)
    finally:
        site.close()


def test_a_server_that_never_shakes_hands_is_left(tmp_path: Path) -> None:
    """It drips: each wait is short, and nothing comes of them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def drip() -> None:
            with listener.accept()[0] as one:
                one.sendall(b"\x16\x03\x03\x20\x00")  # a record of 8 KiB begins
                while not over.wait(0.01):
                    try:
                        one.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        web = Web(FreshContext(Authority(tmp_path).issue("unit")), limits=Limits(progress_s=0.2))
        with pytest.raises(TransientError, match="it took longer than"):
            ask(Channel(web), f"https://127.0.0.1:{listener.getsockname()[1]}/1")
        over.set()
        thread.join()


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_it_is_used_again_while_the_server_keeps_it_and_opened_anew_when_not(site: Site, version: str) -> None:
    def page(handler: BaseHTTPRequestHandler) -> None:
        clients.append(handler.client_address[1])
        handler.close_connection = version == "HTTP/1.0"
        handler.protocol_version = version
        handler.send_response(200)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"" if handler.command == "HEAD" else b"ok")

    clients: list[int] = []
    site.pages["/1"] = page
    with Connection(Channel(Web(allow_loopback_http=True)), f"{site.url}/1") as connection:
        assert connection.exchange("HEAD", {}).status == 200
        assert connection.exchange("HEAD", {}).status == 200
        assert connection.exchange("PUT", {}, memoryview(b"x")).read_all(10) == b"ok"
    assert len(set(clients)) == (1 if version == "HTTP/1.1" else 3)
    assert threads() == []


def test_an_answer_that_came_before_the_body_was_sent_is_heard(site: Site) -> None:
    def early(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(413)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    site.pages["/1"] = early
    with Connection(Channel(Web(allow_loopback_http=True)), f"{site.url}/1") as connection:
        assert connection.exchange("PUT", {}, memoryview(bytes(100))).status == 413


def test_a_secret_in_the_query_is_in_no_error(site: Site) -> None:
    site.put("/1", b"", status=404)
    with Connection(Channel(Web(allow_loopback_http=True)), f"{site.url}/1?signature=secret") as connection:
        said = str(connection.exchange("GET", {}).refused())
    assert said == f"GET {site.url}/1 was answered 404"
    with pytest.raises(TransientError) as error:
        ask(Channel(Web(allow_loopback_http=True)), "http://127.0.0.1:1/1?signature=secret")
    assert "secret" not in str(error.value)


def test_a_thread_that_cannot_be_cut_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a name is being resolved."""
    over = threading.Event()

    async def story() -> None:
        cut = Cut()
        task = asyncio.ensure_future(on_thread(cut, lambda: over.wait(PATIENCE_S)))
        await asyncio.sleep(0)
        cut.now()
        with pytest.raises(PausedError):
            await task
        assert not over.is_set()
        over.set()

    monkeypatch.setattr(objects, "LINGER_S", 0.01)
    asyncio.run(story())
