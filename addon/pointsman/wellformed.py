"""Text that can be written down: in JSON, in UTF-8, in a protocol buffer, on a screen.

What clients and providers send may hold a lone surrogate: half a character of JSON's, or a byte
that is no UTF-8, as mitmproxy decodes it. No encoder takes one.
"""

import re
from typing import Any

# A backslash more or less makes of `\\ud83d` half a character or the text itself.
_SURROGATE = re.compile(rb"(\\+)u[dD]([89a-fA-F])[0-9a-fA-F]{2}")
# Control characters, what ends a line, what turns the direction of a text, halves of characters.
_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_REPLACEMENT = rb"\ufffd"
_HIGH = b"89abAB"


def well_formed(text: str) -> str:
    """Return a text with U+FFFD in the place of each lone surrogate."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def printable(text: str) -> str:
    """Return a text that stays on its line and in its direction, wherever it came from.

    What steers a terminal, ends a line or turns the direction of what follows becomes U+FFFD.
    """
    return text if text.isprintable() else _STEERING.sub("\ufffd", text)


def well_formed_json(value: Any) -> Any:
    """Return a JSON value with all its texts well-formed."""
    match value:
        case str():
            return well_formed(value)
        case dict():
            return {well_formed(str(name)): well_formed_json(item) for name, item in value.items()}
        case list():
            return [well_formed_json(item) for item in value]
        case _:
            return value


def well_formed_escapes(data: bytes) -> bytes:
    """Return JSON in which each escape of a lone surrogate is that of U+FFFD; the same if none is.

    Who cuts a text by its UTF-16 units, as JavaScript does, sends such.
    """
    found = bytearray(data)
    high: re.Match[bytes] | None = None
    for escape in _SURROGATE.finditer(data):
        slashes = len(escape[1])
        if slashes % 2 == 0:
            continue  # the last one is escaped itself
        if escape[2] in _HIGH:
            _replace(found, high)
            high = escape
        elif high is not None and slashes == 1 and escape.start() == high.end():
            high = None  # a pair
        else:
            _replace(found, escape)
    _replace(found, high)
    return data if found == data else bytes(found)


def _replace(data: bytearray, escape: re.Match[bytes] | None) -> None:
    if escape is not None:
        data[escape.end() - len(_REPLACEMENT) : escape.end()] = _REPLACEMENT
