import json
from collections.abc import Callable
from typing import Any

import pytest

from pointsman.protocols import Reader, Usage

PATH = "/v1/messages"


def stream(*events: dict[str, Any]) -> bytes:
    return b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events
    )


def start(**usage: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {"model": "m", "content": [], "usage": usage}}


def delta(reason: str | None, **usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


STOP = {"type": "message_stop"}


def test_the_prompt_includes_what_was_read_from_and_written_to_the_cache(
    read: Callable[..., Reader],
) -> None:
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 1000,
        "output_tokens": 5,
        "service_tier": "standard",
    }
    reader = read(PATH, json.dumps({"type": "message", "model": "m", "usage": usage}).encode())
    assert reader.usage == Usage(1110, 5, 1115, cached_tokens=100, cache_write_tokens=1000)


def test_a_streams_usage_is_put_together_from_its_parts(read: Callable[..., Reader]) -> None:
    body = stream(
        start(input_tokens=10, cache_read_input_tokens=100, output_tokens=1),
        delta("end_turn", output_tokens=50),
        STOP,
    )
    reader = read(PATH, body, event_stream=True)
    assert reader.usage == Usage(110, 50, 160, cached_tokens=100)
    assert (reader.model, reader.finish_reason, reader.complete) == ("m", "end_turn", True)


def test_input_reported_again_replaces_what_was_reported_first(
    read: Callable[..., Reader],
) -> None:
    body = stream(start(input_tokens=0, output_tokens=1), delta(None, input_tokens=7))
    assert read(PATH, body, event_stream=True).usage == Usage(7, 1, 8)


def test_a_stream_cut_short_has_the_usage_reported_so_far(read: Callable[..., Reader]) -> None:
    reader = read(PATH, stream(start(input_tokens=10, output_tokens=1)), event_stream=True)
    assert (reader.usage, reader.complete) == (Usage(10, 1, 11), False)


def test_a_prompt_without_input_tokens_is_unknown(read: Callable[..., Reader]) -> None:
    reader = read(PATH, stream(start(cache_read_input_tokens=9)), event_stream=True)
    assert reader.usage == Usage(cached_tokens=9)


def test_an_error_event_has_failed(read: Callable[..., Reader]) -> None:
    body = stream({"type": "error", "error": {"type": "overloaded_error"}})
    reader = read(PATH, body, event_stream=True)
    assert (reader.failed, reader.content_started, reader.complete) == (True, False, False)


@pytest.mark.parametrize(
    ("event", "starts"),
    [
        ({"type": "ping"}, False),
        (start(input_tokens=1), False),
        ({"type": "content_block_start", "content_block": {"type": "text", "text": ""}}, False),
        (
            {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}},
            False,
        ),
        ({"type": "content_block_start", "content_block": {"type": "tool_use", "id": "t"}}, True),
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}, True),
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": ""}}, False),
        (
            {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "a"}},
            True,
        ),
        (
            {
                "type": "content_block_delta",
                "delta": {"type": "input_json_delta", "partial_json": "{"},
            },
            True,
        ),
        (delta("end_turn", output_tokens=0), False),
        (STOP, False),
    ],
)
def test_content_starts_with_the_first_block_that_brings_something(
    read: Callable[..., Reader], event: dict[str, Any], starts: bool
) -> None:
    assert read(PATH, stream(event), event_stream=True).content_started is starts


@pytest.mark.parametrize(
    "body",
    [b"[]", b'{"usage":[],"content":"x","message":1,"delta":2}', b'{"usage":{"input_tokens":"1"}}'],
)
def test_odd_types_are_unknown_and_no_error(read: Callable[..., Reader], body: bytes) -> None:
    assert read(PATH, body).usage is None
    assert read(PATH, b"data: " + body, event_stream=True).usage is None
