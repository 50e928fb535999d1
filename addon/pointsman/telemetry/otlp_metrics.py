"""The metrics of the Prometheus page as OTLP has them: same numbers, OpenTelemetry's names.

They are read from the registry and handed to the exporter as they are: nothing is counted twice,
and what is bounded there is bounded here.
"""

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import Metric as Family
from prometheus_client.samples import Sample

_logger = logging.getLogger(__name__)

_SCOPE = InstrumentationScope("pointsman")
_UNITS = {"_seconds": "s", "_usd": "USD"}
_LABELS = {"error_type": "error.type", "server_address": "server.address"}
_NAMES = {
    "gen_ai_client_token_usage": ("gen_ai.client.token.usage", "{token}"),
    "gen_ai_client_operation_duration_seconds": ("gen_ai.client.operation.duration", "s"),
    "gen_ai_client_operation_time_to_first_chunk_seconds": (
        "gen_ai.client.operation.time_to_first_chunk",
        "s",
    ),
    "gen_ai_client_operation_time_per_output_chunk_seconds": (
        "gen_ai.client.operation.time_per_output_chunk",
        "s",
    ),
}
_CUMULATIVE = AggregationTemporality.CUMULATIVE


class Sender:
    """Sends the metrics now and then, in a thread of its own, and once more at its end.

    Args:
        families: reads them; called in that thread.
        export: sends them.
        interval: seconds.
    """

    def __init__(
        self,
        families: Callable[[], Iterable[Family]],
        export: Callable[[MetricsData], object],
        resource: Resource,
        interval: float,
    ) -> None:
        self._families = families
        self._export = export
        self._resource = resource
        self._interval = interval
        self._started = time.time_ns()
        self._failing = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metrics by OTLP", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Send them once more and stop; this does not wait."""
        self._ending.set()

    def join(self, seconds: float) -> None:
        """Wait until it has stopped, so long at most."""
        self._thread.join(seconds)

    def _work(self) -> None:
        while not self._ending.wait(self._interval):
            self._send()
        self._send()

    def _send(self) -> None:
        try:
            data = convert(self._families(), self._resource, self._started)
            if data.resource_metrics[0].scope_metrics[0].metrics:
                self._export(data)
        except Exception:
            if not self._failing:
                _logger.exception("the metrics could not be sent")
            self._failing = True
        else:
            self._failing = False


def convert(families: Iterable[Family], resource: Resource, started: int) -> MetricsData:
    """Return what the families hold now; `started` is when counting began, Unix nanoseconds."""
    now = time.time_ns()
    metrics = [found for family in families if (found := _metric(family, started, now))]
    scope = ScopeMetrics(_SCOPE, metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(family: Family, started: int, now: int) -> Metric | None:
    # What a process that shares its values in files has withdrawn is no number.
    samples = [sample for sample in family.samples if not math.isnan(sample.value)]
    if not samples:
        return None
    name, unit = _named(family.name)
    data: Sum | Gauge | Histogram
    if family.type == "histogram":
        data = Histogram(list(_histograms(samples, started, now)), _CUMULATIVE)
    else:
        points = [
            NumberDataPoint(_attributes(sample), started, now, sample.value) for sample in samples
        ]
        counts = family.type == "counter"
        data = Sum(points, _CUMULATIVE, is_monotonic=True) if counts else Gauge(points)
    return Metric(name, family.documentation, unit, data)


def _named(name: str) -> tuple[str, str]:
    """Return a metric's name and unit as OpenTelemetry would have them."""
    if known := _NAMES.get(name):
        return known
    for suffix, unit in _UNITS.items():
        if name.endswith(suffix):
            name = name.removesuffix(suffix)
            return name.replace("pointsman_", "pointsman.", 1), unit
    return name.replace("pointsman_", "pointsman.", 1), "1"


def _attributes(sample: Sample) -> dict[str, str]:
    return {_label(n): value for n, value in sample.labels.items() if n != "le" and value}


def _label(name: str) -> str:
    if known := _LABELS.get(name):
        return known
    parts = name.removeprefix("gen_ai_").partition("_")
    return f"gen_ai.{parts[0]}.{parts[2]}" if name.startswith("gen_ai_") else f"pointsman.{name}"


def _histograms(samples: Sequence[Sample], started: int, now: int) -> Iterable[HistogramDataPoint]:
    """Yield a point for each series. Prometheus' buckets hold what the ones before do as well."""
    series: dict[tuple[tuple[str, str], ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        labels = tuple(item for item in sample.labels.items() if item[0] != "le")
        series[labels].append(sample)
    for own in series.values():
        buckets = sorted(
            (float(sample.labels["le"]), int(sample.value))
            for sample in own
            if sample.name.endswith("_bucket")
        )
        sums = {sample.name.rpartition("_")[2]: sample.value for sample in own}
        below = [0, *(count for _, count in buckets)]
        yield HistogramDataPoint(
            attributes=_attributes(own[0]),
            start_time_unix_nano=started,
            time_unix_nano=now,
            count=buckets[-1][1],
            sum=sums["sum"],
            bucket_counts=[after - before for before, after in pairwise(below)],
            explicit_bounds=[bound for bound, _ in buckets[:-1]],
            min=None,  # type: ignore[arg-type]  # unset: Prometheus does not keep it
            max=None,  # type: ignore[arg-type]
        )
