"""The file in which a process shares its counts: whatever the disk, to count is never its end.

prometheus-client's own files have holes. To write where the disk has no room for one is no error
but a SIGBUS, which kills the process without a word. Here a file's room is taken before it is
mapped. What finds none is missing from the file; the process itself goes on counting it.
"""

import logging
import mmap
import os
from functools import cache
from pathlib import Path
from typing import override

from prometheus_client.mmap_dict import MmapedDict

from pointsman.full_disks import mend

_logger = logging.getLogger(__name__)

# A file begins with so much, and grows by it: doubled, it would take memory that no one uses.
STEP = 64 * 1024
# What stands beside a key: its length, its padding, its value and its time.
_BESIDE_KEY = 4 + 8 + 16


class CountsFile(MmapedDict):
    """A dict of numbers in a mapped file, as prometheus-client has it, without holes.

    Attributes:
        fault: why some of them are not in the file; None: all are.
    """

    def __init__(self, filename: str) -> None:
        self.fault: OSError | None = None
        self._positions: dict[str, int] = {}
        self._f = None  # type: ignore[assignment]
        try:
            _make(Path(filename))
        except OSError as error:
            self._lose(Path(filename), error)
        else:
            super().__init__(filename)  # type: ignore[no-untyped-call]

    @override
    def read_value(self, key: str) -> tuple[float, float]:
        if not self._has(key):
            return 0.0, 0.0
        value, timestamp = super().read_value(key)  # type: ignore[no-untyped-call]
        return value, timestamp

    @override
    def write_value(self, key: str, value: float, timestamp: float) -> None:
        if self._has(key):
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def _has(self, key: str) -> bool:
        """Tell whether there is a place for the key, after trying to make one."""
        if key not in self._positions and self.fault is None:
            try:
                while self._used + len(key.encode()) + _BESIDE_KEY > self._capacity:
                    self._grow()
                self._init_value(key)  # type: ignore[no-untyped-call]
            except OSError as error:
                self._lose(Path(self._fname), error)
        return key in self._positions

    def _grow(self) -> None:
        take_room(Path(self._fname), STEP)
        self._capacity += STEP
        self._m = mmap.mmap(self._f.fileno(), self._capacity)

    def _lose(self, file: Path, error: OSError) -> None:
        self.fault = error
        _tell(str(file.parent), error.strerror or type(error).__name__, mend(error))


def take_room(file: Path, size: int) -> None:
    """Append so many zeros to a file, or nothing: what is written has its place on the disk.

    Raises:
        OSError: there is no room.
    """
    before = file.stat().st_size if file.exists() else 0
    try:
        with file.open("ab") as opened:
            opened.write(bytes(size))
    except OSError:
        os.truncate(file, before)
        raise


def _make(file: Path) -> None:
    """Make the file at once or not at all: who renders may look at any time."""
    if file.exists() and file.stat().st_size:
        return
    beside = file.with_name(f"{file.name}.part")
    try:
        take_room(beside, STEP)
        beside.replace(file)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


@cache
def _tell(folder: str, why: str, what_to_do: str) -> None:
    """Log it once, not as an error: while mitmproxy starts, one would end it."""
    _logger.warning(
        "some counts are missing from the metrics from now on: %s can't be written (%s); %s,"
        " then restart",
        folder,
        why,
        what_to_do,
    )
