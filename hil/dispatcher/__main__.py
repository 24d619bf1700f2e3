"""The dispatcher as a process: `python -m hil.dispatcher --dir DIR --broker HOST:PORT`.

DIR holds its key, its book, the objects, `dispatcher.pub` (what cars trust), `operator.token` (who may read it may give
orders) and, once cars can talk to it, `ready`. It runs until SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
from pathlib import Path

import msgspec
import structlog

from agent.clock import SystemClock
from agent.errors import DrivewayError
from agent.fleet.link import Link, LinkConfig
from agent.fleet.messages import encode
from agent.trust.keys import FileSigner
from hil.dispatcher.book import Book
from hil.dispatcher.objects import Objects
from hil.dispatcher.orders import TOKEN_FILE, read_order
from hil.dispatcher.service import UP_FILTER, Dispatcher
from hil.dispatcher.web import WebServer

ENROL_TIMEOUT_S = 10.0

log = structlog.get_logger("dispatcher")


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The file `ready`: written when the dispatcher hears its topics and serves its objects."""

    pid: int
    broker: str
    http_url: str
    http_port: int


def main() -> None:
    """Run until told to end; exit status 1 with one sentence when it cannot start."""
    arguments = _parse()
    try:
        arguments.dir.mkdir(parents=True, exist_ok=True)
        asyncio.run(_serve(arguments))
    except (DrivewayError, OSError) as error:
        sys.exit(f"dispatcher: {error}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hil.dispatcher", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where everything it knows is kept")
    parser.add_argument("--broker", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--http-port", type=int, default=0, help="0 takes any free port (see DIR/ready)")
    parser.add_argument("--retry-s", type=int, default=30, help="when to ask again when there is no work")
    parser.add_argument("--enrol-code", action="append", default=[], help="admit one unit with this code")
    return parser.parse_args()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


async def _serve(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.dir
    ready_file = folder / "ready"
    ready_file.unlink(missing_ok=True)
    key = FileSigner.open_or_create(folder / "dispatcher.key")
    (folder / "dispatcher.pub").write_text(key.public_key_pem(), "ascii")
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)

    def enrol(envelope: bytes) -> bytes:
        async def on_loop() -> bytes:
            return dispatcher.enrol(envelope)

        return asyncio.run_coroutine_threadsafe(on_loop(), loop).result(ENROL_TIMEOUT_S)

    def order(unit: str, kind: str, body: bytes) -> bytes:
        async def on_loop() -> bytes:
            return encode(dispatcher.order(unit, read_order(kind, body)))

        return asyncio.run_coroutine_threadsafe(on_loop(), loop).result(ENROL_TIMEOUT_S)

    def on_state(connected: bool, broker: str, detail: str) -> None:  # noqa: FBT001 - the link's signature
        log.info("link", connected=connected, broker=broker, detail=detail)
        if connected:
            _write_ready(ready_file, broker, web)

    def publish(topic: str, payload: bytes, expiry_s: int) -> bool:
        return link.publish(topic, payload, expiry_s=expiry_s)

    book = Book.open(folder, SystemClock().wall_ms)
    for code in arguments.enrol_code:
        book.units.add_code(code)
    web = WebServer(arguments.http_port, Objects(folder / "objects"), enrol, order, _operator_token(folder))
    dispatcher = Dispatcher(book, key, publish=publish, object_url=web.object_url, retry_s=arguments.retry_s)
    link = Link(
        LinkConfig(brokers=(arguments.broker,), client_id=f"dispatcher-{secrets.token_hex(4)}", filters=(UP_FILTER,)),
        on_message=dispatcher.on_message,
        on_state=on_state,
    )
    web.start()
    link.start()
    try:
        await ended.wait()
    finally:
        ready_file.unlink(missing_ok=True)
        await link.close()
        await asyncio.to_thread(web.close)
        book.close()
        log.info("ended", **dispatcher.counts)


def _operator_token(folder: Path) -> str:
    """A new secret at each start, for those who may read the dispatcher's own folder."""
    token = secrets.token_hex(16)
    path = folder / TOKEN_FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    return token


def _write_ready(path: Path, broker: str, web: WebServer) -> None:
    ready = Ready(pid=os.getpid(), broker=broker, http_url=web.url, http_port=int(web.url.rpartition(":")[2]))
    temporary = path.with_suffix(".part")
    temporary.write_bytes(msgspec.json.encode(ready))
    temporary.replace(path)


if __name__ == "__main__":
    main()
