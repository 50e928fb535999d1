"""One CLIENT span for each exchange, with a child for each attempt, by OpenTelemetry's SDK.

Attributes are those of the conventions for generative AI; content only where
OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT asks for it. A client's `traceparent` is
continued and passed on to the provider; where a client sends none, none is sent.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from pointsman.protocols.usage import Usage
from pointsman.telemetry.conventions import error_type, operation_name, provider_name
from pointsman.telemetry.exchange import Attempt, Exchange

_PROPAGATOR = TraceContextTextMapPropagator()
_FIRST_ERROR = 400
PROPAGATED = ("traceparent", "tracestate")


@dataclass(slots=True)
class Spans:
    """The spans of an exchange under way."""

    whole: Span
    attempts: list[tuple[Attempt, Span]] = field(default_factory=list)


class Traces:
    """Makes spans. `begin` comes with each attempt, `record` when the exchange has ended."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("pointsman")

    def begin(self, exchange: Exchange, attempt: Attempt) -> dict[str, str]:
        """Begin an attempt's span; return the headers that pass the client's trace on to it."""
        spans = self._spans(exchange)
        context = set_span_in_context(spans.whole)
        span = self._tracer.start_span(
            f"attempt {attempt.provider}",
            context,
            SpanKind.CLIENT,
            start_time=_nanoseconds(attempt.started),
        )
        spans.attempts.append((attempt, span))
        carrier: dict[str, str] = {}
        if exchange.trace_context:
            _PROPAGATOR.inject(carrier, set_span_in_context(span))
        return carrier

    def record(self, exchange: Exchange) -> None:
        """End the spans of an exchange that has ended."""
        spans = self._spans(exchange)
        exchange.spans = None
        for attempt, span in spans.attempts:
            _end_attempt(attempt, span, exchange)
        whole = spans.whole
        if whole.is_recording():
            if operation := operation_name(exchange):
                whole.update_name(f"{operation} {exchange.request_model or ''}".rstrip())
            whole.set_attributes(_attributes(exchange))
            if error := error_type(exchange):
                whole.set_attribute("error.type", error)
                whole.set_status(Status(StatusCode.ERROR))
        whole.end(_nanoseconds(exchange.ended or time.perf_counter()))

    def _spans(self, exchange: Exchange) -> Spans:
        if isinstance(exchange.spans, Spans):
            return exchange.spans
        parent = _PROPAGATOR.extract(exchange.trace_context) if exchange.trace_context else None
        whole = self._tracer.start_span(
            f"{exchange.method} {exchange.host}",
            parent,
            SpanKind.CLIENT,
            start_time=_nanoseconds(exchange.started),
        )
        exchange.spans = spans = Spans(whole)
        return spans


def _nanoseconds(reading: float) -> int:
    """Return the Unix time of a reading of the exchange's clock."""
    return time.time_ns() - int((time.perf_counter() - reading) * 1e9)


def _end_attempt(attempt: Attempt, span: Span, exchange: Exchange) -> None:
    if span.is_recording():
        span.set_attribute("server.address", attempt.provider_host)
        span.set_attribute("pointsman.provider", attempt.provider)
        span.set_attribute("http.request.method", exchange.method)
        if attempt.status is not None:
            span.set_attribute("http.response.status_code", attempt.status)
        if attempt.error or (attempt.status or 0) >= _FIRST_ERROR:
            span.set_attribute("error.type", attempt.error or str(attempt.status))
            span.set_status(Status(StatusCode.ERROR))
    span.end(_nanoseconds(attempt.ended or exchange.ended or time.perf_counter()))


def _attributes(exchange: Exchange) -> Mapping[str, AttributeValue]:
    usage = exchange.usage or Usage()
    host = exchange.provider_host or exchange.host
    finish = [exchange.finish_reason] if exchange.finish_reason else None
    first = exchange.first_token
    found: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": operation_name(exchange),
        "gen_ai.provider.name": provider_name(host, exchange.provider or host),
        "gen_ai.request.model": exchange.request_model,
        "gen_ai.response.model": exchange.response_model,
        "gen_ai.request.stream": exchange.stream,
        "gen_ai.response.finish_reasons": finish,
        "gen_ai.response.time_to_first_chunk": None if first is None else first - exchange.started,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        "server.address": host,
        "http.request.method": exchange.method,
        "http.response.status_code": exchange.status,
        "pointsman.request_id": exchange.request_id,
        "pointsman.host": exchange.host,
        "pointsman.route": exchange.route,
        "pointsman.rule": exchange.rule,
        "pointsman.provider": exchange.provider,
        "pointsman.client_model": exchange.client_model,
        "pointsman.flags": exchange.flags or None,
        "pointsman.error": exchange.error,
        "pointsman.cost_usd": exchange.cost_usd,
        "pointsman.mirror": exchange.mirror or None,
    }
    if exchange.content is not None:
        found |= {
            "gen_ai.input.messages": json.dumps(exchange.content.input, ensure_ascii=False),
            "gen_ai.output.messages": json.dumps(exchange.content.output, ensure_ascii=False),
        }
    return {name: value for name, value in found.items() if value is not None}
