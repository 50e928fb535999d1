"""The metrics as text, of this process or of all that share a directory.

Where PROMETHEUS_MULTIPROC_DIR is set, prometheus-client keeps each process's values in mapped files
there (`counts_file`): whoever has the directory can render for all. A process that has ended leaves
its counts in one common file, so that neither the counts go back nor the files grow in number with
each restart.
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock

from prometheus_client import CollectorRegistry, Metric, generate_latest, values
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from pointsman.full_disks import mend
from pointsman.telemetry.counts_file import STEP, CountsFile, take_room

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

REGISTRY = CollectorRegistry()  # this process's own, beside prometheus-client's default one

# Rules and models come and go over restarts: past this size the counts begin anew.
_MOST_BYTES = 16 * 1024 * 1024
# One process has a file for counters, one for histograms, and three for the kinds of gauges.
_FILES = 5
_files = Lock()  # rendering must not see a file that is just being taken in

values.MmapedDict = CountsFile  # type: ignore[attr-defined,assignment] # before any is made


def shared() -> bool:
    """Tell whether the values go to files that other processes read."""
    return DIRECTORY in os.environ


def make_folder(folder: Path, processes: int) -> None:
    """Make a directory in which so many processes can count.

    Raises:
        OSError: `strerror` tells why they could not, and the mend.
    """
    needed = processes * _FILES * STEP
    probe = folder / "room"
    try:
        folder.mkdir(mode=0o700)
        take_room(probe, needed)
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"{folder}: the counters of {processes} processes can't be written ({error.strerror});"
            f" they begin with {needed // 1024} KiB; {mend(error)}",
        ) from None


def render(registry: CollectorRegistry = REGISTRY) -> bytes:
    """Return the metrics in the text format 0.0.4; it may be called from any thread.

    Raises:
        ValueError: PROMETHEUS_MULTIPROC_DIR is set and is no directory.
    """
    if not shared():
        return generate_latest(registry)
    everyone = CollectorRegistry()
    everyone.register(_Shared(os.environ[DIRECTORY]))
    with _files:
        return generate_latest(everyone)


class _Shared(Collector):
    """All that the processes of a directory have written."""

    def __init__(self, directory: str) -> None:
        self._files = MultiProcessCollector(None, directory)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterator[Metric]:
        """Yield each metric, by name, without what a process has withdrawn (see `WITHDRAWN`)."""
        metrics: Iterable[Metric] = self._files.collect()  # type: ignore[no-untyped-call]
        for metric in sorted(metrics, key=lambda metric: metric.name):
            metric.samples = [s for s in metric.samples if not math.isnan(s.value)]
            yield metric


WITHDRAWN = math.nan  # the value of a gauge that is no more: a mapped file can lose none


def worker_gone(pid: int) -> None:
    """Account for a process that has ended: its counts stay, its gauges and its files go.

    Nothing happens where PROMETHEUS_MULTIPROC_DIR is not set.

    Raises:
        OSError: its files can't be read, replaced or removed.
    """
    if not shared():
        return
    folder = Path(os.environ[DIRECTORY])
    with _files:
        mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        for kind in ("counter", "histogram"):
            left = folder / f"{kind}_{pid}.db"
            if left.exists():
                _take_in(left, folder / f"{kind}_ended.db")


def _take_in(left: Path, common: Path) -> None:
    files = [left]
    if common.exists() and common.stat().st_size < _MOST_BYTES:
        files.append(common)
    merge = MultiProcessCollector.merge
    metrics = merge(map(str, files), accumulate=False)  # type: ignore[no-untyped-call]
    fresh = common.with_suffix(".new")  # not `.db`: it is not read before it is whole
    fresh.unlink(missing_ok=True)
    counts = CountsFile(str(fresh))
    for metric in metrics:
        for sample in metric.samples:
            names, labels = list(sample.labels), list(sample.labels.values())
            key = mmap_key(metric.name, sample.name, names, labels, metric.documentation)
            counts.write_value(key, sample.value, 0.0)
    counts.close()  # type: ignore[no-untyped-call]
    if counts.fault:
        fresh.unlink(missing_ok=True)
        return  # what it left stays, and is counted where it is
    left.unlink()
    fresh.replace(common)
