"""What was said, in the shape of OpenTelemetry's conventions for generative AI.

Source: https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai: the schemas
gen-ai-input-messages.json, gen-ai-output-messages.json, gen-ai-system-instructions.json (status:
development). Images, sounds and files are parts of a type of their own whose `content` says what
they are and how large; so is everything else that the schemas have no part for.

What is asked for is JSON in a string: few can show spans with attributes of any other shape.
An attribute's text is bounded: where a conversation has more, its last messages are kept, and what
is left out is told in a part of the type `omitted`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from pointsman.protocols.api import Api, named
from pointsman.protocols.encoding import TooLarge, Undecodable, decode_body, stream_decoder
from pointsman.telemetry.content import MAX_BODY, Content
from pointsman.viewing.bodies import conversation, messages
from pointsman.viewing.messages import Message, Thing
from pointsman.viewing.outline import Json, Node
from pointsman.viewing.texts import line, size
from pointsman.wellformed import well_formed_json

MAX_ATTRIBUTE = 64 * 1024  # characters
_MAX_ROLE = 60
_PIECE = 64 * 1024  # bytes

type Part = dict[str, Any]

# The words that the views have for who speaks; the others are those of the wire.
_ROLES = {
    "": "user",
    "blocked": "assistant",
    "content": "user",
    "function": "tool",
    "input": "user",
    "model": "assistant",
    "prompt": "user",
    "text": "assistant",
}
_TEXTS = frozenset({"reasoning", "text"})  # parts whose content is a string
_NUMBERS = "embeddings"  # an answer that says nothing


LEFT_OUT = "pointsman.content_left_out"


def attributes(content: Content) -> dict[str, str | bool]:
    """Return the attributes that tell what was said, as JSON.

    `LEFT_OUT` is among them where an answer was too large to be kept whole.
    """
    api = named(content.api)
    if api is None:
        return {}
    answer = _decoded(bytes(content.kept.data), content.answer_coding)
    found = _request(content, api) | answered(answer, api, event_stream=content.event_stream)
    return {**found, LEFT_OUT: True} if content.kept.full else {**found}


def _request(content: Content, api: Api) -> dict[str, str]:
    try:
        data = decode_body(content.request or b"", content.request_coding, limit=MAX_BODY)
    except (TooLarge, Undecodable):
        return _unread(content.length)
    return asked(data, api) if data else _unread(content.length)


def _decoded(data: bytes, coding: str) -> bytes:
    """Return an answer without its codings, as far as it can be read."""
    out = bytearray()
    try:
        decoder = stream_decoder(coding)
        if decoder is None:
            return data
        for start in range(0, len(data), _PIECE):
            out += decoder.feed(data[start : start + _PIECE])
            if len(out) > MAX_BODY:
                break
    except (TooLarge, Undecodable):
        pass
    return bytes(out[:MAX_BODY])


def asked(data: bytes, api: Api) -> dict[str, str]:
    """Return the attributes that tell what a request asks."""
    said = conversation(data, api)
    if said is None:
        return _unread(len(data))
    system = _message(said.system)["parts"] if said.system else []
    return _attributes(
        {
            "gen_ai.system_instructions": _fitting_parts(system)[0],
            "gen_ai.input.messages": _fitting(map(_message, said.messages)),
            "gen_ai.tool.definitions": _fitting_parts(map(_tool, said.tools))[0],
        }
    )


def answered(data: bytes, api: Api, *, event_stream: bool) -> dict[str, str]:
    """Return the attribute that tells what an answer says.

    A message whose end was not seen has the finish reason `error`.
    """
    said = [
        {"finish_reason": message.finish or "error", **_message(message)}
        for message in (messages(data, api, event_stream=event_stream) if data else ())
        if message.role != _NUMBERS
    ]
    return _attributes({"gen_ai.output.messages": _fitting(said)})


def _unread(length: int) -> dict[str, str]:
    """Return the attribute of a request that was not read, or was none that can be."""
    unread = [_omitted(f"{size(length)}, not read")] if length else []
    return _attributes({"gen_ai.input.messages": unread})


def _attributes(values: Mapping[str, list[Any]]) -> dict[str, str]:
    return {name: _dump(value) for name, value in values.items() if value}


def _dump(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, UnicodeError, TypeError, ValueError):
        return msgspec.json.encode(well_formed_json(value)).decode()


# --- messages and parts ---------------------------------------------------------------------------


def _message(said: Message | Node) -> dict[str, Any]:
    if not isinstance(said, Message):
        # The mark where messages are left out, or what is none.
        return _omitted(said) if isinstance(said, str) else {"role": "user", "parts": [_part(said)]}
    role = line(said.role, _MAX_ROLE)
    parts = [_part(part) for part in said.parts]
    if said.role == "blocked":
        parts = [{"type": "blocked", "content": _value(part)} for part in said.parts]
    return {"role": _ROLES.get(role, role), "parts": parts}


def _part(node: Node) -> Part:
    match node:
        case str():
            return {"type": "text", "content": node}
        case Thing():
            return {name: _field(name, value) for name, value in node.fields.items()}
        case Mapping() if len(node) == 1:
            ((kind, said),) = node.items()
            return {"type": kind, "content": _text(said) if kind in _TEXTS else _value(said)}
        case _:
            return {"type": "json", "content": _value(node)}


def _field(name: str, value: Node) -> Any:
    if name != "response" or not isinstance(value, Sequence) or isinstance(value, str):
        return _value(value)
    if all(isinstance(part, str) for part in value):
        return "\n".join(map(str, value))
    return [_part(part) for part in value]


def _text(node: Node) -> str:
    if isinstance(node, Sequence) and not isinstance(node, str):
        return "\n".join(map(_text, node))
    return node if isinstance(node, str) else _dump(_value(node))


def _tool(node: Node) -> Part:
    if isinstance(node, Thing):
        return {name: _value(value) for name, value in node.fields.items() if value}
    kind = next(iter(node), "tool") if isinstance(node, Mapping) else "omitted"
    return {"type": kind, "name": node if isinstance(node, str) else kind}


def _value(node: Node) -> Any:
    match node:
        case Json():
            return node.value
        case Mapping():
            return {name: _value(value) for name, value in node.items()}
        case str():
            return node
        case Sequence():
            return list(map(_value, node))
        case _:
            return node


# --- bounds ---------------------------------------------------------------------------------------


def _omitted(what: str) -> dict[str, Any]:
    return {"role": "omitted", "parts": [{"type": "omitted", "content": what}]}


def _fitting(said: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last messages that fit into an attribute, and tell of those left out."""
    kept: list[dict[str, Any]] = []
    every = list(said)
    left = MAX_ATTRIBUTE
    for message in reversed(every):
        left -= len(_dump(message | {"parts": []})) + 1
        parts, left = _fitting_parts(message["parts"], left)
        if left < 0 or (message["parts"] and not parts):
            kept.append(_omitted(f"{len(every) - len(kept):,} messages"))
            break
        kept.append(message | {"parts": parts})
    return kept[::-1]


def _fitting_parts(parts: Iterable[Part], left: int = MAX_ATTRIBUTE) -> tuple[list[Part], int]:
    """Return the last parts that fit, and how many characters are left."""
    kept: list[Part] = []
    every = list(parts)
    for part in reversed(every):
        length = len(_dump(part))
        if length > left:
            if kept:
                kept.append({"type": "omitted", "content": f"{len(every) - len(kept):,} parts"})
            return kept[::-1], 0
        left -= length + 1
        kept.append(part)
    return kept[::-1], left
