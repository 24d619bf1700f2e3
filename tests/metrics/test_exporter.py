"""Where the metrics can be had: real sockets and files, scrapers that are slow, many or wild, and disks that refuse."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from agent.errors import StoreError
from agent.local_config import MetricsSection, address_of
from agent.metrics import exporter as module
from agent.metrics.collect import Snapshot
from agent.metrics.exporter import AT_ONCE, REQUEST_BYTES, Exporter, replace
from agent.metrics.look import Look, exporters, process_figures
from agent.peers import Bounds, Guests
from agent.ports import Emit
from tests.conftest import FixedClock
from tests.metrics.openmetrics import read
from tests.metrics.shots import at_work

SHOT = at_work()


class Looked:
    """Puts the same snapshot together each time, counts how often, and refuses while it is told to."""

    def __init__(self) -> None:
        self.times, self.refuses = 0, False

    async def __call__(self) -> Snapshot:
        self.times += 1
        if self.refuses:
            raise StoreError("the disk refused")
        return SHOT


def silent(_event: object) -> None:
    raise AssertionError("metrics have nothing to say to the core")


@asynccontextmanager
async def shown(folder: Path, looked: Looked, **section: object) -> AsyncIterator[None]:
    exporter = Exporter(msgspec.convert(section, MetricsSection), looked, lambda name: folder / name)
    emit: Emit = silent
    task = asyncio.create_task(exporter.run(emit))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def told(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 60))


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


async def say(path: Path, request: bytes) -> tuple[str, str, str]:
    """(status line, headers, body) of one request over a Unix socket."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    answer = ""
    with contextlib.suppress(ConnectionResetError):  # it was hung up on without having been heard out
        while part := await asyncio.wait_for(reader.read(65_536), 20):
            answer += part.decode()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    line, _, headers = head.partition("\r\n")
    return line, headers, body


GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
ASKED = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text; version=1.0.0,*/*\r\n\r\n"


def test_a_scrape_over_a_unix_socket(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "metrics.sock"
        async with shown(tmp_path, Looked(), listen="unix:metrics.sock"):
            await until(path.exists)
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            line, headers, body = await say(path, ASKED)
            assert line == "HTTP/1.1 200 OK"
            assert "Content-Type: application/openmetrics-text; version=1.0.0" in headers
            assert f"Content-Length: {len(body.encode())}" in headers
            assert "driveway_state" in read(body)
            line, headers, body = await say(path, GET)
            assert "Content-Type: text/plain; version=0.0.4" in headers
            assert "# EOF" not in body
            assert 'driveway_build_info{version="' in body
            assert "# TYPE driveway_build_info gauge" in body
            _, headers, body = await say(path, GET.replace(b"GET", b"HEAD"))
            assert body == ""
            assert "Content-Length: 0" not in headers
        assert not path.exists(), "and it is gone with the daemon"

    told(story)


def test_a_scrape_over_a_loopback_port(tmp_path: Path) -> None:
    async def story() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        async with shown(tmp_path, Looked(), listen=f"127.0.0.1:{port}"):
            for _ in range(200):
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    await asyncio.sleep(0.01)
            writer.write(ASKED.replace(b"localhost", f"127.0.0.1:{port}".encode()))
            answer = await asyncio.wait_for(reader.read(), 20)
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"# EOF\n")

    told(story)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /secrets HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421"),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n", "421"),
        (b"\r\n\r\n", "404"),
        (b"\xff\x00 \xfe\r\n\r\n", "404"),
        (b"GET /metrics?x=1 HTTP/1.0\r\nhost:[::1]:9469\r\n\r\n", "200"),
        (b"x" * (REQUEST_BYTES + 2_000), ""),
    ],
)
def test_what_is_asked_wrongly(tmp_path: Path, request_line: bytes, status: str) -> None:
    async def story() -> None:
        path = tmp_path / "m.sock"
        async with shown(tmp_path, Looked(), listen="unix:m.sock"):
            await until(path.exists)
            line, _, _ = await say(path, request_line)
            assert line.partition(" ")[2].partition(" ")[0] == status
            assert (await say(path, GET))[0].endswith("200 OK"), "and the next is served"

    told(story)


def test_slow_scrapers_are_dropped_and_no_more_than_a_few_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_S", 0.2)

    async def story() -> None:
        path = tmp_path / "m.sock"
        async with shown(tmp_path, Looked(), listen="unix:m.sock"):
            await until(path.exists)
            slow = [await asyncio.open_unix_connection(str(path)) for _ in range(AT_ONCE)]
            line, _, _ = await say(path, GET)
            assert line == "HTTP/1.1 503 Service Unavailable", "there is no place"
            for reader, writer in slow:
                assert await asyncio.wait_for(reader.read(), 20) == b""
                writer.close()
            assert (await say(path, GET))[0].endswith("200 OK")

    told(story)


def test_however_often_it_is_asked_it_looks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_S", 1_000)

    async def story() -> None:
        path, looked = tmp_path / "m.sock", Looked()
        async with shown(tmp_path, looked, listen="unix:m.sock"):
            await until(path.exists)
            for _ in range(5):
                await asyncio.gather(*(say(path, GET) for _ in range(4)))
        assert looked.times == 1

    told(story)


def test_a_disk_that_refuses_is_told_once_and_so_is_its_recovery(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        path, looked = tmp_path / "m.sock", Looked()
        looked.refuses = True
        async with shown(tmp_path, looked, listen="unix:m.sock"):
            await until(path.exists)
            for _ in range(3):
                assert (await say(path, GET))[0].endswith("503 Service Unavailable")
            looked.refuses = False
            assert (await say(path, GET))[0].endswith("200 OK")

    told(story)
    said = "".join(capsys.readouterr())
    assert said.count("metrics_not_shown") == 1
    assert said.count("metrics_shown_again") == 1


def test_the_file_is_whole_at_every_moment_and_gone_at_the_end(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "driveway.prom"
        async with shown(tmp_path, Looked(), textfile="driveway.prom"):
            await until(path.exists)
            text = path.read_text("utf-8")
            assert text.startswith("# HELP driveway_build_info")
            assert text.endswith("\n")
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
            assert os.listdir(tmp_path) == [path.name], "nothing is left beside it"  # noqa: PTH208 - a test may wait
        assert not path.exists()

    told(story)


def test_a_file_is_replaced_by_a_rename_and_follows_no_link(tmp_path: Path) -> None:
    path, other = tmp_path / "driveway.prom", tmp_path / "other"
    other.write_text("precious")
    (tmp_path / f".driveway.prom.{os.getpid()}").symlink_to(other)
    path.write_text("old")
    with path.open() as reader:
        replace(path, "new")
        assert reader.read() == "old", "who had it open reads the old one to its end"
    assert path.read_text() == "new"
    assert other.read_text() == "precious"
    with pytest.raises(OSError, match="No such file"):
        replace(tmp_path / "nowhere" / "x.prom", "x")


def test_a_folder_that_is_not_there_costs_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        path = tmp_path / "m.sock"
        async with shown(tmp_path, Looked(), listen="unix:m.sock", textfile="nowhere/x.prom"):
            await until(path.exists)
            assert (await say(path, GET))[0].endswith("200 OK")

    told(story)
    assert "".join(capsys.readouterr()).count("metrics_not_shown") == 1


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("0.0.0.0:9469", "is not of this computer alone"),
        ("192.168.0.7:9469", "is not of this computer alone"),
        ("[::]:9469", "is not of this computer alone"),
        ("localhost:9469", "is not an address and a port"),
        ("9469", "is not an address and a port"),
        ("127.0.0.1:0", "is not a port"),
        ("127.0.0.1:99999", "is not a port"),
        ("unix:", "names no path"),
    ],
)
def test_it_is_shown_to_this_computer_alone(listen: str, said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert({"listen": listen}, MetricsSection)


def test_addresses_and_files_that_are_taken() -> None:
    assert address_of("127.0.0.1:9469") == ("127.0.0.1", 9469)
    assert address_of("[::1]:1") == ("::1", 1)
    with pytest.raises(msgspec.ValidationError, match=r"has to end with \.prom"):
        msgspec.convert({"textfile": "/run/driveway/metrics"}, MetricsSection)


def test_who_asks_for_nothing_gets_nothing(tmp_path: Path) -> None:
    guests = Guests(Bounds())

    async def status() -> None:
        raise AssertionError

    look = Look(status=status, signals=list, guests=guests, clock=FixedClock())  # type: ignore[arg-type]
    assert exporters(MetricsSection(), look, lambda name: tmp_path / name) == ()
    assert len(exporters(MetricsSection(textfile="x.prom"), look, lambda name: tmp_path / name)) == 1


def test_the_figures_of_this_process_are_plausible() -> None:
    figures = process_figures(0)
    assert figures.cpu_s > 0.01
    assert 10_000_000 < figures.resident_bytes < 10_000_000_000
    assert 3 <= figures.descriptors < 1_000
    assert figures.started_s > 0


def test_a_process_whose_name_has_brackets_and_spaces(tmp_path: Path) -> None:
    (tmp_path / "fd").mkdir()
    fields = ["S", *(str(number) for number in range(4, 53))]
    (tmp_path / "stat").write_text(f"77 (a) b (c) {' '.join(fields)}")
    figures = process_figures(1_000, tmp_path)
    ticks = os.sysconf("SC_CLK_TCK")
    assert figures.cpu_s == (14 + 15) / ticks
    assert figures.started_s == 22 / ticks + 1
    assert figures.resident_bytes == 24 * os.sysconf("SC_PAGE_SIZE")
