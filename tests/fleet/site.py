"""A web server on this machine that answers as a test says: honestly, or with what a transfer may have to bear."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Page = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A server on this machine; `pages` says how each path is answered, `asked` is every request it got."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[str] = []
        self.closing = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(f"{self.command} {self.path}")
                self.close_connection = True  # without saying so
                with contextlib.suppress(OSError):  # the client may leave when it has read enough
                    site.pages[self.path.partition("?")[0]](self)

            def do_HEAD(self) -> None:
                self.close_connection = False
                site.pages[self.path](self)

            def do_PUT(self) -> None:
                self.close_connection = True
                site.pages[self.path](self)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                site.asked.append(f"{self.command} {self.path} {body!r}")
                self.close_connection = True
                site.pages[self.path](self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False  # closing waits for the handlers
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, path: str, body: bytes, *, status: int = 200, claimed: int | None = None, **headers: str) -> str:
        """Answer `path` with these bytes, under a Content-Length that may be a lie; its URL."""

        def page(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(body) if claimed is None else claimed))
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)

        self.pages[path] = page
        return self.url + path
