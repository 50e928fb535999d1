import json
from collections.abc import Callable
from typing import Any

import pytest

from pointsman.protocols import Reader, Usage, detect

PATH = "/v1/responses"
USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 15,
}
COUNTS = Usage(10, 5, 15, cached_tokens=4, cache_write_tokens=1, reasoning_tokens=2)


def stream(*events: dict[str, Any]) -> bytes:
    return b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events
    )


def ending(status: str, **members: Any) -> dict[str, Any]:
    response = {"model": "m", "status": status, "usage": USAGE, **members}
    return {"type": f"response.{status}", "response": response}


@pytest.mark.parametrize(
    ("event", "reason", "failed"),
    [
        (ending("completed"), "completed", False),
        (
            ending("incomplete", incomplete_details={"reason": "max_output_tokens"}),
            "max_output_tokens",
            False,
        ),
        (ending("failed", error={"code": "server_error"}), "failed", True),
    ],
)
def test_the_event_that_ends_a_response_has_its_usage(
    read: Callable[..., Reader], event: dict[str, Any], reason: str, failed: bool
) -> None:
    reader = read(PATH, stream(event), event_stream=True)
    assert reader.usage == COUNTS
    assert (reader.finish_reason, reader.failed, reader.complete) == (reason, failed, True)


def test_a_json_response_is_read_as_the_last_event_is(read: Callable[..., Reader]) -> None:
    body: dict[str, Any] = {
        "model": "m",
        "status": "completed",
        "error": None,
        "output": [{}],
        "usage": USAGE,
    }
    reader = read(PATH, json.dumps(body).encode())
    assert (reader.usage, reader.model, reader.finish_reason) == (COUNTS, "m", "completed")
    assert (reader.content_started, reader.failed, reader.complete) == (True, False, True)


def test_a_background_response_has_not_finished(read: Callable[..., Reader]) -> None:
    reader = read(PATH, b'{"model":"m","status":"queued","output":[],"usage":null}')
    assert (reader.usage, reader.finish_reason, reader.content_started) == (None, None, False)


def test_a_stream_cut_short_has_a_model_and_no_usage(read: Callable[..., Reader]) -> None:
    created = {"type": "response.created", "response": {"model": "m", "status": "in_progress"}}
    reader = read(PATH, stream(created), event_stream=True)
    assert (reader.model, reader.usage, reader.complete) == ("m", None, False)
    assert (reader.finish_reason, reader.content_started) == (None, False)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "code": "rate_limit_exceeded", "message": "slow down"},
        {"type": "error", "error": {"message": "slow down"}},
    ],
)
def test_an_error_event_has_failed(read: Callable[..., Reader], event: dict[str, Any]) -> None:
    reader = read(PATH, stream(event), event_stream=True)
    assert (reader.failed, reader.content_started) == (True, False)


def test_content_starts_with_a_delta_or_a_tool_call_and_not_with_an_envelope() -> None:
    api = detect("POST", PATH)
    assert api is not None

    def starts(event: dict[str, Any]) -> bool:
        reader = api.reader(event_stream=True)
        reader.feed(stream(event))
        assert reader.fault is None
        return reader.content_started

    added = "response.output_item.added"
    assert starts({"type": "response.output_text.delta", "delta": "a"})
    assert starts({"type": "response.reasoning_summary_text.delta", "delta": "a"})
    assert starts({"type": "response.refusal.delta", "delta": "a"})
    assert starts({"type": added, "item": {"type": "function_call"}})
    assert starts({"type": "response.image_generation_call.partial_image"})
    assert not starts({"type": "response.output_text.delta", "delta": ""})
    assert not starts({"type": added, "item": {"type": "message"}})
    assert not starts({"type": "response.in_progress", "response": {}})
    assert not starts({"type": "response.content_part.added", "part": {}})
    assert not starts({"type": "keepalive"})


@pytest.mark.parametrize(
    "event",
    [
        {"type": ["response.completed"], "response": 1},
        {"type": "response.completed", "response": []},
        {"type": "response.completed", "response": {"status": [], "usage": [], "model": 5}},
        {"type": "response.output_item.added", "item": {"type": {}}},
        {"type": "response.output_item.added", "item": "x"},
    ],
)
def test_odd_types_are_unknown_and_no_error(
    read: Callable[..., Reader], event: dict[str, Any]
) -> None:
    body = b"data: " + json.dumps(event).encode() + b"\n\n"
    reader = read(PATH, body, event_stream=True)
    assert (reader.usage, reader.model, reader.finish_reason) == (None, None, None)
