"""Standard output: one JSON object a line, whoever writes it."""

import asyncio
import atexit
import logging
import sys
import threading
from types import TracebackType
from typing import Any, override

import msgspec

from pointsman.telemetry.json_log import json_formatter
from pointsman.telemetry.line_writer import LineWriter

# An access log line is about 1 kB; a request's path can make it longer by 64 kB.
LONGEST_LINE = 1024 * 1024
# How long the end of this process waits for a reader that has stalled.
_LAST_SECONDS = 1.0


def log_to_stdout(level: int = logging.INFO) -> LineWriter:
    """Write all that this process logs, and what ends it, as JSON lines.

    Returns what writes to standard output, for the workers' lines too. Whoever reads it may stall.
    """
    lines = LineWriter(sys.stdout.fileno())
    atexit.register(lines.close, _LAST_SECONDS)
    handler = line_handler(lines)
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(capture=True)
    log_crashes(handler)
    return lines


def line_handler(lines: LineWriter) -> logging.Handler:
    """Return a handler that writes JSON lines and waits for no reader."""
    handler = _LineHandler(lines)
    handler.setFormatter(json_formatter())
    return handler


def json_handler(level: int = logging.NOTSET) -> logging.Handler:
    """Return a handler that writes JSON lines to standard output, at once."""
    handler = _Handler(sys.stdout)
    handler.setLevel(level)
    handler.setFormatter(json_formatter())
    return handler


def log_crashes(handler: logging.Handler) -> None:
    """Log what ends this process or one of its threads, instead of printing it.

    Not by way of the loggers: at the end of a process they have no handlers any more.
    """

    def log(
        kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
            fault = (kind, error, traceback)
            record = logging.LogRecord("pointsman", logging.CRITICAL, "", 0, "a fault", None, fault)
            handler.handle(record)

    sys.excepthook = log
    threading.excepthook = lambda crash: log(crash.exc_type, crash.exc_value, crash.exc_traceback)


async def forward(
    stream: asyncio.StreamReader, lines: LineWriter, logger: logging.Logger, **about: Any
) -> None:
    """Write what a worker prints: JSON as it is, other lines as log records with `about`.

    Returns at the stream's end. That no one reads our own output costs lines, not traffic.
    """
    while line := await _next_line(stream):
        if _is_json_object(line):
            lines.write(line)
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


class _LineHandler(logging.Handler):
    def __init__(self, lines: LineWriter) -> None:
        super().__init__()
        self._lines = lines

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.write(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
        except Exception:  # noqa: BLE001 (as each handler of the library's)
            self.handleError(record)


class _Handler(logging.StreamHandler[Any]):
    @override
    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)
