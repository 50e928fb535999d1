"""Raw peers for HTTP/2, of the h2 library: they reset streams, and take no more than they want."""

import contextlib
import socket
import time
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
from hyperframe.frame import GoAwayFrame


class Http2Client:
    """A client that resets a stream and keeps its connection, and reads what it wants to read.

    `room`: what the connection as a whole may be sent before anything is read, in bytes.
    """

    def __init__(self, conn: socket.socket, host: str, *, room: int = 0) -> None:
        self._conn = conn
        self._host = host
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        if room:
            self.h2.increment_flow_control_window(room)
        self.flush()

    def flush(self) -> None:
        """Send what the library has to say."""
        self._conn.sendall(self.h2.data_to_send())

    def post(self, body: bytes, path: str | bytes = "/v1/chat/completions") -> int:
        """Send a request; return its stream."""
        stream = self.begin("POST", path, size=len(body))
        self.h2.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def begin(self, method: str, path: str | bytes, *, size: int | None = None) -> int:
        """Send a request's headers; `size` is that of the body that follows. Return its stream."""
        stream = self.h2.get_next_available_stream_id()
        headers: list[tuple[str, str | bytes]] = [
            (":method", method),
            (":scheme", "https"),
            (":authority", self._host),
            (":path", path),
        ]
        if size is not None:
            headers.append(("content-length", str(size)))
        self.h2.send_headers(stream, headers, end_stream=size is None)
        self.flush()
        return stream

    def read(self, *taking: int) -> list[h2.events.Event]:
        """Read once; return what came. Give the room of these streams' data back."""
        data = self._conn.recv(65536)
        assert data, "the connection was closed"
        events = list(self.h2.receive_data(data))
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id in taking:
                size = event.flow_controlled_length or 0
                self.h2.acknowledge_received_data(size, event.stream_id)
        self.flush()
        return events

    def read_until(self, stream: int, wanted: bytes) -> None:
        """Read until this stream's body has these bytes; no room is given back."""
        body = b""
        while wanted not in body:
            for event in self.read():
                if isinstance(event, h2.events.DataReceived) and event.stream_id == stream:
                    body += event.data or b""

    def reset(self, stream: int) -> None:
        """Give the stream up."""
        self.h2.reset_stream(stream)
        self.flush()

    def leave(self) -> None:
        """Say that no stream is begun any more; then go on (RFC 9113, 6.8)."""
        self._conn.sendall(self.h2.data_to_send() + _goaway(0))


type Act = Callable[["Served", int], None]


class Http2Server:
    """A far end: `answer` is called with a connection and the stream of each whole request.

    `taking` tells whether bodies of requests are read now, `streams` how many may be open at once.
    """

    def __init__(
        self, answer: Act, *, taking: Callable[[], bool] = lambda: True, streams: int = 100
    ) -> None:
        self.answer = answer
        self.taking = taking
        self.streams = streams
        self.connections = 0
        self.begun: list[int] = []  # the stream of each request, in their order
        self.received = 0  # bytes of bodies
        self.sent = 0

    def serve(self, conn: socket.socket) -> None:
        """Serve one connection to its end."""
        self.connections += 1
        with contextlib.suppress(OSError):
            Served(self, conn).run()


class Served:
    """One connection of a far end, and what it can do."""

    def __init__(self, far: Http2Server, conn: socket.socket) -> None:
        self.far = far
        self.number = far.connections
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self._conn = conn
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._untaken: dict[int, int] = {}
        self._unsent: dict[int, int] = {}

    def run(self) -> None:
        """Serve it to its end."""
        self.h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self.far.streams},
        )
        self.h2.initiate_connection()
        self._conn.sendall(self.h2.data_to_send())
        self._conn.settimeout(0.02)
        while self._turn():
            pass

    def _turn(self) -> bool:
        data = b""
        with contextlib.suppress(TimeoutError):
            data = self._conn.recv(65536)
            if not data:
                return False
        for event in self.h2.receive_data(data):
            self._take(event)
        if self.far.taking():
            for stream, size in self._untaken.items():
                self.h2.acknowledge_received_data(size, stream)
            self._untaken.clear()
        now, later = time.monotonic(), self._later
        self._later = [each for each in later if each[0] > now]
        for at, act in later:
            if at <= now:
                act()
        for stream in list(self._unsent):
            self._send(stream)
        self._conn.sendall(self.h2.data_to_send())
        return True

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.far.begun.append(event.stream_id or 0)
        elif isinstance(event, h2.events.DataReceived):
            stream, size = event.stream_id or 0, event.flow_controlled_length or 0
            self.far.received += len(event.data or b"")
            self._untaken[stream] = self._untaken.get(stream, 0) + size
        elif isinstance(event, h2.events.StreamEnded):
            self.far.answer(self, event.stream_id or 0)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something after a while; the connection is served meanwhile."""
        self._later.append((time.monotonic() + seconds, act))

    def say(self, stream: int, status: int, body: bytes) -> None:
        """Give a whole answer."""
        headers = [(":status", str(status)), ("content-type", "application/json")]
        self.h2.send_headers(stream, headers)
        self.h2.send_data(stream, body, end_stream=True)

    def begin(self, stream: int) -> None:
        """Begin an event stream."""
        self.h2.send_headers(stream, [(":status", "200"), ("content-type", "text/event-stream")])

    def leave(self, last: int) -> None:
        """Say that no stream after this one is begun with; then go on (RFC 9113, 6.8)."""
        self._conn.sendall(self.h2.data_to_send() + _goaway(last))

    def fill(self, stream: int, size: int) -> None:
        """Answer with so many bytes, as fast as they are taken."""
        headers = [(":status", "200"), ("content-type", "application/octet-stream")]
        self.h2.send_headers(stream, headers)
        self._unsent[stream] = size

    def _send(self, stream: int) -> None:
        while left := self._unsent[stream]:
            room = self.h2.local_flow_control_window(stream)
            size = min(left, room, self.h2.max_outbound_frame_size)
            if not size:
                return
            self.h2.send_data(stream, bytes(size), end_stream=size == left)
            self.far.sent += size
            self._unsent[stream] -= size
        del self._unsent[stream]


def _goaway(last: int) -> bytes:
    """Return a GOAWAY without an error; h2 itself would take the connection for closed."""
    frame = GoAwayFrame(0)
    frame.last_stream_id, frame.error_code = last, 0
    return frame.serialize()
