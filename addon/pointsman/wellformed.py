"""Text that can be written down: in JSON, in UTF-8, in a protocol buffer.

What clients and providers send may hold a lone surrogate: half a character of JSON's, or a byte
that is no UTF-8, as mitmproxy decodes it. No encoder takes one.
"""

from typing import Any


def well_formed(text: str) -> str:
    """Return a text with U+FFFD in the place of each lone surrogate."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
