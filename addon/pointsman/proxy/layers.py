"""mitmproxy's HTTP layer with our streams in it, and with connections by provider.

These are not public interfaces of mitmproxy; `tests/proxy/test_internals.py` fails when the parts
leaned on here change shape.
"""

import logging

from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as http_layer
from mitmproxy.proxy.layers import tls
from mitmproxy.proxy.layers.http import _upstream_proxy

from pointsman.errors import InternalError
from pointsman.proxy.connections import GetProviderConnection, ProviderConnection
from pointsman.proxy.router import Router
from pointsman.proxy.streams import Stream

logger = logging.getLogger(__name__)


class Layer(http_layer.HttpLayer):
    """mitmproxy's HTTP layer with our streams, and with connections by provider."""

    def __init__(self, context: Context, mode: http_layer.HTTPMode, router: Router) -> None:
        super().__init__(context, mode)
        self.router = router

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self._is_stale(event):
            return
        try:
            yield from super()._handle_event(event)
        except Exception:
            # mitmproxy would log this and leave the client waiting for ever.
            logger.exception("the HTTP layer failed; closing the client's connection")
            for stream in list(self.streams.values()):
                if isinstance(stream, Stream):
                    stream.abandon(InternalError("internal error"))
            yield commands.CloseConnection(self.context.client)
            return

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
        # It is what the certificate is checked against, whatever address is connected to.
        server.sni = event.sni
        context.server = server
        stack = tunnel.LayerStack()
        if event.via:
            server.via = event.via
            connect = event.tls or self.mode is not http_layer.HTTPMode.upstream
            stack /= _upstream_proxy.HttpUpstreamProxy.make(context, connect)
        if event.tls:
            h2 = self.context.client.alpn == b"h2" and self.context.options.http2
            server.alpn_offers = [b"h2", b"http/1.1"] if h2 else [b"http/1.1"]
            stack /= tls.ServerTLSLayer(context)
        stack /= http_layer.HttpClient(context)
        self.connections[server] = stack[0]
        self.waiting_for_establishment[server].append(event)
        yield from self.event_to_child(stack[0], events.Start())
