"""Fetching by URL and digest from a real server: the promised bytes or a FleetError, whatever the server does."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import FleetError
from agent.fleet.channel import Channel, Limits, TransientError, Web
from agent.fleet.https import CHUNK_BYTES, request
from agent.fleet.objects import MAX_OBJECT_BYTES, ObjectWanted, fetch
from agent.fleet.partials import Partials
from agent.fleet.retry import Patience
from agent.fleet.tls import FreshContext, TlsFiles
from agent.sealed import InputMemory
from hil.certificates import Authority
from tests.fleet.site import Site

OBJECT = bytes(range(256)) * 3000
RIG = Web(allow_loopback_http=True)
AT_ONCE = Patience(for_s=0)
DRIP_S = 0.01
DRIPS = 2000
"""Longer than any test waits, so that only the deadline ends it; not for ever, so that a broken deadline fails."""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def get(url: str, promised: bytes = OBJECT, web: Web = RIG) -> bytes:
    """Fetch what a grant promised under this URL, in one attempt."""
    wanted = ObjectWanted(url, hashlib.sha256(promised).hexdigest(), len(promised))
    with tempfile.TemporaryDirectory() as folder:
        memory = asyncio.run(fetch(Channel(web), Partials(Path(folder)), wanted, AT_ONCE))
    return taken(memory)


def taken(memory: InputMemory) -> bytes:
    """What was fetched, and given back."""
    try:
        return memory.read()
    finally:
        memory.close()


def refusal(url: str, promised: bytes = OBJECT, web: Web = RIG) -> str:
    with pytest.raises(FleetError) as error:
        get(url, promised, web)
    return str(error.value)


@pytest.mark.parametrize("body", [OBJECT, b"x", b""])
def test_the_promised_bytes_arrive(site: Site, body: bytes) -> None:
    assert len(OBJECT) > 2 * CHUNK_BYTES
    assert get(site.put("/objects/1", body), body) == body


def test_the_query_arrives_and_the_fragment_does_not(site: Site) -> None:
    site.put("/objects/1", OBJECT)
    site.put("/", OBJECT)
    get(site.url + "/objects/1?token=a%20b&n=1#part")
    get(site.url + "?n=2")
    assert site.asked == ["GET /objects/1?token=a%20b&n=1", "GET /?n=2"]


# --- not what was promised -------------------------------------------------------------------------------------


def test_other_bytes_of_the_same_length_are_refused(site: Site) -> None:
    other = OBJECT[:-1] + b"x"
    url = site.put("/1", other)
    found, promised = (hashlib.sha256(body).hexdigest()[:16] for body in (other, OBJECT))
    assert refusal(url) == f"the object {url} has SHA-256 {found}…, {promised}… was promised"


@pytest.mark.parametrize(
    ("body", "claimed"),
    [
        (OBJECT[:-1], len(OBJECT) - 1),
        (OBJECT[:-1], len(OBJECT)),  # the connection ends early
        (b"", 0),
        (OBJECT + b"x", len(OBJECT) + 1),
    ],
)
def test_another_length_is_refused(site: Site, body: bytes, claimed: int) -> None:
    url = site.put("/1", body, claimed=claimed)
    assert refusal(url) == f"the object {url} is not the {len(OBJECT)} bytes long that were promised"


def test_nothing_was_promised_and_something_came(site: Site) -> None:
    assert "is not the 0 bytes long" in refusal(site.put("/1", b"x"), b"")


def test_no_more_than_one_byte_too_many_is_read(site: Site) -> None:
    url = site.put("/1", OBJECT)
    assert request(RIG, "GET", url, None, 10) == (200, OBJECT[:11])
    assert request(RIG, "GET", url, None, len(OBJECT) - 1) == (200, OBJECT)


def test_what_is_too_large_is_not_even_asked_for(site: Site, tmp_path: Path) -> None:
    url = site.put("/1", b"")
    for length, said in (
        (MAX_OBJECT_BYTES + 1, r"is 67108865 bytes, more than the 67108864 that are fetched"),
        (MAX_OBJECT_BYTES, r"not the 67108864 bytes long"),
    ):
        assert site.asked == []
        with pytest.raises(FleetError, match=said):
            asyncio.run(fetch(Channel(RIG), Partials(tmp_path), ObjectWanted(url, "00" * 32, length), AT_ONCE))


@pytest.mark.parametrize("status", [404, 403, 500, 203, 206, 302])
def test_another_status_is_refused_even_with_the_right_bytes(site: Site, status: int) -> None:
    url = site.put("/1", OBJECT, status=status, Location=site.put("/2", OBJECT))
    assert refusal(url) == f"GET {url} was answered {status}"
    assert site.asked == ["GET /1"], "nothing is followed"


def test_the_servers_words_are_not_repeated(site: Site) -> None:
    promised = b"x" * 40
    assert "hostile" not in refusal(site.put("/1", b"a hostile sentence", status=404), promised)
    assert "hostile" not in refusal(site.put("/1", b"a hostile sentence"), promised)
    assert "hostile" not in refusal(site.put("/1", b"a hostile sentence of forty bytes, in all"[:40]), promised)


def test_a_post_carries_its_body_and_brings_the_answer_whatever_the_status(site: Site) -> None:
    url = site.put("/enrol", b"no", status=403)
    assert request(RIG, "POST", url, b"let me in", 100) == (403, b"no")
    assert site.asked == ["POST /enrol b'let me in'"]


# --- servers that take their time, or are not there ------------------------------------------------------------


@pytest.mark.parametrize("part", ["body", "headers"])
def test_a_dripping_server_is_left(site: Site, part: str) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        if part == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(OBJECT)))
            handler.end_headers()
        for _ in range(DRIPS):
            handler.wfile.write(b"x")
            if site.closing.wait(DRIP_S):
                return

    site.pages["/1"] = drip
    for limits in (Limits(progress_s=5 * DRIP_S), Limits(progress_s=5 * DRIP_S, connection_s=5 * DRIP_S)):
        assert "it took longer than" in refusal(site.url + "/1", web=Web(allow_loopback_http=True, limits=limits))


def test_what_a_server_says_outside_http_is_not_repeated(site: Site) -> None:
    def banner(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SSH-2.0-secret\r\n\r\n")

    site.pages["/1"] = banner
    assert "secret" not in refusal(site.url + "/1")


def test_a_silent_server_is_left(site: Site) -> None:
    site.pages["/1"] = lambda _handler: assert_waited(site)
    web = Web(allow_loopback_http=True, limits=Limits(wait_s=0.1))
    assert "timed out" in refusal(site.url + "/1", web=web)


def assert_waited(site: Site) -> None:
    assert site.closing.wait(DRIPS * DRIP_S), "the client waited for ever"


@pytest.fixture(scope="module")
def nobody() -> Iterator[str]:
    """A port of this machine that is taken, so that no server gets it, and that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_nobody_listening_is_said(nobody: str) -> None:
    url = f"{nobody}/1"
    said = refusal(url)
    assert said.startswith(f"GET {url} failed: ")
    assert said.endswith("Connection refused; is the dispatcher up?")


# --- URLs ------------------------------------------------------------------------------------------------------


def test_plain_http_needs_leave_even_on_this_machine(site: Site) -> None:
    url = site.put("/1", OBJECT)
    assert refusal(url, web=Web()) == (
        f"will not fetch {url}; objects come over https; http is for a rig on this machine"
    )
    assert site.asked == []
    assert get(url.replace("127.0.0.1", "localhost")) == OBJECT


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1/x",
        "http://127.0.0.1.example/x",
        "http://127.0.0.1@192.0.2.1/x",
        "http:///x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "/etc/passwd",
        "",
    ],
)
def test_nothing_else_is_fetched_on_a_rig_either(url: str) -> None:
    assert refusal(url).startswith(f"will not fetch {url}; ")


@pytest.mark.parametrize(
    "url",
    [
        "https://host:99999/x",
        "https://host:http/x",
        "https://[::1/x",
        "https://" + "a" * 70 + ".example/x",
        "https://a..example/x",
        "http://127.0.0.1/ä",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/a\x00b",
    ],
)
def test_an_odd_url_is_an_error_that_names_it(url: str) -> None:
    assert refusal(url).startswith(f"GET {url} failed: ")


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30))
def test_no_path_raises_anything_else(nobody: str, text: str) -> None:
    with pytest.raises(FleetError):
        request(RIG, "GET", f"{nobody}/{text}", None, 10)


# --- TLS -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return Authority(tmp_path_factory.mktemp("tls")).issue("unit")


@pytest.fixture
def safe_site(tls: TlsFiles) -> Iterator[Site]:
    """It asks its clients for a certificate, too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    context.load_verify_locations(tls.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    site = Site(context)
    yield site
    site.close()


def test_https_is_spoken_with_the_units_own_ca_and_certificate(safe_site: Site, tls: TlsFiles, tmp_path: Path) -> None:
    url = safe_site.put("/1", OBJECT)
    assert get(url, web=Web(FreshContext(tls))) == OBJECT
    stranger = Authority(tmp_path).issue("unit")
    for web in (Web(), Web(FreshContext(stranger))):
        assert "CERTIFICATE_VERIFY_FAILED" in refusal(url, web=web)
    assert safe_site.asked == ["GET /1"]


def test_a_certificate_that_is_renewed_or_expires_counts_at_the_next_transfer(tmp_path: Path) -> None:
    """As on a vehicle: the files are replaced while the agent runs."""
    authority = Authority(tmp_path)
    files, server = authority.issue("unit"), authority.issue("dispatcher")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    context.load_verify_locations(server.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    site, web = Site(context), Web(FreshContext(files))
    try:
        url = site.put("/1", OBJECT)
        assert get(url, web=web) == OBJECT
        same = web.context()
        assert web.context() is same, "it is made anew only when the files have changed"
        authority.issue("unit", valid_s=-1.0)
        assert refusal(url, web=web), "the server refused the one that has expired"
        authority.issue("unit")
        assert get(url, web=web) == OBJECT
        Path(files.key).unlink()
        with pytest.raises(TransientError, match="the TLS files cannot be used"):
            request(web, "GET", url, None, 10)
    finally:
        site.close()


def test_who_believes_everybodys_authorities_reads_them_once() -> None:
    assert Web().context() is Web().context()
