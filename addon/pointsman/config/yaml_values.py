"""YAML text down to plain values, read as Kubernetes does and within bounds.

Where YAML 1.1 guesses, this does not: `on`, `yes` and `2024-01-01` are texts, only true and false
are booleans, a name is always a text. A name that stands twice in a mapping is told, and aliases
may not unfold to more values than any honest file has.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from pointsman.config.problems import shown_field

TAG = "tag:yaml.org,2002:"
_MERGE = f"{TAG}merge"
_MAX_VALUES = 500_000

type Entries = dict[str, tuple[Node, Node]]


class Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML down to nodes, with the plain scalars of YAML 1.2."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)


_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
for _name, (_pattern, _first) in _PLAIN.items():
    Loader.add_implicit_resolver(TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


class DefectError(ValueError):
    """Something in a document that keeps it from being read."""

    def __init__(self, message: str, node: Node | None = None) -> None:
        super().__init__(message)
        self.line = line_of(node) if node else None


def line_of(node: Node) -> int:
    """Return the line on which a node begins, from 1."""
    return int(node.start_mark.line) + 1


class Builder:
    """Turns the nodes of one document into plain values, within bounds."""

    def __init__(self) -> None:
        self.known: dict[int, Entries] = {}
        self.duplicates: list[tuple[int, str]] = []
        self._left = _MAX_VALUES
        self._open: set[int] = set()

    def build(self, node: Node) -> Any:
        """Return the value of a node. Raises DefectError."""
        self.spend(1, node)
        if isinstance(node, ScalarNode):
            return _scalar(node)
        if node.tag not in {f"{TAG}seq", f"{TAG}map"}:
            raise DefectError("this YAML tag is not supported; remove it", node)
        with self.inside(node):
            if isinstance(node, MappingNode):
                return {k: self.build(child) for k, (_, child) in self.entries(node).items()}
            return [self.build(element) for element in node.value]

    @contextmanager
    def inside(self, node: Node) -> Iterator[None]:
        """Guard against a node that an alias puts into itself."""
        if id(node) in self._open:
            raise DefectError("an alias puts this into itself", node)
        self._open.add(id(node))
        yield
        self._open.discard(id(node))

    def entries(self, node: MappingNode) -> Entries:
        """Return the entries of a mapping, merge keys resolved: its own win, then the first."""
        if id(node) in self.known:
            return self.known[id(node)]
        own: Entries = {}
        merged: Entries = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                merged = self._merged(value) | merged
                continue
            name = _key(key)
            if name in own:
                first = line_of(own[name][0])
                self.duplicates.append(
                    (line_of(key), f'"{shown_field(name)}" stands twice, first in line {first}')
                )
            own[name] = (key, value)
        entries = merged | own
        self.spend(len(merged), node)
        self.known[id(node)] = entries
        return entries

    def _merged(self, value: Node) -> Entries:
        merged: Entries = {}
        for source in value.value if isinstance(value, SequenceNode) else [value]:
            if not isinstance(source, MappingNode):
                raise DefectError("<< takes a mapping, or a list of mappings", value)
            with self.inside(source):
                entries = self.entries(source)
            self.spend(len(entries), source)
            merged = entries | merged
        return merged

    def spend(self, count: int, node: Node) -> None:
        """Count values. Raises DefectError when aliases have made too many of them."""
        self._left -= count
        if self._left < 0:
            raise DefectError(
                f"its aliases unfold to more than {_MAX_VALUES} values; write less of them", node
            )


def _key(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        raise DefectError(
            "a mapping can't be a name; a text with {{ }} in it must be quoted, and a template"
            " rendered first",
            node,
        )
    return _whole(node)


def _scalar(node: ScalarNode) -> Any:
    try:
        match node.tag.removeprefix(TAG):
            case "str" | "merge":
                return _whole(node)
            case "null":
                return None
            case "bool":
                return node.value.lower() == "true"
            case "int":
                return int(node.value, 0 if node.value[:2] in {"0x", "0o"} else 10)
            case "float" if math.isfinite(number := float(node.value)):
                return number
            case "float":
                raise DefectError("this number is too large", node)
    except ValueError as error:
        if isinstance(error, DefectError):
            raise
        raise DefectError("this is not a number that can be used", node) from None
    raise DefectError("this YAML tag is not supported; remove it", node)


def _whole(node: ScalarNode) -> str:
    """Return the text, with the surrogate pairs that JSON escapes are made of put together."""
    text: str = node.value
    if text.isascii():
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise DefectError("this text has half a character (a lone \\ud800…\\udfff)", node) from None
