"""Structured logs on standard error: one line an event, JSON for machines and journald, readable on a terminal.

Names are stable identifiers (`gate_changed`, `lease_closed`), everything else is a field. A failure is logged once and
its recovery once; a lease is one event, when it is closed.
"""

from __future__ import annotations

import logging
import sys

if "rich" in sys.modules:
    import structlog
else:
    # structlog draws with rich where it finds it: 4 MB that a daemon never uses. So it shall not find it.
    sys.modules["rich"] = None  # type: ignore[assignment]  # how Python marks a module as not to be found
    try:
        import structlog
    finally:
        del sys.modules["rich"]


def configure(*, verbose: bool = False) -> None:
    """Set up logging for this process."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def logger() -> structlog.typing.FilteringBoundLogger:
    """The process's logger."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return bound
