"""Shows the metrics to this computer: over HTTP on a Unix socket or a loopback port, and as a file for node_exporter.

    curl --unix-socket /run/driveway/metrics.sock http://localhost/metrics

Both are off unless `[metrics]` asks for them. A scrape is answered by one short exchange, then hung up on: a request
line and headers of REQUEST_BYTES within REQUEST_S, so many at once, and the figures are put together once in FRESH_S
however often somebody asks, so a scraper that runs wild costs the daemon nothing it would miss. Any user of this
computer may read a loopback port; a Unix socket has its group. A browser that was led to the port by a strange name is
refused (`Host`). The file is replaced by a rename, so nobody reads half of one, and removed when the daemon ends, so
that old figures do not pass for new ones; it belongs into /run, where it costs no flash.

What cannot be served or written is told once, and costs the metrics alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.local_config import UNIX, MetricsSection, address_of
from agent.log import logger
from agent.metrics.collect import Snapshot, collect
from agent.metrics.text import OPENMETRICS, PROMETHEUS, openmetrics, prometheus
from agent.ports import Emit

REQUEST_BYTES = 8192
REQUEST_S = 5.0
ANSWER_S = 10.0
"""To put the figures together, and again for the scraper to read them."""
AT_ONCE = 8
FRESH_S = 1.0
RETRY_S = 60.0
_HOSTS = {"localhost", "127.0.0.1", "[::1]"}


class Exporter:
    """A source (`agent.ports.Source`) that emits nothing. `look` puts a snapshot together; it may raise."""

    def __init__(
        self, section: MetricsSection, look: Callable[[], Awaitable[Snapshot]], path: Callable[[str], Path]
    ) -> None:
        self._section, self._look, self._path = section, look, path
        self._now: tuple[float, Snapshot] | None = None
        self._looking = asyncio.Lock()
        self._open = 0
        self._troubles: dict[str, str] = {}

    async def run(self, emit: Emit) -> None:  # noqa: ARG002 - it has nothing to say to the core
        """Serve and write until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._section.listen:
                group.create_task(self._serve())
            if self._section.textfile:
                group.create_task(self._write_on(self._path(self._section.textfile)))

    # --- the file ------------------------------------------------------------------------------------------------

    async def _write_on(self, path: Path) -> None:
        try:
            while True:
                try:
                    text = prometheus(collect(await self._snapshot()))
                    await asyncio.to_thread(replace, path, text)
                    self._well("textfile")
                except Exception as error:  # noqa: BLE001 - metrics may never hurt
                    self._trouble("textfile", error)
                await asyncio.sleep(self._section.interval_s)
        finally:
            remove(path)

    # --- the door ------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            try:
                server = await self._listen()
                break
            except OSError as error:
                self._trouble("listen", error)
                await asyncio.sleep(RETRY_S)
        self._well("listen")
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            if self._section.listen.startswith(UNIX):
                self._unix_path().unlink(missing_ok=True)

    async def _listen(self) -> asyncio.Server:
        if not self._section.listen.startswith(UNIX):
            host, port = address_of(self._section.listen)
            return await asyncio.start_server(self._scraped, host, port, limit=REQUEST_BYTES, backlog=AT_ONCE)
        path = self._unix_path()
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listening.bind(str(path))
            path.chmod(0o660)
        except OSError:
            listening.close()
            raise
        return await asyncio.start_unix_server(self._scraped, sock=listening, limit=REQUEST_BYTES, backlog=AT_ONCE)

    def _unix_path(self) -> Path:
        return self._path(self._section.listen.removeprefix(UNIX))

    async def _scraped(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One scrape: a request in, an answer out, and hung up."""
        self._open += 1
        try:
            if self._open > AT_ONCE:
                writer.write(_response("503 Service Unavailable", "too many ask at once\n"))
                return
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
            async with asyncio.timeout(ANSWER_S):
                writer.write(await self._answer(head.decode("latin-1")))
            async with asyncio.timeout(ANSWER_S):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # too slow, too long, or gone: the scraper's trouble
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _answer(self, head: str) -> bytes:
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        host = headers.get("host", "localhost")
        if host.lower() not in _HOSTS and host.lower().rpartition(":")[0] not in _HOSTS:
            return _response("421 Misdirected Request", "ask for it by its address\n")
        if rest.partition(" ")[0].partition("?")[0] != "/metrics":
            return _response("404 Not Found", "the metrics are at /metrics\n")
        if method not in {"GET", "HEAD"}:
            return _response("405 Method Not Allowed", "only GET\n")
        try:
            families = collect(await self._snapshot())
        except Exception as error:  # noqa: BLE001 - metrics may never hurt
            self._trouble("figures", error)
            return _response("503 Service Unavailable", "the daemon could not put them together\n")
        self._well("figures")
        if "application/openmetrics-text" in headers.get("accept", ""):
            text, kind = openmetrics(families), OPENMETRICS
        else:
            text, kind = prometheus(families), PROMETHEUS
        return _response("200 OK", text, kind, body=method == "GET")

    # --- both ----------------------------------------------------------------------------------------------------

    async def _snapshot(self) -> Snapshot:
        """The figures, put together again where the last are older than FRESH_S."""
        async with self._looking:
            now_s = time.monotonic()
            if self._now is None or now_s - self._now[0] >= FRESH_S:
                self._now = (now_s, await self._look())
            return self._now[1]

    def _trouble(self, what: str, error: Exception) -> None:
        """Told once."""
        detail = repr(error)
        if self._troubles.get(what) != detail:
            self._troubles[what] = detail
            logger().warning("metrics_not_shown", what=what, error=detail)

    def _well(self, what: str) -> None:
        if self._troubles.pop(what, None):
            logger().info("metrics_shown_again", what=what)


def replace(path: Path, text: str) -> None:
    """Put a text where another was, so that a reader finds the one or the other; raises OSError.

    No sync: figures that a power cut takes are of no use after it.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}")  # does not end with .prom: no reader takes it
    remove(new)
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o644)
            file.write(text)
        new.replace(path)
    except BaseException:
        remove(new)
        raise


def remove(path: Path) -> None:
    """Remove a file that may not be there, and may not be removable."""
    with contextlib.suppress(OSError):
        path.unlink()


def _response(status: str, text: str, kind: str = PROMETHEUS, *, body: bool = True) -> bytes:
    data = text.encode()
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(data)}", "Connection: close")
    return "\r\n".join((*lines, "", "")).encode() + (data if body else b"")
