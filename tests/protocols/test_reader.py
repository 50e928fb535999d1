"""What all readers take: JSON that is odd."""

import json

import pytest

from pointsman.protocols.api import named
from pointsman.protocols.openai_folding import Folder

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
