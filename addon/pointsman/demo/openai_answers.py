"""What an OpenAI-compatible provider answers. Pure: a request's JSON in, JSON objects out.

Answers and token counts follow from the request alone, so that a log line can be asserted: a token
is a word. Ids and timestamps come from the caller. Field by field these are the shapes of OpenAI's
API reference; each stream is a list of events, one per `data:` line.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

type Json = dict[str, Any]

EMBEDDING_DIMENSIONS = 8


class RequestError(Exception):
    """A request that the API refuses.

    `status` and `body` are what the client gets.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {
                "message": message,
                "type": "invalid_request_error",
                "param": param,
                "code": code,
            }
        }


@dataclass(frozen=True)
class Event:
    """One server-sent event; chat streams have no names."""

    data: str
    name: str | None = None

    def encode(self) -> bytes:
        """Return the event as it stands on the wire."""
        name = f"event: {self.name}\n" if self.name else ""
        return f"{name}data: {self.data}\n\n".encode()


@dataclass(frozen=True)
class Answer:
    """What every endpoint says in its own shape."""

    id: str
    created: int
    model: str
    text: str
    prompt_tokens: int

    @property
    def words(self) -> list[str]:
        """The text in the pieces that a stream sends; joined, they are the text."""
        first, *rest = self.text.split(" ")
        return [first, *(f" {word}" for word in rest)]

    @property
    def completion_tokens(self) -> int:
        """The text's length."""
        return count_tokens(self.text)


def count_tokens(text: str) -> int:
    """Count words: a stand-in for a tokeniser that a person can check in their head."""
    return len(text.split())


def texts(content: Any) -> Iterator[str]:
    """Find every text in a `messages`, `input` or `prompt` value, in order."""
    match content:
        case str():
            yield content
        case list():
            for item in content:
                yield from texts(item)
        case {"content": nested}:
            yield from texts(nested)
        case {"text": str(text)}:
            yield text


def dump(value: Any) -> str:
    """Encode as OpenAI does: compact, and not escaped to ASCII."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# --- chat completions -----------------------------------------------------------------------------


def chat_usage(answer: Answer) -> Json:
    """Return the `usage` object of chat and text completions."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def chat(answer: Answer) -> Json:
    """Return a `chat.completion`."""
    return {
        "id": answer.id,
        "object": "chat.completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": chat_usage(answer),
        "system_fingerprint": None,
    }


def chat_events(answer: Answer, *, include_usage: bool) -> Iterator[Event]:
    """Stream a chat completion: a role, the words, the finish, then usage if it was asked for.

    With `include_usage`, `usage` is null in every chunk but the last, whose `choices` are empty;
    without, no chunk has the field.
    """
    head: Json = {
        "id": answer.id,
        "object": "chat.completion.chunk",
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": None,
    }
    no_usage: Json = {"usage": None} if include_usage else {}

    def chunk(delta: Json, finish_reason: str | None = None) -> Event:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return Event(dump({**head, "choices": [choice], **no_usage}))

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    for word in answer.words:
        yield chunk({"content": word})
    yield chunk({}, "stop")
    if include_usage:
        yield Event(dump({**head, "choices": [], "usage": chat_usage(answer)}))
    yield Event("[DONE]")


# --- text completions -----------------------------------------------------------------------------


def completion(answer: Answer) -> Json:
    """Return a `text_completion`."""
    return {
        "id": answer.id,
        "object": "text_completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [{"text": answer.text, "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": chat_usage(answer),
    }


def completion_events(answer: Answer, *, include_usage: bool) -> Iterator[Event]:
    """Stream a text completion; `include_usage` as in a chat."""
    head: Json = {
        "id": answer.id,
        "object": "text_completion",
        "created": answer.created,
        "model": answer.model,
    }
    no_usage: Json = {"usage": None} if include_usage else {}

    def chunk(text: str, finish_reason: str | None = None) -> Event:
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}
        return Event(dump({**head, "choices": [choice], **no_usage}))

    for word in answer.words:
        yield chunk(word)
    yield chunk("", "stop")
    if include_usage:
        yield Event(dump({**head, "choices": [], "usage": chat_usage(answer)}))
    yield Event("[DONE]")


# --- responses ------------------------------------------------------------------------------------


def _response(answer: Answer, *, done: bool) -> Json:
    return {
        "id": answer.id,
        "object": "response",
        "created_at": answer.created,
        "status": "completed" if done else "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": answer.model,
        "output": [_output_message(answer, done=True)] if done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": answer.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": answer.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        }
        if done
        else None,
    }


def _output_message(answer: Answer, *, done: bool) -> Json:
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "status": "completed" if done else "in_progress",
        "role": "assistant",
        "content": [_output_text(answer.text)] if done else [],
    }


def _output_text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": []}


def response(answer: Answer) -> Json:
    """Return a finished `response`."""
    return _response(answer, done=True)


def response_events(answer: Answer) -> Iterator[Event]:
    """Stream a response. The events are named and numbered, and there is no `[DONE]`."""
    started, finished = _response(answer, done=False), _response(answer, done=True)
    message = _output_message(answer, done=True)
    item: Json = {"output_index": 0}
    part: Json = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    events: list[tuple[str, Json]] = [
        ("response.created", {"response": started}),
        ("response.in_progress", {"response": started}),
        ("response.output_item.added", {**item, "item": _output_message(answer, done=False)}),
        ("response.content_part.added", {**part, "part": _output_text("")}),
        *(
            ("response.output_text.delta", {**part, "delta": word, "logprobs": []})
            for word in answer.words
        ),
        ("response.output_text.done", {**part, "text": answer.text, "logprobs": []}),
        ("response.content_part.done", {**part, "part": _output_text(answer.text)}),
        ("response.output_item.done", {**item, "item": message}),
        ("response.completed", {"response": finished}),
    ]
    for number, (name, fields) in enumerate(events):
        yield Event(dump({"type": name, "sequence_number": number, **fields}), name)


# --- embeddings and models ------------------------------------------------------------------------


def _embedding(text: str) -> list[float]:
    digest = hashlib.sha256(text.encode()).digest()
    # Eighths are exact in binary, so a vector is the same as floats and as base64.
    return [byte / 8 for byte in digest[:EMBEDDING_DIMENSIONS]]


def embeddings(model: str, inputs: list[str], encoding: str) -> Json:
    """Return one small vector per input, `float` or `base64` (what OpenAI's SDK asks for)."""

    def encode(vector: list[float]) -> list[float] | str:
        if encoding == "base64":
            return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        return vector

    tokens = sum(count_tokens(text) for text in inputs)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(_embedding(text))}
            for index, text in enumerate(inputs)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def models(names: tuple[str, ...], owner: str) -> Json:
    """Return the list of models."""
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 0, "owned_by": owner} for name in names
        ],
    }
