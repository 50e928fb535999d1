"""What was said, as OpenTelemetry's conventions shape it: of every API, bounded, never raising."""

import base64
import gzip
import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.protocols import detect
from pointsman.protocols.api import named
from pointsman.telemetry.content import MAX_BODY, Content, Kept, Room
from pointsman.viewing.genai import LEFT_OUT, MAX_ATTRIBUTE, answered, asked, attributes
from tests.viewing.conftest import ALL, CASES, Case

EVERY = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
CHAT = named("openai-chat")
INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
SYSTEM, TOOLS = "gen_ai.system_instructions", "gen_ai.tool.definitions"


def told(case: Case, request: bytes, response: bytes) -> dict[str, Any]:
    api = detect("POST", case.path)
    assert api is not None
    found = asked(request, api) | answered(response, api, event_stream=case.event_stream)
    return {name: json.loads(value) for name, value in found.items()}


def content(
    request: bytes | None, answer: bytes = b"", *, coding: str = "", event_stream: bool = False
) -> Content:
    kept = Kept(Room())
    kept.add(answer)
    return Content("openai-chat", request, len(request or b""), coding, kept, coding, event_stream)


def asked_chat(data: bytes) -> str:
    assert CHAT is not None
    return asked(data, CHAT)[INPUT]


def chat(*said: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": each} for each in said]}).encode()


def assert_parts(parts: list[Any]) -> None:
    assert isinstance(parts, list)
    for part in parts:
        assert isinstance(part["type"], str)
        match part["type"]:
            case "text" | "reasoning":
                assert isinstance(part["content"], str)
            case "tool_call" if "content" not in part:
                assert isinstance(part["name"], str)
                assert "arguments" in part
            case "tool_call_response" if "content" not in part:
                assert "response" in part
            case "blob" | "file" | "uri":
                # The schemas ask more of these; they are told of in words here.
                assert "content" in part


def assert_shaped(found: dict[str, Any]) -> None:
    """Assert what the conventions' schemas ask for."""
    assert found.keys() <= {INPUT, OUTPUT, SYSTEM, TOOLS}
    for message in found.get(INPUT, []) + found.get(OUTPUT, []):
        assert isinstance(message["role"], str)
        assert_parts(message["parts"])
    for message in found.get(OUTPUT, []):
        assert isinstance(message["finish_reason"], str)
    assert_parts(found.get(SYSTEM, []))
    for tool in found.get(TOOLS, []):
        assert isinstance(tool["type"], str)
        assert isinstance(tool["name"], str)


@EVERY
def test_what_an_exchange_says(case: Case) -> None:
    """After a wanted change, run with `WRITE_GOLDEN=1` and read the difference."""
    found = told(case, case.request, case.response)
    assert_shaped(found)
    golden = CASES / f"{case.name}.genai"
    if os.environ.get("WRITE_GOLDEN"):
        golden.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(golden.read_text(encoding="utf-8"))


@EVERY
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_whatever_stands_in_a_body_the_shape_stays(case: Case, data: st.DataObject) -> None:
    def mutilated(body: bytes) -> bytes:
        at = data.draw(st.integers(0, len(body)))
        if data.draw(st.booleans()):
            return body[:at]
        return body[:at] + data.draw(st.binary(max_size=8)) + body[at + 3 :]

    assert_shaped(told(case, mutilated(case.request), mutilated(case.response)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@EVERY
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_members_of_any_type_keep_the_shape(case: Case, data: st.DataObject) -> None:
    def spoilt(value: Any) -> Any:
        if data.draw(st.integers(0, 9)) == 0:
            return data.draw(VALUES)
        if isinstance(value, dict):
            return {name: spoilt(item) for name, item in value.items()}
        return [spoilt(item) for item in value] if isinstance(value, list) else value

    request = json.dumps(spoilt(json.loads(case.request))).encode()
    answer = case.response
    if not case.event_stream and case.response[:1] == b"{":
        answer = json.dumps(spoilt(json.loads(case.response))).encode()
    assert_shaped(told(case, request, answer))


def test_a_value_that_utf8_can_not_hold_is_told() -> None:
    request = rb'{"messages": [{"role": "user", "content": "a \ud800 b", "x": NaN}]}'
    (message,) = json.loads(asked_chat(request))
    assert message["parts"] == [{"type": "text", "content": "a \ufffd b"}]
    huge = rb'{"messages": [{"role": "user", "content": 123456789012345678901234567890}]}'
    assert_shaped({INPUT: json.loads(asked_chat(huge))})


def test_images_are_told_by_type_and_size_never_as_base64() -> None:
    data = base64.b64encode(os.urandom(3000)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    found = asked_chat(chat([part, {"type": "text", "text": f"see {data}"}]))
    assert "image/png, 3.0 kB" in found
    assert data[:40] not in found


def test_the_last_messages_of_a_long_conversation_are_kept() -> None:
    found = asked_chat(chat(*(f"{number} " + "x " * 2500 for number in range(100))))
    messages = json.loads(found)
    assert len(found) < MAX_ATTRIBUTE + 200
    assert messages[-1]["parts"][0]["content"].startswith("99 ")
    assert messages[0]["role"] == "omitted"
    assert messages[0]["parts"][0]["content"] == f"{100 - len(messages) + 1} messages"


def test_the_last_parts_of_a_long_message_are_kept() -> None:
    texts = [{"type": "text", "text": f"{number} " + "x " * 2500} for number in range(100)]
    found = asked_chat(chat(texts))
    ((first, *rest),) = (message["parts"] for message in json.loads(found))
    assert len(found) < MAX_ATTRIBUTE + 200
    assert first == {"type": "omitted", "content": f"{100 - len(rest)} parts"}
    assert rest[-1]["content"].startswith("99 ")


def test_a_text_is_cut_in_its_middle() -> None:
    found = asked_chat(chat("begin " + "x " * 500_000 + " end"))
    assert len(found) < MAX_ATTRIBUTE
    (message,) = json.loads(found)
    assert message["parts"][0]["content"].startswith("begin ")
    assert message["parts"][0]["content"].endswith(" end")


def test_compressed_bodies_are_read() -> None:
    answer = json.dumps({"choices": [{"message": {"content": "Hello"}}]}).encode()
    given = content(gzip.compress(chat("Hi")), gzip.compress(answer), coding="gzip")
    found = attributes(given)
    assert json.loads(str(found[INPUT]))[0]["parts"][0]["content"] == "Hi"
    assert json.loads(str(found[OUTPUT]))[0]["parts"][0]["content"] == "Hello"


def test_a_compressed_stream_that_was_cut_is_read_up_to_there() -> None:
    event = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hello"}}]}
    stream = gzip.compress(b"data: " + json.dumps(event).encode() + b"\n\n" + os.urandom(999))
    found = attributes(content(b"", stream[:-300], coding="gzip", event_stream=True))
    assert json.loads(str(found[OUTPUT]))[0]["parts"] == [{"type": "text", "content": "Hello"}]


@pytest.mark.parametrize(
    ("request_body", "coding"),
    [(b"{", ""), (b"not gzip", "gzip"), (gzip.compress(b" " * (MAX_BODY + 1)), "gzip")],
)
def test_a_request_that_can_not_be_read_is_told_by_its_size(
    request_body: bytes, coding: str
) -> None:
    (message,) = json.loads(str(attributes(content(request_body, coding=coding))[INPUT]))
    assert message["role"] == "omitted"
    assert message["parts"][0]["content"].endswith(" B, not read") or "kB" in str(message)


def test_an_answer_that_was_not_kept_whole_is_marked() -> None:
    given = content(chat("Hi"))
    given.kept.add(b"x" * (MAX_BODY + 1))
    assert attributes(given)[LEFT_OUT] is True
