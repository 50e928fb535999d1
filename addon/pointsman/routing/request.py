"""The client's request as routing sees it, and the fields of its JSON body."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import msgspec

from pointsman.errors import BodyTooLargeError, MalformedBodyError, UnsupportedEncodingError
from pointsman.protocols.api import model_in_path
from pointsman.protocols.encoding import TooLarge, Undecodable, decode_body

Headers = tuple[tuple[bytes, bytes], ...]

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def text(value: bytes) -> str:
    """Decode a header value for matching; what is not UTF-8 becomes U+FFFD."""
    return value.decode("utf-8", "replace")


_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
# Names may be written with these: `"mod\u0065l"`.
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
_TWICE = 2


def _lenient(body: bytes) -> Mapping[str, msgspec.Raw]:
    """Decode what msgspec refuses and Python's clients send: lone surrogates (a cut emoji), NaN.

    The values stay as they were sent here too.
    """
    try:
        return dict(_members(body.decode(json.detect_encoding(body))))
    except (ValueError, IndexError, RecursionError):
        raise MalformedBodyError("The request body is not a JSON object.") from None


def _members(said: str) -> Iterator[tuple[str, msgspec.Raw]]:
    """Yield the members of a JSON object. Raises ValueError or IndexError if it is none."""
    at = _expect(said, 0, "{")
    if said[at] == "}":
        at = _after(said, at + 1)
    else:
        while True:
            name, end = _DECODER.raw_decode(said, at)
            at = _expect(said, _after(said, end), ":")
            _, end = _DECODER.raw_decode(said, at)
            if not isinstance(name, str):
                raise ValueError("a name is no string")  # noqa: TRY004 (of JSON, not of Python)
            yield name, msgspec.Raw(said[at:end].encode())
            at = _after(said, end)
            if said[at] == "}":
                at = _after(said, at + 1)
                break
            at = _expect(said, at, ",")
    if at != len(said):
        raise ValueError("something follows the object")


def _after(said: str, at: int) -> int:
    match = _SPACE.match(said, at)
    return match.end() if match else at


def _expect(said: str, at: int, mark: str) -> int:
    at = _after(said, at)
    if said[at] != mark:
        raise ValueError(f"{mark} is missing")
    return _after(said, at + 1)


class Body:
    """A request's body: its bytes as sent, and the top-level fields of the JSON in it.

    Only the top level is decoded; each value stays as the bytes that the client sent, so a
    megabyte of messages costs a scan and is passed on unchanged.
    """

    def __init__(self, raw: bytes, encoding: str = "", *, limit: int) -> None:
        self.raw = raw
        self.decompressed = 0  # bytes that are held besides
        self._encoding = encoding
        self._limit = limit

    @property
    def streamed(self) -> bool:
        """Whether the body passes by without being read."""
        return False

    @cached_property
    def fields(self) -> Mapping[str, msgspec.Raw]:
        """The top-level fields.

        Raises:
            MalformedBodyError: not a JSON object.
            UnsupportedEncodingError: it can't be decompressed.
            BodyTooLargeError: it can't be within the limit.
        """
        decoded = self._decoded()
        try:
            return _FIELDS.decode(decoded)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _lenient(decoded)

    def repeats(self, names: Collection[str]) -> bool:
        """Tell whether one of these names stands twice at the top level of a JSON object.

        Then readers differ in which one counts: of `fields` it is the last.
        """
        body = self._decoded()
        encoding = json.detect_encoding(body)
        plain = encoding == "utf-8" and not _ESCAPED_ASCII.search(body)
        if plain and all(body.count(f'"{name}"'.encode()) < _TWICE for name in names):
            return False
        try:
            found = Counter(name for name, _ in _members(body.decode(encoding)))
        except (ValueError, IndexError, RecursionError):
            return True  # it can't be told
        return any(found[name] >= _TWICE for name in names)

    def _decoded(self) -> bytes:
        try:
            decoded = decode_body(self.raw, self._encoding, limit=self._limit)
        except TooLarge:
            raise BodyTooLargeError(
                f"The request body is larger than {self._limit} bytes once decompressed."
            ) from None
        except Undecodable:
            raise UnsupportedEncodingError(
                f"The request body can't be decoded as content-encoding {self._encoding!r};"
                " send it uncompressed, or as gzip, br, zstd or deflate."
            ) from None
        self.decompressed = len(decoded) if self._encoding else 0
        return decoded

    @cached_property
    def lenient_fields(self) -> Mapping[str, msgspec.Raw]:
        """The fields, or none where the body is not a JSON object: it may be none of ours."""
        if not self.raw:
            return {}
        try:
            return self.fields
        except (MalformedBodyError, UnsupportedEncodingError, BodyTooLargeError):
            return {}

    def string(self, *path: str) -> str | None:
        """Return the string (or number) at a path of nested fields, or None."""
        fields: object = self.lenient_fields
        for step in path:
            try:
                value = fields[step] if isinstance(fields, Mapping) else None
                fields = msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value
            except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return None
        if isinstance(fields, bool) or not isinstance(fields, str | int | float):
            return None
        return str(fields) or None


class StreamedBody(Body):
    """A body that is passed on as it comes: too large to be looked at."""

    def __init__(self) -> None:
        super().__init__(b"", limit=0)

    @property
    def streamed(self) -> bool:
        """Whether the body passes by without being read."""
        return True


@dataclass(frozen=True)
class ClientRequest:
    """What the client asked for.

    `host` is the name it used; `address` where its bytes were going: the original destination in
    transparent mode. `port` belongs to `host`. Header names and values are raw.
    """

    method: str
    scheme: str
    host: str
    port: int
    path: str
    headers: Headers
    body: Body
    address: tuple[str, int]
    multiplexed: bool = False  # HTTP/2 or later

    @cached_property
    def header_values(self) -> dict[str, str]:
        """Lower-case name to value; several of one name are joined by commas (RFC 9110, 5.3)."""
        values: dict[str, str] = {}
        for raw_name, raw_value in self.headers:
            name, value = text(raw_name).lower(), text(raw_value)
            values[name] = f"{values[name]},{value}" if name in values else value
        return values

    @cached_property
    def bare_path(self) -> str:
        """The path without its query."""
        return self.path.partition("?")[0]

    @cached_property
    def model(self) -> str | None:
        """The model that the path names (Gemini's), else the `model` field of the JSON body."""
        if self.method != "POST":
            return None
        return model_in_path(self.bare_path) or self.body.string("model")

    @property
    def is_websocket(self) -> bool:
        """Whether the request opens a WebSocket: what follows its answer is no HTTP."""
        return self.header_values.get("upgrade", "").lower() == "websocket"

    def cookie(self, name: str) -> str | None:
        """Return a cookie's value, or None."""
        for pair in self.header_values.get("cookie", "").replace(",", ";").split(";"):
            key, separator, value = pair.strip().partition("=")
            if separator and key == name:
                return value.strip('"')
        return None
