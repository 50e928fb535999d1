"""Anthropic messages: requests, answers, and the events that build one."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pointsman.protocols.reader import mapping, text
from pointsman.protocols.sse import Event
from pointsman.viewing.messages import (
    Conversation,
    Message,
    call,
    listed,
    other,
    parts_of,
    result,
    tools,
    without,
)
from pointsman.viewing.openai_chat import function_or_built_in
from pointsman.viewing.outline import Node
from pointsman.viewing.texts import clip, json_node, line, load, media


def request(body: dict[str, Any]) -> Conversation:
    """Read a request; the system prompt is shown as the first message."""
    names: dict[str, str] = {}

    def render(message: Any) -> Message | Node:
        if not isinstance(message, dict):
            return json_node(message)
        parts = parts_of(message.get("content"), lambda block: _block(block, names))
        return Message(str(message.get("role")), parts)

    system = parts_of(body.get("system"), lambda block: _block(block, names))
    return Conversation(
        system=Message("system", system) if system else None,
        messages=listed(body.get("messages"), render),
        tools=tools(body.get("tools"), lambda item: [function_or_built_in(item)]),
        parameters=without(body, "system", "messages", "tools"),
    )


def answer(body: dict[str, Any]) -> list[Message]:
    """Read the one message of an answer."""
    if "content" not in body:
        return []
    parts = parts_of(body["content"], lambda block: _block(block, {}))
    return [Message(str(body.get("role") or "assistant"), parts, text(body.get("stop_reason")))]


def _block(block: dict[str, Any], names: dict[str, str]) -> Node:  # noqa: PLR0911  one a kind
    match block.get("type"):
        case "text":
            return clip(str(block.get("text") or ""))
        case "thinking":
            return {"reasoning": clip(str(block.get("thinking") or "")) or "(not shown to clients)"}
        case "redacted_thinking":
            return {"reasoning": f"encrypted, {len(str(block.get('data') or '')):,} characters"}
        case "image" | "document" as kind:
            return {kind: _source(block)}
        case "tool_use" | "server_tool_use" | "mcp_tool_use":
            name, identity = block.get("name"), block.get("id")
            if isinstance(identity, str):
                names[identity] = str(name)
            return call(name, identity, block.get("input"))
        case "tool_result":
            identity = block.get("tool_use_id")
            parts = parts_of(block.get("content"), lambda inner: _block(inner, {}))
            failed = block.get("is_error") is True
            return result(names.get(str(identity)), identity, parts, failed=failed)
        case _:
            return other(block)


def _source(block: dict[str, Any]) -> Node:
    source = mapping(block.get("source"))
    kind = text(source.get("media_type"))
    match source.get("type"):
        case "url":
            what = media(kind, source.get("url"))
        case "file":
            what = line(f"id {source.get('file_id')}")
        case "text":
            return [line(kind or "text"), clip(str(source.get("data") or ""))]
        case _:
            what = media(kind, source.get("data"))
    title = text(block.get("title"))
    return f"{line(title)}, {what}" if title else what


_PIECES = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
}


def fold(events: Iterable[Event]) -> Any:
    """Return the message that the events build, with the error that they may carry."""
    building = _Building()
    for event in events:
        building.take(mapping(load(event.data)))
    return building.message()


class _Building:
    """A message on its way. Pieces of text are gathered in lists, to be joined once."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._pieces: dict[tuple[int, str], list[str]] = defaultdict(list)

    def take(self, event: dict[str, Any]) -> None:
        index = event.get("index")
        match event.get("type"):
            case "message_start":
                self._message = dict(mapping(event.get("message")))
            case "content_block_start" if isinstance(index, int):
                self._blocks[index] = dict(mapping(event.get("content_block")))
            case "content_block_delta" if isinstance(index, int):
                self._grow(index, mapping(event.get("delta")))
            case "message_delta":
                self._message |= mapping(event.get("delta"))
            case "error":
                self._message["error"] = event.get("error") or event

    def _grow(self, index: int, delta: dict[str, Any]) -> None:
        name = _PIECES.get(str(delta.get("type")), "")
        if isinstance(piece := delta.get(name), str):
            self._pieces[index, name].append(piece)

    def message(self) -> dict[str, Any]:
        for (index, name), said in self._pieces.items():
            block = self._blocks.setdefault(index, {"type": name})
            if name == "partial_json":
                block["input"] = "".join(said)
            else:
                block[name] = f"{block.get(name) or ''}{''.join(said)}"
        if self._blocks:
            self._message["content"] = [block for _, block in sorted(self._blocks.items())]
        return self._message
