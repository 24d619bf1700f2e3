"""Structured logs on standard error: one line an event, JSON for machines, readable on a terminal.

Where standard error leads to systemd's journal, each event goes there natively, with named fields (`agent.journal`).

Names are stable identifiers (`gate_changed`, `worker_lost`), everything else is a field; docs/logs.md explains each. A
failure is logged once and its recovery once. On its way out every event passes

    about       what the process is about just now: the unit, and the lease at work, where the event names none
    Safe        no secrets (`agent.log_secrets`)
    Storms      no floods: what comes too fast is counted, and the count is told (`agent.log_storms`)
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping

from agent import sd
from agent.journal import SOCKET, JournalLogger, encode_fields
from agent.log_secrets import Safe
from agent.log_storms import Storms

if "rich" in sys.modules:
    import structlog
else:
    # structlog draws with rich where it finds it: 4 MB that a daemon never uses. So it shall not find it.
    sys.modules["rich"] = None  # type: ignore[assignment]  # how Python marks a module as not to be found
    try:
        import structlog
    finally:
        del sys.modules["rich"]


HELD_BACK = "events_held_back"
_SAFE = Safe()
_STORMS = Storms()
_LEVELS: Counter[str] = Counter()
_CONTEXT: list[Callable[[], Mapping[str, str]]] = []


def configure(*, verbose: bool = False, journal: str = SOCKET) -> None:
    """Set up logging for this process; `journal` is the socket that counts where standard error leads there."""
    _STORMS.forget()
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
            _about,
            structlog.processors.format_exc_info,
            _SAFE,
            _held_back,
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


def about(context: Callable[[], Mapping[str, str]] | None) -> None:
    """From now on every event has these fields, asked for as it is written; None: no more."""
    _CONTEXT[:] = [] if context is None else [context]


def keep_secret(*values: str) -> None:
    """Never write these values, wherever they stand."""
    _SAFE.keep_secret(*values)


def tell_storms(*, ending: bool = False) -> None:
    """Write how many events were held back of each storm that is over; when the process is ending, of every one."""
    if not _STORMS.is_quiet:
        for name, count in _STORMS.over(time.monotonic(), ending=ending):
            logger().warning(HELD_BACK, of=name, count=count)


def events_by_level() -> dict[str, int]:
    """How many events there were since the start, those held back too."""
    return dict(_LEVELS)


def events_held_back() -> int:
    """How many were counted instead of written."""
    return _STORMS.held_back


def hear_libraries() -> None:
    """Warnings that libraries log come as events too (`library_warns`), with the same processors; for the daemon."""
    root = logging.getLogger()
    if not any(isinstance(one, _FromLibraries) for one in root.handlers):
        root.addHandler(_FromLibraries(logging.WARNING))


class _FromLibraries(logging.Handler):
    """Python's own logging, such as asyncio's word on a task whose exception nobody took."""

    def emit(self, record: logging.LogRecord) -> None:
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        say = logger().error if record.levelno >= logging.ERROR else logger().warning
        say("library_warns", library=record.name, message=record.getMessage(), trace=trace)


def _about(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The event with what the process is about, where it does not say so itself."""
    for context in _CONTEXT:
        for name, value in context().items():
            event.setdefault(name, value)
    return event


def _held_back(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The event, with how many of its name were held back before; raises DropEvent for one that is held back."""
    _LEVELS[str(event.get("level"))] += 1
    name = str(event.get("event"))
    if name == HELD_BACK:
        return event
    held = _STORMS.admit(name, time.monotonic())
    if held is None:
        raise structlog.DropEvent
    if held:
        event["held_back"] = held
    return event
