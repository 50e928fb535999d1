"""OpenAI chat completions and the older completions, as their many vendors speak them.

Usage stands at the top level; Moonshot puts it into the last chunk's choice, Groq into `x_groq`.

The filter is for a stream that the proxy, and not the client, has asked for usage. It gives out
what the client would have seen: the extra event (no choices, a usage object) is left out, and a
top-level `"usage":null` is cut from the others. Everything else stays byte for byte, also what
cannot be read.

Source: `stream_options.include_usage` in https://platform.openai.com/docs/api-reference/chat/create
"""

import re
from typing import Any

import msgspec

from pointsman.protocols import sse
from pointsman.protocols.reader import Reader, decode, mapping, objects, text
from pointsman.protocols.usage import Usage, count, first_count, usage_of


class _Chunk(msgspec.Struct):
    object: Any = None
    model: Any = None
    choices: Any = None
    usage: Any = msgspec.UNSET
    x_groq: Any = None
    error: Any = None


_CHUNK = msgspec.json.Decoder(_Chunk)


def chat_usage(value: Any) -> Usage | None:
    """Return the usage object of chat completions, completions and embeddings."""
    usage = mapping(value)
    if not usage:
        return None
    prompt = mapping(usage.get("prompt_tokens_details"))
    completion = mapping(usage.get("completion_tokens_details"))
    return usage_of(
        prompt=count(usage.get("prompt_tokens")),
        completion=count(usage.get("completion_tokens")),
        total=count(usage.get("total_tokens")),
        cached=first_count(
            prompt.get("cached_tokens"),
            usage.get("prompt_cache_hit_tokens"),  # DeepSeek
            usage.get("cached_tokens"),  # Moonshot
            usage.get("num_cached_tokens"),  # Mistral
        ),
        cache_write=count(prompt.get("cache_write_tokens")),  # OpenRouter
        reasoning=count(completion.get("reasoning_tokens")),
    )


class ChatReader(Reader):
    """Reads chat completions and completions."""

    def read(self, data: bytes) -> bool:
        """Take in one chunk, or the whole answer."""
        chunk = decode(_CHUNK, data)
        if chunk is None:
            return False
        self._note(chunk)
        return True

    def _note(self, chunk: _Chunk) -> None:
        choices = objects(chunk.choices)
        first = next((c for c in choices if not c.get("index")), {})
        self.model = text(chunk.model) or self.model
        self.finish_reason = text(first.get("finish_reason")) or self.finish_reason
        self.failed = self.failed or bool(chunk.error) or chunk.object == "error"  # the last: vLLM
        self.content_started = self.content_started or any(map(_has_content, choices))
        for usage in (chunk.usage, first.get("usage"), mapping(chunk.x_groq).get("usage")):
            if (counts := chat_usage(usage)) is not None:
                self.usage = counts
                break


class UsageFilter(ChatReader):
    """Reads a stream and takes out what only the proxy has asked for; gives out whole events."""

    def feed(self, chunk: bytes) -> bytes:
        """Return the events that the chunk completes, without the usage."""
        return self._filter(self._parser.feed(chunk))

    def close(self) -> bytes:
        """Return the rest of the stream, without the usage."""
        return self._filter(self._parser.close()) + self._parser.pending

    def _filter(self, events: list[sse.Event]) -> bytes:
        self.take(events)
        return b"".join(map(self._kept, events))

    def _kept(self, event: sse.Event) -> bytes:
        try:
            return without_usage(event)
        except Exception as fault:  # noqa: BLE001  a bug must not cost the client an event
            self.fault = fault
            return event.raw


def without_usage(event: sse.Event) -> bytes:
    """Return the event's bytes as they would be had usage not been asked for.

    An error is never left out, nor is a comment inside the extra event. A null in JSON written over
    several data lines stays too: no provider writes that, and the client can take the null.
    """
    if b'"usage"' not in event.data:
        return event.raw
    chunk = decode(_CHUNK, event.data)
    if chunk is None:
        return event.raw
    if chunk.choices == [] and isinstance(chunk.usage, dict) and not chunk.error:
        return b"".join(_COMMENT.findall(event.raw))
    if chunk.usage is None and (start := event.raw.rfind(event.data)) >= 0:
        end = start + len(event.data)
        return event.raw[:start] + _cut_null_usage(event.data) + event.raw[end:]
    return event.raw


_COMMENT = re.compile(rb"(?:(?<=[\r\n])|\A):[^\r\n]*(?:\r\n?|\n)")
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]', re.DOTALL)
_NULL_USAGE = re.compile(rb'"usage"[ \t\r\n]*:[ \t\r\n]*null')
_SPACE = b" \t\r\n"


def _cut_null_usage(data: bytes) -> bytes:
    """Cut the member out of an object that is known to have it at the top level."""
    matches = list(_NULL_USAGE.finditer(data))
    if len(matches) == 1 and b"\\u00" not in data:  # which could spell a letter of the name
        return _cut_member(data, *matches[0].span())
    depth = 0
    for token in _TOKEN.finditer(data):
        if token[0] in b"{[":
            depth += 1
        elif token[0] in b"}]":
            depth -= 1
        elif depth == 1 and (member := _NULL_USAGE.match(data, token.start())):
            return _cut_member(data, *member.span())
    return data


def _cut_member(data: bytes, start: int, end: int) -> bytes:
    """Cut the member and the one comma that goes with it: the one before it, if there is one."""
    before, after = data[:start].rstrip(_SPACE), data[end:].lstrip(_SPACE)
    if before.endswith(b","):
        return before[:-1] + data[end:]
    if after.startswith(b","):
        return data[:start] + after[1:].lstrip(_SPACE)
    return data[:start] + data[end:]


def _has_content(choice: dict[str, Any]) -> bool:
    """Tell whether a choice brings anything but its role.

    Vendors add members (`reasoning`, `reasoning_content`, `audio`, …): anything not empty counts,
    since what is taken for no content would be held back from the client.
    """
    delta = mapping(choice.get("delta") or choice.get("message"))
    return bool(choice.get("text")) or any(delta[name] for name in delta if name != "role")
