"""Logs of a process: lines for people on a terminal, one JSON object per line otherwise; on stderr.

Every record says which node it comes from. Tracebacks are written without the values of variables,
because a key may be among them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from zswarm.errors import UserError

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def set_up_logs(node: str, *, level: str = "info", stream: TextIO | None = None) -> None:
    """Make this process's log: records of `level` and above, each with `node`, to `stream` or stderr.

    Raises:
        UserError: the level is unknown.

    """
    if level not in LEVELS:
        raise UserError(f"log level {level!r} is unknown: write one of {', '.join(LEVELS)}")
    stream = stream or sys.stderr
    is_terminal = stream.isatty()
    processors: list[Any] = [
        _Name(node),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_terminal else "iso", utc=not is_terminal),
    ]
    if is_terminal:
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def get_log(**bound: Any) -> FilteringBoundLogger:
    """Return a logger whose records all have the fields `bound`."""
    log: FilteringBoundLogger = structlog.get_logger(**bound)
    return log


class _Name:
    """Puts the node's name into each record, whichever thread it comes from."""

    def __init__(self, node: str) -> None:
        self._node = node

    def __call__(self, _logger: Any, _method: str, record: EventDict) -> EventDict:
        record.setdefault("node", self._node)
        return record
