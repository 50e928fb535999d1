"""OpenAI responses: requests, answers, and the events that build one."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from pointsman.protocols.reader import mapping, objects, text
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
from pointsman.viewing.openai_chat import function_or_built_in, part
from pointsman.viewing.outline import Node
from pointsman.viewing.texts import json_node, load, media

_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_MOST_ITEMS = 200  # of an answer
_MOST_PLACES = 2000  # that the text of a stream may grow in


def request(body: dict[str, Any]) -> Conversation:
    """Read a request; the instructions are shown as the first message."""
    names: dict[str, str] = {}
    instructions = parts_of(body.get("instructions"), part)
    given = body.get("input")
    many = given if isinstance(given, list) else [] if given is None else [given]
    return Conversation(
        system=Message("instructions", instructions) if instructions else None,
        messages=listed(many, lambda item: _item(item, names, "user")),
        tools=tools(body.get("tools"), lambda item: [function_or_built_in(item)]),
        parameters=without(body, "instructions", "input", "tools"),
    )


def answer(body: dict[str, Any]) -> list[Message]:
    """Read the items of an answer's output."""
    output = body.get("output")
    if not isinstance(output, list):
        return []
    return [_item(item, {}, "assistant") for item in output[:_MOST_ITEMS]]


def _item(item: Any, names: dict[str, str], role: str) -> Message:  # noqa: PLR0911  one a kind
    if not isinstance(item, dict):
        return Message(role, [json_node(item)])
    identity = item.get("call_id") or item.get("id")
    match item.get("type", "message"):
        case "message":
            return Message(str(item.get("role") or role), parts_of(item.get("content"), part))
        case "function_call" | "custom_tool_call":
            if isinstance(identity, str):
                names[identity] = str(item.get("name"))
            arguments = item.get("arguments", item.get("input"))
            return Message("assistant", [call(item.get("name"), identity, arguments)])
        case "function_call_output" | "custom_tool_call_output":
            parts = parts_of(item.get("output"), part)
            return Message("tool", [result(names.get(str(identity)), identity, parts)])
        case "reasoning":
            return Message("assistant", [{"reasoning": _reasoning(item)}])
        case "image_generation_call":
            kind = f"image/{text(item.get('output_format')) or 'png'}"
            return Message("assistant", [{"image": media(kind, item.get("result"))}])
        case str(kind) if kind.endswith("_call"):
            return Message("assistant", [other(item)])
        case str(kind) if kind.endswith("_output"):
            return Message("tool", [other(item)])
        case _:
            return Message(role, [other(item)])


def _reasoning(item: dict[str, Any]) -> Node:
    parts = parts_of(item.get("content"), part) or parts_of(item.get("summary"), part)
    if not parts:
        return "(encrypted)" if item.get("encrypted_content") else "(not shown to clients)"
    return parts[0] if len(parts) == 1 else parts


# Where a delta's text goes: the item's list of parts, and their type.
_GROWING = {
    "response.output_text.delta": ("content", "output_text"),
    "response.refusal.delta": ("content", "refusal"),
    "response.reasoning_text.delta": ("content", "reasoning_text"),
    "response.reasoning_summary_text.delta": ("summary", "summary_text"),
}
_TEXT_OF = {"refusal": "refusal"}  # the member that holds a part's text, where it is not `text`
_ARGUMENTS = frozenset(
    {"response.function_call_arguments.delta", "response.custom_tool_call_input.delta"}
)


def fold(events: Iterable[Event]) -> Any:
    """Return the response that the last event carries; of a stream cut short, what it has built."""
    building = _Building()
    for event in events:
        building.take(event.event, mapping(load(event.data)))
    return building.response()


class _Building:
    """A response on its way. Pieces of text are gathered in lists, to be joined once."""

    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._error: Any = None
        self._items: dict[int, dict[str, Any]] = {}
        self._whole: set[int] = set()
        # By the item's index, its member, the place of the part and its type.
        self._pieces: dict[tuple[int, str, int, str], list[str]] = {}

    def take(self, name: str, event: dict[str, Any]) -> None:
        kind, index = str(event.get("type")), event.get("output_index")
        if kind == "error" or name == "error":
            self._error = event.get("error") or event
        elif kind in _ENDS or kind == "response.created":
            self._response = mapping(event.get("response"))
        elif isinstance(index, int):
            self._take_item(kind, index, event)

    def _take_item(self, kind: str, index: int, event: dict[str, Any]) -> None:
        delta = event.get("delta")
        if kind in ("response.output_item.added", "response.output_item.done"):
            self._items[index] = dict(mapping(event.get("item")))
            if kind.endswith("done"):
                self._whole.add(index)
        elif isinstance(delta, str) and kind in _ARGUMENTS:
            self._add((index, "arguments", 0, ""), delta)
        elif isinstance(delta, str) and kind in _GROWING:
            place = event.get("content_index", event.get("summary_index"))
            member, part_type = _GROWING[kind]
            self._add((index, member, place if isinstance(place, int) else 0, part_type), delta)

    def _add(self, where: tuple[int, str, int, str], delta: str) -> None:
        if where in self._pieces or len(self._pieces) < _MOST_PLACES:
            self._pieces.setdefault(where, []).append(delta)

    def response(self) -> dict[str, Any]:
        response = dict(self._response)
        if not response.get("output"):
            grown = groupby(sorted(self._pieces.items()), key=lambda piece: piece[0][:2])
            for (index, member), pieces in grown:
                if index not in self._whole:
                    item = self._items.setdefault(index, {})
                    said = [(place, kind, "".join(parts)) for (*_, place, kind), parts in pieces]
                    _grow(item, member, said)
            response["output"] = [item for _, item in sorted(self._items.items())]
        return response | ({"error": self._error} if self._error else {})


def _grow(item: dict[str, Any], member: str, said: list[tuple[int, str, str]]) -> None:
    """Put into an item what its member has grown to: the place of each part, its type, its text."""
    if member == "arguments":
        item.setdefault("type", "function_call")
        item["arguments"] = said[0][2]
        return
    first = said[0][0]
    grown = [{"type": kind, _TEXT_OF.get(kind, "text"): text} for _, kind, text in said]
    item[member] = [*objects(item.get(member))[:first], *grown]
