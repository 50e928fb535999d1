"""Streams: passed as they come, counted beside, and to the client as if no one had counted."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pointsman.demo.openai_answers import Answer, chat_events, dump
from pointsman.demo.provider import Call, Reply
from tests.e2e.conftest import StartFar, StartProxy
from tests.e2e.harness import (
    Far,
    Json,
    Proxy,
    assert_entry,
    chat,
    openai_config,
    sse,
    write_rules,
)

pytestmark = pytest.mark.e2e

URL = "https://api.openai.com/v1/chat/completions"
ANSWER = Answer("chatcmpl-1", 1_700_000_000, "small", "Four words are here", 3)
MANY = 1500  # pieces, some ten seconds of them: more than any client waits for its first


def asks_for_usage(call: Call) -> bool:
    options: Json = call.json().get("stream_options") or {}
    return options.get("include_usage") is True


def same_answer(call: Call) -> Reply:
    """Answer each call with the same ids, so that two streams can be compared byte for byte."""
    return Reply.stream(chat_events(ANSWER, include_usage=asks_for_usage(call)))


class UntilSeen:
    """A stream that goes on until the client has had its first event."""

    def __init__(self) -> None:
        self.seen = threading.Event()
        self.ended_by_client = False

    def pieces(self) -> Iterator[bytes]:
        first, second, *_, last, done = chat_events(ANSWER, include_usage=False)
        yield first.encode()
        for _ in range(MANY):
            if self.seen.is_set():
                self.ended_by_client = True
                break
            yield second.encode()
        yield last.encode()
        yield done.encode()

    def reply(self) -> Reply:
        headers = [("content-type", "text/event-stream")]
        return Reply(headers=headers, body=self.pieces(), chunk_delay=0.005)


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_an_event_is_at_the_client_before_the_last_one_is_sent(
    pointsman: Proxy, openai: Far, http2: bool
) -> None:
    stream = UntilSeen()
    openai.provider.replies.append(stream.reply())
    with (
        pointsman.client(http2=http2) as client,
        client.stream("POST", URL, json=chat(model="small", stream=True)) as answer,
    ):
        pieces = answer.iter_raw()
        first = next(pieces)
        stream.seen.set()
        rest = b"".join(pieces)
    assert stream.ended_by_client
    assert sse(first + rest)[0]["choices"][0]["delta"]["role"] == "assistant"
    entry = pointsman.entry()
    assert_entry(entry, stream=True, finish_reason="stop", usage_source=None)
    assert entry["time_to_first_token_ms"] < entry["duration_ms"]


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_counting_is_invisible(pointsman: Proxy, openai: Far, http2: bool) -> None:
    """The client's bytes are those of a stream that nobody has asked for its usage."""
    openai.provider.script = same_answer
    body = chat(model="small", stream=True)
    direct = openai.ask(body)
    with pointsman.client(http2=http2) as client:
        routed = client.post(URL, json=body)

    assert routed.content == direct.content
    assert b"usage" not in routed.content
    assert routed.headers["content-type"] == direct.headers["content-type"]
    assert [asks_for_usage(call) for call in openai.calls(2)] == [False, True]
    assert_entry(
        pointsman.entry(),
        stream=True,
        request_prompt_tokens=3,
        request_completion_tokens=4,
        total_tokens=7,
        usage_source="response",
        finish_reason="stop",
        response_bytes=len(direct.content),
    )


def test_a_client_that_asks_for_usage_gets_it(pointsman: Proxy, openai: Far) -> None:
    openai.provider.script = same_answer
    body = chat(model="small", stream=True, stream_options={"include_usage": True})
    direct = openai.ask(body)
    with pointsman.client() as client:
        routed = client.post(URL, json=body)

    assert routed.content == direct.content
    assert sse(routed.content)[-1]["usage"]["total_tokens"] == 7
    assert [call.json() for call in openai.calls(2)] == [body, body]
    assert_entry(pointsman.entry(), total_tokens=7, usage_source="response")


def test_other_stream_options_stay(pointsman: Proxy, openai: Far) -> None:
    openai.provider.script = same_answer
    options = {"include_usage": False, "include_obfuscation": False}
    with pointsman.client() as client:
        routed = client.post(URL, json=chat(model="m", stream=True, stream_options=options))
    assert b"usage" not in routed.content
    assert openai.call().json()["stream_options"] == {**options, "include_usage": True}
    assert_entry(pointsman.entry(), total_tokens=7)


def test_a_stream_of_a_provider_without_configs_is_left_alone(
    pointsman: Proxy, accounted: Far
) -> None:
    accounted.provider.script = same_answer
    body = chat(model="small", stream=True)
    with pointsman.client(headers={"authorization": "Bearer own"}) as client:
        routed = client.post("https://accounted.example/v1/chat/completions", json=body)
    assert sse(routed.content)
    call = accounted.call()
    assert call.json() == body
    assert call.header("authorization") == "Bearer own"
    assert_entry(pointsman.entry(), stream=True, usage_source=None, total_tokens=None)


INVOCATIONS = "/serving-endpoints/llama/invocations"  # where Databricks serves chat completions


@pytest.mark.parametrize("path", ["/", INVOCATIONS, "/v1/chat/completions"])
def test_counting_is_invisible_whatever_the_chat_endpoints_path(
    start_proxy: StartProxy, start_far: StartFar, tmp_path: Path, path: str
) -> None:
    far = start_far("odd", "odd.example")
    far.provider.script = same_answer
    rules = far.manifest(path=INVOCATIONS, configs=openai_config(model="small"))
    proxy = start_proxy(write_rules(tmp_path / "rules", rules))
    with proxy.client() as client:
        answer = client.post(f"http://odd.example{path}", json=chat(stream=True))
    call = far.call()
    assert call.path == INVOCATIONS
    assert asks_for_usage(call)
    assert answer.content == b"".join(e.encode() for e in chat_events(ANSWER, include_usage=False))
    assert_entry(
        proxy.entry(), request_prompt_tokens=3, request_completion_tokens=4, finish_reason="stop"
    )


def test_usage_in_a_stream_that_breaks_off_is_partial(pointsman: Proxy, openai: Far) -> None:
    *events, _done = chat_events(ANSWER, include_usage=True)
    openai.provider.replies.append(
        Reply(
            headers=[("content-type", "text/event-stream")],
            body=b"".join(event.encode() for event in events),
            drop="mid_body",
        )
    )
    got = bytearray()
    body = chat(model="small", stream=True, stream_options={"include_usage": True})

    def read() -> None:
        with pointsman.client() as client, client.stream("POST", URL, json=body) as answer:
            for piece in answer.iter_raw():
                got.extend(piece)

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    assert got.endswith(events[-1].encode())
    entry = pointsman.entry()
    assert_entry(entry, flags=["UC"], usage_source="partial", total_tokens=7, status=200)


# --- a provider that refuses to be asked ----------------------------------------------------------


@pytest.fixture
def refusing(start_far: StartFar) -> Far:
    """A provider that takes no `stream_options`."""
    far = start_far("refusing", "api.refusing.example", "MOONSHOT_API_KEY")

    def refuse(call: Call) -> Reply | None:
        if "stream_options" not in call.json():
            return None
        message = "Unrecognized request argument supplied: stream_options"
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        return Reply.json({"error": error}, 400)

    far.provider.script = refuse
    return far


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_a_provider_that_refuses_to_be_asked_is_asked_again_without(
    start_proxy: StartProxy, tmp_path: Path, refusing: Far, http2: bool
) -> None:
    proxy = start_proxy(write_rules(tmp_path / "rules", refusing.manifest()))
    url = f"https://{refusing.provider.host}/v1/chat/completions"
    body = chat(model="m", stream=True)
    with proxy.client(http2=http2) as client:
        first = client.post(url, json=body)
        assert first.status_code == 200
        assert sse(first.content)
        asked, again = refusing.calls(2)
        assert asks_for_usage(asked)
        assert again.json() == body
        entry = proxy.entry()
        assert [attempt["status"] for attempt in entry["attempts"]] == [400, 200]
        assert_entry(entry, status=200, flags=[], error=None, usage_source=None)

        assert sse(client.post(url, json=body).content)
        assert refusing.call().json() == body, "it is not asked a second time"
        assert len(proxy.entry()["attempts"]) == 1
    assert proxy.out.text().count("refuses to be asked for the usage of streams") == 1


def test_a_refusal_for_another_reason_reaches_the_client(
    start_proxy: StartProxy, tmp_path: Path, start_far: StartFar
) -> None:
    far = start_far("strict", "api.strict.example", "MOONSHOT_API_KEY")
    error = {"error": {"message": "no such model", "type": "invalid_request_error"}}
    far.provider.script = lambda _: Reply.json(error, 400, headers=[("x-reason", "model")])
    proxy = start_proxy(write_rules(tmp_path / "rules", far.manifest()))
    with proxy.client() as client:
        answer = client.post(
            "https://api.strict.example/v1/chat/completions", json=chat(model="x", stream=True)
        )
    assert answer.status_code == 400
    assert answer.content == dump(error).encode()
    assert answer.headers["x-reason"] == "model"
    assert "x-pointsman-error" not in answer.headers
    far.calls(2)
    assert_entry(proxy.entry(), status=400, flags=[], error=None)


def test_as_is_never_asks(start_proxy: StartProxy, tmp_path: Path, start_far: StartFar) -> None:
    far = start_far("plain", "api.plain.example")
    manifest = far.manifest(streamUsage="asIs", configs=openai_config(model="m"))
    proxy = start_proxy(write_rules(tmp_path / "rules", manifest))
    with proxy.client() as client:
        answer = client.post("http://api.plain.example", json=chat(stream=True))
    assert sse(answer.content)
    assert far.call().json() == chat(stream=True, model="m")
    assert_entry(proxy.entry(), usage_source=None, request_model="m")
