"""Which files hold the rules, and whether they have changed.

A folder is read without its subfolders, names that begin with a dot left out: so a mounted
ConfigMap, whose files are symlinks through `..data`, is read once and not twice.
"""

import os
from pathlib import Path

_SUFFIXES = (".yaml", ".yml", ".json")
_PATTERNS = "*.yaml, *.yml or *.json"


class FilesError(Exception):
    """There is nothing to read: the message says why."""


def manifest_files(path: Path) -> list[Path]:
    """Return the files to read, sorted by name; none for an empty folder.

    Raises:
        FilesError: the path is missing, can't be listed, or holds other things only.
    """
    try:
        if not path.is_dir():
            path.stat()
            return [path]
        names = sorted(f.name for f in path.iterdir() if not f.name.startswith("."))
    except (OSError, ValueError) as error:
        raise FilesError(f"it can't be read ({reason(error)}); check the path") from None
    found = [path / name for name in names if name.lower().endswith(_SUFFIXES)]
    files = [file for file in found if not file.is_dir()]
    if names and not files:
        raise FilesError(f"there is no {_PATTERNS} file in it (subfolders are not read)")
    return files


def fingerprint(path: Path) -> object:
    """Return a value that changes when any of the files does, or what a symlink leads to.

    It is cheap (no file is opened), comparable, and never raises: what is gone is a change too.
    """
    try:
        files = manifest_files(path)
    except FilesError as error:
        return str(error)
    return tuple(_identity(file) for file in files)


def reason(error: Exception) -> str:
    """Say why a file can't be read, without the path that the reader has already been told."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "not a valid path" if isinstance(error, ValueError) else type(error).__name__


def _identity(file: Path) -> tuple[object, ...]:
    try:
        target = os.path.realpath(file)
        stat = file.stat()
    except (OSError, ValueError):
        return (file.name,)
    # The time of change also tells that a file has become readable.
    times = (stat.st_mtime_ns, stat.st_ctime_ns)
    return (file.name, target, stat.st_dev, stat.st_ino, *times, stat.st_size)
