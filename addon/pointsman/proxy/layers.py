"""mitmproxy's HTTP layer with our streams in it, and with connections by provider.

These are not public interfaces of mitmproxy; `tests/proxy/test_internals.py` fails when the parts
leaned on here change shape.
"""

import logging
import math
import time
from collections.abc import Set as AbstractSet

from mitmproxy.connection import Connection, ConnectionState
from mitmproxy.proxy import commands, events, layer, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as http_layer
from mitmproxy.proxy.layers.http import _upstream_proxy
from mitmproxy.proxy.layers.http._base import ReceiveHttp

from pointsman.errors import InternalError
from pointsman.proxy import http1, http2
from pointsman.proxy.attempts import Alarm
from pointsman.proxy.connections import GetProviderConnection, ProviderConnection
from pointsman.proxy.faults import describe
from pointsman.proxy.router import Router
from pointsman.proxy.streams import Stream
from pointsman.proxy.upstream_tls import ProviderTLSLayer

logger = logging.getLogger(__name__)

_NONE: frozenset[Connection] = frozenset()


class Layer(http_layer.HttpLayer):
    """mitmproxy's HTTP layer with our streams, and with connections by provider."""

    streams: dict[int, Stream]  # type: ignore[assignment]

    def __init__(self, context: Context, mode: http_layer.HTTPMode, router: Router) -> None:
        super().__init__(context, mode)
        self.router = router
        self.http2: dict[Connection, http2.ProviderClient] = {}
        self._held: AbstractSet[Connection] = _NONE
        self._alive: dict[int, Stream] = {}  # those that have not been told to let go
        # When the first stream wants to be woken up, and when we have asked for that.
        self._wanted = math.inf
        self._alarms: dict[commands.Command, float] = {}

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self._is_stale(event):
            return
        if isinstance(event, events.Start):
            self._take_client()
        try:
            yield from self._work(event)
        except Exception as fault:  # noqa: BLE001 (mitmproxy would leave the client waiting)
            what = "the HTTP layer failed; closing the client's connection\n%s"
            logger.error(what, describe(fault))  # noqa: TRY400 (the message may quote a request)
            for stream in list(self.streams.values()):
                stream.abandon(InternalError("internal error"))
                if (ended := stream.tell_end()) is not None:
                    yield ended
                stream.let_go()
            self._alive.clear()
            yield commands.CloseConnection(self.context.client)

    def _take_client(self) -> None:
        """Put our end of the client's connection in the place of mitmproxy's."""
        client, context = self.context.client, self.context.fork()
        if client.alpn == b"h2":
            self.connections.setdefault(client, http2.Server(context, self._is_request_stuck))
        elif http1.is_http1(context):
            self.connections.setdefault(client, http1.Server(context))

    def _work(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Wakeup) and event.command in self._alarms:
            del self._alarms[event.command]
            yield from self._ring()
        else:
            yield from super()._handle_event(event)
        self._hold_stuck()
        if self.context.client.alpn == b"h2":
            yield from self._give_room()
        if self._wanted < math.inf:
            yield from self._set_alarm()
        self._let_go(event)
        if self.router.draining and not self.streams:
            yield from self._part()

    def _part(self) -> layer.CommandGenerator[None]:
        """End an HTTP/2 connection whose streams have ended: its client comes by another.

        (Over HTTP/1 the answers say so.) Announced any earlier, with streams still open, the end
        makes clients that are built on h2, such as httpx, give these up.
        """
        child = self.connections.get(self.context.client)
        if not isinstance(child, http2.Server):
            return
        h2 = child.h2_conn
        used = h2.highest_inbound_stream_id and not h2.open_inbound_streams
        if used and self.context.client.state is ConnectionState.OPEN:
            h2.close_connection()
            yield commands.SendData(self.context.client, h2.data_to_send())
            yield commands.CloseConnection(self.context.client)

    def _let_go(self, event: events.Event) -> None:
        """Free what streams that have ended hold."""
        if isinstance(event, events.ConnectionClosed) and event.connection is self.context.client:
            ended = list(self._alive)
        elif len(self._alive) > len(self.streams):
            ended = [stream_id for stream_id in self._alive if stream_id not in self.streams]
        else:
            return
        for stream_id in ended:
            self._alive.pop(stream_id).let_go()

    # --- time -------------------------------------------------------------------------------------

    def wake_up(self, at: float) -> None:
        """Let the streams whose time has come then (of `time.monotonic`) know."""
        self._wanted = min(self._wanted, at)

    def _set_alarm(self) -> layer.CommandGenerator[None]:
        """Ask mitmproxy to be woken up, unless that is asked already.

        One alarm for all streams: mitmproxy's can't be called off, and one for each would keep what
        has ended until its time comes.
        """
        if self._wanted < min(self._alarms.values(), default=math.inf):
            alarm = commands.RequestWakeup(max(self._wanted - time.monotonic(), 0.0))
            self._alarms[alarm] = self._wanted
            yield alarm

    def _ring(self) -> layer.CommandGenerator[None]:
        now = time.monotonic()
        for stream in tuple(self.streams.values()):
            if stream.deadline <= now:
                yield from self.event_to_child(stream, Alarm())
        self._wanted = min((s.deadline for s in self.streams.values()), default=math.inf)

    # --- flow control -----------------------------------------------------------------------------

    def _is_request_stuck(self, stream_id: int) -> bool:
        """Tell whether what a client sends on a stream waits to go on."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return False
        provider = self.http2.get(stream.context.server)
        return stream.is_paused or (provider is not None and provider.keeps(stream_id))

    def is_answer_stuck(self, stream_id: int) -> bool:
        """Tell whether what a provider sends on a stream waits to go on."""
        client, stream = self.connections.get(self.context.client), self.streams.get(stream_id)
        if stream is not None and stream.is_paused:
            return True
        if isinstance(client, http2.Server):
            return client.keeps(stream_id)
        return self.router.reading.is_slow(self.context.client)

    def _hold_stuck(self) -> None:
        """Stop reading from those whose bytes can't go on; go on reading from the others."""
        held = self._stuck()
        if held != self._held:
            for connection in held ^ self._held:
                self.router.reading.hold(connection, held=connection in held)
            self._held = held

    def _stuck(self) -> AbstractSet[Connection]:
        client = self.connections.get(self.context.client)
        if isinstance(client, http1.Server):
            stream = self.streams.get(client.stream_id)
            uploading = stream is not None and stream.is_paused and stream.flow.request.stream
            return {self.context.client} if uploading or client.is_full else _NONE
        if not isinstance(client, http2.Server) or not client.h2_conn.stream_buffers:
            return _NONE
        stuck = (self.streams.get(n) for n in client.h2_conn.stream_buffers if client.keeps(n))
        # Over HTTP/2 a provider is held back by its windows.
        return {s.context.server for s in stuck if s and s.context.server not in self.http2}

    def _give_room(self) -> layer.CommandGenerator[None]:
        """Give room back over HTTP/2 for what has gone on by now."""
        client = self.connections.get(self.context.client)
        if isinstance(client, http2.Server) and client.h2_conn.owed:
            yield from self.event_to_child(client, http2.Room())
        for connection, provider in tuple(self.http2.items()):
            if provider.h2_conn.owed:
                yield from self.event_to_child(self.connections[connection], http2.Room())

    # --- connections ------------------------------------------------------------------------------

    def _is_stale(self, event: events.Event) -> bool:
        return (
            isinstance(event, events.ConnectionEvent)
            and isinstance(event.connection, ProviderConnection)
            and event.connection not in self.connections
        )

    def _forget_closed(self) -> None:
        """Drop connections that are gone: a client's connection may outlive thousands of them."""
        in_use = {stream.context.server for stream in self.streams.values()}
        gone = [
            child
            for connection, child in self.connections.items()
            if isinstance(connection, ProviderConnection)
            and connection.state is ConnectionState.CLOSED
            and connection not in self.waiting_for_establishment
            and connection not in in_use
        ]
        # A connection through an upstream proxy has two entries: its own, and the tunnel's.
        for connection in [c for c, child in self.connections.items() if child in gone]:
            del self.connections[connection]
            self.http2.pop(connection, None)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """Begin a request of the client's."""
        self.streams[stream_id] = self._alive[stream_id] = Stream(
            self.context.fork(), stream_id, self
        )
        yield from self.event_to_child(self.streams[stream_id], events.Start())

    def get_connection(
        self, event: http_layer.GetHttpConnection, *, reuse: bool = True
    ) -> layer.CommandGenerator[None]:
        """Give a stream a connection: one that is open, or a new one."""
        if not isinstance(event, GetProviderConnection):
            yield from super().get_connection(event, reuse=reuse)
            return
        self._forget_closed()
        if reuse and not event.fresh:
            for connection in self.connections:
                if not event.connection_spec_matches(connection):
                    continue
                if connection in self.waiting_for_establishment:
                    self.waiting_for_establishment[connection].append(event)
                    assert isinstance(connection, ProviderConnection)
                    event.server = connection
                    return
                # HTTP/2 clients share only HTTP/2 connections (see HttpLayer.register_connection).
                multiplexed = self.context.client.alpn == b"h2"
                if connection.connected and not (multiplexed and connection.alpn != b"h2"):
                    if (shared := self.http2.get(connection)) and shared.leaving:
                        continue
                    stream = self.command_sources.pop(event)
                    completed = http_layer.GetHttpConnectionCompleted(event, (connection, None))
                    yield from self.event_to_child(stream, completed)
                    return
        yield from self._open(event)

    def _open(self, event: GetProviderConnection) -> layer.CommandGenerator[None]:
        context = self.context.fork()
        server = ProviderConnection(address=event.address)
        server.settings = event.settings
        server.connect_timeout = event.connect_timeout
        # It is what the certificate is checked against, whatever address is connected to.
        server.sni = event.sni
        context.server = event.server = server
        stack = tunnel.LayerStack()
        if event.via:
            server.via = event.via
            connect = event.tls or self.mode is not http_layer.HTTPMode.upstream
            stack /= _upstream_proxy.HttpUpstreamProxy.make(context, connect)
        if event.tls:
            h2 = self.context.client.alpn == b"h2" and self.context.options.http2
            server.alpn_offers = [b"h2", b"http/1.1"] if h2 else [b"http/1.1"]
            stack /= ProviderTLSLayer(context, event.settings)
        stack /= _ProviderClient(context, self)
        self.connections[server] = stack[0]
        self.waiting_for_establishment[server].append(event)
        yield from self.event_to_child(stack[0], events.Start())


class _ProviderClient(http_layer.HttpClient):
    """The client's end of a provider's connection. What it says late is not heard any more.

    An attempt that was given up goes on to end: its connection closes, its stream is reset.
    mitmproxy tells the request of that, which by then may be waiting for another provider.
    """

    def __init__(self, context: Context, parent: Layer) -> None:
        super().__init__(context)
        self._parent = parent

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Open the connection and put our own client on it."""
        err = yield commands.OpenConnection(self.context.server)
        if not err:
            if self.context.server.alpn == b"h2":
                child = http2.ProviderClient(self.context, self._parent.is_answer_stuck)
                self._parent.http2[self.context.server] = self.child_layer = child
            else:
                self.child_layer = http1.ProviderClient(self.context)
            self._handle_event = self.child_layer.handle_event  # type: ignore[method-assign]
            yield from self.child_layer.handle_event(event)
        yield http_layer.RegisterHttpConnection(self.context.server, err)

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Pass on what the current attempt's provider says."""
        for command in super().handle_event(event):
            if isinstance(command, ReceiveHttp) and self._is_late(command.event.stream_id):
                continue
            yield command

    def _is_late(self, stream_id: int) -> bool:
        stream = self._parent.streams.get(stream_id)
        return stream is not None and stream.heard is not self.context.server
