"""Structured logs on standard error: one line an event, JSON for machines, readable on a terminal.

Where standard error leads to systemd's journal, each event goes there natively, with named fields (`agent.journal`).

Names are stable identifiers (`gate_changed`, `lease_closed`), everything else is a field. A failure is logged once and
its recovery once; a lease is one event, when it is closed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from agent import sd
from agent.journal import SOCKET, JournalLogger, encode_fields

if "rich" in sys.modules:
    import structlog
else:
    # structlog draws with rich where it finds it: 4 MB that a daemon never uses. So it shall not find it.
    sys.modules["rich"] = None  # type: ignore[assignment]  # how Python marks a module as not to be found
    try:
        import structlog
    finally:
        del sys.modules["rich"]


def configure(*, verbose: bool = False, journal: str = SOCKET) -> None:
    """Set up logging for this process; `journal` is the socket that counts where standard error leads there."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    factory: Callable[..., object] = structlog.PrintLoggerFactory(sys.stderr)
    if sd.is_journal(os.environ, 2):
        journal_logger = JournalLogger(journal)
        renderer, factory = _native, lambda *_: journal_logger
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=factory,
        cache_logger_on_first_use=False,
    )


def _native(_logger: object, _name: str, event: structlog.typing.EventDict) -> tuple[tuple[bytes, str], dict[str, str]]:
    """The last processor of a journal's logger: its fields, and the line that is printed where it takes none."""
    return (encode_fields(event), str(structlog.processors.JSONRenderer()(None, "", dict(event)))), {}


def logger() -> structlog.typing.FilteringBoundLogger:
    """The process's logger."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return bound
