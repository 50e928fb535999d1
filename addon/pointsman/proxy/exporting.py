"""OTLP: traces of exchanges and the metrics' numbers, sent away from the requests' path.

Where to, how often and how much of it is said by OpenTelemetry's own environment variables:
OTEL_EXPORTER_OTLP_ENDPOINT, _HEADERS, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER,
OTEL_METRIC_EXPORT_INTERVAL and the others that its SDK reads.

A collector that is away, slow or mad costs telemetry alone: what waits for it is bounded, so are
the lines that the log has about it, and nothing but three threads ever talks to it or for it.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mitmproxy import exceptions

import pointsman
from pointsman.proxy.router import Router
from pointsman.telemetry.content import Room
from pointsman.telemetry.exposition import REGISTRY
from pointsman.telemetry.otlp_settings import Settings, read_settings

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

logger = logging.getLogger(__name__)

_LAST_WORDS = 3.0  # seconds that the end may wait for the collector
_QUIET = 60.0  # seconds between two lines of the log about the collector
_LONGEST_LINE = 300  # characters; a collector's own words may be in it
# A span with content may have a quarter of a megabyte: fewer may wait, unless one sets the bounds.
_CONTENT_QUEUE, _CONTENT_BATCH = 256, 32
_SIZES = ("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")


class Exporting:
    """Switches OTLP on and off."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._on = False
        self._begin_to_end: list[Callable[[], None]] = []
        self._join: list[Callable[[float], None]] = []

    def switch(self, *, on: bool) -> None:
        """Begin to export, or stop; what is left is sent without anyone waiting for it.

        Raises:
            OptionsError: the packages that it takes are not installed, or a variable has a value
                that can't be used.
        """
        if on is self._on:
            return
        if not on:
            self._stop()
            return
        self._join.clear()  # of what has been switched off before
        settings = read_settings(os.environ)
        try:
            self._open(settings)
        except ImportError as error:
            self._stop()
            raise exceptions.OptionsError(
                f"llm_otel needs more packages ({error.name}): pip install opentelemetry-sdk"
                " opentelemetry-exporter-otlp-proto-http"
            ) from None
        except (OSError, RuntimeError, ValueError) as error:
            self._stop()
            raise exceptions.OptionsError(
                f"llm_otel: an OTEL_… variable can't be used ({error})"
            ) from None
        self._on = True
        for warning in settings.warnings:
            logger.warning("%s", warning)

    def _open(self, settings: Settings) -> None:
        if not (settings.traces or settings.metrics):
            return
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415

        _calm_the_exporters()
        named = OTELResourceDetector().detect().attributes
        resource = Resource.create({**_resource(), **named})
        if settings.traces:
            self._open_traces(resource, content=settings.content)
        if settings.metrics:
            self._open_metrics(resource, settings.interval)

    def _open_traces(self, resource: "Resource", *, content: bool) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 (an extra)
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        from pointsman.telemetry.otlp_session import brief_session  # noqa: PLC0415
        from pointsman.telemetry.otlp_traces import Contents, Traces  # noqa: PLC0415
        from pointsman.viewing.genai import attributes  # noqa: PLC0415

        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        queue, batch = _sizes(os.environ) if content else (None, None)
        exporter = OTLPSpanExporter(session=brief_session())
        processor = BatchSpanProcessor(exporter, queue, None, batch)
        contents = Contents(attributes) if content else None
        traces = Traces(provider, processor.on_end, contents)

        def finish() -> None:
            if contents:
                contents.close()
            processor.shutdown()  # type: ignore[no-untyped-call]

        ending = threading.Thread(target=finish, name="the last spans by OTLP", daemon=True)
        self._begin_to_end.append(ending.start)
        self._join.append(ending.join)
        self._router.tracing = traces
        self._router.capture = Room() if content else None
        self._router.sinks.put("traces", traces.record)

    def _open_metrics(self, resource: "Resource", interval: float) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415
            OTLPMetricExporter,
        )

        from pointsman.telemetry.otlp_metrics import Sender  # noqa: PLC0415
        from pointsman.telemetry.otlp_session import brief_session  # noqa: PLC0415

        exporter = OTLPMetricExporter(session=brief_session())
        sender = Sender(REGISTRY.collect, exporter.export, resource, interval)
        self._begin_to_end.append(sender.end)
        self._join.append(sender.join)

    def _stop(self) -> None:
        """Take it out of the requests' way, and begin to send what is left."""
        self._on = False
        self._router.tracing = self._router.capture = None
        self._router.sinks.remove("traces")
        steps, self._begin_to_end = self._begin_to_end, []
        for step in steps:
            step()

    def close(self) -> None:
        """Send what is left, for a few seconds at most, and stop."""
        joins, self._join = self._join, []
        self._stop()
        until = time.monotonic() + _LAST_WORDS
        for join in joins:
            join(max(until - time.monotonic(), 0.0))


def _resource() -> dict[str, str]:
    """Return what tells this process from others, unless OTEL_RESOURCE_ATTRIBUTES does."""
    named = {
        "service.name": "pointsman",
        "service.version": pointsman.__version__,
        "service.instance.id": str(uuid.uuid4()),
        "k8s.namespace.name": os.environ.get("POD_NAMESPACE", ""),
        "k8s.pod.name": os.environ.get("POD_NAME", ""),
    }
    return {name: value for name, value in named.items() if value}


def _sizes(environment: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return how many spans with content wait and go at once; None: as the variables say."""
    if any(environment.get(name) for name in _SIZES):
        return None, None
    return _CONTENT_QUEUE, _CONTENT_BATCH


class _OnceAMinute(logging.Filter):
    """Keeps a collector that is away from filling the log: its batches fail every few seconds.

    Args:
        quotes: whether texts may stand in the line. Exceptions never do as they are: they quote
            the headers and the address, which may have credentials.
    """

    def __init__(self, *, quotes: bool) -> None:
        super().__init__()
        self._quotes = quotes
        self._told = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if record.levelno < logging.WARNING or now - self._told < _QUIET:
            return False
        self._told = now
        # That telemetry is lost is no fault of a request's.
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        if isinstance(record.args, tuple):
            record.args = tuple(self._quoted(one) for one in record.args)
        said = " ".join(record.getMessage().split())
        record.msg, record.args = f"OTLP: {said[:_LONGEST_LINE]}", ()
        record.exc_info = record.exc_text = record.stack_info = None
        return True

    def _quoted(self, value: object) -> object:
        if isinstance(value, BaseException):
            return _in_short(value)
        return value if self._quotes or isinstance(value, int | float) else "…"


def _in_short(error: BaseException) -> str:
    """Return an error's type, what the system says of it, and which host it is about."""
    said, cause = type(error).__name__, error
    while not (reason := getattr(cause, "strerror", None)) and (
        further := cause.__cause__ or cause.__context__
    ):
        cause = further
    if reason:
        said += f", {reason}"
    request = getattr(error, "request", None)
    host = urlsplit(getattr(request, "url", None) or "").hostname
    return f"{said} ({host})" if host else said


_LOGGERS = (
    "opentelemetry.attributes",
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.exporter.otlp.proto.common._internal",
    "opentelemetry.exporter.otlp.proto.common._internal.trace_encoder",
    "opentelemetry.exporter.otlp.proto.http._common",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace",
    "opentelemetry.sdk.trace.export",
)
# They quote a variable's value, or an address with its query.
_QUOTING = ("opentelemetry.sdk.resources", "opentelemetry.util.re", "urllib3.connectionpool")
_OF_CLIENTS = "opentelemetry.trace.span"  # tells of each `tracestate` that is none, and quotes it


def _calm_the_exporters() -> None:
    calm = _OnceAMinute(quotes=True)
    filters = dict.fromkeys(_LOGGERS, calm)
    filters |= {name: _OnceAMinute(quotes=False) for name in _QUOTING}
    for name, one in filters.items():
        each = logging.getLogger(name)
        if not any(isinstance(known, _OnceAMinute) for known in each.filters):
            each.addFilter(one)
    logging.getLogger(_OF_CLIENTS).disabled = True
