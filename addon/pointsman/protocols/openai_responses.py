"""OpenAI responses: one JSON object, or events of which the last ones carry that same object.

The object is large (it repeats instructions and tools), so it is decoded only in the events that
begin and end a response.
"""

from typing import Any

import msgspec

from pointsman.protocols.reader import Reader, decode, mapping, text
from pointsman.protocols.usage import Usage, count, usage_of


class _Response(msgspec.Struct):
    model: Any = None
    status: Any = None
    incomplete_details: Any = None
    output: Any = None
    usage: Any = None
    error: Any = None


class _Event(msgspec.Struct):
    type: Any = None
    response: msgspec.Raw = msgspec.Raw()
    delta: Any = None
    item: Any = None
    error: Any = None


_RESPONSE = msgspec.json.Decoder(_Response)
_EVENT = msgspec.json.Decoder(_Event)
_BEGIN = "response.created"
_END = frozenset({"response.completed", "response.incomplete", "response.failed"})
_WITHOUT_CONTENT = _END | {
    _BEGIN,
    "response.queued",
    "response.in_progress",
    "response.content_part.added",
    "response.reasoning_summary_part.added",
}


class ResponsesReader(Reader):
    """Reads responses."""

    def read(self, data: bytes) -> bool:
        """Take in one event, or the whole answer."""
        return self._read_event(data) if self.event_stream else self._read_response(data)

    def _read_event(self, data: bytes) -> bool:
        event = decode(_EVENT, data)
        if event is None:
            return False
        kind = text(event.type) or ""
        if kind == _BEGIN or kind in _END:
            self._read_response(event.response)
        self.complete = self.complete or kind in _END
        self.failed = self.failed or bool(event.error) or kind in {"error", "response.failed"}
        self.content_started = self.content_started or _has_content(kind, event)
        return True

    def _read_response(self, data: bytes | msgspec.Raw) -> bool:
        response = decode(_RESPONSE, data)
        if response is None:
            return False
        self.model = text(response.model) or self.model
        self.usage = _usage(response.usage) or self.usage
        self.failed = self.failed or bool(response.error) or response.status == "failed"
        self.content_started = self.content_started or bool(response.output)
        if response.status not in ("queued", "in_progress"):
            reason = text(mapping(response.incomplete_details).get("reason"))
            self.finish_reason = reason or text(response.status) or self.finish_reason
        return True


def _usage(value: Any) -> Usage | None:
    usage = mapping(value)
    inputs = mapping(usage.get("input_tokens_details"))
    outputs = mapping(usage.get("output_tokens_details"))
    return usage_of(
        prompt=count(usage.get("input_tokens")),
        completion=count(usage.get("output_tokens")),
        total=count(usage.get("total_tokens")),
        cached=count(inputs.get("cached_tokens")),
        cache_write=count(inputs.get("cache_write_tokens")),
        reasoning=count(outputs.get("reasoning_tokens")),
    )


def _has_content(kind: str, event: _Event) -> bool:
    """Tell whether an event brings content: a delta, a tool call's item, an image and so on."""
    if kind.endswith(".delta"):
        return bool(event.delta)
    if kind == "response.output_item.added":
        return mapping(event.item).get("type") not in ("message", "reasoning")
    return kind.startswith("response.") and kind not in _WITHOUT_CONTENT
