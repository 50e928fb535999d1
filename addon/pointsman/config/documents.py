"""Manifest files in, documents out that know the line of each of their fields.

A file may hold several documents; `kind: List` is unrolled; what stands before a syntax error is
still read. A file too large is refused, so that none takes the process down.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from pointsman.config.files import reason
from pointsman.config.problems import Location, Problem, field_path, shown_name
from pointsman.config.yaml_values import TAG, Builder, DefectError, Entries, Loader, line_of

_MAX_BYTES = 4 * 1024 * 1024
# How deep the values of an object may be nested: far more than a body for a provider needs.
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Document:
    """One resource as written: its plain values, and where they stand.

    `value` is what the resource is validated from; `line` and `problem` take a location in it.
    An object of an API server (see `of_object`) has no lines.
    """

    file: str
    folder: Path
    api_version: str
    kind: str
    value: Mapping[str, Any] = field(repr=False)
    _root: Node | None = field(default=None, repr=False)
    _entries: Mapping[int, Entries] = field(default_factory=dict, repr=False)

    @classmethod
    def of_object(cls, value: Mapping[str, Any]) -> "Document":
        """Return the document of an object as an API server gives it, in JSON's values.

        Its file is `kind namespace/name`; relative paths in it are the process's own.
        """
        metadata = value.get("metadata")
        named: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
        kind = str(value.get("kind"))
        file = f"{kind} {named.get('namespace')}/{named.get('name')}"
        return cls(file, Path(), str(value.get("apiVersion")), kind, value)

    @property
    def label(self) -> str:
        """Kind and name, as `kubectl` writes them."""
        name = self.text("metadata", "name")
        return f"{self.kind}/{shown_name(name)}" if name else self.kind

    def at(self, *location: str | int) -> Any:
        """Return the value at a location, or None: for what must be read from a faulty document."""
        value: Any = self.value
        for part in location:
            inside = isinstance(value, dict) if isinstance(part, str) else isinstance(value, list)
            try:
                value = value[part] if inside else None
            except (KeyError, IndexError):
                return None
        return value

    def text(self, *location: str | int) -> str | None:
        """Return the text at a location, or None."""
        value = self.at(*location)
        return value if isinstance(value, str) else None

    def line(self, location: Location) -> int | None:
        """Return the line of a field, or of the nearest one around it that exists."""
        return None if self._root is None else self._line(self._root, location)

    def _line(self, root: Node, location: Location) -> int:
        node, line = root, line_of(root)
        for part in location:
            if isinstance(node, MappingNode) and isinstance(part, str):
                found = _entry(self._entries.get(id(node), {}), part)
                if found is None:
                    break
                key, node = found
                line = line_of(key)
            elif isinstance(node, SequenceNode) and isinstance(part, int):
                if part >= len(node.value):
                    break
                node = node.value[part]
                line = line_of(node)
            else:
                break
        return line

    def place(self) -> str:
        """Return `file:line`, for messages about another document."""
        if self._root is None:
            return self.file.partition(" ")[2]
        return f"{self.file}:{self.line(())}"

    def spot(self, location: Location) -> str:
        """Return where in this document a field stands, for messages about another field."""
        line = self.line(location)
        return field_path(location) or "" if line is None else f"line {line}"

    def problem(self, location: Location, message: str) -> Problem:
        """Return a problem at a location."""
        line = self.line(location)
        label = None if self._root is None else self.label
        return Problem(self.file, line, label, field_path(location), message)


@dataclass(slots=True)
class Reading:
    """What one file holds. `complete` is False when part of it could not be read."""

    file: str
    documents: list[Document] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    complete: bool = True
    text: str = field(default="", repr=False)

    def fail(self, line: int | None, message: str) -> None:
        """Note what keeps a part of the file from being read."""
        self.problems.append(Problem(self.file, line, None, None, message))
        self.complete = False


def read(path: Path, wanted: str, text: str | None = None) -> Reading:
    """Read the documents of a file.

    Args:
        path: the file.
        wanted: an API group. The documents of other groups come without their values, which
            nobody looks at.
        text: what the file held when it was read before: then it is not opened.
    """
    reading = Reading(str(path))
    try:
        text = reading.text = _text(path) if text is None else text
    except (OSError, ValueError) as error:
        why = (
            str(error) if isinstance(error, DefectError) else f"it can't be read ({reason(error)})"
        )
        reading.fail(None, f"{why}; mend it or take it out of the folder")
        return reading
    try:
        loader = Loader(text)
        while loader.check_node():
            if root := loader.get_node():
                _read_document(root, path.parent, wanted, reading)
    except yaml.YAMLError as error:
        line, message = _syntax(error, text)
        reading.fail(line, message)
    except RecursionError:
        reading.fail(None, "its YAML is nested too deeply")
    except (ValueError, OverflowError):  # PyYAML, for an escape beyond Unicode
        reading.fail(None, "it has an escape in quotes that is no character")
    return reading


def _text(path: Path) -> str:
    if not S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
        raise DefectError("it is not a file")
    with path.open("rb") as file:
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise DefectError(f"it is larger than {_MAX_BYTES // 1024 // 1024} MiB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DefectError("it is not UTF-8 text") from None
    # JSON may be indented by tabs, YAML may not; inside a JSON string no bare tab can stand.
    return text.replace("\t", " ") if path.suffix.lower() == ".json" else text


def _read_document(root: Node, folder: Path, wanted: str, reading: Reading) -> None:
    if isinstance(root, ScalarNode) and root.tag == f"{TAG}null":
        return
    builder = Builder()
    try:
        for node in _unrolled(root, builder):
            _read_resource(node, folder, wanted, builder, reading)
    except DefectError as error:
        reading.fail(error.line or line_of(root), str(error))


def _unrolled(root: Node, builder: Builder) -> Iterator[MappingNode]:
    if not isinstance(root, MappingNode):
        raise DefectError(
            "a manifest is a mapping that begins with apiVersion and kind; this is not one", root
        )
    builder.spend(1, root)
    with builder.inside(root):
        entries = builder.entries(root)
        items = entries.get("items")
        if _scalar_text(entries, "kind") == "List" and items:
            for item in items[1].value if isinstance(items[1], SequenceNode) else ():
                yield from _unrolled(item, builder)
            return
    yield root


def _read_resource(
    node: MappingNode, folder: Path, wanted: str, builder: Builder, reading: Reading
) -> None:
    entries = builder.entries(node)
    api_version, kind = _scalar_text(entries, "apiVersion"), _scalar_text(entries, "kind")
    if not api_version or not kind:
        missing = " and ".join(
            name for name, given in (("apiVersion", api_version), ("kind", kind)) if not given
        )
        mend = f"write apiVersion: {wanted}/… and kind, or keep other YAML out of the folder"
        reading.fail(line_of(node), f"without {missing} this is no manifest; {mend}")
        return
    ours = api_version.partition("/")[0] == wanted
    value = builder.build(node) if ours else {}
    document = Document(reading.file, folder, api_version, kind, value, node, builder.known)
    reading.documents.append(document)
    for line, message in builder.duplicates if ours else ():
        reading.problems.append(Problem(reading.file, line, document.label, None, message))
    builder.duplicates.clear()


def _entry(entries: Entries, name: str) -> tuple[Node, Node] | None:
    """Find an entry; names of headers have lost their case on the way."""
    if found := entries.get(name):
        return found
    return next((e for key, e in entries.items() if key.lower() == name.lower()), None)


def _scalar_text(entries: Entries, name: str) -> str | None:
    node = entries[name][1] if name in entries else None
    return node.value.strip() if isinstance(node, ScalarNode) else None


def _syntax(error: yaml.YAMLError, text: str) -> tuple[int | None, str]:
    """Say what the parser found, without the texts it quotes."""
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return line, "it has a control character that YAML does not allow; remove it"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return None, "it is not YAML"
    index = error.problem_mark.line
    lines = text.split("\n")
    if "undefined alias" in str(error.problem):
        return index + 1, "an alias (*name) has no anchor (&name); a text with * must be quoted"
    if index < len(lines) and lines[index][: error.problem_mark.column + 1].strip(" -") == "\t":
        return index + 1, "a tab can't indent YAML; use spaces"
    context = f" {error.context}" if error.context and "anchor" not in error.context else ""
    return index + 1, (
        f"this is not YAML: {error.problem}{context}; check indentation, colons and quotes here"
    )


def bounded(value: Any, depth: int = MAX_DEPTH + 1) -> Any:
    """Return a value of JSON without what is nested deeper than this, so that all may walk it."""
    if isinstance(value, dict):
        return {k: bounded(v, depth - 1) for k, v in value.items()} if depth else None
    if isinstance(value, list):
        return [bounded(v, depth - 1) for v in value] if depth else None
    return value


def is_too_deep(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Tell whether a value is nested deeper than this."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return not depth or any(is_too_deep(v, depth - 1) for v in inner)
