"""HTTP/2 with flow control from end to end, where connections end without costing a request.

mitmproxy takes in whatever comes, at any speed, and keeps what the other side has no room for. Here
each stream has a window, and room is given back only when what came has gone on: so no more than
about a window of each stream is kept, and a sender is as fast as its receiver.

A peer that says that it is about to leave (GOAWAY without an error) is heard out; what a provider
says it has not begun may be sent again (RFC 9113, 8.7). A connection remembers nothing of streams
that have ended: it may outlive millions of them.

These are not public interfaces of mitmproxy; `tests/proxy/test_internals.py` fails when the parts
leaned on here change shape.
"""

from collections.abc import Callable
from dataclasses import dataclass

import h2.config
import h2.events
from h2.errors import ErrorCodes
from hyperframe.frame import Frame, GoAwayFrame
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import _http2
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestHeaders,
    RequestProtocolError,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

WINDOW = 1024 * 1024  # bytes of one stream that may be on their way

type IsStuck = Callable[[int], bool]


class Room(events.Event):
    """What could not go on before may be able to now."""


class UnprocessedError(ResponseProtocolError):
    """The provider says that it has not begun with the request, and will not."""


@dataclass(kw_only=True)
class _Leaving(h2.events.Event):
    """The peer takes no streams after this one, and ends those before it."""

    last_stream_id: int


class _Connection(BufferedH2Connection):
    """Gives room back for what has gone on; `is_stuck` tells of a stream that something has not."""

    def __init__(self, config: h2.config.H2Configuration, is_stuck: IsStuck) -> None:
        super().__init__(config)
        self.local_settings.initial_window_size = WINDOW
        self.local_settings.acknowledge()  # else h2 would send the settings of before
        self._is_stuck = is_stuck
        self.owed: dict[int, int] = {}  # room that is to be given back, by stream

    def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
        """Give room back, now or later."""
        if acknowledged_size and self._is_stuck(stream_id):
            self.owed[stream_id] = self.owed.get(stream_id, 0) + acknowledged_size
        else:
            super().acknowledge_received_data(acknowledged_size, stream_id)

    def give_back(self) -> None:
        """Give back what room can be given by now; of streams that have ended, all of it."""
        for stream_id, size in tuple(self.owed.items()):
            if not self._is_stuck(stream_id):
                del self.owed[stream_id]
                super().acknowledge_received_data(size, stream_id)

    def keeps(self, stream_id: int) -> bool:
        """Tell whether something of a stream waits until the peer has room for it."""
        return bool(self.stream_buffers.get(stream_id))

    def _receive_goaway_frame(
        self, frame: GoAwayFrame
    ) -> tuple[list[Frame], list[h2.events.Event]]:
        """Take the peer's word that it leaves; for h2 the connection would be over at once."""
        if frame.error_code == ErrorCodes.NO_ERROR:
            return [], [_Leaving(last_stream_id=frame.last_stream_id)]
        return super()._receive_goaway_frame(frame)


class _Http2(_http2.Http2Connection):
    """Either end."""

    h2_conn: _Connection
    leaving = False  # the peer takes no more streams

    def control_flow(self, is_stuck: IsStuck) -> None:
        """Put our connection in the place of mitmproxy's, before the first event."""
        push = self.h2_conn.local_settings.enable_push
        self.h2_conn = _Connection(self.h2_conf, is_stuck)
        self.h2_conn.local_settings.enable_push = push
        self.h2_conn.local_settings.acknowledge()
        self._ended: list[int] = []

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, Room):
            self.h2_conn.give_back()
            if data := self.h2_conn.data_to_send():
                yield commands.SendData(self.conn, data)
            return
        yield from super()._handle_event(event)
        if isinstance(event, HttpEvent):
            self._ended.append(event.stream_id)
        for stream_id in self._ended:
            if self.is_closed(stream_id):
                self.forget(stream_id)
        self._ended.clear()
        if self.leaving and not self.streams:
            yield from self.close_connection("it has said that it leaves")

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        """Hear a peer out that leaves."""
        if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
            assert event.stream_id is not None
            self._ended.append(event.stream_id)
        if isinstance(event, _Leaving):
            self.leaving = True
            return False
        return (yield from super().handle_h2_event(event))

    def forget(self, stream_id: int) -> None:
        """Keep nothing of a stream that has ended."""
        self.streams.pop(stream_id, None)

    def close_connection(self, msg: str) -> layer.CommandGenerator[None]:
        """End, and owe nothing any more."""
        self.h2_conn.owed.clear()
        self.h2_conn.stream_buffers.clear()
        yield from super().close_connection(msg)


class Server(_Http2, _http2.Http2Server):
    """The server's end of a client's connection."""

    def __init__(self, context: Context, is_stuck: IsStuck) -> None:
        super().__init__(context)
        self.control_flow(is_stuck)

    def keeps(self, stream_id: int) -> bool:
        """Tell whether something of a stream waits until the client has room for it."""
        return self.h2_conn.keeps(stream_id)


class ProviderClient(_Http2, _http2.Http2Client):
    """The client's end of a provider's connection.

    Outside, streams have the client's ids; below `_handle_event`, those that they have here.
    """

    def __init__(self, context: Context, is_stuck: IsStuck) -> None:
        super().__init__(context)
        self.control_flow(lambda ours: is_stuck(self.their_stream_id.get(ours, 0)))

    def keeps(self, stream_id: int) -> bool:
        """Tell whether something of a stream waits until the provider has room for it."""
        ours = self.our_stream_id.get(stream_id, 0)
        return stream_id in self.stream_queue or self.h2_conn.keeps(ours)

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, HttpEvent) and event.stream_id not in self.our_stream_id:
            waiting = self.stream_queue.get(event.stream_id)
            if isinstance(event, RequestHeaders):
                if self.leaving:
                    yield ReceiveHttp(_unprocessed(event.stream_id))
                    return
            elif waiting is None:
                return  # it has ended
            elif isinstance(event, RequestProtocolError):
                del self.stream_queue[event.stream_id]  # given up: nothing of it is sent
                return
            else:
                waiting.append(event)
                return
        yield from super()._handle_event(event)
        if self.leaving:
            for stream_id in tuple(self.stream_queue):
                del self.stream_queue[stream_id]
                yield ReceiveHttp(_unprocessed(stream_id))

    def _handle_event2(self, event: events.Event) -> layer.CommandGenerator[None]:
        for command in super()._handle_event2(event):
            late = isinstance(command, ReceiveHttp) and (
                command.event.stream_id not in self.their_stream_id
            )
            if not late:
                yield command

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        """Tell what the provider has not begun with."""
        refused: list[int] = []
        if isinstance(event, _Leaving):
            refused = [stream_id for stream_id in self.streams if stream_id > event.last_stream_id]
        elif isinstance(event, h2.events.StreamReset) and (
            event.error_code == ErrorCodes.REFUSED_STREAM
        ):
            refused = [event.stream_id] if event.stream_id in self.streams else []
        for stream_id in refused:
            del self.streams[stream_id]
            yield ReceiveHttp(_unprocessed(stream_id))
        return (yield from super().handle_h2_event(event))

    def forget(self, stream_id: int) -> None:
        """Keep nothing of a stream that has ended: a request may come by here once more."""
        super().forget(stream_id)
        self.our_stream_id.pop(self.their_stream_id.pop(stream_id, 0), None)


def _unprocessed(stream_id: int) -> UnprocessedError:
    what = "the provider has not begun with the request"
    return UnprocessedError(stream_id, what, ErrorCode.GENERIC_SERVER_ERROR)
