"""Standard output: one JSON object a line, whoever writes it."""

import asyncio
import logging
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, override

import msgspec

from pointsman.telemetry.json_log import json_formatter

# An access log line is about 1 kB; a request's path can make it longer by 64 kB.
LONGEST_LINE = 1024 * 1024


def log_to_stdout(level: int = logging.INFO) -> None:
    """Write all that this process logs, and what ends it, as JSON lines."""
    logging.basicConfig(handlers=[json_handler()], level=level, force=True)
    logging.captureWarnings(capture=True)
    log_crashes()


def json_handler(level: int = logging.NOTSET) -> logging.Handler:
    """Return a handler that writes JSON lines to standard output."""
    handler = _Handler(sys.stdout)
    handler.setLevel(level)
    handler.setFormatter(json_formatter())
    return handler


def log_crashes() -> None:
    """Log what ends this process or one of its threads, instead of printing it."""
    sys.excepthook = _log_crash
    threading.excepthook = lambda crash: _log_crash(
        crash.exc_type, crash.exc_value, crash.exc_traceback
    )


def _log_crash(
    kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None
) -> None:
    if error is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        # Not by way of the loggers: at the end of a process they have no handlers any more.
        record = logging.LogRecord(
            "pointsman", logging.CRITICAL, "", 0, "a fault", None, (kind, error, traceback)
        )
        json_handler().handle(record)


async def forward(stream: asyncio.StreamReader, logger: logging.Logger, **about: Any) -> None:
    """Write what a worker prints: JSON as it is, other lines as log records with `about`.

    Returns at the stream's end. That no one reads our own output any more costs lines, not traffic.
    """
    while line := await _next_line(stream):
        if _is_json_object(line):
            with suppress(OSError):
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        elif text := line.decode("utf-8", "backslashreplace").rstrip():
            logger.error("%s", text, extra=about)


async def _next_line(stream: asyncio.StreamReader) -> bytes:
    try:
        line = await stream.readline()
    except ValueError:  # its beginning is gone; its end comes next
        return b"(a line that is too long)"
    return line if line.endswith(b"\n") or not line else line + b"\n"


def _is_json_object(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


class _Handler(logging.StreamHandler[Any]):
    @override
    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)
