"""Texts cut to what a person reads, and sizes in words. Data in base64 is told by its size."""

import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec

from pointsman.viewing.outline import Json, Node
from pointsman.wellformed import printable

MAX_TEXT = 20_000  # characters shown of one text
_MAX_JSON = 4000
_MOST_ITEMS = 200  # messages, or parts of a message, that are shown …
_FIRST_ITEMS = 20  # … of which so many are the first; the rest are the last
_MOST_PARTS = 2000  # of one JSON value
_DEEPEST = 40
_MAX_LINE = 200
_KILO = 1000

# So long a run is no word of any language: an image, a signature, an encrypted thought, a key.
_ENCODED = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_=-]{200,}")  # tried once for each run
# The same in lines, as mail and PEM files have it: all of one length, but for the last.
_ENCODED_LINES = re.compile(
    r"^(?:[ \t]{0,40}[A-Za-z0-9+/]{60,200}\r?\n){4,}(?:[ \t]{0,40}[A-Za-z0-9+/]{1,200}={0,2}$)?",
    re.MULTILINE,
)
_ENCODED_SHOWN = 16
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[^,;]{0,100}){0,5}),", re.ASCII)
_MAX_HEAD = 1000  # characters of a data URL before its data
_ADDRESS = re.compile(r"(?:https?|gs|s3|file)://", re.IGNORECASE)

_DECODER = msgspec.json.Decoder()
_MOST_VALUES = 1_500_000  # some 16 MiB of embeddings
_MAX_SLOW = 4 * 1024 * 1024  # characters that the standard library's decoder is given
_NAMES = msgspec.json.Decoder(dict[str, msgspec.Raw])


def load(data: bytes | str) -> Any:
    """Return what the JSON says; None where it is none, or says null.

    What msgspec refuses and clients send all the same is read: NaN, lone surrogates. A body of
    millions of values, which no one reads, is taken for none.
    """
    if not _bounded(data):
        return None
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    try:
        return json.loads(data) if len(data) <= _MAX_SLOW else None
    except (ValueError, RecursionError):
        return None


def _bounded(data: bytes | str) -> bool:
    """Tell whether reading a text as JSON gives no more values than a UI has time for."""
    comma: Any = "," if isinstance(data, str) else b","
    return len(data) <= _MOST_VALUES or data.count(comma) <= _MOST_VALUES


def top_level(data: bytes) -> Mapping[str, object]:
    """Return the members of a JSON object, their values unread; none if it is no whole object."""
    try:
        return _NAMES.decode(data) if _bounded(data) else {}
    except (msgspec.DecodeError, ValueError, RecursionError):
        return {}


def size(count: int) -> str:
    """Return a number of bytes as a person says it: `512 B`, `34.2 kB`, `1.3 MB`."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if round(amount, 1) < _KILO:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= _KILO
    return f"{amount:.1f} GB"


def line(text: str, limit: int = _MAX_LINE) -> str:
    """Return a text in one line of at most `limit` characters."""
    if len(text) <= limit and text.isprintable():
        return text.strip()
    said = printable(" ".join(text[: 4 * limit].split()))
    return said if len(said) <= limit and len(text) <= 4 * limit else said[: limit - 1] + "…"


def clip(text: str, limit: int = MAX_TEXT) -> str:
    """Return a text cut in its middle to `limit` characters, its encoded data told by size."""
    text = _ENCODED_LINES.sub(_encoded_lines, _ENCODED.sub(_encoded, text))
    return _cut(text, limit) if len(text) > limit else text


def _cut(text: str, limit: int) -> str:
    first = limit * 3 // 4
    left_out = len(text) - limit
    return f"{text[:first]}\n… {left_out:,} characters left out …\n{text[first + left_out :]}"


def _encoded(found: re.Match[str]) -> str:
    run = found[0]
    return f"{run[:_ENCODED_SHOWN]}… ({len(run):,} characters of encoded data)"


def _encoded_lines(found: re.Match[str]) -> str:
    lines = found[0].splitlines()
    if len({len(one) for one in lines[:-1]}) > 1:
        return found[0]
    first, length = lines[0], sum(len(one.strip()) for one in lines)
    indent = first[: len(first) - len(first.lstrip())]
    end = "\n" if found[0].endswith("\n") else ""
    shown = first.lstrip()[:_ENCODED_SHOWN]
    return f"{indent}{shown}… ({length:,} characters of encoded data in lines){end}"


def plain(value: Any) -> Any:
    """Return a JSON value cut to what a person reads: texts, lists, depth, and the whole."""
    return _Cutter().cut(value, 0)


class _Cutter:
    """Cuts one value; what it lets pass is counted."""

    def __init__(self) -> None:
        self._left = _MOST_PARTS

    def cut(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return clip(value, _MAX_JSON)
        if not isinstance(value, dict | list):
            return value
        kept = min(len(value), _MOST_ITEMS, self._left) if depth < _DEEPEST else 0
        self._left -= kept
        more = _more(len(value) - kept)
        if isinstance(value, list):
            return [self.cut(item, depth + 1) for item in value[:kept]] + list(more)
        items = islice(value.items(), kept)
        return {line(str(name)): self.cut(item, depth + 1) for name, item in items} | more


def _more(count: int) -> dict[str, Any]:
    return {f"… {count:,} more": None} if count > 0 else {}


def json_node(value: Any) -> Node:
    """Return a JSON value for an outline: texts bare, all else as JSON, both bounded."""
    return clip(value) if isinstance(value, str) else Json(plain(value))


def some(items: list[Any]) -> tuple[list[Any], list[Any], int]:
    """Return the first and the last of many items, and how many are left out between them."""
    if len(items) <= _MOST_ITEMS:
        return items, [], 0
    last = _MOST_ITEMS - _FIRST_ITEMS
    return items[:_FIRST_ITEMS], items[-last:], len(items) - _MOST_ITEMS


def media(kind: str | None, data: Any) -> str:
    """Tell of an image, a sound or a file what it is and how large, or where it is.

    `data` is base64, a data URL, or an address.
    """
    if not isinstance(data, str):
        return line(kind or "unknown")
    if found := _DATA_URL.match(data[:_MAX_HEAD]):
        coded = "base64" in found[2]
        length = len(data) - found.end()
        return _typed(found[1] or kind, length * 3 // 4 if coded else length)
    if _ADDRESS.match(data):
        address = line(clip(data.partition("?")[0], _MAX_LINE))
        return f"{line(kind)} at {address}" if kind else address
    return _typed(kind, len(data) * 3 // 4)


def _typed(kind: str | None, length: int) -> str:
    return f"{line(kind or 'unknown type')}, {size(length)}"
