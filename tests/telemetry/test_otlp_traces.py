"""Spans of exchanges: their names, kinds, parents, attributes; what never stands on one."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from pointsman.protocols.usage import Usage
from pointsman.telemetry.content import Content, Kept, Room
from pointsman.telemetry.exchange import Attempt, Exchange
from pointsman.telemetry.otlp_traces import Contents, Traces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


class Spans:
    """What makes spans, and the finished ones."""

    def __init__(
        self, tell: Callable[[Content], Any] | None = None, sampler: Sampler = DEFAULT_ON
    ) -> None:
        self.memory = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, resource=Resource({}), shutdown_on_exit=False)
        self.contents = Contents(tell) if tell else None
        self.traces = Traces(provider, SimpleSpanProcessor(self.memory).on_end, self.contents)

    @property
    def ended(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.memory.get_finished_spans()}

    def one(self) -> ReadableSpan:
        (span,) = self.memory.get_finished_spans()
        return span


def exchange(**fields: Any) -> Exchange:
    known: dict[str, Any] = {
        "request_id": "r",
        "host": "shop.test",
        "method": "POST",
        "path": "/v1/chat/completions",
        "client": None,
        "started": 100.0,
        "route": "shop",
        "rule": "main",
        "provider": "openai",
        "provider_host": "api.openai.com",
        "api": "openai-chat",
        "request_model": "gpt-4o",
        "status": 200,
        "ended": 101.5,
    }
    return Exchange(**{**known, **fields})


def attempt(**fields: Any) -> Attempt:
    known: dict[str, Any] = {
        "provider": "openai",
        "provider_host": "api.openai.com",
        "started": 100.25,
        "ended": 101.25,
        "status": 200,
        "port": 443,
    }
    return Attempt(**{**known, **fields})


def carry(spans: Spans, done: Exchange, *attempts: Attempt) -> list[dict[str, str]]:
    sent = []
    for each in attempts:
        done.attempts.append(each)
        sent.append(spans.traces.begin(done, each))
    spans.traces.record(done)
    return sent


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# --- names and attributes -------------------------------------------------------------------------


def test_a_call_of_a_model() -> None:
    spans = Spans()
    usage = Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=2)
    done = exchange(
        usage=usage,
        stream=True,
        first_token=100.5,
        response_model="gpt-4o-2024",
        finish_reason="stop",
        cost_usd=0.1,
        client_model="gpt",
    )
    carry(spans, done, attempt())
    whole, tried = spans.ended["chat gpt-4o"], spans.ended["attempt openai"]
    assert whole.kind is tried.kind is SpanKind.CLIENT
    assert whole.status.status_code is tried.status.status_code is StatusCode.UNSET
    assert attributes(whole) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "gpt-4o-2024",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.5,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "server.address": "api.openai.com",
        "server.port": 443,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "pointsman.request_id": "r",
        "pointsman.host": "shop.test",
        "pointsman.route": "shop",
        "pointsman.rule": "main",
        "pointsman.provider": "openai",
        "pointsman.client_model": "gpt",
        "pointsman.cost_usd": 0.1,
    }
    assert attributes(tried) == {
        "server.address": "api.openai.com",
        "server.port": 443,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "pointsman.provider": "openai",
    }


def test_times_are_those_of_the_exchange() -> None:
    spans = Spans()
    carry(spans, exchange(), attempt())
    whole, tried = spans.ended["chat gpt-4o"], spans.ended["attempt openai"]
    assert whole.start_time
    assert whole.end_time
    assert tried.start_time
    assert tried.end_time
    assert whole.end_time - whole.start_time == pytest.approx(1.5e9, abs=10)
    assert tried.start_time - whole.start_time == pytest.approx(0.25e9, abs=10)
    assert tried.end_time - tried.start_time == pytest.approx(1e9, abs=10)


def test_what_calls_no_model_has_no_attributes_of_one() -> None:
    spans = Spans()
    carry(spans, exchange(api=None, method="GET", request_model=None), attempt())
    whole = spans.ended["GET shop"]
    assert not [name for name in attributes(whole) if name.startswith("gen_ai.")]


def test_a_connection_that_was_refused_before_it_was_read() -> None:
    spans = Spans()
    refused = exchange(
        method="",
        path="",
        api=None,
        route=None,
        rule=None,
        provider=None,
        provider_host=None,
        request_model=None,
        status=None,
        flags=["UAEX"],
        error="host_not_allowed",
    )
    carry(spans, refused)
    span = spans.one()
    assert span.name == "HTTP"
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span) == {
        "server.address": "shop.test",
        "pointsman.request_id": "r",
        "pointsman.host": "shop.test",
        "pointsman.flags": ["UAEX"],
        "pointsman.error": "host_not_allowed",
        "error.type": "host_not_allowed",
    }


def test_a_method_that_http_does_not_know_is_other() -> None:
    spans = Spans()
    carry(spans, exchange(method="X" * 999, api=None, request_model=None))
    assert spans.one().name == "HTTP shop"
    assert attributes(spans.one())["http.request.method"] == "_OTHER"


def test_what_is_only_observed_is_told_of_the_host_that_was_called() -> None:
    spans = Spans()
    done = exchange(flags=["OB"], host="theirs.example")
    carry(spans, done, attempt(provider="theirs.example", provider_host="theirs.example"))
    found = attributes(spans.ended["chat gpt-4o"])
    assert found["server.address"] == found["gen_ai.provider.name"] == "theirs.example"
    assert found["pointsman.provider"] == "openai"
    assert found["pointsman.flags"] == ["OB"]


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        ("[Errno 111] Connect call failed ('10.1.2.3', 443)", None, "connect_failure"),
        ("upstream_timeout", None, "timeout"),
        ("status 429", 429, "429"),
        ("client disconnected", 200, "client_disconnected"),
        ("drain_timeout", 200, "stopped"),
        ("stream opened with an error", 200, "stream_error"),
        ("anything that a provider says", 200, "broken_off"),
        (None, 503, "503"),
        (None, 777, "_OTHER"),
    ],
)
def test_an_attempt_that_failed_says_why_in_one_of_few_words(
    error: str | None, status: int | None, told: str
) -> None:
    spans = Spans()
    carry(spans, exchange(), attempt(error=error, status=status))
    span = spans.ended["attempt openai"]
    assert attributes(span)["error.type"] == told
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert not span.events


def test_each_further_attempt_has_its_number() -> None:
    spans = Spans()
    carry(spans, exchange(), attempt(provider="a"), attempt(provider="b"), attempt(provider="c"))
    numbers = [
        attributes(spans.ended[f"attempt {name}"]).get("http.request.resend_count")
        for name in "abc"
    ]
    assert numbers == [None, 1, 2]


def test_an_error_that_quotes_an_address_is_left_out() -> None:
    spans = Spans()
    carry(spans, exchange(error="[Errno 111] Connect call failed ('10.1.2.3', 4)", flags=["UF"]))
    assert "10.1.2.3" not in str(attributes(spans.one()))
    assert attributes(spans.one())["error.type"] == "connect_failure"


def test_strings_from_the_network_are_cut_and_can_be_sent() -> None:
    spans = Spans()
    bad = "\ud800" + "x" * 9999
    done = exchange(request_model=bad, response_model=bad, finish_reason=bad, host=bad, status=200)
    carry(spans, done, attempt(provider=bad))
    sent = encode_spans(list(spans.ended.values())).SerializeToString()
    assert len(sent) < 6000
    assert len(spans.ended) == 2


# --- parents, links, headers ----------------------------------------------------------------------


def test_the_clients_trace_is_continued() -> None:
    spans = Spans()
    (sent,) = carry(spans, exchange(trace_context=SENT), attempt())
    whole, tried = spans.ended["chat gpt-4o"], spans.ended["attempt openai"]
    assert whole.parent
    assert f"{whole.parent.trace_id:032x}-{whole.parent.span_id:016x}" == f"{TRACE}-{PARENT}"
    assert tried.parent
    assert whole.context
    assert tried.context
    assert tried.parent.span_id == whole.context.span_id
    assert sent == {
        "traceparent": f"00-{TRACE}-{tried.context.span_id:016x}-01",
        "tracestate": "vendor=1",
    }


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"traceparent": "nonsense"},
        {"traceparent": f"00-{'0' * 32}-{PARENT}-01"},
        {"traceparent": f"ff-{TRACE}-{PARENT}-01"},
        {"traceparent": f"{SENT['traceparent']}, {SENT['traceparent']}"},
        {"tracestate": "vendor=1"},
    ],
)
def test_without_a_valid_trace_of_the_clients_none_is_sent(sent: dict[str, str]) -> None:
    spans = Spans()
    assert carry(spans, exchange(trace_context=sent), attempt()) == [{}]
    assert spans.ended["chat gpt-4o"].parent is None


def test_what_the_client_does_not_sample_is_not_recorded_and_its_trace_goes_on() -> None:
    spans = Spans()
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    (sent,) = carry(spans, exchange(trace_context=unsampled), attempt())
    assert not spans.ended
    assert sent["traceparent"].startswith(f"00-{TRACE}-")
    assert sent["traceparent"].endswith("-00")


def test_a_copy_has_a_trace_of_its_own_with_a_link() -> None:
    spans = Spans()
    own, copy = exchange(trace_context=SENT), exchange(mirror=True, request_model="copied")
    own.attempts.append(attempt())
    spans.traces.begin(own, own.attempts[0])
    sent = spans.traces.begin_copy(own, copy)
    spans.traces.record(own)
    spans.traces.record(copy)
    whole, copied = spans.ended["chat gpt-4o"], spans.ended["chat copied"]
    assert copied.parent is None
    assert copied.context
    assert whole.context
    assert copied.context.trace_id != whole.context.trace_id
    assert [link.context.span_id for link in copied.links] == [whole.context.span_id]
    assert attributes(copied)["pointsman.mirror"] is True
    context = f"{copied.context.trace_id:032x}-{copied.context.span_id:016x}"
    assert sent["traceparent"].startswith(f"00-{context}-")


@pytest.mark.parametrize(
    ("flags", "passed_on"), [("00", "00"), ("01", "01"), ("02", "02"), ("03", "03"), ("ff", "03")]
)
def test_that_a_traces_id_is_random_is_passed_on(flags: str, passed_on: str) -> None:
    spans = Spans()
    theirs = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
    (sent,) = carry(spans, exchange(trace_context=theirs), attempt())
    assert sent["traceparent"].endswith(f"-{passed_on}")


def test_a_copy_of_what_is_not_sampled_is_not_recorded() -> None:
    spans = Spans()
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    own, copy = exchange(trace_context=unsampled), exchange(mirror=True)
    spans.traces.begin(own, attempt())
    assert spans.traces.begin_copy(own, copy) == {}
    spans.traces.record(copy)
    spans.traces.record(own)
    assert not spans.ended


def test_a_copy_that_was_not_begun_here_has_a_span_too() -> None:
    spans = Spans()
    spans.traces.record(exchange(mirror=True))
    assert spans.one().name == "chat gpt-4o"


def test_a_replay_has_a_trace_of_its_own_with_a_link() -> None:
    spans = Spans()
    (sent,) = carry(spans, exchange(trace_context=SENT, replay=True), attempt())
    whole, tried = spans.ended["chat gpt-4o"], spans.ended["attempt openai"]
    assert whole.parent is None
    assert [f"{link.context.trace_id:032x}" for link in whole.links] == [TRACE]
    assert tried.context
    context = f"{tried.context.trace_id:032x}-{tried.context.span_id:016x}"
    assert sent["traceparent"].startswith(f"00-{context}-")
    assert attributes(whole)["pointsman.replay"] is True


def test_where_nothing_is_sampled_nothing_is_recorded() -> None:
    spans = Spans(sampler=ALWAYS_OFF)
    carry(spans, exchange(), attempt())
    assert not spans.ended


# --- content --------------------------------------------------------------------------------------


def content(room: Room | None = None, request: bytes | None = b"x") -> Content:
    kept = Kept(room or Room())
    kept.add(b"answer")
    return Content("openai-chat", request, 1, "", kept, "", event_stream=False)


def test_content_is_put_on_the_span_and_not_kept() -> None:
    room = Room(size=6)
    spans = Spans(lambda content: {"gen_ai.input.messages": bytes(content.kept.data).decode()})
    done = exchange(content=content(room))
    carry(spans, done)
    assert done.content is None
    assert spans.contents
    spans.contents.close()
    assert attributes(spans.one())["gen_ai.input.messages"] == "answer"
    assert room.take(6)
    ended, started = spans.one().end_time, spans.one().start_time
    assert ended
    assert started
    assert ended - started == pytest.approx(1.5e9, abs=10)


def test_content_that_can_not_be_told_costs_the_span_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: Content) -> dict[str, str]:
        raise ValueError("a secret prompt")

    spans = Spans(fail)
    for _ in range(3):
        carry(spans, exchange(content=content()))
    assert spans.contents
    spans.contents.close()
    assert len(spans.memory.get_finished_spans()) == 3
    (told,) = caplog.records
    assert "ValueError" in told.getMessage()
    assert "secret" not in caplog.text


def test_past_a_bound_spans_end_without_their_content() -> None:
    held, begun = threading.Event(), threading.Event()

    def tell(_: Content) -> dict[str, str]:
        begun.set()
        assert held.wait(20)
        return {"told": "yes"}

    room = Room(size=6 * 2000)
    spans = Spans(tell)
    carry(spans, exchange(content=content(room)))
    assert begun.wait(20)
    for _ in range(300):
        carry(spans, exchange(content=content(room)))
    without = len(spans.memory.get_finished_spans())
    assert without == 300 - 256
    held.set()
    assert spans.contents
    spans.contents.close()
    found = list(map(attributes, spans.memory.get_finished_spans()))
    assert sum("pointsman.content_left_out" in each for each in found) == without
    assert sum("told" in each for each in found) == 257
    assert room.take(6 * 2000)


def test_without_room_for_the_request_the_span_ends_without_content() -> None:
    spans = Spans(lambda _: {"told": "yes"})
    carry(spans, exchange(content=content(request=None)))
    assert spans.contents
    spans.contents.close()
    assert attributes(spans.one())["pointsman.content_left_out"] is True
    assert "told" not in attributes(spans.one())
