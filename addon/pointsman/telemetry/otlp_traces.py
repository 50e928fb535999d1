"""One CLIENT span for each exchange, with a child for each attempt, for OpenTelemetry's SDK.

Attributes are those of the conventions for generative AI; content only where
OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT asks for it, and then it is put together in a
thread of its own. A client's `traceparent` is continued and passed on to the provider; where a
client sends none that is valid, none is sent. What is no request of the client's own, a mirrored
copy or a replay, has a trace of its own with a link to that of the client's.

While an exchange is under way there is nothing but what its spans are called by; they are made of
its record when it has ended. By a tracer of the SDK's they would cost far more.

Strings that come from the network are cut and well-formed: a lone surrogate in one of them would
cost the whole batch, and the name of a span is made before the exchange is emitted.
"""

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pointsman.protocols.usage import Usage
from pointsman.telemetry.content import Content
from pointsman.telemetry.conventions import OTHER, error_type, operation_name, provider_name
from pointsman.telemetry.exchange import Attempt, Exchange
from pointsman.telemetry.labels import NONE, outcome
from pointsman.wellformed import well_formed

_logger = logging.getLogger(__name__)

_PROPAGATOR = TraceContextTextMapPropagator()
_SCOPE = InstrumentationScope("pointsman")
_NOTHING = Context()
_UNSET, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
_RANDOM = 0x02  # the flag of W3C Trace Context, level 2: the trace's id is random
_LONGEST = 256  # characters
_MOST_WAITING = 256  # exchanges whose content is still to be put together
_CODE = re.compile(r"[a-z_]+\Z")  # of an error of ours; others are words, or quote an address
_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)

type _Value = str | bool | int | float | Sequence[str]
type _Attributes = dict[str, _Value]
type _Values = dict[str, _Value | None]


@dataclass(slots=True)
class Spans:
    """What the spans of an exchange under way are called by.

    `passed_on` tells that the client has a trace. `epoch` makes Unix nanoseconds of the exchange's
    clock: fixed, so that durations are right even if the wall clock is set meanwhile.
    """

    whole: SpanContext
    parent: SpanContext | None
    linked: SpanContext | None
    passed_on: bool
    epoch: int
    attempts: list[tuple[Attempt, SpanContext]] = field(default_factory=list)

    def at(self, reading: float) -> int:
        """Return a reading of the exchange's clock in Unix nanoseconds."""
        return self.epoch + int(reading * 1e9)


class Traces:
    """Makes spans. `begin` comes with each attempt, `record` when the exchange has ended.

    Args:
        provider: who samples, makes ids and has the resource, as the environment says.
        on_end: takes a span that has ended, from any thread.
        contents: puts what was said on spans.
    """

    def __init__(
        self,
        provider: TracerProvider,
        on_end: Callable[[ReadableSpan], None],
        contents: "Contents | None" = None,
    ) -> None:
        self._sampler = provider.sampler
        self._ids = provider.id_generator
        self._resource = _Fixed(provider.resource.attributes, provider.resource.schema_url)
        self._on_end = on_end
        self._contents = contents

    def begin(self, exchange: Exchange, attempt: Attempt) -> dict[str, str]:
        """Begin an attempt's span; return the headers that pass the client's trace on to it."""
        spans = self._spans(exchange)
        whole = spans.whole
        span = self._called(whole.trace_id, whole.trace_flags, whole.trace_state)
        spans.attempts.append((attempt, span))
        return _headers(span) if spans.passed_on else {}

    def begin_copy(self, exchange: Exchange, copy: Exchange) -> dict[str, str]:
        """Begin the span of a copy of an exchange's request; return headers, likewise.

        Where the exchange is not sampled, neither is the copy.
        """
        own = self._spans(exchange)
        if not own.whole.trace_flags.sampled:
            copy.spans = own
            return {}
        spans = self._start(copy, None, own.whole)
        spans.passed_on = own.passed_on
        return _headers(spans.whole) if spans.passed_on else {}

    def record(self, exchange: Exchange) -> None:
        """Make the spans of an exchange that has ended."""
        spans = self._spans(exchange)
        exchange.spans = None
        if not spans.whole.trace_flags.sampled:
            return
        ended = exchange.ended or time.perf_counter()
        for number, (attempt, called) in enumerate(spans.attempts):
            name, found = (
                f"attempt {_fit(attempt.provider)}",
                _of_attempt(attempt, exchange, number),
            )
            times = spans.at(attempt.started), spans.at(attempt.ended or ended)
            self._on_end(self._span(name, called, spans.whole, found, times))
        found = _attributes(exchange)
        times = spans.at(exchange.started), spans.at(ended)
        name, parent, linked = _name(exchange), spans.parent, spans.linked
        span = self._span(name, spans.whole, parent, found, times, linked=linked)
        content, exchange.content = exchange.content, None
        if content is None or self._contents is None:
            self._on_end(span)
        else:
            self._contents.put(content, found, lambda: self._on_end(span))

    def _spans(self, exchange: Exchange) -> Spans:
        if isinstance(exchange.spans, Spans):
            return exchange.spans
        sent = None
        if exchange.trace_context:
            context = _PROPAGATOR.extract(exchange.trace_context, _NOTHING)
            found = get_current_span(context).get_span_context()
            sent = found if found.is_valid else None
        spans = self._start(exchange, *((None, sent) if exchange.replay else (sent, None)))
        spans.passed_on = sent is not None
        return spans

    def _start(
        self, exchange: Exchange, parent: SpanContext | None, linked: SpanContext | None
    ) -> Spans:
        trace = parent.trace_id if parent else self._ids.generate_trace_id()
        decided = self._sampler.should_sample(
            set_span_in_context(NonRecordingSpan(parent), _NOTHING) if parent else _NOTHING,
            trace,
            _name(exchange),
            SpanKind.CLIENT,
            _known_at_first(exchange),
            [Link(linked)] if linked else None,
        )
        sampled = decided.decision is Decision.RECORD_AND_SAMPLE
        random = parent.trace_flags & _RANDOM if parent else 0
        flags = TraceFlags(random | (TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT))
        whole = self._called(trace, flags, decided.trace_state)
        epoch = time.time_ns() - int(time.perf_counter() * 1e9)
        exchange.spans = spans = Spans(whole, parent, linked, passed_on=False, epoch=epoch)
        return spans

    def _called(self, trace: int, flags: TraceFlags, state: TraceState | None) -> SpanContext:
        return SpanContext(
            trace,
            self._ids.generate_span_id(),
            is_remote=False,
            trace_flags=flags,
            trace_state=state,
        )

    def _span(  # noqa: PLR0913 (all that a span is made of)
        self,
        name: str,
        called: SpanContext,
        parent: SpanContext | None,
        found: _Attributes,
        times: tuple[int, int],
        *,
        linked: SpanContext | None = None,
    ) -> ReadableSpan:
        return ReadableSpan(
            name,
            context=called,
            parent=parent,
            resource=self._resource,
            attributes=found,
            links=(Link(linked),) if linked else (),
            kind=SpanKind.CLIENT,
            status=_ERROR if "error.type" in found else _UNSET,
            start_time=times[0],
            end_time=times[1],
            instrumentation_scope=_SCOPE,
        )


class _Fixed(Resource):
    """A resource that is the same as itself alone: the encoder asks that for each span."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _headers(span: SpanContext) -> dict[str, str]:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, set_span_in_context(NonRecordingSpan(span), _NOTHING))
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
    return well_formed(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


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
    """Return what a sampler may want to know; another attempt may change it."""
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
            "pointsman.client_model": (
                exchange.client_model if exchange.client_model != exchange.request_model else None
            ),
            "pointsman.flags": exchange.flags or None,
            "error.type": error_type(exchange),
            "pointsman.error": error if error and _CODE.match(error) else None,
            "pointsman.cost_usd": exchange.cost_usd,
            "pointsman.mirror": exchange.mirror or None,
            "pointsman.replay": exchange.replay or None,
        }
    )


def _of_attempt(attempt: Attempt, exchange: Exchange, number: int) -> _Attributes:
    became = outcome(attempt)
    return _fitting(
        {
            "server.address": attempt.provider_host,
            "server.port": attempt.port,
            "http.request.method": _method(exchange.method),
            "http.request.resend_count": number or None,
            "http.response.status_code": attempt.status,
            "pointsman.provider": attempt.provider,
            "error.type": None if became in ("ok", NONE) else became,
        }
    )


# --- content --------------------------------------------------------------------------------------


class Contents:
    """Puts what was said on spans that have ended, in a thread of its own.

    Args:
        tell: makes attributes of it. That it raises is logged once.
    """

    def __init__(self, tell: Callable[[Content], Mapping[str, str | bool]]) -> None:
        self._tell = tell
        self._told_of_fault = False
        self._waiting: queue.Queue[tuple[Content, _Attributes, Callable[[], None]] | None]
        self._waiting = queue.Queue(_MOST_WAITING)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="spans' content", daemon=True)
        self._thread.start()

    def put(self, content: Content, found: _Attributes, end: Callable[[], None]) -> None:
        """Add what was said to a span's attributes, then call `end`.

        Where too many wait, that is done without what was said, and the attributes say so.
        """
        try:
            if content.request is None or self._closed:
                raise queue.Full  # noqa: TRY301 (the same to whoever reads the span)
            self._waiting.put_nowait((content, found, end))
        except queue.Full:
            content.clear()
            found["pointsman.content_left_out"] = True
            end()

    def close(self) -> None:
        """Finish what waits, and stop. It may take as long as there is something."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while taken := self._waiting.get():
            content, found, end = taken
            try:
                found.update(self._tell(content))
            except Exception as fault:  # noqa: BLE001 (told of below, without its words)
                if not self._told_of_fault:
                    self._told_of_fault = True
                    what = "what was said could not be put on a span (%s)"
                    _logger.error(what, type(fault).__name__)  # noqa: TRY400 (the same)
            finally:
                content.clear()
                end()
            del taken, content, found, end  # while it waits for the next
