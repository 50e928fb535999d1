"""Keys in headers and queries, shown so that no one can use them."""

import re

from pointsman.config.credentials import mask
from pointsman.routing.rewriting import is_credential_parameter

# How OpenAI's clients in a browser, which can't set headers, give their key to a WebSocket.
_PROTOCOL_KEY = re.compile(rb"(openai-insecure-api-key\.)[^,\s]+")


def mask_protocols(value: bytes) -> bytes:
    """Return a Sec-WebSocket-Protocol that shows no key; the same object if it has none."""
    return _PROTOCOL_KEY.sub(rb"\1***", value) if _PROTOCOL_KEY.search(value) else value


def mask_query(path: str) -> str:
    """Return a path whose query shows no key."""
    bare, mark, query = path.partition("?")
    parts = []
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        secret = equals and is_credential_parameter(name)
        parts.append(f"{name}={mask(value)}" if secret else part)
    return f"{bare}{mark}{'&'.join(parts)}"


def mask_value(value: str) -> str:
    """Return the value of a header that carries a key, its scheme (`Bearer`) left readable."""
    scheme, space, secret = value.partition(" ")
    return f"{scheme} {mask(secret)}" if space and scheme.isalpha() else mask(value)
