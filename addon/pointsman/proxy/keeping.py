"""How much a UI keeps: mitmproxy keeps all flows, with their bodies, until it is full.

Of a connection that goes on, as a WebSocket does for hours, the latest messages are kept.

Each flow costs the same small work, however many there are. What a person marks stays, and so does
what they load from a file, what is still under way, and the flow that has the console's focus.
"""

from collections import OrderedDict
from collections.abc import Sequence

from mitmproxy import exceptions, flow, http, tcp
from mitmproxy.addons.view import View
from mitmproxy.master import Master
from mitmproxy.websocket import WebSocketMessage

from pointsman.proxy.showing import marked_by_person

_MOST_MESSAGES = 1000  # of a flow
_MOST_BYTES = 16 * 1024 * 1024  # of a flow's messages, but for the latest one


class KeepFlows:
    """An addon beside mitmproxy's `view`, which holds the flows."""

    name = "pointsman_keep_flows"

    def __init__(self) -> None:
        self._view: View | None = None
        self._focused = False
        self._limit = 0
        self._begun: set[str] = set()  # what is loaded has not begun here
        self._finished: OrderedDict[str, None] = OrderedDict()  # ids, oldest first

    def attach(self, master: Master) -> None:
        """Begin to bound this program's flows, if it shows any."""
        self._view = master.addons.get("view")
        # mitmweb has a focus too, which no one sees: it stays on the first flow.
        self._focused = type(master).__name__ == "ConsoleMaster"
        if self._view is not None:
            master.addons.add(self)

    def bound(self, limit: int) -> None:
        """Set how many to keep.

        Raises:
            OptionsError: it is no such number.
        """
        if limit < 0:
            raise exceptions.OptionsError(
                f"llm_keep_flows: {limit} is no number of flows; write 0 to keep all"
            )
        self._limit = limit
        self._drop()

    # --- hooks ------------------------------------------------------------------------------------

    def requestheaders(self, flow: flow.Flow) -> None:
        """Remember that a flow has begun here."""
        if flow.live:
            self._begun.add(flow.id)

    tcp_start = udp_start = dns_request = requestheaders

    def response(self, flow: http.HTTPFlow) -> None:
        """A flow has ended, unless it goes on as a WebSocket."""
        if flow.websocket is None:
            self.error(flow)

    def error(self, flow: flow.Flow) -> None:
        """A flow has ended."""
        if flow.id in self._begun:
            self._begun.discard(flow.id)
            self._finished[flow.id] = None
            self._finished.move_to_end(flow.id)
            self._drop()

    websocket_end = tcp_end = tcp_error = udp_end = udp_error = error
    dns_response = dns_error = error

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        """Drop the oldest messages of a WebSocket under way."""
        if flow.live and flow.websocket:
            del flow.websocket.messages[: _too_many(flow.websocket.messages)]

    def tcp_message(self, flow: tcp.TCPFlow) -> None:
        """Drop the oldest messages of a connection under way."""
        if flow.live:
            del flow.messages[: _too_many(flow.messages)]

    # --- the bound --------------------------------------------------------------------------------

    def _drop(self) -> None:
        if self._view is None or not self._limit:
            return
        for _ in range(len(self._finished) - self._limit):
            self._drop_oldest(self._view)

    def _drop_oldest(self, view: View) -> None:
        identity, _ = self._finished.popitem(last=False)
        flow = view.get_by_id(identity)
        if flow is None or marked_by_person(flow):
            return
        in_focus = self._focused and view.focus.flow is flow
        if flow.live or flow.intercepted or in_focus:
            self._finished[identity] = None  # its turn comes again
        else:
            view.remove([flow])


def _too_many(messages: Sequence[WebSocketMessage | tcp.TCPMessage]) -> int:
    """Return how many of the oldest messages are past the bounds; the latest never is."""
    size = 0
    for kept, message in enumerate(reversed(messages)):
        size += len(message.content)
        if kept and (size > _MOST_BYTES or kept == _MOST_MESSAGES):
            return len(messages) - kept
    return 0
