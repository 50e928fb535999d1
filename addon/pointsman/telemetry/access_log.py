"""The access log: one JSON object a line for each exchange, by structlog.

Writing it never fails a request: that it can't be written is told once. A file that has been moved
away, as logrotate does it, is opened anew at its path; no signal is needed.
"""

import logging
import os
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from pointsman.telemetry.exchange import Exchange, access_log_entry

_logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # for so long a file is taken to be at its path


class AccessLog:
    """Writes exchanges to standard output (`-`), to a file, or nowhere (`off`).

    Raises:
        OSError: the file can't be opened for appending.
    """

    def __init__(self, destination: str) -> None:
        self._file: BinaryIO | None = None
        self._path: Path | None = None  # of a file of our own
        self._failing = self._stuck = False
        self._looked = time.monotonic()
        if destination == "-":
            self._file = sys.stdout.buffer
        elif destination != "off":
            self._path = Path(destination).expanduser()
            self._file = self._path.open("ab")
        self._log = _writing_to(self._file)

    def emit(self, exchange: Exchange) -> None:
        """Write one exchange."""
        if self._file is None:
            return
        self._follow()
        try:
            self._log.info("llm_request", **access_log_entry(exchange))
        except (OSError, ValueError) as error:
            if not self._failing:
                self._failing = True
                _logger.warning("the access log can't be written: %s", error)
        else:
            self._failing = False

    def _follow(self) -> None:
        """Open the file anew if it has been moved or removed; until that can be, go on with it."""
        now = time.monotonic()
        if self._path is None or self._file is None or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            if not _moved(self._file, self._path):
                self._stuck = False
                return
            opened = self._path.open("ab")
        except (OSError, ValueError) as error:
            if not self._stuck:
                self._stuck = True
                _logger.warning("the access log can't be opened again: %s", error)
            return
        self._stuck = False
        self._close_file()
        self._file, self._log = opened, _writing_to(opened)

    def close(self) -> None:
        """Close a file of our own; standard output stays open."""
        self._close_file()
        self._file = None

    def _close_file(self) -> None:
        if self._path is not None and self._file is not None:
            # What could not be written is tried again here; that it fails has been told.
            with suppress(OSError):
                self._file.close()


def _moved(file: BinaryIO, path: Path) -> bool:
    """Tell whether a file is no longer the one at its path; a pipe or a device is not asked."""
    own = os.fstat(file.fileno())
    if not stat.S_ISREG(own.st_mode):
        return False
    try:
        return not os.path.samestat(own, path.stat())
    except FileNotFoundError:
        return True


def _writing_to(file: BinaryIO | None) -> structlog.typing.FilteringBoundLogger:
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.BytesLogger(file),
        processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), _render],
        cache_logger_on_first_use=True,
    )
    return logger


def _render(_: object, __: str, entry: structlog.typing.EventDict) -> bytes:
    head = {"event": entry.pop("event"), "timestamp": entry.pop("timestamp")}
    return msgspec.json.encode({**head, **entry})
