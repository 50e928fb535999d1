"""What this process may use: the cores that `--workers auto` counts, and memory."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def allowed_cores() -> int:
    """Return the whole cores that the CPU affinity and the cgroup's quota leave; at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    quota = cgroup_quota(_CGROUPS, _OWN)
    return max(1, cores if quota is None else min(cores, int(quota)))


def allowed_memory() -> int:
    """Return the bytes that the machine has and the cgroup's limit leaves."""
    physical: int = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_memory(_CGROUPS, _OWN)
    return physical if limit is None else min(physical, limit)


def cgroup_quota(root: Path, own: Path) -> float | None:
    """Return the cores that the quota of this cgroup, or of one above it, allows; None: any.

    Args:
        root: where the cgroups are mounted.
        own: what names this process's cgroup, a line for each hierarchy, as `/proc/self/cgroup`.
    """
    return min(_quotas(root, own), default=None)


def cgroup_memory(root: Path, own: Path) -> int | None:
    """Return the bytes that the limit of this cgroup, or of one above it, allows; None: any."""
    return min(_limits(root, own), default=None)


def _quotas(root: Path, own: Path) -> Iterator[float]:
    for folder, unified in _folders(root, own, "cpu"):
        with suppress(OSError, ValueError):  # no such controller; "max"
            if unified:
                quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
                yield int(quota) / int(period)
                continue
            micros = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
            period_micros = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
            if micros > 0:  # -1: none
                yield micros / period_micros


def _limits(root: Path, own: Path) -> Iterator[int]:
    for folder, unified in _folders(root, own, "memory"):
        name = "memory.max" if unified else "memory.limit_in_bytes"  # there, none is a huge one
        with suppress(OSError, ValueError):
            yield int((folder / name).read_text(encoding="ascii"))


def _folders(root: Path, own: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield this process's cgroups and those above, and whether they are of version 2."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from ((folder, True) for folder in _upwards(root, path))
        elif controller in controllers.split(","):
            yield from ((folder, False) for folder in _upwards(root / controllers, path))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield a cgroup and those above it. In a container, only the mount itself may be seen."""
    folder = mount / path.strip("/")
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder
