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
