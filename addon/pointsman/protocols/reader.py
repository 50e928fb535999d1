"""What every protocol's reader shares: how a response is taken in, and how odd JSON is met.

A reader stands beside the stream: the client's bytes never wait for it (a filter, which has to see
an event whole, is the one exception) and no content makes it fail. What it cannot read stays None.
"""

import json
from collections.abc import Iterable
from functools import cache
from typing import Any, get_args

import msgspec

from pointsman.protocols import sse
from pointsman.protocols.usage import Usage
from pointsman.wellformed import well_formed_escapes

MAX_BODY = 16 * 1024 * 1024  # bytes of a JSON body kept for reading; past it, usage is unknown
MAX_VALUES = 1_000_000  # of JSON that are built; more would keep every client waiting for seconds
_MAX_MENDED = sse.MAX_EVENT  # bytes of JSON that is read a second time, mended


class Reader:
    """Reads one response. A protocol is a subclass with its own `read`.

    Attributes:
        event_stream: The response is read as events; otherwise as one JSON body.
        usage: The token counts reported so far.
        model: The model that the provider says has answered.
        finish_reason: Why the first choice ended, in the protocol's own word.
        content_started: Real content was seen: text, a tool call, reasoning, a refusal.
        failed: The response carries an error.
        complete: The end marker was seen, or the JSON body was parsed.
        later_events: How many events with data have followed the first with content.
        fault: A bug of ours that reading an event ran into, for the log. The client loses nothing.
    """

    def __init__(self, *, event_stream: bool) -> None:
        self.event_stream = event_stream
        self.usage: Usage | None = None
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.content_started = False
        self.failed = False
        self.complete = False
        self.later_events = 0
        self.fault: Exception | None = None
        self._parser = sse.Parser()
        self._body: bytearray | None = bytearray()

    def read(self, data: bytes) -> bool:
        """Take in one JSON body, or the data of one event; return whether it could be parsed."""
        raise NotImplementedError

    def feed(self, chunk: bytes) -> bytes:
        """Read the chunk and return the bytes to pass on now: here, the chunk itself."""
        if self.event_stream:
            self.take(self._parser.feed(chunk))
        elif self._body is not None:
            if len(self._body) + len(chunk) > MAX_BODY:
                self._body = None
            else:
                self._body += chunk
        return chunk

    def close(self) -> bytes:
        """Read what the end of the response completes and return the bytes still to pass on."""
        if self.event_stream:
            self.take(self._parser.close())
        elif self._body:
            body, self._body = bytes(self._body), None
            self.complete = self._guarded_read(body)
        return b""

    def take(self, events: Iterable[sse.Event]) -> None:
        """Read events, of a stream that is parsed elsewhere."""
        for event in events:
            if event.data == b"[DONE]":
                self.complete = True
            elif event.data:
                self.later_events += self.content_started
                self.failed = self.failed or event.event == "error"
                self._guarded_read(event.data)

    def _guarded_read(self, data: bytes) -> bool:
        try:
            return self.read(data)
        except Exception as fault:  # noqa: BLE001  accounting must never break the client's stream
            self.fault = fault
            return False


def decode[T](decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T | None:
    """Return the decoded JSON, None where it is not JSON of the decoder's shape.

    The escape of a lone surrogate, which is no text, is read as that of U+FFFD, a number that JSON
    has none for as null. Of JSON with more than `MAX_VALUES` values, the members that hold so many
    are left out.
    """
    decoded = _decoded(decoder, data)
    if decoded is not None or not isinstance(data, bytes) or len(data) > _MAX_MENDED:
        return decoded
    mended = _without_nan(well_formed_escapes(data) if b"\\u" in data else data)
    return None if mended is data else _decoded(decoder, mended)


def _decoded[T](decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T | None:
    try:
        return decoder.decode(_lightened(decoder, data) if heavy(data) else data)
    except (msgspec.DecodeError, ValueError, RecursionError):  # ValueError: a string not in UTF-8
        return None


def heavy(data: bytes | msgspec.Raw) -> bool:
    """Tell whether JSON may hold more values than are built: each has a mark before it."""
    raw = bytes(data)
    return len(raw) > MAX_VALUES and sum(map(raw.count, (b",", b"[", b"{"))) > MAX_VALUES


def _lightened(decoder: msgspec.json.Decoder[Any], data: bytes | msgspec.Raw) -> bytes:
    """Return the JSON object without what the decoder would build too much of.

    Raises:
        msgspec.DecodeError, ValueError: it is none, or the decoder is not for one.
    """
    kinds = get_args(decoder.type) or (decoder.type,)
    kind = next((k for k in kinds if isinstance(k, type) and issubclass(k, msgspec.Struct)), None)
    if kind is None:
        raise ValueError("too many values")
    members = msgspec.structs.asdict(_unread(kind).decode(data))
    built = {f.encode_name for f in msgspec.structs.fields(kind) if f.type is not msgspec.Raw}
    return msgspec.json.encode(
        {n: raw for n, raw in members.items() if bytes(raw) and not (n in built and heavy(raw))}
    )


@cache
def _unread(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[msgspec.Struct]:
    """Return a decoder that leaves the struct's members as they are."""
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    members = [(name, msgspec.Raw, msgspec.Raw()) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct(kind.__name__, members))


def _without_nan(data: bytes) -> bytes:
    """Return JSON as it is with null for NaN and the infinities, which Python's own encoder writes.

    What is no JSON, or has none of them, stays the same.
    """
    if (b"NaN" not in data and b"Infinity" not in data) or heavy(data):
        return data
    try:
        return msgspec.json.encode(json.loads(data.decode(), parse_constant=lambda _: None))
    except (ValueError, RecursionError):
        return data


def mapping(value: Any) -> dict[str, Any]:
    """Return the JSON value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a JSON array; nothing if the value is no array."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: Any) -> str | None:
    """Return the JSON value if it is a string with something in it."""
    return value if isinstance(value, str) and value else None
