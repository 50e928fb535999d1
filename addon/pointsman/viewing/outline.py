"""Text in the shape of YAML, for people: long texts as blocks, nothing escaped.

The UIs highlight YAML, and it is easy on the eye. A YAML library would write a prompt with a
trailing space or an emoji as one escaped line; this writes every text of more than a line as a
block. What comes out can be parsed (a test does), with these liberties: lines that are too long are
broken, trailing space is left out, and what no terminal can show becomes U+FFFD.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

MAX_OUTPUT = 400_000  # characters
_COLUMNS = 92  # where long lines are broken: mitmweb does not, and half its window has these
_NARROWEST = 40

type Node = str | int | float | bool | Json | Mapping[str, Node] | Sequence[Node]


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON value: in a line and as JSON where it is short, else as an outline of its own."""

    value: Any


# Beside control characters: a terminal or a browser could take these for the end of a line, or
# YAML refuses them. Two more turn all that follows them around.
_UNSHOWABLE = re.compile(
    "[^\t\n\x20-\x7e\xa0-\u2027\u202a-\u202c\u202f-\ud7ff"
    "\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_LINE_END = re.compile("\r\n|[\r\x85\u2028\u2029]")
# What begins with another character, or has `: ` or ` #` in it, means something else in YAML.
_PLAIN = re.compile(r"[^\s\-?:,\[\]{}#&*!|>'\"%@`=<~](?:[^\n\t:#]|:(?=[^\s])|(?<=\S)#)*\Z")
_PLAIN_KEY = re.compile(r"[^\s\-?:,\[\]{}#&*!|>'\"%@`=<~][^\n:#\"]*\Z")
_ESCAPED = re.compile(r"\t|\\[nrt]")  # a text with lines or tabs in it is read better as a block
_QUOTABLE = re.compile(r'[^"\\\t]+\Z')
# What would be read as a number, a date, or a word with a meaning.
_TYPED = re.compile(
    r"[-+.]?\d[\d_.:eExXoOTZ+ -]*\Z|(?:true|false|yes|no|on|off|null|nan)\Z", re.IGNORECASE
)
_WIDE = re.compile(
    "[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60]"
)
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
    elif len(prefix) + 1 + len(text) > _COLUMNS or "\n" in text:
        yield from _block(prefix, text, indent)
    elif _PLAIN.match(text) and not _TYPED.match(text):
        yield f"{prefix} {text}"
    elif _QUOTABLE.match(text):
        yield f'{prefix} "{text}"'
    else:
        yield from _block(prefix, text, indent)


def _block(prefix: str, text: str, indent: str) -> Iterator[str]:
    # The digit tells how far the block is indented, where its own first line begins with a space.
    yield f"{prefix} |2" if text[0].isspace() else f"{prefix} |"
    width = max(_COLUMNS - len(indent), _NARROWEST)
    for line in text.split("\n"):
        for piece in _broken(line.rstrip(), width):
            yield f"{indent}{piece}" if piece else ""


def _broken(line: str, width: int) -> Iterator[str]:
    """Break a line that is too long: at a space, or where there is none."""
    if len(line) > width // 2 and _WIDE.search(line):
        width //= 2
    while len(line) > width:
        at = line.rfind(" ", len(line) - len(line.lstrip()) + 1, width + 1)
        at = at if at > 0 else width
        yield line[:at].rstrip()
        line = line[at:].lstrip()
    yield line


def _json(prefix: str, value: Any, indent: str) -> Iterator[str]:
    space = _COLUMNS - len(prefix) - 1
    if _left(value, space) >= 0:
        line = json.dumps(value, ensure_ascii=False)
        if len(line) <= space and line == shown(line) and not _ESCAPED.search(line):
            yield f"{prefix} {line}"  # YAML reads JSON
            return
    yield from _entry(prefix, _node(value), indent[:-2])


def _left(value: Any, space: int) -> int:
    """Return how much space a JSON value leaves at the most; less than 0: it does not fit."""
    match value:
        case str():
            return space - len(value)
        case dict():
            items: Iterable[Any] = chain.from_iterable(value.items())
        case list():
            items = value
        case _:
            return space - 1
    for item in items:
        space = _left(item, space - 1)
        if space < 0:
            break
    return space


def _node(value: Any) -> Node:
    """Return a JSON value as a node; its parts are JSON again, in a line where they are short."""
    match value:
        case str():
            return value
        case dict() if value:
            return {str(name): _part(item) for name, item in value.items()}
        case list() if value:
            return [_part(item) for item in value]
        case _:
            return json.dumps(value)


def _part(value: Any) -> Node:
    return value if isinstance(value, str) else Json(value)


def _key(name: str) -> str:
    name = " ".join(shown(name[:_MAX_KEY]).split())
    if _PLAIN_KEY.match(name) and not _TYPED.match(name):
        return name
    return json.dumps(name, ensure_ascii=False)
