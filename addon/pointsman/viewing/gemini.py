"""Gemini: generateContent, its streams in both forms, and embedContent."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pointsman.protocols.reader import mapping, objects, text
from pointsman.protocols.sse import Event
from pointsman.telemetry.amounts import several
from pointsman.viewing.messages import (
    Conversation,
    Message,
    call,
    listed,
    other,
    parts_of,
    result,
    tool,
    tools,
    without,
)
from pointsman.viewing.outline import Node
from pointsman.viewing.texts import clip, json_node, line, load, media

_MOST_CANDIDATES = 50
MOST_CHUNKS = 20_000


def request(body: dict[str, Any]) -> Conversation:
    """Read a request; the system instruction is shown as the first message."""
    system = body.get("systemInstruction", body.get("system_instruction"))
    opening: list[Message | Node] = []
    if "content" in body:  # embedContent has one
        opening.append(_content(body["content"], "content"))
    known = ("systemInstruction", "system_instruction", "content", "contents", "tools")
    return Conversation(
        # Whatever role it is given: clients write "user".
        system=Message("system", _content(system, "").parts) if system else None,
        messages=opening + listed(body.get("contents"), lambda one: _content(one, "user")),
        tools=tools(body.get("tools"), _tool),
        parameters=_flat(without(body, *known)),
    )


def _flat(parameters: dict[str, Any]) -> dict[str, Any]:
    """Put what stands in `generationConfig` beside the other parameters."""
    config = parameters.pop("generationConfig", parameters.pop("generation_config", None))
    if not isinstance(config, dict):
        return {**parameters, "generationConfig": config} if config is not None else parameters
    return {**config, **parameters}


def _tool(item: dict[str, Any]) -> list[Node]:
    functions = item.get("functionDeclarations", item.get("function_declarations"))
    if functions is None:
        return [{line(str(name)): json_node(value)} for name, value in item.items()]
    return [
        tool(one.get("name"), one.get("description"), one.get("parameters", _schema(one)))
        for one in objects(functions)
    ]


def _schema(function: dict[str, Any]) -> Any:
    return function.get("parametersJsonSchema")


def _content(content: Any, role: str) -> Message:
    if not isinstance(content, dict):
        return Message(role, parts_of(content, _part))
    return Message(str(content.get("role") or role), parts_of(content.get("parts"), _part))


def _part(part: dict[str, Any]) -> Node:  # noqa: PLR0911  one a kind
    fields = {_camel(name): value for name, value in part.items()}
    marks = ("thought", "thoughtSignature", "videoMetadata")
    match next((name for name in fields if name not in marks), None):
        case "text":
            said = clip(str(fields["text"] or ""))
            return {"reasoning": said} if fields.get("thought") is True else said
        case "inlineData" | "fileData":
            data = mapping(fields.get("inlineData") or fields.get("fileData"))
            kind = data.get("mimeType", data.get("mime_type"))
            where = data.get("data") or data.get("fileUri", data.get("file_uri"))
            return {"media": media(text(kind), where)}
        case "functionCall":
            one = mapping(fields["functionCall"])
            return call(one.get("name"), one.get("id"), one.get("args"))
        case "functionResponse":
            one = mapping(fields["functionResponse"])
            return result(one.get("name"), one.get("id"), [json_node(one.get("response"))])
        case "executableCode":
            return {"code": clip(str(mapping(fields["executableCode"]).get("code") or ""))}
        case "codeExecutionResult":
            return {"output": clip(str(mapping(fields["codeExecutionResult"]).get("output") or ""))}
        case None:
            return "(a signature of its thoughts)"
        case name:
            return other({"type": name, **mapping(fields[name])})


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def answer(body: dict[str, Any]) -> list[Message]:
    """Read the candidates, why the prompt was blocked, or an embedding."""
    messages = []
    for candidate in objects(body.get("candidates"))[:_MOST_CANDIDATES]:
        message = _content(candidate.get("content") or {}, "model")
        messages.append(Message(message.role, message.parts, text(candidate.get("finishReason"))))
    if blocked := mapping(body.get("promptFeedback")).get("blockReason"):
        messages.append(Message("blocked", [line(str(blocked))]))
    if isinstance(values := mapping(body.get("embedding")).get("values"), list):
        messages.append(Message("embeddings", [f"1 vector of {several(len(values), 'dimension')}"]))
    return messages


def fold(events: Iterable[Event]) -> Any:
    """Return the answer that a stream of events comes to."""
    return merge(load(event.data) for event in events if event.data)


def merge(chunks: Iterable[Any]) -> dict[str, Any]:
    """Return the answer that the first objects of a stream come to: texts that go on are joined."""
    whole: dict[str, Any] = {}
    candidates: dict[Any, dict[str, Any]] = {}
    for chunk in map(mapping, islice(chunks, MOST_CHUNKS)):
        whole |= {name: value for name, value in chunk.items() if name != "candidates"}
        for one in objects(chunk.get("candidates")):
            index = one.get("index") if isinstance(one.get("index"), int) else 0
            kept = candidates.setdefault(index, {"content": {"role": "model", "parts": []}})
            content = mapping(one.get("content"))
            _append(kept["content"]["parts"], objects(content.get("parts")))
            kept |= {name: value for name, value in one.items() if name != "content"}
    if candidates:
        for kept in candidates.values():
            kept["content"]["parts"] = list(map(_joined, kept["content"]["parts"]))
        whole["candidates"] = [candidates[index] for index in sorted(candidates)]
    return whole


@dataclass(slots=True)
class _Text:
    """A text on its way."""

    pieces: list[str]
    thought: bool


def _append(kept: list[dict[str, Any] | _Text], parts: list[dict[str, Any]]) -> None:
    """Add parts; a text's pieces are gathered, to be joined once."""
    for part in parts:
        said, thought = part.get("text"), part.get("thought") is True
        last = kept[-1] if kept else None
        if not isinstance(said, str):
            kept.append(part)
        elif isinstance(last, _Text) and last.thought is thought:
            last.pieces.append(said)
        else:
            kept.append(_Text([said], thought))


def _joined(part: dict[str, Any] | _Text) -> dict[str, Any]:
    if isinstance(part, _Text):
        return {"text": "".join(part.pieces), "thought": part.thought}
    return part


def array(data: bytes) -> list[Any]:
    """Return the whole objects of a JSON array, which may be cut off.

    It is how `streamGenerateContent` answers where no events are asked for.
    """
    said = data.decode(errors="replace")
    at = said.find("[") + 1
    found: list[Any] = []
    decoder = json.JSONDecoder()
    while at and at < len(said) and len(found) < MOST_CHUNKS:
        at = _next(said, at)
        try:
            item, at = decoder.raw_decode(said, at)
        except (ValueError, RecursionError):
            break
        found.append(item)
    return found


def _next(said: str, at: int) -> int:
    while at < len(said) and said[at] in " \t\r\n,":
        at += 1
    return at
