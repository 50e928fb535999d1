"""What all readers take: JSON that is odd."""

import json
import tracemalloc

import pytest

from pointsman.protocols.api import named
from pointsman.protocols.openai_folding import Folder, FoldError, unfold
from pointsman.protocols.reader import MAX_VALUES

HALF = "half a smile: \ud83d"  # as who cuts a text by UTF-16 units leaves it
ANSWERS = {
    "openai-chat": {
        "model": "m",
        "choices": [{"message": {"content": HALF}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    },
    "openai-completions": {
        "model": "m",
        "choices": [{"text": HALF, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    },
    "openai-responses": {
        "object": "response",
        "status": "completed",
        "model": "m",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": HALF}]}],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    },
    "anthropic-messages": {
        "type": "message",
        "model": "m",
        "content": [{"type": "text", "text": HALF}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 4},
    },
    "gemini": {
        "modelVersion": "m",
        "candidates": [{"content": {"parts": [{"text": HALF}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4},
    },
}


def answer_with(name: str, member: str, value: bytes) -> bytes:
    """Return an answer with JSON as it is in the place of one member."""
    return json.dumps({**ANSWERS[name], member: "HERE"}).encode().replace(b'"HERE"', value)


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("event_stream", [False, True], ids=["body", "event"])
def test_half_a_character_costs_neither_tokens_nor_the_model(name: str, event_stream: bool) -> None:
    api, answer = named(name), ANSWERS[name]
    assert api
    if event_stream and name == "openai-responses":
        answer = {"type": "response.completed", "response": answer}
    if event_stream and name == "anthropic-messages":
        answer = {"type": "message_start", "message": answer}
    data = json.dumps(answer).encode()
    assert b"\\ud83d" in data
    reader = api.reader(event_stream=event_stream)
    reader.feed(b"data: " + data + b"\n\n" if event_stream else data)
    reader.close()
    assert reader.usage
    assert (reader.usage.prompt_tokens, reader.usage.completion_tokens) == (3, 4)
    assert reader.model == "m"


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("event_stream", [False, True], ids=["body", "event"])
def test_a_number_that_json_has_none_for_costs_no_tokens(
    name: str, number: str, event_stream: bool
) -> None:
    api, data = named(name), answer_with(name, "score", number.encode())
    assert api
    if event_stream and name == "openai-responses":
        data = b'{"type":"response.completed","response":%b}' % data
    reader = api.reader(event_stream=event_stream)
    reader.feed(b"data: " + data + b"\n\n" if event_stream else data)
    reader.close()
    assert reader.usage
    assert (reader.usage.prompt_tokens, reader.usage.completion_tokens) == (3, 4)


def test_half_a_character_is_folded_as_none() -> None:
    folder = Folder()
    delta = {"choices": [{"index": 0, "delta": {"content": HALF}}]}
    end = {"choices": [{"index": 0, "delta": {"content": "!"}, "finish_reason": "stop"}]}
    for chunk in (delta, end):
        folder.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    folded = folder.close()
    assert folded.complete
    said = json.loads(folded.body)["choices"][0]["message"]["content"]
    assert said == "half a smile: \ufffd!"


# --- millions of values ---------------------------------------------------------------------------

MANY = {
    "flat": b"[%b{}]" % (b"{}," * MAX_VALUES),
    "nested": b"[%b1]" % (b"[[[[[[[[{}]]]]]]]]," * (MAX_VALUES // 8)),
}
LISTS = {
    "openai-chat": "choices",
    "openai-completions": "choices",
    "openai-responses": "output",
    "anthropic-messages": "content",
    "gemini": "candidates",
}


@pytest.mark.parametrize("many", MANY)
@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("event_stream", [False, True], ids=["body", "event"])
def test_a_list_of_millions_is_not_built_and_the_tokens_are_read(
    name: str, many: str, event_stream: bool
) -> None:
    api, data = named(name), answer_with(name, LISTS[name], MANY[many])
    assert api
    if event_stream and name == "openai-responses":
        data = b'{"type":"response.completed","response":%b}' % data
    reader = api.reader(event_stream=event_stream)
    tracemalloc.start()
    reader.feed(b"data: " + data + b"\n\n" if event_stream else data)
    reader.close()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 * len(data)
    assert reader.usage
    assert (reader.usage.prompt_tokens, reader.usage.completion_tokens) == (3, 4)
    assert reader.model == "m"
    assert reader.fault is None


def test_an_array_of_millions_is_not_read() -> None:
    api = named("gemini")
    assert api
    reader = api.reader(event_stream=False)
    reader.feed(MANY["flat"])
    reader.close()
    assert (reader.usage, reader.complete, reader.fault) == (None, False, None)


@pytest.mark.parametrize("vectors", [2, 400])
def test_the_tokens_of_millions_of_numbers_are_read(vectors: int) -> None:
    """Embeddings are that long; they are never built."""
    api = named("openai-embeddings")
    assert api
    data = [{"object": "embedding", "index": n, "embedding": [0.5] * 3072} for n in range(vectors)]
    body = {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 3}}
    reader = api.reader(event_stream=False)
    reader.feed(json.dumps(body, separators=(",", ":")).encode())
    reader.close()
    assert reader.usage
    assert (reader.usage.prompt_tokens, reader.model) == (3, "m")
    assert reader.content_started
    assert reader.complete


def test_an_answer_of_millions_of_values_is_turned_into_no_other_shape() -> None:
    body = b'{"choices":%b}' % MANY["flat"]
    with pytest.raises(FoldError, match="values"):
        unfold(body, include_usage=True)
    with pytest.raises(FoldError, match="values"):
        Folder().feed(b"data: " + body + b"\n\n")
