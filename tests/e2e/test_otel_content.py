"""What was said reaches the collector where that is asked for by name, and nowhere else."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from pointsman.demo.provider import Reply
from pointsman.protocols import detect
from pointsman.viewing.genai import answered, asked
from tests.e2e.conftest import StartProxy
from tests.e2e.harness import Far, Json, Proxy, write_rules
from tests.e2e.otlp import Receiver, attributes
from tests.viewing.conftest import ALL

pytestmark = pytest.mark.e2e

CAPTURE = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
ASKED, SAID = "mellifluous-question", "perspicuous-answer"
CONTENT = (
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.tool.definitions",
)


@dataclass(frozen=True)
class Talk:
    """A request to one API, and what a provider says to it: whole, as events, as an error."""

    path: str
    request: Json
    whole: Json
    events: Sequence[Json]
    stream_path: str = ""


def _chat(piece: Json, **choice: Any) -> Json:
    return {"model": "m", "choices": [{"index": 0, "finish_reason": "stop", **choice, **piece}]}


TALKS = {
    "chat": Talk(
        "/v1/chat/completions",
        {
            "model": "m",
            "messages": [{"role": "system", "content": ASKED}, {"role": "user", "content": ASKED}],
            "tools": [{"type": "function", "function": {"name": "f", "description": ASKED}}],
        },
        _chat({"message": {"role": "assistant", "content": SAID}}),
        [_chat({"delta": {"role": "assistant", "content": SAID}})],
    ),
    "completions": Talk(
        "/v1/completions",
        {"model": "m", "prompt": ASKED},
        _chat({"text": SAID}),
        [_chat({"text": SAID})],
    ),
    "embeddings": Talk(
        "/v1/embeddings",
        {"model": "m", "input": ASKED},
        {"model": "m", "data": [{"embedding": [0.25, 0.5]}], "usage": {"prompt_tokens": 3}},
        [],
    ),
    "responses": Talk(
        "/v1/responses",
        {"model": "m", "instructions": ASKED, "input": ASKED},
        {
            "model": "m",
            "status": "completed",
            "output": [
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": SAID}],
                }
            ],
        },
        [
            {
                "type": "response.output_text.delta",
                "output_index": 0,
                "content_index": 0,
                "delta": SAID,
            },
        ],
    ),
    "anthropic": Talk(
        "/v1/messages",
        {
            "model": "m",
            "max_tokens": 9,
            "system": ASKED,
            "messages": [{"role": "user", "content": ASKED}],
        },
        {
            "model": "m",
            "role": "assistant",
            "content": [{"type": "text", "text": SAID}],
            "stop_reason": "end_turn",
        },
        [
            {"type": "message_start", "message": {"model": "m", "role": "assistant"}},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            },
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": SAID},
            },
        ],
    ),
    "gemini": Talk(
        "/v1beta/models/m:generateContent",
        {
            "systemInstruction": {"parts": [{"text": ASKED}]},
            "contents": [{"role": "user", "parts": [{"text": ASKED}]}],
        },
        {"candidates": [{"content": {"parts": [{"text": SAID}]}, "finishReason": "STOP"}]},
        [{"candidates": [{"content": {"parts": [{"text": SAID}]}}]}],
        "/v1beta/models/m:streamGenerateContent?alt=sse",
    ),
}
EVENTS = [("content-type", "text/event-stream")]


def event(data: Json, name: str = "") -> bytes:
    named = f"event: {name}\n" if name else ""
    return f"{named}data: {json.dumps(data)}\n\n".encode()


def replies(talk: Talk) -> Iterator[tuple[str, Reply]]:
    """Yield paths and what a provider answers there: well, and in every way that quotes."""
    quoting = {"type": "error", "error": {"type": "bad", "message": f"{ASKED} {SAID}"}}
    yield talk.path, Reply.json(talk.whole)
    for status in (400, 429, 500):
        yield talk.path, Reply.json(quoting, status)
    yield talk.path, Reply(200, body=f"{ASKED} {SAID}".encode())
    if talk.events:
        path = talk.stream_path or talk.path
        pieces = [event(one, str(one.get("type", ""))) for one in talk.events]
        yield path, Reply(200, EVENTS, body=pieces)
        yield path, Reply(200, EVENTS, body=[*pieces, event(quoting, "error")])
        yield path, Reply(200, EVENTS, body=[event(quoting, "error")])
        yield path, Reply(200, EVENTS, body=b"".join(pieces), drop="mid_body")
    yield talk.path, Reply(drop="before_status")


@pytest.fixture
def rules(tmp_path: Path, openai: Far, accounted: Far) -> Path:
    return write_rules(tmp_path / "rules", openai.manifest(), accounted.manifest(path=None))


def start(start_proxy: StartProxy, rules: Path, environment: dict[str, str]) -> Proxy:
    return start_proxy(rules, "--set", "llm_otel=true", env=environment)


def ask_everything(proxy: Proxy, accounted: Far) -> int:
    """Ask in every way, of every API; return how many spans that makes."""
    count = 0
    host = accounted.provider.host
    with proxy.client() as client:
        for talk in TALKS.values():
            for path, reply in replies(talk):
                accounted.provider.replies.append(reply)
                body = talk.request | ({"stream": True} if reply.headers == EVENTS else {})
                try:
                    client.post(f"https://{host}{path}", json=body)
                except httpx.RemoteProtocolError:
                    assert reply.drop == "mid_body"
                count += 1
        for broken in (f'{{"messages": "{ASKED}"', f'{{"model": 1, "messages": ["{ASKED}"]}}'):
            client.post("https://api.openai.com/v1/chat/completions", content=broken)
            count += 1
    return count


def test_without_being_asked_for_nothing_that_was_said_is_sent(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, accounted: Far, openai: Far
) -> None:
    accounted.provider.calls.clear()
    proxy = start(start_proxy, rules, receiver.environment)
    count = ask_everything(proxy, accounted)
    entries = proxy.logged(count)
    tried = sum(len(entry["attempts"]) for entry in entries)
    spans = receiver.wait(count + tried)
    accounted.provider.replies.clear()
    proxy.stop()
    assert len(receiver.spans()) == len(spans) == count + tried
    for text in (receiver.text(), proxy.printed):
        assert ASKED not in text
        assert SAID not in text
    names = {name for span in receiver.spans() for name in attributes(span)}
    assert names.isdisjoint(CONTENT)
    errors = {attributes(span).get("error.type") for span in receiver.spans()}
    assert {None, "400", "429", "500", "stream_error"} <= errors


def test_what_was_said_is_on_the_span_of_each_api(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, accounted: Far
) -> None:
    proxy = start(start_proxy, rules, receiver.environment | CAPTURE)
    wanted: list[dict[str, Any]] = []
    with proxy.client() as client:
        for case in ALL:
            kind = "text/event-stream" if case.event_stream else "application/json"
            accounted.provider.replies.append(
                Reply(200, [("content-type", kind)], body=case.response)
            )
            url = f"https://{accounted.provider.host}{case.path}"
            answer = client.post(url, content=case.request, headers={"x-request-id": case.name})
            assert answer.content == case.response
            api = detect("POST", case.path)
            assert api
            found = asked(case.request, api)
            found |= answered(case.response, api, event_stream=case.event_stream)
            wanted.append(found)
    proxy.logged(len(ALL))
    spans = {
        attributes(span)["pointsman.request_id"]: attributes(span)
        for span in receiver.wait(2 * len(ALL))
        if "pointsman.request_id" in attributes(span)
    }
    for case, found in zip(ALL, wanted, strict=True):
        told = {name: spans[case.name][name] for name in CONTENT if name in spans[case.name]}
        assert told == found, case.name


def test_what_was_said_in_errors_and_in_what_was_cut_is_told_as_far_as_it_goes(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, accounted: Far
) -> None:
    proxy = start(start_proxy, rules, receiver.environment | CAPTURE)
    count = ask_everything(proxy, accounted)
    tried = sum(len(entry["attempts"]) for entry in proxy.logged(count))
    spans = [attributes(span) for span in receiver.wait(count + tried)]
    answers = [span["gen_ai.output.messages"] for span in spans if "gen_ai.output.messages" in span]
    # Of each API that says something: one answer, and what came of three streams.
    assert sum(SAID in answer for answer in answers) == 5 * 4
    assert not any(ASKED in answer for answer in answers)
    for span in spans:
        if span.get("http.response.status_code") in (400, 429, 500):
            assert "gen_ai.output.messages" not in span
            assert SAID not in str(span)
    accounted.provider.replies.clear()


def test_a_large_answer_and_a_large_request_are_told_in_part(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, accounted: Far
) -> None:
    proxy = start(start_proxy, rules, receiver.environment | CAPTURE)
    delta = event(_chat({"delta": {"content": "word " * 10}}, finish_reason=None))
    accounted.provider.replies.append(Reply(200, EVENTS, body=[delta * 1000] * 60))
    body = {"model": "m", "messages": [{"role": "user", "content": "more " * 1_200_000}]}
    with proxy.client() as client:
        url = f"https://{accounted.provider.host}/v1/chat/completions"
        answer = client.post(url, json=body)
        assert len(answer.content) == len(delta) * 60_000
    proxy.entry()
    found = next(attributes(span) for span in receiver.wait(2) if span["name"].startswith("chat"))
    (message,) = json.loads(found["gen_ai.input.messages"])
    assert message["parts"] == [{"type": "omitted", "content": "6.0 MB, not read"}]
    assert "characters left out" in found["gen_ai.output.messages"]
    assert len(found["gen_ai.output.messages"]) < 64 * 1024
    assert found["pointsman.content_left_out"] is True
