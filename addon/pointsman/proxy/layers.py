"""mitmproxy's HTTP layer with our streams in it, and with connections by provider.

These are not public interfaces of mitmproxy; `tests/proxy/test_internals.py` fails when the parts
leaned on here change shape.
"""

import logging

from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as http_layer
from mitmproxy.proxy.layers.http import _upstream_proxy
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Server

from pointsman.errors import InternalError
from pointsman.proxy.connections import GetProviderConnection, ProviderConnection
from pointsman.proxy.faults import describe
from pointsman.proxy.http1 import ProviderClient, Server, is_http1
from pointsman.proxy.router import Router
from pointsman.proxy.streams import Stream
from pointsman.proxy.upstream_tls import ProviderTLSLayer

logger = logging.getLogger(__name__)


class Layer(http_layer.HttpLayer):
    """mitmproxy's HTTP layer with our streams, and with connections by provider."""

    def __init__(self, context: Context, mode: http_layer.HTTPMode, router: Router) -> None:
        super().__init__(context, mode)
        self.router = router

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self._is_stale(event):
            return
        if isinstance(event, events.Start) and is_http1(self.context):
            self.connections.setdefault(self.context.client, Server(self.context.fork()))
        try:
            yield from super()._handle_event(event)
            if self.router.draining and not self.streams:
                yield from self._part()
        except Exception as fault:  # noqa: BLE001 (mitmproxy would leave the client waiting)
            what = "the HTTP layer failed; closing the client's connection\n%s"
            logger.error(what, describe(fault))  # noqa: TRY400 (the message may quote a request)
            for stream in list(self.streams.values()):
                if isinstance(stream, Stream):
                    stream.abandon(InternalError("internal error"))
            yield commands.CloseConnection(self.context.client)
            return

    def _part(self) -> layer.CommandGenerator[None]:
        """End an HTTP/2 connection whose streams have ended: its client comes by another.

        (Over HTTP/1 the answers say so.) Announced any earlier, with streams still open, the end
        makes clients that are built on h2, such as httpx, give these up.
        """
        child = self.connections.get(self.context.client)
        if not isinstance(child, Http2Server):
            return
        h2 = child.h2_conn
        used = h2.highest_inbound_stream_id and not h2.open_inbound_streams
        if used and self.context.client.state is ConnectionState.OPEN:
            h2.close_connection()
            yield commands.SendData(self.context.client, h2.data_to_send())
            yield commands.CloseConnection(self.context.client)

    def _is_stale(self, event: events.Event) -> bool:
        return (
            isinstance(event, events.ConnectionEvent)
            and isinstance(event.connection, ProviderConnection)
            and event.connection not in self.connections
        )

    def _forget_closed(self) -> None:
        """Drop connections that are gone: a client's connection may outlive thousands of them."""
        in_use = {stream.context.server for stream in self.streams.values()}
        for connection in list(self.connections):
            if (
                isinstance(connection, ProviderConnection)
                and connection.state is ConnectionState.CLOSED
                and connection not in self.waiting_for_establishment
                and connection not in in_use
            ):
                del self.connections[connection]

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """Begin a request of the client's."""
        self.streams[stream_id] = Stream(self.context.fork(), stream_id, self.router)
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
            h2 = self.context.server.alpn == b"h2"
            self.child_layer = Http2Client(self.context) if h2 else ProviderClient(self.context)
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
        return isinstance(stream, Stream) and stream.heard is not self.context.server
