"""Manifests as text, some documents of which are changed.

A document that nothing changes is passed on byte for byte. In one that changes, every scalar keeps
the text and the quotes it had, so that `0644`, `on`, `"1e3"` and a date go on to mean what they
meant, whatever version of YAML the next reader speaks. What is lost there: comments, anchors
(aliases and merge keys are written out), flow style.

A document is plain dicts and lists; its names are `Name`, its scalars `Scalar`. What is added may
be given as plain text, numbers and booleans.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.emitter import Emitter
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError
from yaml.resolver import BaseResolver
from yaml.serializer import Serializer

from pointsman.config.yaml_values import TAG, Builder, DefectError, Loader, line_of

type Scalar = ScalarNode
type Value = dict[str, Value] | list[Value] | Scalar | str | int | float | None

_TEXT = f"{TAG}str"
# What any scalar without quotes is here: the reader after us decides whether it is a number.
_PLAIN = "!plain"
# What has to stay without quotes (numbers, booleans, null, dates) is printable ASCII on one line.
# Anything else is a text, and safer in quotes.
_STAYS_PLAIN = re.compile(r"(?!---|\.\.\.)[ -~]*\Z")
_NULL = {"", "~", "null", "Null", "NULL"}
_COMMENTS = re.compile(r"\s*(?:#[^\n]*\s*)*")
# Of the texts that are added: those that no version of YAML takes for something else. What begins
# with a letter is text but for a few words.
_SURELY_TEXT = re.compile(
    r"(?!(?:null|true|false|yes|no|on|off|y|n)\Z)[a-z/][a-z0-9_./:=@,+-]*(?<!:)\Z"
    r"|--?[a-z][a-z-]*\Z|[0-9]+(?:m|[kmgtpe]i)\Z",
    re.IGNORECASE,
)


_BOOL_TAG = f"{TAG}bool"
_NUMBER_TAGS = (f"{TAG}int", f"{TAG}float")
_OCTAL = re.compile(r"[-+]?0[0-7]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?\Z")


class ManifestError(Exception):
    """A manifest that can't be read or changed: the message says where and why."""


class Name(str):
    """The name of a field, which remembers how it was written."""

    __slots__ = ("node",)
    node: ScalarNode


@dataclass(slots=True)
class Document:
    """One document of a text.

    Attributes:
        number: from 1, as it stands in the text; empty ones count.
        line: where it begins, from 1.
        value: what it holds; None for an empty one.
        changed: whether `value` is written in place of the text.
    """

    number: int
    line: int
    value: Value
    start: int
    end: int
    changed: bool = False


def read(text: str) -> list[Document]:
    """Return the documents of a text, YAML or JSON.

    Raises:
        ManifestError: the text is not YAML; the message names document and line.
    """
    if (found := _json(text)) is not None:
        return [Document(1, 1, found, 0, len(text))]
    documents: list[Document] = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            if root := loader.get_node():
                documents.append(_document(len(documents) + 1, root, text))
    except DefectError as error:
        raise _error(len(documents), error.line, str(error)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _error(
            len(documents),
            mark.line + 1 if mark else None,
            f"this is not YAML: {error.problem}; a template (Helm, Jinja) has to be rendered first",
        ) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _error(len(documents), line, "there is a control character here") from None
    except RecursionError:
        raise _error(len(documents), None, "it is nested too deeply") from None
    except (ValueError, OverflowError):  # PyYAML, for an escape beyond Unicode
        raise _error(len(documents), None, "an escape in quotes is no character") from None
    return documents


def write(text: str, documents: list[Document]) -> str:
    """Return the text with its changed documents written anew."""
    parts: list[str] = []
    done = 0
    for document in documents:
        if not document.changed:
            continue
        before = text[done : document.start]
        if (line := before.rpartition("\n")[2]).isspace():  # the whole document is indented
            before = before.removesuffix(line)
        elif line:  # `--- {…}`
            before = before.rstrip(" \t") + "\n"
        parts += [before, _dump(document.value)]
        done = document.end
    return "".join(parts) + text[done:]


def join(texts: list[str]) -> str:
    """Return several files as one stream of documents."""
    joined = ""
    for text in texts:
        if not joined:
            joined = text
            continue
        joined += "" if joined.endswith("\n") else "\n"
        joined += text if text.startswith(("---", "%")) else f"---\n{text}"
    return joined


def at(value: Value, *path: str | int) -> Value:
    """Return what stands at a path, or None: for looking at what may be faulty."""
    for part in path:
        if isinstance(part, str):
            value = value.get(part) if isinstance(value, dict) else None
        else:
            value = value[part] if isinstance(value, list) and part < len(value) else None
    return None if is_null(value) else value


def text_at(value: Value, *path: str | int) -> str | None:
    """Return the scalar at a path as it is written, without its quotes, or None."""
    found = at(value, *path)
    return str(found.value) if isinstance(found, ScalarNode) else None


def number_at(value: Value, *path: str | int) -> int | None:
    """Return the whole number at a path as kubectl reads it, or None.

    That is as Go's YAML library does: with the prefixes of other bases, a leading 0 for octal,
    underscores, a float that is whole, and an explicit tag; but no number of base 60.
    """
    found = at(value, *path)
    if not isinstance(found, ScalarNode) or found.tag not in {_PLAIN, *_NUMBER_TAGS}:
        return None
    written = found.value.replace("_", "")
    if _OCTAL.match(written):
        return int(written, 8)
    try:
        return int(written, 0)
    except ValueError:
        pass
    number = float(written) if _FLOAT.match(written) else None
    return int(number) if number is not None and number.is_integer() else None


def true_at(value: Value, *path: str | int) -> bool:
    """Tell whether there is a `true` at a path."""
    found = at(value, *path)
    if not isinstance(found, ScalarNode) or found.tag not in {_PLAIN, _BOOL_TAG}:
        return False
    return found.value.lower() in {"true", "yes", "on", "y"}


def mappings_at(value: Value, *path: str | int) -> list[dict[str, Value]]:
    """Return the mappings in the list at a path."""
    found = at(value, *path)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def mapping(parent: dict[str, Value], name: str) -> dict[str, Value]:
    """Return a field that holds a mapping, made if it is missing. Raises ManifestError."""
    made: dict[str, Value] = _child(parent, name, dict, "a mapping")
    return made


def sequence(parent: dict[str, Value], name: str) -> list[Value]:
    """Return a field that holds a list, made if it is missing. Raises ManifestError."""
    made: list[Value] = _child(parent, name, list, "a list")
    return made


def is_null(value: Value) -> bool:
    """Tell whether a value says that there is none."""
    if isinstance(value, ScalarNode):
        return value.tag in {_PLAIN, f"{TAG}null"} and value.value in _NULL
    return value is None


def _document(number: int, root: Node, text: str) -> Document:
    builder = _Builder()
    value = builder.build(root)
    for line, message in builder.duplicates:
        raise _error(number - 1, line, message)
    # A mapping in braces ends before the comments that follow it, any other after them.
    end = root.end_mark.index
    if comments := _COMMENTS.match(text, end):
        end = comments.end()
    if is_null(value):
        value = None
    return Document(number, line_of(root), value, root.start_mark.index, end)


def _child(parent: dict[str, Value], name: str, kind: type[Any], called: str) -> Any:
    if is_null(parent.get(name)):
        parent[name] = kind()
    found = parent[name]
    if not isinstance(found, kind):
        raise ManifestError(f"{name} must be {called}")
    return found


def _error(before: int, line: int | None, message: str) -> ManifestError:
    return ManifestError(f"document {before + 1}{f', line {line}' if line else ''}: {message}")


def _json(text: str) -> Value:
    """Return what a JSON text holds, or None: tabs and escapes are not YAML's there."""
    if not text.lstrip("\ufeff \t\r\n").startswith("{"):
        return None
    try:
        return _from_json(json.loads(text.lstrip("\ufeff")))
    except (ValueError, RecursionError):
        return None


def _from_json(value: Any) -> Value:
    if isinstance(value, dict):
        return {name: _from_json(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_from_json(child) for child in value]
    if isinstance(value, str):
        return ScalarNode(_TEXT, value, style='"')
    return ScalarNode(_PLAIN, json.dumps(value))


# By the first letter: every scalar without quotes is left undecided, but for the merge key.
_IMPLICIT: dict[Any, Any] = {
    "<": [(f"{TAG}merge", re.compile(r"<<\Z"))],
    None: [(_PLAIN, re.compile(""))],
}


class _Resolver(BaseResolver):
    yaml_implicit_resolvers = _IMPLICIT


class _Loader(Loader):
    yaml_implicit_resolvers = _IMPLICIT


class _Builder(Builder):
    """Nodes down to dicts and lists, scalars as they are."""

    def build(self, node: Node) -> Any:
        """Return the value of a node. Raises DefectError."""
        if isinstance(node, ScalarNode):
            self.spend(1, node)
            return _as_written(node)
        if node.tag not in {f"{TAG}seq", f"{TAG}map"}:
            raise DefectError("this YAML tag is not supported; remove it", node)
        self.spend(1, node)
        with self.inside(node):
            if isinstance(node, MappingNode):
                return dict(self._fields(node))
            return [self.build(element) for element in node.value]

    def _fields(self, node: MappingNode) -> Iterator[tuple[Name, Value]]:
        for text, (key, value) in self.entries(node).items():
            name = Name(text)
            name.node = _as_written(key)
            yield name, self.build(value)


def _as_written(node: Node) -> ScalarNode:
    assert isinstance(node, ScalarNode)  # noqa: S101 (the builder refuses other keys)
    tag, style = node.tag, node.style
    if tag != _PLAIN and not tag.startswith(TAG):
        raise DefectError("this YAML tag is not supported; remove it", node)
    if tag == _PLAIN and not _STAYS_PLAIN.match(node.value):
        tag, style = _TEXT, '"'
    # What is folded keeps its lines; how it was broken to fit a page is not kept.
    return ScalarNode(tag, node.value, style="|" if style == ">" else style)


class _Dumper(Emitter, Serializer, _Resolver):
    def __init__(self, stream: io.StringIO) -> None:
        Emitter.__init__(self, stream, width=float("inf"), allow_unicode=True)  # type: ignore[arg-type]
        Serializer.__init__(self)
        _Resolver.__init__(self)


def _dump(value: Value) -> str:
    stream = io.StringIO()
    dumper = _Dumper(stream)
    dumper.open()
    dumper.serialize(_node(value))
    dumper.close()
    # It says so when a text keeps its last line ends; the next document's --- says it too.
    return stream.getvalue().removesuffix("...\n")


def _node(value: Value) -> Node:
    if isinstance(value, ScalarNode):
        # A node that stands twice would be written as an alias.
        return ScalarNode(value.tag, value.value, style=value.style)
    if isinstance(value, dict):
        pairs = [
            (_node(name.node if isinstance(name, Name) else name), _node(child))
            for name, child in value.items()
        ]
        return MappingNode(f"{TAG}map", pairs, flow_style=False)
    if isinstance(value, list):
        return SequenceNode(f"{TAG}seq", [_node(child) for child in value], flow_style=False)
    if isinstance(value, str):
        if _SURELY_TEXT.match(value):
            return ScalarNode(_PLAIN, value)
        return ScalarNode(_TEXT, value, style="'" if '"' in value else '"')
    return ScalarNode(_PLAIN, json.dumps(value))
