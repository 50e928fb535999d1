"""OpenAI chat completions, completions and embeddings, as their many vendors speak them."""

from collections.abc import Iterable
from typing import Any

from pointsman.protocols.openai_folding import Folder, FoldError
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
from pointsman.viewing.outline import Json, Node
from pointsman.viewing.texts import clip, json_node, line, load, media, plain

_MOST_CHOICES = 50


def chat_request(body: dict[str, Any]) -> Conversation:
    """Read a chat completion's request."""
    names: dict[str, str] = {}

    def render(message: Any) -> Message | Node:
        return _message(message, names) if isinstance(message, dict) else json_node(message)

    return Conversation(
        messages=listed(body.get("messages"), render),
        tools=tools(body.get("tools"), _tool) + tools(body.get("functions"), _function),
        parameters=without(body, "messages", "tools", "functions"),
    )


def _message(message: dict[str, Any], names: dict[str, str]) -> Message:
    """Read a message of either direction; `names` remembers the calls, for their results."""
    role = str(message.get("role") or "assistant")
    parts = _reasoning(message) + parts_of(message.get("content"), part)
    if refusal := text(message.get("refusal")):
        parts.append({"refusal": clip(refusal)})
    for one in objects(message.get("tool_calls")):
        function = mapping(one.get("function")) or mapping(one.get("custom"))
        name, identity = function.get("name"), one.get("id")
        if isinstance(identity, str):
            names[identity] = str(name)
        arguments = function.get("arguments", function.get("input"))
        parts.append(call(name, identity, arguments))
    if function := mapping(message.get("function_call")):
        parts.append(call(function.get("name"), None, function.get("arguments")))
    if audio := mapping(message.get("audio")):
        said = {"transcript": audio.get("transcript"), "audio": media("audio", audio.get("data"))}
        parts.append({"audio": Json(plain({k: v for k, v in said.items() if v}))})
    if role in ("tool", "function"):
        identity = message.get("tool_call_id")
        name = names.get(str(identity)) or message.get("name")
        parts = [result(name, identity, parts)]
    return Message(role, parts)


def _reasoning(message: dict[str, Any]) -> list[Node]:
    said = text(message.get("reasoning_content")) or text(message.get("reasoning"))
    return [{"reasoning": clip(said)}] if said else []


def part(fields: dict[str, Any]) -> Node:  # noqa: PLR0911  one a kind
    """Read one part of a message's content, in the words of chat and of responses."""
    match fields.get("type"):
        case "text" | "input_text" | "output_text" | "summary_text" | "reasoning_text":
            return clip(str(fields.get("text") or ""))
        case "image_url" | "input_image" | "video_url" as kind:
            place = fields.get("image_url", fields.get("video_url"))
            where = place.get("url") if isinstance(place, dict) else place
            what = "video" if kind == "video_url" else "image"
            return {what: media(None, where) if where else line(f"id {fields.get('file_id')}")}
        case "input_audio":
            audio = mapping(fields.get("input_audio"))
            return {"audio": media(f"audio/{audio.get('format')}", audio.get("data"))}
        case "file" | "input_file":
            return {"file": _file(mapping(fields.get("file")) or fields)}
        case "refusal":
            return {"refusal": clip(str(fields.get("refusal") or ""))}
        case "thinking":  # Mistral
            return {"reasoning": _thought(fields.get("thinking"))}
        case _:
            return other(fields)


def _thought(thinking: Any) -> Node:
    parts = parts_of(thinking, part)
    return parts[0] if len(parts) == 1 else parts


def _file(fields: dict[str, Any]) -> str:
    named = text(fields.get("filename"))
    data = text(fields.get("file_data")) or text(fields.get("file_url"))
    what = media(None, data) if data else f"id {fields.get('file_id')}"
    return line(f"{named}, {what}" if named else what)


def _tool(item: dict[str, Any]) -> list[Node]:
    if function := mapping(item.get("function")):
        return _function(function)
    return [function_or_built_in(item)]


def _function(function: dict[str, Any]) -> list[Node]:
    return [tool(function.get("name"), function.get("description"), function.get("parameters"))]


def function_or_built_in(item: dict[str, Any]) -> Node:
    """Read a tool that is defined flat, or one that the provider brings along."""
    if item.get("name") and item.get("type") in (None, "function", "custom"):
        schema = item.get("parameters", item.get("input_schema"))
        return tool(item.get("name"), item.get("description"), schema)
    return other(item)


def completion_request(body: dict[str, Any]) -> Conversation:
    """Read a completion's request: a prompt, several, or their tokens."""
    messages = _inputs("prompt", body.get("prompt"))
    return Conversation(messages, parameters=without(body, "prompt"))


def embedding_request(body: dict[str, Any]) -> Conversation:
    """Read the request of embeddings."""
    return Conversation(_inputs("input", body.get("input")), parameters=without(body, "input"))


def _inputs(name: str, value: Any) -> list[Message | Node]:
    if isinstance(value, list) and value and isinstance(value[0], int):
        return [Message(name, [f"{len(value):,} tokens"])]
    many = value if isinstance(value, list) else [value]

    def render(item: Any) -> Message | Node:
        tokens = isinstance(item, list) and item and isinstance(item[0], int)
        return Message(name, [f"{len(item):,} tokens" if tokens else json_node(item)])

    return listed(many, render)


# --- answers --------------------------------------------------------------------------------------


def chat_answer(body: dict[str, Any]) -> list[Message]:
    """Read the choices of a completion."""
    return [_choice(choice) for choice in objects(body.get("choices"))[:_MOST_CHOICES]]


def _choice(choice: dict[str, Any]) -> Message:
    finish = text(choice.get("finish_reason"))
    if isinstance(choice.get("text"), str):
        return Message("text", [clip(choice["text"])], finish)
    message = _message(mapping(choice.get("message")), {})
    return Message(message.role, message.parts, finish)


def embedding_answer(body: dict[str, Any]) -> list[Message]:
    """Read embeddings: how many vectors of how many dimensions, never the numbers."""
    vectors = objects(body.get("data"))
    if not vectors:
        return []
    match vectors[0].get("embedding"):
        case str(coded):
            dimensions = len(coded) * 3 // 16  # four bytes a number, in base64
        case list(numbers):
            dimensions = len(numbers)
        case _:
            dimensions = 0
    many = several(len(vectors), "vector")
    return [Message("embeddings", [f"{many} of {several(dimensions, 'dimension')}"])]


def fold_chat(events: Iterable[Event]) -> Any:
    """Return the JSON body that a chat stream comes to, with the error that it may carry.

    The folder drops what came before an error; a person wants to see both.
    """
    folder = Folder()
    error: Any = None
    try:
        for event in events:
            fields = mapping(load(event.data)) if b"error" in event.data else {}
            failed = event.event == "error" or fields.get("object") == "error"
            if fields.get("error") or failed:
                error = fields.get("error") or fields or clip(event.data.decode(errors="replace"))
                break
            folder.take([event])
        body = load(folder.close().body)
    except FoldError as fault:
        return {"error": error or f"the stream can't be shown: {fault}"}
    found = mapping(body)
    return {**found, "error": error} if error else found
