"""Bodies of anyone: cut short, broken, huge, of no API at all. Nothing raises, all is bounded."""

import base64
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.protocols import detect
from pointsman.protocols.api import named
from pointsman.protocols.sse import MAX_EVENT, Parser
from pointsman.viewing import openai_responses
from pointsman.viewing.bodies import (
    MAX_STREAM,
    asks,
    guess,
    is_event_stream,
    says,
    show_answer,
    show_request,
)
from pointsman.viewing.outline import MAX_OUTPUT
from pointsman.viewing.route import Difference, Way
from tests.viewing.conftest import ALL, Case

CHAT = detect("POST", "/v1/chat/completions")
assert CHAT is not None
BY_NAME = {case.name: case for case in ALL}
CASES = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)


def both(case: Case, request: bytes, response: bytes) -> None:
    for text in (case.show_request(request), case.show_answer(response)):
        assert isinstance(yaml.safe_load(text), dict)


@CASES
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_body_that_is_cut_or_changed_anywhere_is_still_shown(
    case: Case, data: st.DataObject
) -> None:
    def mutilated(body: bytes) -> bytes:
        at = data.draw(st.integers(0, len(body)))
        if data.draw(st.booleans()):
            return body[:at]
        return body[:at] + data.draw(st.binary(max_size=8)) + body[at + 3 :]

    both(case, mutilated(case.request), mutilated(case.response))


@CASES
@settings(deadline=None, max_examples=20)
@given(body=st.binary(max_size=300))
def test_random_bytes_are_shown(case: Case, body: bytes) -> None:
    both(case, body, body)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@CASES
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_members_of_any_type_are_shown(case: Case, data: st.DataObject) -> None:
    """The shape is the API's, and any value in it may be something else."""

    def spoilt(value: Any) -> Any:
        if data.draw(st.integers(0, 9)) == 0:
            return data.draw(VALUES)
        if isinstance(value, dict):
            return {name: spoilt(item) for name, item in value.items()}
        return [spoilt(item) for item in value] if isinstance(value, list) else value

    request = json.dumps(spoilt(json.loads(case.request))).encode()
    if case.event_stream:
        lines = [line for line in case.response.decode().split("\n\n") if "{" in line]
        chunks = [_json(line[line.index("{") :]) for line in lines]
        response = "".join(f"data: {json.dumps(spoilt(one))}\n\n" for one in chunks).encode()
    else:
        response = json.dumps(spoilt(_json(case.response.decode()))).encode()
    both(case, request, response)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- size -----------------------------------------------------------------------------------------

MEGABYTES = 16 * 1024 * 1024


# Made when they are used: together they are 100 MB.
HUGE: dict[str, Callable[[], bytes]] = {
    "empties": lambda: b'{"messages":[' + b"{}," * (MEGABYTES // 3) + b"{}]}",
    "deep": lambda: b'{"messages":' + b"[" * MEGABYTES,
    "names": lambda: b"{" + b",".join(b'"%d":1' % n for n in range(1_000_000)) + b"}",
    "lines": lambda: b'{"messages":[{"content":"' + b"\\n" * (MEGABYTES // 2) + b'"}]}',
    "messages": lambda: json.dumps({"messages": [{"content": "word " * 500}] * 6000}).encode(),
    "json": lambda: json.dumps({"messages": [], "x": [[["y" * 50] * 100] * 100] * 20}).encode(),
    "zeros": lambda: bytes(MEGABYTES),
    "events": lambda: b"data: 1\n\n" * (MEGABYTES // 9),
    "newlines": lambda: b"\n" * MEGABYTES,
}


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_body_is_shown_in_bounds(name: str) -> None:
    body = HUGE[name]()
    assert len(show_request(body, CHAT)) <= MAX_OUTPUT + 1000
    for event_stream in (False, True):
        assert len(show_answer(body, CHAT, event_stream=event_stream)) <= MAX_OUTPUT + 1000


def test_of_a_huge_stream_the_text_is_shown_in_part_and_the_usage_still() -> None:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunk = {**head, "choices": [{"index": 0, "delta": {"content": "word "}}]}
    event = f"data: {json.dumps(chunk)}\n\n".encode()
    usage = {"prompt_tokens": 1, "completion_tokens": 99, "total_tokens": 100}
    end = f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()
    body = event * (2 * MAX_STREAM // len(event)) + end
    shown = yaml.safe_load(show_answer(body, CHAT, event_stream=True))
    assert "in the first 4.2 MB of 8.4 MB" in shown["stream"]
    assert shown["usage"]["completion"] == 99
    assert "characters left out" in shown["answer"][0]["assistant"]


def deltas(*made: tuple[str, int, str]) -> bytes:
    """Return a stream of deltas to one item of a response: kind, place, text."""
    events = (
        {"type": f"response.{kind}.delta", "output_index": 0, "content_index": place, "delta": said}
        for kind, place, said in made
    )
    return b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events)


def test_a_stream_that_names_ever_new_places_is_put_together_in_bounds() -> None:
    body = deltas(*(("output_text", place, "x") for place in range(30_000)))
    (item,) = openai_responses.fold(Parser().feed(body))["output"]
    assert len(item["content"]) == 2000


def test_the_parts_of_an_item_come_in_the_order_of_their_places() -> None:
    body = deltas(("output_text", 1, "sec"), ("refusal", 0, "no"), ("output_text", 1, "ond"))
    api = named("openai-responses")
    assert yaml.safe_load(show_answer(body, api, event_stream=True))["answer"] == [
        {"assistant": [{"refusal": "no"}, "second"]}
    ]


def test_of_many_candidates_the_first_are_shown() -> None:
    candidates = [{"index": n, "content": {"parts": [{"text": f"{n}"}]}} for n in range(10_000)]
    body = json.dumps({"candidates": candidates}).encode()
    shown = yaml.safe_load(show_answer(body, named("gemini"), event_stream=False))
    assert shown["answer"] == [{"model": [str(n) for n in range(50)]}]


@pytest.mark.parametrize("place", ["image", "text", "args"])
def test_no_encoded_data_is_dumped(place: str) -> None:
    data = base64.b64encode(os.urandom(60_000)).decode()
    content: dict[str, Any] = {
        "image": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}],
        "text": f"see {data} there",
        "args": [{"type": "other", "deep": [{"data": data}]}],
    }
    body = json.dumps({"messages": [{"role": "user", "content": content[place]}]}).encode()
    shown = show_request(body, CHAT)
    assert data[100:150] not in shown
    assert "60.0 kB" in shown or "80,000 characters of encoded data" in shown


def test_no_encoded_lines_are_dumped() -> None:
    mail = base64.encodebytes(os.urandom(6_000)).decode()
    body = json.dumps({"messages": [{"role": "user", "content": f"decode:\n{mail}please"}]})
    shown = show_request(body.encode(), CHAT)
    assert mail.splitlines()[1] not in shown
    assert "8,000 characters of encoded data in lines" in shown
    assert "please" in shown


def test_of_many_messages_the_first_and_the_last_are_shown() -> None:
    messages = [{"role": "user", "content": f"number {n}"} for n in range(1000)]
    shown = show_request(json.dumps({"messages": messages}).encode(), CHAT)
    said = yaml.safe_load(shown)["conversation"]
    assert [said[0], said[20], said[-1]] == [
        {"user": "number 0"},
        "… 800 left out …",
        {"user": "number 999"},
    ]


# --- oddities -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", {"body": "(empty)"}),
        (b"\x00\x01", {"body": "2 B of binary data"}),
        (b"\xff\xfe", {"body": "2 B of binary data"}),
        (b'{"messages": [', {"body": "14 B, not whole JSON", "text": '{"messages": ['}),
        (b"[1, 2]", {"body": [1, 2]}),
    ],
)
def test_what_is_no_request_is_shown_as_it_is(body: bytes, shown: object) -> None:
    told = yaml.safe_load(show_request(body, CHAT))
    assert {name: item.rstrip() if name == "text" else item for name, item in told.items()} == shown


def test_what_python_clients_send_is_read() -> None:
    body = b'{"messages": [{"role": "user", "content": "cut \\ud83d"}], "top_p": NaN}'
    shown = yaml.safe_load(show_request(body, CHAT))
    assert shown["conversation"] == [{"user": "cut \ufffd"}]


def test_an_answer_of_another_shape_is_shown_as_json() -> None:
    shown = yaml.safe_load(show_answer(b'{"detail": "Not Found"}', CHAT, event_stream=False))
    assert shown == {"body": {"detail": "Not Found"}}


def test_of_many_parameters_the_model_and_how_many_more_are_shown() -> None:
    body = {f"p{n}": n for n in range(60)} | {"messages": [], "model": "m", "stream": True}
    shown = yaml.safe_load(show_request(json.dumps(body).encode(), CHAT))
    assert (shown["model"], shown["stream"]) == ("m", True)
    assert list(shown["parameters"])[-2:] == ["p47", "… 12 more"]


def test_a_request_to_gemini_has_the_model_of_its_path_and_a_system_whatever_its_role() -> None:
    body = {
        "systemInstruction": {"role": "user", "parts": [{"text": "Be brief."}]},
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
    }
    path = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
    given = show_request(json.dumps(body).encode(), named("gemini"), path=path)
    shown = yaml.safe_load(given)
    assert (shown["model"], shown["stream"]) == ("gemini-2.5-flash", True)
    assert shown["conversation"] == [{"system": "Be brief."}, {"user": "Hi"}]


def test_items_of_tools_have_the_role_of_who_made_them() -> None:
    items = [{"type": "tool_search_call"}, {"type": "tool_search_output"}]
    shown = yaml.safe_load(
        show_request(json.dumps({"input": items}).encode(), detect("POST", "/v1/responses"))
    )
    assert [list(said) for said in shown["conversation"]] == [["assistant"], ["tool"]]


def test_rewritten_fields_are_marked() -> None:
    way = Way(
        summary="all → p",
        body=[
            Difference("model", '"gpt-4o"', '"qwen"'),
            Difference("max_tokens", None, "100"),
            Difference("stream_options", '{"a":1}', None),
        ],
        usage={"prompt": 3},
        finish_reason="stop",
        cost_usd=0.5,
    )
    case = BY_NAME["openai-chat-stream"]
    request = yaml.safe_load(case.show_request(way=way))
    assert request["model"] == "gpt-4o → qwen"
    assert request["parameters"]["max_tokens"] == "(absent) → 100"
    assert request["parameters"]["stream_options"].strip() == '{"a":1} → (removed)'
    assert request["route"]["rewritten"]["body"]["model"] == "gpt-4o → qwen"
    # What was taken out of the stream again is known from the record.
    bare = yaml.safe_load(case.show_answer(b'data: {"choices": []}\n\n', way=way))
    assert (bare["route"], bare["usage"]) == ("all → p", {"prompt": 3})
    assert (bare["finish"], bare["cost"]) == ("stop", "$0.500000")


def test_a_cut_body_says_so() -> None:
    text = show_answer(b"data: x\n\n", CHAT, event_stream=True, whole_size=20_000_000)
    assert yaml.safe_load(text)["cut"] == "the first 9 B of 20.0 MB were kept"


# --- whose body it is -----------------------------------------------------------------------------


@CASES
def test_the_apis_know_their_own_bodies(case: Case) -> None:
    api = detect("POST", case.path)
    assert api is not None
    assert asks(api, case.request)
    assert says(api, case.response, event_stream=case.event_stream)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"name": "x"}', b"<html>", b"[]", b"[1]", b'"x"'])
def test_other_bodies_are_not_theirs(body: bytes) -> None:
    assert not asks(CHAT, body)  # type: ignore[arg-type]
    assert not says(CHAT, body, event_stream=False)  # type: ignore[arg-type]
    assert guess(body) is None


@pytest.mark.parametrize(
    ("name", "api"),
    [
        ("openai-chat", "openai-chat"),
        ("gemini", "gemini"),
        ("openai-responses", "openai-responses"),
        ("openai-completions", "openai-completions"),
    ],
)
def test_an_api_without_its_path_is_guessed_by_the_body(name: str, api: str) -> None:
    assert guess(BY_NAME[name].request) is named(api)
    assert named(api) is not None


def test_event_streams_are_known_by_type_or_start() -> None:
    assert is_event_stream("text/event-stream", b"")
    assert is_event_stream("text/plain", b"\ndata: {}")
    assert is_event_stream(None, b"event: x\ndata: {}")
    assert not is_event_stream("application/json", b'{"data": 1}')


@pytest.mark.parametrize("blank", ["\n\n", "\r\n\r\n"])
def test_an_event_that_is_too_large_is_told(blank: str) -> None:
    image = {"choices": [{"index": 0, "delta": {"content": "x" * (MAX_EVENT + 1)}}]}
    small = {"choices": [{"index": 0, "delta": {"content": "before"}}]}
    large = f"data: {json.dumps(image)}{blank}"
    shown = show_answer(large.encode(), CHAT, event_stream=True)
    assert "stream: 0 events, then one of 4.2 MB, too large to read" in shown
    assert "body: (nothing that could be read)" in shown
    both = f"data: {json.dumps(small)}{blank}{large}data: [DONE]{blank}"
    shown = show_answer(both.encode(), CHAT, event_stream=True)
    assert "assistant: before" in shown
    assert "too large to read" in shown
    fits = large.replace("x" * (MAX_EVENT + 1), "x" * (MAX_EVENT - 200))
    assert "too large" not in show_answer(fits.encode(), CHAT, event_stream=True)
