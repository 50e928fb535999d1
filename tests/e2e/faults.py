"""Providers that fail, each in a way of its own, by raw bytes over TLS (HTTP/1.1).

A `Fault` is what a connection does once it has read a whole request. Whatever it sends carries the
marks `MARK` and `FAILED_MODEL`, so that a test can look for them where they must not be.
"""

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.events

from pointsman.demo.openai_answers import dump
from pointsman.demo.provider import FLUSH_SECONDS
from tests.e2e.harness import DEADLINE, LOOPBACK, Json, RawServer, read_exactly, read_head

MARK = "mark-of-the-failed"
FAILED_MODEL = "model-of-the-failed"
COOKIE = f"Set-Cookie: session={MARK}; Path=/\r\nX-Failed: {MARK}\r\n"
CHUNK = (
    '{"id":"x","object":"chat.completion.chunk","created":1,"model":"' + FAILED_MODEL + '",'
    '"choices":[{"index":0,"delta":%s,"finish_reason":null}]}'
)
ROLE = b"data: " + (CHUNK % '{"role":"assistant","content":""}').encode() + b"\n\n"
WORD = b"data: " + (CHUNK % f'{{"content":"{MARK}"}}').encode() + b"\n\n"
SSE_ERROR = b'data: {"error":{"message":"' + MARK.encode() + b'","type":"server_error"}}\n\n'

type Fault = Callable[[socket.socket], None]


@dataclass
class FailingProvider:
    """One provider on a socket: what it does with each request, and the requests it has read."""

    fault: Fault
    requests: list[tuple[str, bytes]] = field(default_factory=list)  # head, body
    opened: int = 0
    left: list[float] = field(default_factory=list)  # when clients went, as `left` saw it

    def serve(self, conn: socket.socket) -> None:
        """Read one request and fail."""
        self.opened += 1
        head = b""
        with contextlib.suppress(OSError, AssertionError):
            head = read_head(conn)
        if not head:
            return
        text = head.decode("latin-1")
        length = next(
            (line for line in text.lower().split("\r\n") if line.startswith("content-length:")),
            ":0",
        )
        body = read_exactly(conn, int(length.partition(":")[2]))
        self.requests.append((text, body))
        with contextlib.suppress(OSError):
            self.fault(conn)
            self.left.append(time.monotonic())


class FailingServer(RawServer):
    """`RawServer` whose clients may go at any time, during the handshake too."""

    def _connected(self, plain: socket.socket) -> None:
        with plain, contextlib.suppress(ssl.SSLError, OSError):
            plain.settimeout(DEADLINE)
            assert self._tls
            with self._tls.wrap_socket(plain, server_side=True) as secured:
                try:
                    self._serve(secured)
                except Exception as failure:  # noqa: BLE001 (raised again in the test's thread)
                    self._failures.append(failure)


class BlackHole:
    """An address that accepts connections and then says nothing: no TLS handshake, no bytes."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self.closed = threading.Event()
        self.accepted = 0
        self._thread = threading.Thread(target=self._swallow, daemon=True)

    @property
    def address(self) -> str:
        """What a manifest has as `spec.address`."""
        return f"{LOOPBACK}:{self.port}"

    def _swallow(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            with conn:
                conn.settimeout(DEADLINE)
                with contextlib.suppress(OSError):
                    while conn.recv(65536):
                        pass
                self.closed.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE)


# --- what a connection does -----------------------------------------------------------------------


def reset(conn: socket.socket) -> None:
    """End with a TCP reset, once what was sent has been read: a reset overtakes it."""
    time.sleep(FLUSH_SECONDS)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.close()


def until_client_leaves(conn: socket.socket) -> None:
    """Say nothing more until the other side closes."""
    while conn.recv(65536):
        pass


def sending(*parts: bytes, then: Fault | None = None) -> Fault:
    """Send these bytes, then close, or do what `then` says."""

    def act(conn: socket.socket) -> None:
        for part in parts:
            conn.sendall(part)
        if then:
            then(conn)

    return act


def answer(status: str, *headers: str, body: Json | None = None) -> bytes:
    """Return a whole JSON answer."""
    content = dump(body or error_body()).encode()
    fields = "".join(f"{header}\r\n" for header in headers)
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{COOKIE}{fields}"
        f"Content-Length: {len(content)}\r\n\r\n"
    ).encode() + content


def error_body() -> Json:
    """Return the JSON error of a provider that has failed."""
    return {"error": {"message": MARK, "type": "server_error", "param": None, "code": None}}


def head(*, content_type: str = "text/event-stream", framing: str = "Connection: close") -> bytes:
    """Return the head of a 200 whose body ends with the connection, or as `framing` says."""
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{COOKIE}{framing}\r\n\r\n"
    ).encode()


def chunk(data: bytes) -> bytes:
    """Return a chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED = "Transfer-Encoding: chunked"


class Http2Client:
    """A client of the h2 library: the one that resets a stream and keeps its connection."""

    def __init__(self, conn: socket.socket, host: str) -> None:
        self._conn = conn
        self._host = host
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._flush()

    def _flush(self) -> None:
        self._conn.sendall(self._h2.data_to_send())

    def post(self, body: bytes) -> int:
        """Send a chat request; return its stream."""
        stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", self._host),
            (":path", "/v1/chat/completions"),
            ("content-length", str(len(body))),
        ]
        self._h2.send_headers(stream, headers)
        self._h2.send_data(stream, body, end_stream=True)
        self._flush()
        return stream

    def read_until(self, stream: int, wanted: bytes) -> None:
        """Read until this stream's body has these bytes."""
        body = b""
        while wanted not in body:
            data = self._conn.recv(65536)
            assert data, f"closed after {body!r}"
            for event in self._h2.receive_data(data):
                if isinstance(event, h2.events.DataReceived) and event.stream_id == stream:
                    body += event.data
            self._flush()

    def reset(self, stream: int) -> None:
        """Give the stream up."""
        self._h2.reset_stream(stream)
        self._flush()
