"""Prometheus metrics: a sink for exchanges, and what is read anew for each look.

`Metrics.record` is a sink (see `sinks`). `render` gives everything of this process as text; where
PROMETHEUS_MULTIPROC_DIR is set, everything of all processes that write there, so that a supervisor
can render for its workers.
"""

import os
from threading import Lock

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from pointsman.telemetry.exchange import Exchange

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

REGISTRY = CollectorRegistry()  # this process's own; never prometheus-client's default one


class Metrics:
    """What is counted of the exchanges of one instance."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry

    def record(self, exchange: Exchange) -> None:
        """Count a finished exchange."""

    def close(self) -> None:
        """Take it out of its registry."""


def render(registry: CollectorRegistry = REGISTRY) -> bytes:
    """Return the metrics in the text format 0.0.4: of all processes where they share a directory.

    Raises:
        ValueError: PROMETHEUS_MULTIPROC_DIR is set and is no directory.
    """
    return generate_latest(registry)


def worker_gone(pid: int) -> None:
    """Account for a process that has ended, and keep what it has counted.

    Raises:
        OSError: its files can't be read or replaced.
    """
