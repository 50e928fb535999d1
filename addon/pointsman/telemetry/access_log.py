"""The access log: one JSON object a line for each exchange, by structlog.

Writing it never fails a request: that it can't be written is told once.
"""

import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from pointsman.telemetry.exchange import Exchange, access_log_entry

_logger = logging.getLogger(__name__)


class AccessLog:
    """Writes exchanges to standard output (`-`), to a file, or nowhere (`off`).

    Raises:
        OSError: the file can't be opened for appending.
    """

    def __init__(self, destination: str) -> None:
        self._file: BinaryIO | None = None
        self._own = False
        self._failing = False
        if destination == "-":
            self._file = sys.stdout.buffer
        elif destination != "off":
            self._file = Path(destination).expanduser().open("ab")
            self._own = True
        self._log = structlog.wrap_logger(
            structlog.BytesLogger(self._file),
            processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), _render],
            cache_logger_on_first_use=True,
        )

    def emit(self, exchange: Exchange) -> None:
        """Write one exchange."""
        if self._file is None:
            return
        try:
            self._log.info("llm_request", **access_log_entry(exchange))
        except (OSError, ValueError) as error:
            if not self._failing:
                self._failing = True
                _logger.warning("the access log can't be written: %s", error)
        else:
            self._failing = False

    def close(self) -> None:
        """Close a file of our own; standard output stays open."""
        if self._own and self._file is not None:
            # What could not be written is tried again here; that it fails has been told.
            with suppress(OSError):
                self._file.close()
        self._file = None


def _render(_: object, __: str, entry: structlog.typing.EventDict) -> bytes:
    head = {"event": entry.pop("event"), "timestamp": entry.pop("timestamp")}
    return msgspec.json.encode({**head, **entry})
