"""What the APIs have in common: messages of some role, made of texts, media, calls and results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pointsman.protocols.reader import mapping, objects
from pointsman.viewing.outline import Json, Node
from pointsman.viewing.texts import clip, json_node, line, load, plain, some

_MAX_ROLE = 60
_MAX_TOOLS = 100
_MOST_PARAMETERS = 12  # of a tool


@dataclass(frozen=True, slots=True)
class Message:
    """One message. A part is a text, or one kind of thing and what it is: `{"image": …}`."""

    role: str
    parts: list[Node]
    finish: str | None = None

    def fields(self) -> dict[str, Node]:
        """Return it as its role and what it says."""
        role = line(self.role, _MAX_ROLE) or "(no role)"
        if not self.parts:
            return {role: "(nothing)"}
        return {role: self.parts[0] if len(self.parts) == 1 else self.parts}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request says; `parameters` are JSON values, the model and `stream` among them.

    `system` is what the API has apart from the messages. A message that can't be read as one is a
    node, and so is the mark where some are left out.
    """

    messages: list[Message | Node]
    tools: list[Node] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    system: Message | None = None

    def nodes(self) -> list[Node]:
        """Return what is said for an outline, the system's part first."""
        said = [self.system, *self.messages] if self.system else self.messages
        return [one.fields() if isinstance(one, Message) else one for one in said]


class Thing(dict[str, Node]):
    """A tool, a call or a result: a mapping as an outline shows it, and the fields it is made of.

    The fields have the names of OpenTelemetry's conventions (see `genai`).
    """

    def __init__(self, shown: Mapping[str, Node], **fields: Node) -> None:
        super().__init__(shown)
        self.fields = fields


def listed[T](items: Any, render: Callable[[Any], T]) -> list[T | str]:
    """Return the first and the last items, rendered, and how many stand between them."""
    first, last, left_out = some(items if isinstance(items, list) else [])
    nodes: list[T | str] = [render(item) for item in first]
    if left_out:
        nodes.append(f"… {left_out:,} left out …")
    return nodes + [render(item) for item in last]


def parts_of(content: Any, render: Callable[[dict[str, Any]], Node]) -> list[Node]:
    """Return the parts of a message's content: a string, or a list of strings and objects."""
    match content:
        case None | "" | []:
            return []
        case str():
            return [clip(content)]
        case list():
            return listed(content, lambda part: _part(part, render))
        case _:
            return [_part(content, render)]


def _part(part: Any, render: Callable[[dict[str, Any]], Node]) -> Node:
    if isinstance(part, str):
        return clip(part)
    return render(part) if isinstance(part, dict) else json_node(part)


def other(part: Mapping[str, Any]) -> Node:
    """Return a part of a kind that is not known here: its type, and the rest as JSON."""
    rest = {name: value for name, value in part.items() if name != "type"}
    return {line(str(part.get("type", "part")), _MAX_ROLE): Json(plain(rest))}


def call(name: Any, identity: Any, arguments: Any) -> Node:
    """Return a tool call. Arguments that are JSON in a string are read, unless they are cut off."""
    if isinstance(arguments, str) and arguments:
        read = load(arguments) if len(arguments) <= _MAX_ARGUMENTS else None
        arguments = arguments if read is None else read
    said = json_node(arguments if arguments not in (None, "") else {})
    told = {"type": "tool_call", **_names(name, identity), "arguments": said}
    return Thing({_named("call", name, identity): said}, **told)


_MAX_ARGUMENTS = 1024 * 1024


def result(name: Any, identity: Any, parts: list[Node], *, failed: bool = False) -> Node:
    """Return the result of a tool call."""
    what = "failed result of" if failed else "result of"
    said: Node = parts[0] if len(parts) == 1 else parts or "(nothing)"
    told: dict[str, Node] = {"type": "tool_call_response", **_names(name, identity)}
    told |= {"response": parts} | ({"is_error": True} if failed else {})
    return Thing({_named(what, name, identity): said}, **told)


def _names(name: Any, identity: Any) -> dict[str, str]:
    told = {"name": line(str(name)) if name else ""}
    return told | ({"id": line(str(identity))} if identity else {})


def _named(what: str, name: Any, identity: Any) -> str:
    said = [line(str(part), _MAX_ROLE) for part in (name, identity) if part]
    match said:
        case [name, identity]:
            return f"{what} {name} ({identity})"
        case [one]:
            return f"{what} {one}"
        case _:
            return what


def tool(name: Any, description: Any, schema: Any) -> Node:
    """Return a tool in brief: its parameters' names, `?` on the optional ones, and what it does."""
    fields = mapping(schema)
    properties = mapping(fields.get("properties"))
    required = fields.get("required")
    needed = required if isinstance(required, list) else []
    names = [
        line(key, _MAX_ROLE) + ("" if key in needed else "?")
        for key in list(properties)[:_MOST_PARAMETERS]
    ]
    if len(properties) > _MOST_PARAMETERS:
        names.append("…")
    said = line(description) if isinstance(description, str) else ""
    shown = f"{line(str(name), _MAX_ROLE)}({', '.join(names)})"
    told = {"type": "function", "name": line(str(name)), "description": said}
    return Thing({shown: said or "(no description)"}, **told)


def tools(items: Any, render: Callable[[dict[str, Any]], list[Node]]) -> list[Node]:
    """Return the tools; one item may define several."""
    nodes = [node for item in objects(items)[:_MAX_TOOLS] for node in render(item)]
    more = len(nodes) - _MAX_TOOLS
    return [*nodes[:_MAX_TOOLS], f"… {more:,} more"] if more > 0 else nodes


def without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the fields but for those names."""
    return {name: value for name, value in fields.items() if name not in names}
