"""Content codings undone, whole or as the bytes arrive, with the output bounded.

A few bytes can unfold into gigabytes, so every coding is fed in small steps and stopped at a
limit: zlib and brotli stop by themselves; zstandard cannot, and gets steps so short that the output
of each is bounded.
What was flushed by the sender comes out as soon as it is fed.
"""

import zlib
from collections.abc import Callable
from typing import Protocol

import brotli  # type: ignore[import-untyped]
import zstandard

MAX_OUTPUT = 16 * 1024 * 1024  # bytes that one feed of a stream may unfold into


class Undecodable(ValueError):  # noqa: N818  a noun, as the other exceptions
    """The coding is unknown, or the bytes are corrupt or cut short."""


class TooLarge(ValueError):  # noqa: N818
    """The decoded bytes are more than the limit."""


class _Coding(Protocol):
    step: int  # bytes to be fed at once

    def decode(self, data: bytes, limit: int) -> bytes:
        """Return what the bytes unfold into; more than `limit` means that there may be more."""

    @property
    def finished(self) -> bool:
        """Tell whether the bytes may end here."""


class _Zlib:
    """gzip in any number of members; deflate with its zlib wrapper or, as some send it, without."""

    step = 4096  # what follows a member is copied: short steps keep a run of tiny members linear

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._head = b""
        self._member: zlib._Decompress | None = None
        self._padding = b""

    def decode(self, data: bytes, limit: int) -> bytes:
        out = b""
        data = self._head + data
        self._head = b""
        while data and len(out) <= limit:
            if self._member is None:
                data = data.lstrip(self._padding)
                if len(data) < 2:  # noqa: PLR2004  a header's two bytes
                    self._head = data
                    break
                self._member = zlib.decompressobj(self._window(data))
            out += self._member.decompress(data, limit + 1 - len(out))
            data = self._member.unconsumed_tail or self._member.unused_data
            if self._member.eof:
                self._member, self._padding = None, b"\0"  # zeros may follow a gzip member
        return out

    @property
    def finished(self) -> bool:
        return self._member is None and not self._head

    def _window(self, head: bytes) -> int:
        if self._gzip:
            return 16 + zlib.MAX_WBITS
        # RFC 1950, 2.2: the method is 8 and the two bytes are a multiple of 31
        wrapped = head[0] & 0x0F == 8 and int.from_bytes(head[:2]) % 31 == 0  # noqa: PLR2004
        return zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS


class _Brotli:
    step = 4096

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()
        self._fed = False

    def decode(self, data: bytes, limit: int) -> bytes:
        self._fed = True
        out: bytes = self._stream.process(data, output_buffer_limit=limit + 1)
        while len(out) <= limit and not self._stream.can_accept_more_data():
            out += self._stream.process(b"", output_buffer_limit=limit + 1 - len(out))
        return out

    @property
    def finished(self) -> bool:
        return not self._fed or bool(self._stream.is_finished())


class _Zstd:
    """zstandard in any number of frames, with windows up to 8 MiB (RFC 9659)."""

    step = 256  # a block is 4 bytes at least and 128 KiB at most: a step makes 8 MiB at the worst

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=8 * 1024 * 1024)
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def decode(self, data: bytes, limit: int) -> bytes:  # noqa: ARG002  see `step`
        out = b""
        while data:
            if self._frame is None:
                self._frame = self._context.decompressobj()
            out += self._frame.decompress(data)
            data = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        return out

    @property
    def finished(self) -> bool:
        return self._frame is None


_CODINGS: dict[str, Callable[[], _Coding]] = {
    "gzip": lambda: _Zlib(gzip=True),
    "x-gzip": lambda: _Zlib(gzip=True),
    "deflate": lambda: _Zlib(gzip=False),
    "br": _Brotli,
    "zstd": _Zstd,
}
SUPPORTED = frozenset(_CODINGS) | {"identity"}


class Decoder:
    """Undoes the content codings of one stream.

    Args:
        codings: The codings, in the order in which they were applied.
        limit: Bytes that one feed may unfold into, after any of the codings.
    """

    def __init__(self, codings: list[str], limit: int = MAX_OUTPUT) -> None:
        self._codings: list[_Coding] = [_CODINGS[name]() for name in reversed(codings)]
        self._limit = limit

    def feed(self, chunk: bytes) -> bytes:
        """Return what the chunk unfolds into.

        Raises:
            TooLarge: It is more than the limit.
            Undecodable: It is corrupt.
        """
        for coding in self._codings:
            chunk = _decode(coding, chunk, self._limit)
        return chunk

    def close(self) -> bytes:
        """Return what is left, which is nothing: each feed returns all there is.

        Raises:
            Undecodable: The stream was cut short. What could be decoded has been returned before.
        """
        if not all(coding.finished for coding in self._codings):
            raise Undecodable("the encoded body is cut short")
        return b""


def decode_body(data: bytes, content_encoding: str, *, limit: int) -> bytes:
    """Return a whole body with its content codings undone.

    Raises:
        TooLarge: It is more than `limit` bytes, after any of the codings.
        Undecodable: A coding is unknown, or the body is corrupt or cut short.
    """
    decoder = Decoder(_names(content_encoding), limit)
    body = decoder.feed(data) + decoder.close()
    if len(body) > limit:
        raise TooLarge(f"the body is more than {limit} bytes")
    return body


def stream_decoder(content_encoding: str) -> Decoder | None:
    """Return a decoder for a stream; None if there is nothing to undo.

    Raises:
        Undecodable: A coding is unknown.
    """
    names = _names(content_encoding)
    return Decoder(names) if names else None


def _names(content_encoding: str) -> list[str]:
    names = [name.strip().lower() for name in content_encoding.split(",")]
    for name in names:
        if name and name not in SUPPORTED:
            raise Undecodable(f"unknown content coding {name!r}; known are {sorted(SUPPORTED)}")
    return [name for name in names if name in _CODINGS]


def _decode(coding: _Coding, data: bytes, limit: int) -> bytes:
    out = bytearray()
    try:
        for start in range(0, len(data), coding.step):
            out += coding.decode(data[start : start + coding.step], limit - len(out))
            if len(out) > limit:
                raise TooLarge(f"the decoded body is more than {limit} bytes")
    except (zlib.error, brotli.error, zstandard.ZstdError) as error:
        raise Undecodable(f"the body is not {type(coding).__name__.strip('_').lower()}") from error
    return bytes(out)
