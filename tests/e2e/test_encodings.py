"""Compressed requests are patched in the clear; compressed answers pass as they are."""

import gzip
import json
import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard

from pointsman.demo.openai_answers import Answer, dump
from pointsman.demo.openai_answers import chat as chat_answer
from pointsman.demo.provider import Reply
from tests.e2e.harness import Far, Proxy, assert_entry, assert_refused, chat, said

pytestmark = pytest.mark.e2e

URL = "https://dashscope.aliyuncs.com/v1/chat/completions"
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "br": brotli.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "deflate": zlib.compress,
}
ANSWER = dump(chat_answer(Answer("chatcmpl-1", 1, "qwen-turbo", "one two three", 5))).encode()


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_compressed_request_is_patched_in_the_clear(
    pointsman: Proxy, dashscope: Far, encoding: str
) -> None:
    body = ENCODERS[encoding](json.dumps(chat(model="mine")).encode())
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    with pointsman.client() as client:
        assert said(client.post(URL, content=body, headers=headers))
    call = dashscope.call()
    assert call.json() == chat(model="qwen1.5-72b-chat")
    assert call.header("content-encoding") is None
    assert call.header("content-length") == str(len(call.body))
    assert_entry(pointsman.entry(), client_model="mine", request_bytes=len(body))


def test_a_compressed_request_that_needs_no_patch_stays_compressed(
    pointsman: Proxy, openai: Far
) -> None:
    body = gzip.compress(json.dumps(chat(model="m")).encode())
    with pointsman.client(headers={"content-encoding": "gzip"}) as client:
        client.post("https://api.openai.com/v1/chat/completions", content=body)
    call = openai.call()
    assert call.body == body
    assert call.header("content-encoding") == "gzip"
    assert_entry(pointsman.entry(), request_model="m")


def test_a_small_body_that_unpacks_to_a_large_one_is_refused(
    pointsman: Proxy, dashscope: Far
) -> None:
    body = gzip.compress(b" " * (64 * 1024 + 1))
    with pointsman.client(headers={"content-encoding": "gzip"}) as client:
        assert_refused(client.post(URL, content=body), 413, "body_too_large")
    dashscope.calls(0)
    assert_entry(pointsman.entry(), status=413, flags=["DPE"], attempts=[])


@pytest.mark.parametrize(
    ("encoding", "body"), [("compress", b"{}"), ("gzip", b"not gzip"), ("br", b"\x00\x01not br")]
)
def test_what_cannot_be_decoded_is_refused(
    pointsman: Proxy, dashscope: Far, encoding: str, body: bytes
) -> None:
    with pointsman.client(headers={"content-encoding": encoding}) as client:
        assert_refused(client.post(URL, content=body), 415, "unsupported_encoding")
    dashscope.calls(0)
    assert_entry(pointsman.entry(), status=415, flags=["DPE"])


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_compressed_answer_passes_as_it_is_and_is_counted(
    pointsman: Proxy, dashscope: Far, encoding: str
) -> None:
    packed = ENCODERS[encoding](ANSWER)
    headers = [("content-type", "application/json"), ("content-encoding", encoding)]
    dashscope.provider.replies.append(Reply(200, headers, packed))
    with pointsman.client() as client, client.stream("POST", URL, json=chat()) as answer:
        got = b"".join(answer.iter_raw())
    assert got == packed
    assert answer.headers["content-encoding"] == encoding
    assert answer.headers["content-length"] == str(len(packed))
    assert dashscope.call().header("accept-encoding") == "gzip, deflate, br, zstd"
    assert_entry(
        pointsman.entry(),
        request_prompt_tokens=5,
        request_completion_tokens=3,
        response_model="qwen-turbo",
        response_bytes=len(packed),
    )


def test_a_compressed_stream_passes_as_it_is(pointsman: Proxy, accounted: Far) -> None:
    events = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":1}}\n\n'
    packed = gzip.compress(events + b"data: [DONE]\n\n")
    headers = [("content-type", "text/event-stream"), ("content-encoding", "gzip")]
    accounted.provider.replies.append(Reply(200, headers, [packed[:20], packed[20:]]))
    url = "https://accounted.example/v1/chat/completions"
    with pointsman.client() as client, client.stream("POST", url, json=chat()) as answer:
        assert b"".join(answer.iter_raw()) == packed
    assert_entry(pointsman.entry(), request_prompt_tokens=2, usage_source="response")
