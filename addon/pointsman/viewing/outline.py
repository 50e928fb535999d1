"""Text in the shape of YAML, for people: long texts as blocks, nothing escaped.

The UIs highlight YAML, and it is easy on the eye. A YAML library would write a prompt with a
trailing space or an emoji as one escaped line; this writes every text of more than a line as a
block. What comes out can still be parsed (a test does), apart from these liberties: numbers and
`true` inside texts are not quoted, and characters that no terminal can show become U+FFFD.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_OUTPUT = 400_000  # characters
_ONE_LINE = 100  # characters of a text that may stand behind its name

type Node = str | int | float | bool | Json | Mapping[str, Node] | Sequence[Node]


@dataclass(frozen=True, slots=True)
class Json:
    """A value that is shown as the JSON that it is: in a line where it is short, else indented."""

    value: Any


# Beside control characters: a terminal or a browser could take these for the end of a line, or
# YAML refuses them.
_UNSHOWABLE = re.compile(
    "[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_LINE_END = re.compile("\r\n|[\r\x85\u2028\u2029]")
# What begins with another character, or has `: ` or ` #` in it, means something else in YAML.
_PLAIN = re.compile(r"[^\s\-?:,\[\]{}#&*!|>'\"%@`=<~](?:[^\n:#]|:(?=[^\s])|(?<=\S)#)*\Z")
_PLAIN_KEY = re.compile(r"[^\s\-?:,\[\]{}#&*!|>'\"%@`=<~][^\n:#\"]*\Z")
_MAX_KEY = 120


def outline(node: Mapping[str, Node], limit: int = MAX_OUTPUT) -> str:
    """Return the node as text of at most `limit` characters and a line that tells of a cut."""
    lines: list[str] = []
    left = limit
    for line in _fields(node, ""):
        left -= len(line) + 1
        if left < 0:
            lines.append("# … cut here: there is more than is shown")
            break
        lines.append(line)
    return "\n".join(lines) + "\n"


def shown(text: str) -> str:
    """Return a text without what can't be shown, its line ends as newlines."""
    return _UNSHOWABLE.sub("\ufffd", _LINE_END.sub("\n", text))


def _fields(node: Mapping[str, Node], indent: str, lead: str | None = None) -> Iterator[str]:
    """Write a mapping; `lead` is what stands before its first name instead of the indent."""
    for name, value in node.items():
        yield from _entry(f"{indent if lead is None else lead}{_key(name)}:", value, indent)
        lead = None


def _items(nodes: Sequence[Node], indent: str) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, Mapping) and node:
            yield from _fields(node, f"{indent}  ", lead=f"{indent}- ")
        else:
            yield from _entry(f"{indent}-", node, indent)


def _entry(prefix: str, node: Node, indent: str) -> Iterator[str]:
    inner = f"{indent}  "
    match node:
        case str():
            yield from _text(prefix, shown(node), inner)
        case bool() | int() | float():
            yield f"{prefix} {json.dumps(node)}"
        case Json():
            yield from _json(prefix, node.value, inner)
        case Mapping():
            yield prefix if node else f"{prefix} {{}}"
            yield from _fields(node, inner)
        case _:
            yield prefix if node else f"{prefix} []"
            yield from _items(node, inner)


def _text(prefix: str, text: str, indent: str) -> Iterator[str]:
    text = text.rstrip()
    if not text:
        yield f'{prefix} ""'
    elif len(text) <= _ONE_LINE and _PLAIN.match(text) and not text.endswith(":"):
        yield f"{prefix} {text}"
    else:
        yield from _block(prefix, text, indent)


def _block(prefix: str, text: str, indent: str) -> Iterator[str]:
    # The digit tells how far the block is indented, where its own first line begins with a space.
    yield f"{prefix} |2" if text[0].isspace() else f"{prefix} |"
    for line in text.split("\n"):
        yield f"{indent}{line}" if line.strip() else ""


def _json(prefix: str, value: Any, indent: str) -> Iterator[str]:
    line = json.dumps(value, ensure_ascii=False)
    # A plain text inside JSON has its quotes, which YAML reads alike; the rest is its subset.
    if len(line) <= _ONE_LINE and line == shown(line) and "\t" not in line:
        yield f"{prefix} {line}"
    else:
        yield from _block(prefix, shown(json.dumps(value, ensure_ascii=False, indent=2)), indent)


def _key(name: str) -> str:
    name = shown(name[:_MAX_KEY]).replace("\n", " ").strip()
    if _PLAIN_KEY.match(name):
        return name
    return json.dumps(name, ensure_ascii=False)
