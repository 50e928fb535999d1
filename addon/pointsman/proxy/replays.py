"""Requests that a person replays from a UI go the way of a client's.

mitmproxy builds a plain HTTP layer for them, in which nothing would be routed and no key be put on.
"""

import asyncio

from mitmproxy import http
from mitmproxy.addons import clientplayback
from mitmproxy.options import Options
from mitmproxy.proxy import events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http._events import ResponseEndOfMessage, ResponseProtocolError

from pointsman.proxy.layers import Layer
from pointsman.proxy.router import Router

_Handler = clientplayback.ReplayHandler


class _Client(clientplayback.MockServer):
    """The client that a replay has: mitmproxy's, and it knows when its answer has ended.

    mitmproxy waits for a hook, which a request that ends by a fault of ours does not reach; every
    later replay would wait behind it.
    """

    def __init__(self, replayed: http.HTTPFlow, context: Context, ended: asyncio.Event) -> None:
        super().__init__(replayed, context)
        self._ended = ended

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        yield from super()._handle_event(event)
        if isinstance(event, ResponseEndOfMessage | ResponseProtocolError):
            self._ended.set()


def carry_replays(router: Router) -> None:
    """Have mitmproxy replay flows through our HTTP layer."""

    class ReplayHandler(_Handler):
        def __init__(self, replayed: http.HTTPFlow, options: Options) -> None:
            super().__init__(replayed, options)
            plain = self.layer
            context = plain.context
            context.layers.remove(plain)
            self.layer = Layer(context, plain.mode, router)
            client = _Client(replayed, context.fork(), self.done)
            self.layer.connections[context.client] = client

        async def replay(self) -> None:
            try:
                await super().replay()
            finally:
                for transport in self.transports.values():
                    if transport.handler:
                        transport.handler.cancel()

    clientplayback.ReplayHandler = ReplayHandler  # type: ignore[misc,assignment]
