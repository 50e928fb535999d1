"""OTLP: traces of exchanges and the metrics' numbers, sent away from the requests' path.

Where to, how often and how much of it is said by OpenTelemetry's own environment variables:
OTEL_EXPORTER_OTLP_ENDPOINT, _HEADERS, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER,
OTEL_METRIC_EXPORT_INTERVAL and the others that its SDK reads.
"""

import asyncio
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable

from mitmproxy import exceptions

import pointsman
from pointsman.proxy.router import Router
from pointsman.telemetry.exposition import REGISTRY

logger = logging.getLogger(__name__)

_DEFAULT_INTERVAL = 60_000  # milliseconds, as the SDK's
_LAST_WORDS = 3.0  # seconds that the end may wait for the collector
_QUIET = 60.0
_ASKED_FOR = frozenset({"true", "1", "span_only", "span_and_event"})
_CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


def captures_content() -> bool:
    """Tell whether prompts and answers are to be put on spans: only if asked for by name."""
    return os.environ.get(_CAPTURE, "").strip().lower() in {
        "true",
        "1",
        "span_only",
        "span_and_event",
    }


class Exporting:
    """Switches OTLP on and off."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._close: list[Callable[[], object]] = []
        self._task: asyncio.Task[None] | None = None
        self._send_metrics: Callable[[], Callable[[], object]] | None = None

    def switch(self, *, on: bool) -> None:
        """Begin to export, or stop.

        Raises:
            OptionsError: the packages that it takes are not installed.
        """
        if on is (self._send_metrics is not None):
            return
        if not on:
            self.close()
            return
        try:
            self._open()
        except ImportError as error:
            raise exceptions.OptionsError(
                f"llm_otel needs more packages ({error.name}): pip install 'pointsman[otel]'"
            ) from None

    def _open(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415 (an extra)
            OTLPMetricExporter,
        )
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        from pointsman.telemetry.otlp_metrics import convert  # noqa: PLC0415
        from pointsman.telemetry.otlp_traces import Traces  # noqa: PLC0415

        _calm_the_exporters()
        resource = Resource.create(_resource())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        traces = Traces(provider)
        self._router.tracing = traces
        self._router.capture_content = captures_content()
        # First: others may look at what it leaves, and it changes nothing they read.
        self._router.sinks.put("traces", traces.record)
        exporter, started = OTLPMetricExporter(), time.time_ns()

        def send() -> Callable[[], object]:
            data = convert(REGISTRY.collect(), resource, started)
            return lambda: exporter.export(data)

        self._send_metrics = send
        self._close = [provider.shutdown, exporter.shutdown]

    def running(self) -> None:
        """Begin to send metrics now and then."""
        if self._send_metrics is not None and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._send_now_and_then())

    async def _send_now_and_then(self) -> None:
        while self._send_metrics is not None:
            await asyncio.sleep(_interval())
            try:
                # Read here, where nothing changes meanwhile; sent where nothing waits for it.
                await asyncio.to_thread(self._send_metrics())
            except Exception:
                logger.exception("the metrics could not be sent")

    def close(self) -> None:
        """Send what there is, for a few seconds at most, and stop."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        last = list(self._close)
        if self._send_metrics is not None:
            last.insert(0, self._send_metrics())
        self._close, self._send_metrics = [], None
        self._router.tracing = None
        self._router.sinks.remove("traces")
        if last:
            ending = threading.Thread(target=lambda: [step() for step in last], daemon=True)
            ending.start()
            ending.join(_LAST_WORDS)


def _resource() -> dict[str, str]:
    """Return what tells this process from others; OTEL_RESOURCE_ATTRIBUTES has the last word."""
    named = {
        "service.name": os.environ.get("OTEL_SERVICE_NAME", "pointsman"),
        "service.version": pointsman.__version__,
        "service.instance.id": str(uuid.uuid4()),
        "k8s.namespace.name": os.environ.get("POD_NAMESPACE", ""),
        "k8s.pod.name": os.environ.get("POD_NAME", ""),
    }
    return {name: value for name, value in named.items() if value}


def _interval() -> float:
    try:
        return max(int(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "")), 100) / 1000
    except ValueError:
        return _DEFAULT_INTERVAL / 1000


class _OnceAMinute(logging.Filter):
    """Keeps a collector that is away from filling the log: its batches fail every few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._told = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        # That telemetry is lost is no fault of a request's.
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        now = time.monotonic()
        if now - self._told < _QUIET:
            return False
        self._told = now
        return True


def _calm_the_exporters() -> None:
    calm = _OnceAMinute()
    for module in ("trace_exporter", "metric_exporter"):
        name = f"opentelemetry.exporter.otlp.proto.http.{module}"
        if not logging.getLogger(name).filters:
            logging.getLogger(name).addFilter(calm)
