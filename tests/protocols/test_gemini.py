import json
from collections.abc import Callable
from typing import Any

import pytest

from pointsman.protocols import Reader, Usage

PATH = "/v1beta/models/m:streamGenerateContent"


def chunk(*parts: dict[str, Any], reason: str | None = None, **usage: Any) -> dict[str, Any]:
    candidate = {"content": {"parts": list(parts)}, "finishReason": reason}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}


FIRST = chunk({"text": "a"}, promptTokenCount=10, totalTokenCount=10)
LAST = chunk(
    reason="STOP",
    promptTokenCount=10,
    candidatesTokenCount=3,
    thoughtsTokenCount=4,
    cachedContentTokenCount=2,
    totalTokenCount=17,
)
COUNTS = Usage(10, 7, 17, cached_tokens=2, reasoning_tokens=4)


@pytest.mark.parametrize(
    ("body", "event_stream"),
    [
        (json.dumps([FIRST, LAST], indent=2).encode(), False),
        (
            b"".join(b"data: " + json.dumps(c).encode() + b"\r\n\r\n" for c in (FIRST, LAST)),
            True,
        ),
        (json.dumps(LAST).encode(), False),
    ],
)
def test_the_last_usage_counts_in_each_shape_of_the_answer(
    read: Callable[..., Reader], body: bytes, event_stream: bool
) -> None:
    reader = read(PATH, body, event_stream=event_stream)
    assert reader.usage == COUNTS
    assert (reader.model, reader.finish_reason, reader.complete) == ("m", "STOP", True)


def test_what_tools_bring_in_is_part_of_the_prompt(read: Callable[..., Reader]) -> None:
    usage = {
        "promptTokenCount": 147,
        "toolUsePromptTokenCount": 360,
        "candidatesTokenCount": 108,
        "thoughtsTokenCount": 168,
        "totalTokenCount": 783,
    }
    reader = read(PATH, json.dumps({"usageMetadata": usage}).encode())
    assert reader.usage == Usage(507, 276, 783, reasoning_tokens=168)


def test_a_stream_cut_short_is_partial_and_not_complete(read: Callable[..., Reader]) -> None:
    body = b"data: " + json.dumps(FIRST).encode() + b"\r\n\r\n"
    reader = read(PATH, body, event_stream=True)
    assert (reader.usage, reader.complete, reader.content_started) == (
        Usage(10, None, 10),
        False,
        True,
    )


@pytest.mark.parametrize("body", [b'{"error":{"code":404}}', b'[{"error":{"code":404}}]'])
def test_an_error_has_failed(read: Callable[..., Reader], body: bytes) -> None:
    reader = read(PATH, body)
    assert (reader.failed, reader.content_started) == (True, False)


def test_a_blocked_prompt_ends_with_its_reason(read: Callable[..., Reader]) -> None:
    reader = read(PATH, b'{"promptFeedback":{"blockReason":"SAFETY"}}')
    assert (reader.finish_reason, reader.content_started) == ("SAFETY", False)


@pytest.mark.parametrize(
    ("part", "starts"),
    [
        ({"text": "a"}, True),
        ({"text": "a", "thought": True}, True),
        ({"functionCall": {"name": "f"}}, True),
        ({"text": "", "thoughtSignature": "s"}, False),
    ],
)
def test_content_starts_with_the_first_part_that_brings_something(
    read: Callable[..., Reader], part: dict[str, Any], starts: bool
) -> None:
    assert read(PATH, json.dumps(chunk(part)).encode()).content_started is starts


@pytest.mark.parametrize(
    "body",
    [b"[1]", b'{"candidates":[1,{"content":[]}],"usageMetadata":[1]}', b'{"candidates":{}}', b"x"],
)
def test_odd_types_are_unknown_and_no_error(read: Callable[..., Reader], body: bytes) -> None:
    reader = read(PATH, body)
    assert (reader.usage, reader.finish_reason, reader.content_started) == (None, None, False)
