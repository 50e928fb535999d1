"""HTTP/1 with bounded heads, and with trailers, on which mitmproxy's own fails.

What is not ours passes with them. What is ours passes without, as a proxy may drop them (RFC 9110,
6.5.1): the stream drops the client's (`streams.Stream`), `ProviderClient` the provider's.

These are not public interfaces of mitmproxy; `tests/proxy/test_internals.py` fails when the parts
leaned on here change shape.
"""

import logging
import re
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as http_layer
from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    HttpEvent,
    RequestEndOfMessage,
    RequestTrailers,
    ResponseEndOfMessage,
    ResponseProtocolError,
    ResponseTrailers,
)

# 101 is no interim answer: it ends HTTP.
_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)\d\d[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n")
_EMPTY_LINES = re.compile(rb"(?:\r?\n)+")
_LAST_CHUNK = b"0\r\n"
# Of a chunk's head, or of all trailers: bytes that wait for their end.
_LONGEST_LINES = 64 * 1024
# Far more than any server takes; mitmproxy would collect one without an end.
LONGEST_HEAD = 256 * 1024
_HEADER_FIELDS_TOO_LARGE = 431


class _Http1(_http1.Http1Connection):
    """Takes no head without an end; reads trailers, and writes them after the last chunk."""

    drops_trailers = False
    _to_write: http.Headers | None = None

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Read a head."""
        yield from super().read_headers(event)
        if self.state == self.read_headers and len(self.buf) > LONGEST_HEAD:
            self.state = self.done
            self.buf = ReceiveBuffer()
            yield from self.refuse_head()
            yield commands.CloseConnection(self.conn)

    def done(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Keep nothing of what comes after the end."""
        self.buf = ReceiveBuffer()
        yield from super().done(event)

    def refuse_head(self) -> layer.CommandGenerator[None]:
        """Tell of a head that is too long."""
        raise NotImplementedError

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Tell of the trailers before the end."""
        if not isinstance(self.body_reader, _Reader):
            self.body_reader = _Reader(self.body_reader)  # type: ignore[assignment]
        reader: Any = self.body_reader
        for command in super().read_body(event):
            if isinstance(command, ReceiveHttp) and reader.trailers:
                trailers, reader.trailers = reader.trailers, None
                if not self.drops_trailers:
                    made = RequestTrailers if isinstance(self, Server) else ResponseTrailers
                    yield ReceiveHttp(made(command.event.stream_id, trailers))
            yield command

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """Keep trailers for the end; a body that is not chunked has no place for them."""
        if isinstance(event, RequestTrailers | ResponseTrailers):
            self._to_write = event.trailers
            return
        ends = isinstance(event, RequestEndOfMessage | ResponseEndOfMessage)
        trailers, self._to_write = (self._to_write, None) if ends else (None, self._to_write)
        for command in super().send(event):
            if trailers and isinstance(command, commands.SendData):
                if command.data == _LAST_CHUNK + b"\r\n":
                    command.data = _LAST_CHUNK + bytes(trailers) + b"\r\n"
                trailers = None
            yield command


class _Reader:
    """h11's reader of a body, with its trailers put aside: mitmproxy takes none."""

    def __init__(self, reader: Any) -> None:
        self._read = reader
        self.trailers: http.Headers | None = None

    def __call__(self, buf: Any) -> Any:
        event = self._read(buf)
        if isinstance(event, h11.EndOfMessage):
            fields: Any = event.headers
            self.trailers = http.Headers(fields.raw_items()) if fields else None
            return h11.EndOfMessage()
        if event is None and len(buf) > _LONGEST_LINES:
            raise h11.RemoteProtocolError("a chunk's head or the trailers are too long")
        return event

    def read_eof(self) -> Any:
        return self._read.read_eof()


class Server(_Http1, _http1.Http1Server):
    """The server's end of a client's connection."""

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Skip empty lines before a request (RFC 9112, 2.2); after them mitmproxy waits."""
        while self.buf and (empty := _EMPTY_LINES.match(bytes(self.buf))):
            self.buf.maybe_extract_at_most(empty.end())
        yield from super().read_headers(event)

    @property
    def is_full(self) -> bool:
        """Whether the client has sent enough of its next request while one is under way."""
        return self.state == self.wait and len(self.buf) > LONGEST_HEAD

    def refuse_head(self) -> layer.CommandGenerator[None]:
        """Tell the client, and the log: whose request it would have been is not known."""
        what = f"a request's head is longer than {LONGEST_HEAD} bytes; closing the connection"
        yield commands.Log(what, logging.WARNING)
        refusal = _http1.make_error_response(_HEADER_FIELDS_TOO_LARGE, "The head is too long.")
        yield commands.SendData(self.conn, refusal)


class Client(_Http1, _http1.Http1Client):
    """The client's end of a connection to what is not ours."""

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Skip interim answers (RFC 9110, 15.2), which mitmproxy takes for the answer."""
        while self.request and (interim := _INTERIM.match(bytes(self.buf))):
            self.buf.maybe_extract_at_most(interim.end())
        yield from super().read_headers(event)

    def refuse_head(self) -> layer.CommandGenerator[None]:
        """End the request that this was to answer."""
        assert self.stream_id is not None
        code = ErrorCode.GENERIC_SERVER_ERROR
        yield ReceiveHttp(ResponseProtocolError(self.stream_id, "the head is too long", code))


class ProviderClient(Client):
    """The client's end of a provider's connection."""

    drops_trailers = True


def is_http1(context: Context) -> bool:
    """Tell whether mitmproxy would speak HTTP/1 with a client."""
    return context.client.alpn not in {b"h2", b"h3"}


def carry_trailers() -> None:
    """Put our client in the place of mitmproxy's, which its HTTP layer names nowhere else."""
    http_layer.Http1Client = Client  # type: ignore[attr-defined]
