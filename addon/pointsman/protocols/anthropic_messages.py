"""Anthropic messages: one JSON message, or the events that build it.

A stream reports usage in parts: `message_start` has the input side and a first output count,
`message_delta` the final output count and, with server tools, input counts again. Of each count the
last value is taken.
"""

from typing import Any

import msgspec

from pointsman.protocols.reader import Reader, decode, mapping, objects, text
from pointsman.protocols.usage import Usage, count, sum_counts, usage_of


class _Message(msgspec.Struct):
    """A message, or an event: their members do not collide."""

    type: Any = None
    model: Any = None
    content: Any = None
    stop_reason: Any = None
    usage: Any = None
    error: Any = None
    message: Any = None
    content_block: Any = None
    delta: Any = None


_MESSAGE = msgspec.json.Decoder(_Message)


class MessagesReader(Reader):
    """Reads messages."""

    def __init__(self, *, event_stream: bool) -> None:
        super().__init__(event_stream=event_stream)
        self._counts: dict[str, int] = {}

    def read(self, data: bytes) -> bool:
        """Take in one event, or the whole answer."""
        part = decode(_MESSAGE, data)
        if part is None:
            return False
        message, delta = mapping(part.message), mapping(part.delta)
        blocks = [mapping(part.content_block), delta, *objects(part.content)]
        stop = part.stop_reason or message.get("stop_reason") or delta.get("stop_reason")
        self.model = text(part.model) or text(message.get("model")) or self.model
        self.finish_reason = text(stop) or self.finish_reason
        self._count(message.get("usage"))
        self._count(part.usage)
        self.failed = self.failed or bool(part.error) or part.type == "error"
        self.complete = self.complete or part.type == "message_stop"
        if not self.content_started and part.type != "message_delta":
            self.content_started = any(map(_has_content, blocks))
        return True

    def _count(self, usage: Any) -> None:
        new = {name: n for name, value in mapping(usage).items() if (n := count(value)) is not None}
        if new:
            self._counts |= new
            self.usage = _usage(self._counts)


def _usage(counts: dict[str, int]) -> Usage | None:
    inputs = counts.get("input_tokens")
    cached = counts.get("cache_read_input_tokens")
    cache_write = counts.get("cache_creation_input_tokens")
    return usage_of(
        # input_tokens is what was neither read from the cache nor written to it
        prompt=None if inputs is None else sum_counts(inputs, cached, cache_write),
        completion=counts.get("output_tokens"),
        total=None,
        cached=cached,
        cache_write=cache_write,
    )


def _has_content(block: dict[str, Any]) -> bool:
    """Tell whether a block or delta brings something: a text and a thinking block begin empty."""
    if block.get("type") in ("text", "thinking"):
        return bool(block.get("text") or block.get("thinking"))
    return any(block[name] for name in block if name != "type")
