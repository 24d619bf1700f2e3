"""What a link is told: where to connect, as whom, what to hear, and how much it may hold and take.

The numbers are those of lease traffic: a car sends about one message a second at most, and what it does not take is
sent again by its sender, so every bound may be small. What talks to many (a dispatcher) raises them.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.fleet.backoff import CAP_S
from agent.fleet.tls import TlsFiles

MAX_IN_FLIGHT = 4
RECEIVE_MAXIMUM = 8
MAX_PACKET_BYTES = 64 * 1024
"""The largest packet that a broker may send, as CONNECT tells it: four times the largest message of `dw/v1`."""
INBOX_MESSAGES = 32
"""More than these wait for nobody: acknowledgements mean nothing, so what is dropped is sent again by its sender."""


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where to connect, as whom, and what to hear.

    `will` is asked before each connection, on the event loop, for what the broker sends when we vanish: topic, payload.
    """

    brokers: tuple[tuple[str, int], ...]
    client_id: str
    filters: tuple[str, ...]
    keepalive_s: int = 300
    reconnect_max_s: float = CAP_S
    """The longest wait between two attempts; rigs shorten it, a fleet never should."""
    will: Callable[[], tuple[str, bytes]] | None = None
    tls: TlsFiles | None = None
    max_in_flight: int = MAX_IN_FLIGHT
    """Publishes inside the library at once, never more than the broker's Receive Maximum."""
    receive_maximum: int = RECEIVE_MAXIMUM
    inbox_messages: int = INBOX_MESSAGES
    messages_per_s: float = 0.0
    """More than these are dropped, and of packets of any kind no more than twice as many are read; 0: no limit."""
    message_burst: int = 256
    """So many may come at once before the limit counts."""
