"""What was said in an exchange, as bytes on their way to its span; only where that is asked for.

It is bounded for one exchange and for all that are under way or wait: past that it is left out.
"""

from dataclasses import dataclass, field
from threading import Lock

MAX_BODY = 4 * 1024 * 1024  # bytes that are kept of an answer, and read of a request
MAX_HELD = 64 * 1024 * 1024


class Room:
    """How many bytes may be held, by all exchanges. Any thread may use it."""

    def __init__(self, size: int = MAX_HELD) -> None:
        self._left = size
        self._lock = Lock()

    def take(self, size: int) -> bool:
        """Take so much of it, if it is there."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give_back(self, size: int) -> None:
        """Give it back."""
        with self._lock:
            self._left += size


@dataclass(slots=True)
class Kept:
    """The bytes of an exchange's answer, as far as there is room for them."""

    room: Room
    data: bytearray = field(default_factory=bytearray)
    full: bool = False
    taken: int = 0

    def add(self, chunk: bytes) -> None:
        """Keep a chunk. After one that does not fit, none is kept."""
        if self.full or len(self.data) + len(chunk) > MAX_BODY or not self.take(len(chunk)):
            self.full = True
        else:
            self.data += chunk

    def take(self, size: int) -> bool:
        """Take room besides, until `clear`."""
        if not self.room.take(size):
            return False
        self.taken += size
        return True

    def clear(self) -> None:
        """Forget it: another attempt begins, or it is not needed any more."""
        self.room.give_back(self.taken)
        self.taken, self.full = 0, False
        self.data = bytearray()


@dataclass(slots=True)
class Content:
    """What was said in an exchange that has ended.

    The codings are the values of `content-encoding`. `request` is None where there was no room for
    it, and empty where it was not read; `length` is its size. Who is done with it calls `clear`.
    """

    api: str
    request: bytes | None
    length: int
    request_coding: str
    kept: Kept
    answer_coding: str
    event_stream: bool

    def clear(self) -> None:
        """Give the room back."""
        self.request = None
        self.kept.clear()
