"""The files of one run, below the confdir: the workers' sockets, metrics and bytecode."""

import fcntl
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pointsman.full_disks import mend

_PREFIX = "run-"
# `sun_path` has room for 107 bytes, of which the socket's own name takes up to 10.
_LONGEST = 95
# Twice what all modules take.
_ROOM_TO_COMPILE = 48 * 1024 * 1024


@contextmanager
def folder(confdir: Path) -> Iterator[Path]:
    """Make a folder of this run's own, and remove it at the end.

    Those that earlier runs left behind, because they were killed, are removed as well: a run holds
    a lock on its folder for as long as it lives.

    Raises:
        OSError: `strerror` tells the reason and the mend.
    """
    try:
        made, lock = _made(confdir)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{confdir} can't be written ({error.strerror}) by user {os.geteuid()}; {mend(error)},"
            " or name another with --confdir or POINTSMAN_CONFDIR",
        ) from None
    try:
        if len(os.fsencode(made)) > _LONGEST:
            raise OSError(
                0, f"{confdir} is too long a path for sockets; name a shorter one with --confdir"
            )
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _made(confdir: Path) -> tuple[Path, int]:
    """Sweep, and make a folder; return it with its lock.

    One run at a time: another would sweep away a folder that is made and not locked yet.
    """
    one_at_a_time = os.open(confdir, os.O_RDONLY)
    try:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        _sweep(confdir)
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=confdir))
        lock = os.open(made, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return made, lock
    finally:
        os.close(one_at_a_time)


def _sweep(confdir: Path) -> None:
    for old in confdir.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(old, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its run lives
        else:
            shutil.rmtree(old, ignore_errors=True)
        finally:
            os.close(lock)


def bytecode(confdir: Path) -> dict[str, str | None]:
    """Return the variables with which a worker that is about to start finds its modules compiled.

    To compile mitmproxy takes longer than to start it. Where it was not compiled with `-O` when it
    was installed (an image does that), and a worker may not be able to write beside it, the first
    start compiles it into the confdir, if that has ample room: on a full disk Python leaves half a
    module, with which no later start works.
    """
    found = importlib.util.find_spec("mitmproxy")
    if found is not None and found.origin is not None:
        compiled = importlib.util.cache_from_source(found.origin, optimization=1)
        if Path(compiled).exists():
            return {}
    compiling = _has_room_to_compile(confdir)
    return {
        "PYTHONPYCACHEPREFIX": str(confdir / "bytecode"),
        "PYTHONDONTWRITEBYTECODE": None if compiling else "1",
    }


def _has_room_to_compile(confdir: Path) -> bool:
    disk = os.statvfs(confdir)
    return disk.f_bavail * disk.f_frsize >= _ROOM_TO_COMPILE
