"""Lines that are written by a thread of their own: whoever reads them may stall, and stops no one.

A pipe that is open and not read takes 64 KiB; then whoever writes waits. For a proxy that would be
the end of all traffic, so past a bound lines are lost instead. How many is told once they flow
again, by a line of JSON.
"""

import logging
import os
import select
import threading
from collections import deque
from contextlib import suppress

from pointsman.telemetry.json_log import json_formatter

_MOST_BYTES = 4 * 1024 * 1024
_AT_ONCE = 64 * 1024


class LineWriter:
    """Writes lines to a file descriptor, in their order, and never waits for its reader.

    It has to be the only one that writes there. That no one reads any more costs lines too, and
    nothing else.

    Args:
        fileno: where they go. It stays open.
        most: how many bytes may wait.
    """

    def __init__(self, fileno: int, most: int = _MOST_BYTES) -> None:
        self._fileno = fileno
        self._most = most
        self._waiting: deque[bytes] = deque()
        self._bytes = 0  # of those that wait, and of what is being written
        self._lost = 0
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="line writer", daemon=True).start()

    def write(self, line: bytes) -> None:
        """Write a line, with its end, soon; or lose it, where too many wait."""
        with self._changed:
            if self._bytes + len(line) > self._most:
                self._lost += 1
            else:
                self._put(line)

    def close(self, seconds: float) -> None:
        """Take no more, and wait until all is written, so long at most."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._bytes, seconds)

    def _put(self, line: bytes) -> None:
        self._waiting.append(line)
        self._bytes += len(line)
        self._changed.notify_all()

    def _work(self) -> None:
        while piece := self._take():
            with suppress(OSError):
                self._write(piece)
            with self._changed:
                self._bytes -= len(piece)
                if self._lost and not self._waiting:
                    self._put(_lost_line(self._lost))
                    self._lost = 0
                self._changed.notify_all()

    def _take(self) -> bytes:
        """Wait for lines, and take some of them; none: it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            piece = bytearray()
            while self._waiting and len(piece) < _AT_ONCE:
                piece += self._waiting.popleft()
            return bytes(piece)

    def _write(self, piece: bytes) -> None:
        left = memoryview(piece)
        while left:
            try:
                left = left[os.write(self._fileno, left) :]
            except BlockingIOError:  # whoever opened it made it so
                select.select([], [self._fileno], [])


def _lost_line(count: int) -> bytes:
    message = "lines of this log were lost, as its reader had stalled: %d"
    record = logging.LogRecord(__name__, logging.WARNING, "", 0, message, (count,), None)
    return f"{json_formatter().format(record)}\n".encode()
