"""The memory that requests' bodies take, of all requests together.

A body is held while it may have to be sent again: until its answer begins. What all of them may
hold is bounded, so that many large requests at once cost some of them an answer and not the process
its life. And what they have held is given back: malloc keeps memory that it expects to need again,
which after a few large bodies is most of what the process has.
"""

import asyncio
import ctypes
import sys
from collections.abc import Callable

from pointsman.cgroups import allowed_memory

# A body is there up to four times while it is sent: as it came, as it is sent, encrypted, and
# waiting for the socket.
_PART_OF_MEMORY = 6
_TRIM_BYTES = 16 * 1024 * 1024
_TRIM_SECONDS = 1.0


def share_of_memory(processes: int = 1) -> int:
    """Return how many bytes bodies may hold by default, in each of so many processes."""
    return allowed_memory() // _PART_OF_MEMORY // max(processes, 1)


class Bodies:
    """How many bytes bodies hold.

    Attributes:
        most: how many they may.
    """

    def __init__(self) -> None:
        self.most = share_of_memory()
        self._held = 0
        self._freed = 0
        self._trim = _malloc_trim()
        self._soon: asyncio.TimerHandle | None = None

    def take(self, size: int) -> bool:
        """Hold so many bytes more, if there is room; a first one always has it."""
        if self._held and self._held + size > self.most:
            return False
        self._held += size
        return True

    def give_back(self, size: int) -> None:
        """Hold so many bytes less; they have been freed."""
        self._held -= size
        self._freed += size
        if self._trim is not None and self._freed >= _TRIM_BYTES and self._soon is None:
            # It takes some milliseconds: once for all that end together.
            self._soon = asyncio.get_running_loop().call_later(_TRIM_SECONDS, self._give_to_system)

    def _give_to_system(self) -> None:
        self._freed, self._soon = 0, None
        if self._trim is not None:
            self._trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    """Return what makes glibc give back what it holds; other allocators have no such function."""
    try:
        return ctypes.CDLL(None).malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None
