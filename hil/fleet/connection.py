"""A daemon's MQTT connection without a thread of its own: thousands of them share one event loop.

The paho client, its callbacks, its limits and its socket are `agent.fleet.conversation`'s; only who moves the bytes
differs. A connection is made (TCP, TLS and the CONNECT packet) on one of a few threads that all cars of the process
share, since paho connects blocking; from then on its socket belongs to the loop (paho's external-loop interface:
`loop_read`, `loop_write`, `loop_misc`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import paho.mqtt.client as mqtt

from agent.fleet.broker_limits import BrokerLimits
from agent.fleet.connection import END_S, Connection
from agent.fleet.conversation import Conversation, Ending
from agent.fleet.flood import FloodGate
from agent.fleet.link_config import LinkConfig
from agent.fleet.metered_socket import MeteredSocket
from agent.fleet.tls import TlsClient

CONNECTING_THREADS = 32
"""So many handshakes at once from a process; the others wait their turn."""
LOOK_S = 20.0
"""How often a connection on which nothing happens is looked at: whether a ping, or an acknowledgement, is due."""


class LoopConversation(Conversation):
    """`connect` runs on a thread, and everything else on the event loop's."""

    def _open_waker(self) -> None:
        """There is no thread to wake: the loop is told."""
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        self._writing = self._due = self._finished = False
        self._look: asyncio.TimerHandle | None = None
        self._on_end: Callable[[Ending], None] = lambda _ending: None

    def close_waker(self) -> None:
        """There is none."""

    def connect(self) -> Ending | None:
        """Everything up to the CONNECT that is sent; why not, if it cannot be."""
        try:
            return self._connect()
        except Exception as error:  # noqa: BLE001 - whatever it is ends this conversation, and is told
            return Ending(f"the MQTT client failed: {type(error).__name__}: {error}", blames=True)

    def take_over(self, on_end: Callable[[Ending], None]) -> None:
        """The socket is the loop's from now on; `on_end` is called once, when it is over."""
        assert self.socket is not None
        self._on_end, self._fd = on_end, self.socket.fileno()
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._readable)
        self._look_in()

    def abandon(self) -> None:
        """The connection was never taken over: close what there is of it."""
        if self.socket is not None:
            self.socket.close()

    def _build(self, made: MeteredSocket) -> mqtt.Client:
        client = super()._build(made)
        client.on_socket_close = self._closing
        return client

    def _wake(self) -> None:
        if not self._due and self._fd >= 0:
            self._due = True
            self._loop.call_soon(self._turn)

    def _readable(self) -> None:
        assert self.socket is not None
        self._client.loop_read()
        while self._client.socket() is not None and self.socket.pending():
            self._client.loop_read()
        self._turn()

    def _look_in(self) -> None:
        self._client.loop_misc()
        self._turn()
        if not self._finished:
            self._look = self._loop.call_later(min(LOOK_S, self._rest_s()), self._look_in)

    def _turn(self) -> None:
        """Write what waits, and see whether it is over."""
        self._due = False
        if self._finished:
            return
        client = self._client
        if client.want_write():
            client.loop_write()
        self._send_what_waits()
        self._ending = self._ending or self._overdue()
        if self._ending is not None or client.socket() is None:
            self._finish()
            return
        if client.want_write() != self._writing:
            self._writing = client.want_write()
            if self._writing:
                self._loop.add_writer(self._fd, self._turn)
            else:
                self._loop.remove_writer(self._fd)

    def _finish(self) -> None:
        assert self.socket is not None
        self._finished = True
        if self._client.want_write():  # a DISCONNECT that was asked for in a callback
            self._client.loop_write()
        self._closing()
        self.socket.close()
        if self._look is not None:
            self._look.cancel()
        fault = self.socket.fault
        self._ending = self._ending or Ending(fault or "the connection ended", blames=bool(fault))
        self._on_end(self._ending)

    def _closing(self, *_: Any) -> None:
        """The descriptor is about to be closed, and may be somebody else's in a moment."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1


class LoopConnection(Connection):
    """See `agent.fleet.connection.Connection`: the same, on the loop.

    `on_up` is told how long it took to come up, in milliseconds.
    """

    _talk: LoopConversation

    def __init__(self, *arguments: Any, on_up: Callable[[float], None], **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._on_up = on_up

    def _conversation(
        self, config: LinkConfig, address: tuple[str, int], tls: TlsClient | None, gate: FloodGate
    ) -> LoopConversation:
        return LoopConversation(config, address, tls, gate, self)

    def start(self) -> asyncio.Future[Ending]:
        """Connect on one of the shared threads; the future ends, with the reason, when the connection is over."""
        self._began_s = self._loop.time()
        self._connecting = self._loop.run_in_executor(_threads(), self._talk.connect)
        self._connecting.add_done_callback(self._made)
        return self.over

    @property
    def alive(self) -> bool:
        """Whether one of the shared threads is still at it."""
        return not self._connecting.done()

    def stuck(self) -> str:
        """There is no thread that could be."""
        return ""

    async def end(self) -> None:
        """Be deaf from now on, and say goodbye if that is still possible."""
        self._deaf = True
        self._inbox.clear()
        for step in (self._talk.leave, self._talk.cut):
            if not self._gone.is_set():
                step()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), END_S)

    def _made(self, connecting: asyncio.Future[Ending | None]) -> None:
        if connecting.cancelled():
            return
        ending = connecting.result()
        if ending is not None:
            self._talk.abandon()
            self._finish(ending)
        else:
            self._talk.take_over(self._finish)

    def _came_up(self, limits: BrokerLimits) -> None:
        super()._came_up(limits)
        self._on_up(1000 * (self._loop.time() - self._began_s))

    def _tell(self, call: Callable[..., object], *args: object) -> None:
        self._loop.call_soon(call, *args)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CONNECTING_THREADS, thread_name_prefix="connect")
