"""The demo's child processes, and what they say while they run.

A child is in a session of its own, so that Ctrl-C reaches the demo alone, and the demo ends it.
"""

import json
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

STOP_SECONDS = 3.0
END_SECONDS = 0.5
POLL_SECONDS = 0.002

type Json = dict[str, Any]


class StageError(Exception):
    """What the demo needs is missing or broken; the message is for the person at the terminal."""


class Lines:
    """The lines of a stream, collected in a thread as they come."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for raw in self._stream:
            with self._news:
                self._lines.append(raw.decode("utf-8", "replace").rstrip("\r\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def __len__(self) -> int:
        return len(self._lines)

    def all(self) -> list[str]:
        """Return everything that was said so far."""
        return self._lines[:]

    def last(self, count: int) -> list[str]:
        """Return the last lines."""
        return self._lines[-count:]

    def find[T](
        self, wanted: Callable[[str], T | None], *, after: int = 0, timeout: float
    ) -> T | None:
        """Return what `wanted` makes of the first line it likes, from line `after` on.

        None: it came to its end, or the time is over.
        """
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                while after < len(self._lines):
                    found = wanted(self._lines[after])
                    if found is not None:
                        return found
                    after += 1
                if self._ended or not self._news.wait(deadline - time.monotonic()):
                    return None

    def join(self) -> None:
        """Wait for the end of the stream and close it."""
        self._thread.join(STOP_SECONDS)
        self._stream.close()


class Process:
    """A running child; leaving its context ends it.

    Raises:
        StageError: it can't be started.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], first_line: str = ""
    ) -> None:
        self.name = name
        try:
            self._popen = subprocess.Popen(  # noqa: S603 (our own command)
                command,
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise StageError(f"{command[0]} can't be started: {error.strerror}") from None
        assert self._popen.stdout  # noqa: S101 (a pipe, as asked for)
        assert self._popen.stdin  # noqa: S101
        self._stdin = self._popen.stdin
        self.lines = Lines(self._popen.stdout)
        if first_line:
            self._stdin.write(f"{first_line}\n".encode())
            self._stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Tell whether it still runs."""
        return self._popen.poll() is None

    def wait_for[T](
        self, wanted: Callable[[str], T | None], *, after: int = 0, timeout: float, what: str
    ) -> T:
        """Return what `wanted` makes of the first line it likes, from line `after` on.

        Raises:
            StageError: there was none in time; the message ends with what the process said last.
        """
        found = self.lines.find(wanted, after=after, timeout=timeout)
        if found is not None:
            return found
        try:
            # Its output ends a moment before it does.
            failed = (
                f"{self.name} ended with status {self._popen.wait(END_SECONDS)}, without {what}"
            )
        except subprocess.TimeoutExpired:
            failed = f"{self.name}: no {what} within {timeout:g} s"
        raise StageError("\n  ".join([f"{failed}; it said last:", *self.lines.last(15)]))

    def stop(self) -> None:
        """End it and wait until it is gone; harmless a second time."""
        if self.running:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        if not self._stdin.closed:
            self._stdin.close()
            self.lines.join()


class Journal:
    """A file of JSON lines that another process appends to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._file = path.open("rb")
        self._partial = b""
        self._unread: deque[Json] = deque()

    def next(self, *, timeout: float) -> Json | None:
        """Return the next line; None if there is none in time."""
        deadline = time.monotonic() + timeout
        while not self.ready() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return self._unread.popleft() if self._unread else None

    def ready(self) -> int:
        """Return how many lines wait to be read."""
        *whole, self._partial = (self._partial + self._file.read()).split(b"\n")
        self._unread.extend(json.loads(line) for line in whole)
        return len(self._unread)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
