"""One CLIENT span for each exchange, with a child for each attempt, by OpenTelemetry's SDK.

Attributes are those of the conventions for generative AI; content only where
OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT asks for it, and then it is put together in a
thread of its own. A client's `traceparent` is continued and passed on to the provider; where a
client sends none that is valid, none is sent. What is no request of the client's own, a mirrored
copy or a replay, has a trace of its own with a link to that of the client's.

Strings that come from the network are cut and can be sent: a lone surrogate in one of them would
cost the whole batch.
"""

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pointsman.protocols.usage import Usage
from pointsman.telemetry.content import Content
from pointsman.telemetry.conventions import OTHER, error_type, operation_name, provider_name
from pointsman.telemetry.exchange import Attempt, Exchange
from pointsman.telemetry.labels import NONE, outcome

_logger = logging.getLogger(__name__)

_PROPAGATOR = TraceContextTextMapPropagator()
_LONGEST = 256  # characters
_MOST_WAITING = 256  # exchanges whose content is still to be put together
_CODE = re.compile(r"[a-z_]+\Z")  # of an error of ours; others are words, or quote an address
_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)

type _Attributes = dict[str, str | bool | int | float | Sequence[str]]
type _Values = dict[str, str | bool | int | float | Sequence[str] | None]


@dataclass(slots=True)
class Spans:
    """The spans of an exchange under way; `passed_on` tells that the client has a trace.

    `epoch` is what makes Unix nanoseconds of the exchange's clock: fixed, so that durations are
    right even if the wall clock is set meanwhile.
    """

    whole: Span
    passed_on: bool
    epoch: int
    attempts: list[tuple[Attempt, Span]] = field(default_factory=list)

    def at(self, reading: float) -> int:
        """Return a reading of the exchange's clock in Unix nanoseconds."""
        return self.epoch + int(reading * 1e9)


class Traces:
    """Makes spans. `begin` comes with each attempt, `record` when the exchange has ended."""

    def __init__(self, provider: TracerProvider, contents: "Contents | None" = None) -> None:
        self._tracer = provider.get_tracer("pointsman")
        self._contents = contents

    def begin(self, exchange: Exchange, attempt: Attempt) -> dict[str, str]:
        """Begin an attempt's span; return the headers that pass the client's trace on to it."""
        spans = self._spans(exchange)
        span = self._tracer.start_span(
            f"attempt {_fit(attempt.provider)}",
            set_span_in_context(spans.whole, Context()),
            SpanKind.CLIENT,
            start_time=spans.at(attempt.started),
        )
        spans.attempts.append((attempt, span))
        return _headers(span) if spans.passed_on else {}

    def begin_copy(self, exchange: Exchange, copy: Exchange) -> dict[str, str]:
        """Begin the span of a copy of an exchange's request; return headers, likewise.

        Where the exchange is not sampled, neither is the copy.
        """
        own = self._spans(exchange)
        if not own.whole.is_recording():
            copy.spans = Spans(own.whole, passed_on=False, epoch=own.epoch)
            return {}
        spans = self._start(copy, Context(), own.whole.get_span_context())
        spans.passed_on = own.passed_on
        return _headers(spans.whole) if spans.passed_on else {}

    def record(self, exchange: Exchange) -> None:
        """End the spans of an exchange that has ended."""
        spans = self._spans(exchange)
        exchange.spans = None
        ended = exchange.ended or time.perf_counter()
        for number, (attempt, span) in enumerate(spans.attempts):
            _end_attempt(attempt, span, exchange, number)
            span.end(spans.at(attempt.ended or ended))
        whole = spans.whole
        if not whole.is_recording():
            return
        whole.update_name(_name(exchange))
        whole.set_attributes(_attributes(exchange))
        if error := error_type(exchange):
            whole.set_attribute("error.type", error)
            whole.set_status(Status(StatusCode.ERROR))
        content, exchange.content = exchange.content, None
        if content is None or self._contents is None:
            whole.end(spans.at(ended))
        else:
            self._contents.put(whole, spans.at(ended), content)

    def _spans(self, exchange: Exchange) -> Spans:
        if isinstance(exchange.spans, Spans):
            return exchange.spans
        context = Context()
        if exchange.trace_context:
            context = _PROPAGATOR.extract(exchange.trace_context, context)
        parent = get_current_span(context).get_span_context()
        if exchange.replay:
            spans = self._start(exchange, Context(), parent if parent.is_valid else None)
        else:
            spans = self._start(exchange, context)
        spans.passed_on = parent.is_valid
        return spans

    def _start(
        self, exchange: Exchange, context: Context, linked: SpanContext | None = None
    ) -> Spans:
        now, reading = time.time_ns(), time.perf_counter()
        epoch = now - int(reading * 1e9)
        whole = self._tracer.start_span(
            _name(exchange),
            context,
            SpanKind.CLIENT,
            attributes=_known_at_first(exchange),
            links=[Link(linked)] if linked else None,
            start_time=epoch + int(exchange.started * 1e9),
        )
        exchange.spans = spans = Spans(whole, passed_on=False, epoch=epoch)
        return spans


def _headers(span: Span) -> dict[str, str]:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, set_span_in_context(span, Context()))
    return carrier


# --- names and attributes -------------------------------------------------------------------------


def _name(exchange: Exchange) -> str:
    """Return a span's name: of a bounded number but for the models, as the conventions want it."""
    if operation := operation_name(exchange):
        return f"{operation} {_fit(exchange.request_model or '')}".rstrip()
    method = _method(exchange.method)
    return f"{'HTTP' if method == OTHER else method} {_fit(exchange.route or '')}".rstrip()


def _method(method: str) -> str:
    return method if method in _METHODS else OTHER


def _fit(text: str) -> str:
    """Return a text that can be sent, cut where it is no name."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return text if text.isascii() else text.encode(errors="replace").decode()


def _fitting(values: _Values) -> _Attributes:
    """Leave out what is not known; make the rest fit to be sent."""
    return {
        name: _fit(value) if isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }


def _called(exchange: Exchange) -> tuple[str, int | None]:
    """Return the host and the port that were called last, else the one that would have been."""
    if exchange.attempts:
        last = exchange.attempts[-1]
        return last.provider_host, last.port
    return exchange.provider_host or exchange.host, None


def _known_at_first(exchange: Exchange) -> _Attributes:
    """Return what a sampler may want to know, and what does not change any more."""
    host, port = _called(exchange)
    operation, provider = operation_name(exchange), None
    if operation:
        # What is only observed is called where the client sent it.
        theirs = exchange.provider if host == exchange.provider_host else None
        provider = provider_name(host, theirs or host)
    return _fitting(
        {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": exchange.request_model,
            "server.address": host,
            "server.port": port,
        }
    )


def _attributes(exchange: Exchange) -> _Attributes:
    usage = exchange.usage or Usage()
    first = exchange.first_token
    error = exchange.error
    return _known_at_first(exchange) | _fitting(
        {
            "gen_ai.response.model": exchange.response_model,
            "gen_ai.request.stream": exchange.stream or None,
            "gen_ai.response.finish_reasons": (
                [_fit(exchange.finish_reason)] if exchange.finish_reason else None
            ),
            "gen_ai.response.time_to_first_chunk": (
                None if first is None else first - exchange.started
            ),
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
            "http.request.method": _method(exchange.method) if exchange.method else None,
            "http.response.status_code": exchange.status,
            "pointsman.request_id": exchange.request_id,
            "pointsman.host": exchange.host,
            "pointsman.route": exchange.route,
            "pointsman.rule": exchange.rule,
            "pointsman.provider": exchange.provider,
            "pointsman.client_model": exchange.client_model,
            "pointsman.flags": exchange.flags or None,
            "pointsman.error": error if error and _CODE.match(error) else None,
            "pointsman.cost_usd": exchange.cost_usd,
            "pointsman.mirror": exchange.mirror or None,
            "pointsman.replay": exchange.replay or None,
        }
    )


def _end_attempt(attempt: Attempt, span: Span, exchange: Exchange, number: int) -> None:
    if not span.is_recording():
        return
    span.set_attributes(
        _fitting(
            {
                "server.address": attempt.provider_host,
                "server.port": attempt.port,
                "http.request.method": _method(exchange.method),
                "http.request.resend_count": number or None,
                "http.response.status_code": attempt.status,
                "pointsman.provider": attempt.provider,
            }
        )
    )
    became = outcome(attempt)
    if became not in ("ok", NONE):
        span.set_attribute("error.type", became)
        span.set_status(Status(StatusCode.ERROR))


# --- content --------------------------------------------------------------------------------------


class Contents:
    """Puts what was said on spans, and ends them, in a thread of its own.

    Args:
        tell: makes attributes of it. What it raises is logged once.
    """

    def __init__(self, tell: Callable[[Content], Mapping[str, str | bool]]) -> None:
        self._tell = tell
        self._told_of_fault = False
        self._waiting: queue.Queue[tuple[Span, int, Content] | None] = queue.Queue(_MOST_WAITING)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="spans' content", daemon=True)
        self._thread.start()

    def put(self, span: Span, ended: int, content: Content) -> None:
        """Take over a span. Where too many wait, it ends without its content, and says so."""
        try:
            if content.request is None or self._closed:
                raise queue.Full  # noqa: TRY301 (the same to whoever reads the span)
            self._waiting.put_nowait((span, ended, content))
        except queue.Full:
            content.clear()
            span.set_attribute("pointsman.content_left_out", value=True)
            span.end(ended)

    def close(self) -> None:
        """Finish what waits, and stop. It may take as long as there is something."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while taken := self._waiting.get():
            span, ended, content = taken
            try:
                span.set_attributes(self._tell(content))
            except Exception as fault:  # noqa: BLE001 (told of below, without its words)
                if not self._told_of_fault:
                    self._told_of_fault = True
                    what = "what was said could not be put on a span (%s)"
                    _logger.error(what, type(fault).__name__)  # noqa: TRY400 (the same)
            finally:
                content.clear()
                span.end(ended)
            del taken, span, content  # while it waits for the next
