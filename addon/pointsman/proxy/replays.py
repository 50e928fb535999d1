"""Requests that a person replays from a UI go the way of a client's.

mitmproxy builds a plain HTTP layer for them, in which nothing would be routed and no key be put on.
"""

import asyncio
import logging

from mitmproxy import ctx, http
from mitmproxy.addons import clientplayback
from mitmproxy.hooks import UpdateHook
from mitmproxy.log import ALERT
from mitmproxy.options import Options
from mitmproxy.proxy import events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http._events import ResponseEndOfMessage, ResponseProtocolError

from pointsman.protocols.api import named
from pointsman.proxy.layers import Layer
from pointsman.proxy.own_keys import OWN_KEYS_OF
from pointsman.proxy.router import Router
from pointsman.proxy.showing import COMPARED, WAY
from pointsman.viewing.bodies import is_event_stream
from pointsman.viewing.comparing import Answered, compare
from pointsman.viewing.route import read

logger = logging.getLogger(__name__)

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


async def replay_via(router: Router, original: http.HTTPFlow, provider: str) -> None:
    """Send a copy of a flow's request through a provider, and compare the two on the new flow."""
    copy = original.copy()
    copy.response, copy.error, copy.is_replay = None, None, "request"
    copy.comment = copy.marked = ""
    for name in [name for name in copy.metadata if name.startswith("llm_") and name != OWN_KEYS_OF]:
        del copy.metadata[name]
    if view := ctx.master.addons.get("view"):
        view.add([copy])
    router.wanted_by_hand[copy.id] = provider
    try:
        await clientplayback.ReplayHandler(copy, ctx.options).replay()
        compared = compare(_answer(original), _answer(copy))
        copy.metadata[COMPARED] = compared
        ctx.master.addons.trigger(UpdateHook([copy]))
    except Exception:
        logger.exception("a replay could not be compared")
        return
    finally:
        router.wanted_by_hand.pop(copy.id, None)  # what has come to no decision
    told = "; ".join(f"{what}: {before} → {after}" for what, before, after in compared[:-1])
    logger.log(ALERT, "replayed through %s: %s", provider, told)


def _answer(shown: http.HTTPFlow) -> Answered:
    response = shown.response
    data, known = (response.raw_content or b"" if response else b""), shown.metadata
    kind = response.headers.get("content-type") if response else None
    return Answered(
        way=read(known.get(WAY)),
        status=response.status_code if response else None,
        api=named(known.get("llm_api")),
        body=data,
        event_stream=is_event_stream(kind, data),
        seconds=_lasted(shown),
    )


def _lasted(shown: http.HTTPFlow) -> float | None:
    begun, ended = shown.request.timestamp_start, shown.response and shown.response.timestamp_end
    return ended - begun if ended else None


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
