"""Raw bytes that name a host of ours: HTTP that mitmproxy does not take for HTTP.

A server may be more lenient (a space before the method, `http/1.1`, no version). So what a client
sends before the server's first byte is looked at line by line, up to an empty line: where it names
a host of ours, or a denied one, the connection is closed. Nothing is held back for that, but the
unfinished head of what looks like a request, and this not for long.
"""

import re

from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import TCPLayer
from mitmproxy.proxy.layers.tcp import TcpEndHook

from pointsman.errors import MalformedRequestError, RequestError
from pointsman.proxy.claiming import host_of, not_allowed
from pointsman.proxy.egress import Refused, goes_on
from pointsman.proxy.refusing import refusal_of
from pointsman.proxy.router import Router

_LONGEST_HEAD = 64 * 1024
_HOLD_SECONDS = 1.0

_HOST = re.compile(rb"[\0-\x20]*host[\0-\x20]*:(.*)", re.IGNORECASE | re.DOTALL)
_TARGET = re.compile(rb"[\0-\x20]*[^\s:]+\s+[a-z][a-z0-9+.-]*://([^/?#\s]+)", re.IGNORECASE)
# Redis, memcached and their like send lines too; hardly one has a path after its first word.
_REQUEST = re.compile(rb"[ \t]*\S+[ \t]+\S*/")
_FIELD = re.compile(rb"[!-9;-~]{1,64}[ \t]*:")
_BEGUN_FIELD = re.compile(rb"[!-9;-~]{1,64}[ \t]*(?::|\Z)")


class Head:
    """What a client sends first, told line by line.

    Attributes:
        over: it has ended, or is longer than any server takes; there is nothing more to look for.
    """

    def __init__(self) -> None:
        self.over = False
        self._rest = b""
        self._size = 0
        self._last = b""
        self._is_request = False

    def feed(self, data: bytes) -> list[str]:
        """Take more of it; return the hosts that the lines which end in it name."""
        self._size += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        found: list[str] = []
        for line in lines:
            if not line.strip():
                if self._last:
                    self.over = True
                    break
                continue
            found += self._hosts(line)
            self._is_request = self._is_request or _REQUEST.match(line) is not None
            self._last = line
        self.over = self.over or self._size > _LONGEST_HEAD
        return found

    def _hosts(self, line: bytes) -> list[str]:
        value = _HOST.match(line) or _TARGET.match(line)
        text = value[1] if value else b""
        if line[:1].isspace() and (before := _HOST.match(self._last)) and not before[1].strip():
            text = line  # a folded one (RFC 9112, 5.2)
        names = text.decode("latin-1").split(",")
        return [host for name in names if (host := host_of(name.strip("\0\t\r ")))]

    @property
    def unfinished(self) -> bool:
        """Whether it is the head of a request, with more fields to come."""
        if self.over or not self._is_request:
            return False
        if self._rest:
            return _BEGUN_FIELD.match(self._rest) is not None
        return _FIELD.match(self._last) is not None


def watch_raw(
    router: Router, context: Context, client_data: bytes, chosen: layer.Layer | None
) -> layer.Layer | None:
    """Return what relays raw bytes, watching them; or what refuses them, when they say enough."""
    if type(chosen) is not TCPLayer or context.server.address is None:
        return chosen
    context.layers.remove(chosen)
    named = refusal(router, Head().feed(client_data))
    if named is None:
        return WatchedTCP(context, router, ignore=chosen.flow is None)
    if goes_on(router, context, *named, status=named[1].status):
        return TCPLayer(context, ignore=chosen.flow is None)
    return Refused(context, alert=answer(named[1]))


def refusal(router: Router, hosts: list[str]) -> tuple[str, RequestError] | None:
    """Return the first of these hosts that is ours or denied, and what it is refused with."""
    for host in hosts:
        if router.table.lookup(host):
            why = "This is not HTTP/1.1 as RFC 9112 has it, so it can't be routed."
            return host, MalformedRequestError(why)
        if router.table.refuses(host):
            return host, not_allowed(host)
    return None


def answer(error: RequestError) -> bytes:
    """Return an error as an answer of HTTP/1.1, after which the connection ends."""
    response = refusal_of(error)
    response.headers["connection"] = "close"
    return bytes(http1.assemble_response(response))


class WatchedTCP(TCPLayer):
    """Relays bytes, and closes the connection when the client's first ones name a host of ours."""

    def __init__(self, context: Context, router: Router, *, ignore: bool) -> None:
        super().__init__(context, ignore)
        self._router = router
        self._head: Head | None = Head()
        self._held: list[events.Event] = []
        self._may_hold = True

    def relay_messages(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Relay what may be; keep what is no more than the first half of a head."""
        if isinstance(event, events.Wakeup):
            self._may_hold = False
            yield from self._release()
            return
        sent = isinstance(event, events.DataReceived) and event.connection == self.context.client
        if self._head is not None and sent:
            assert isinstance(event, events.DataReceived)
            named = refusal(self._router, self._head.feed(event.data))
            if named is not None and not self._goes_on(*named):
                yield from self._refuse(named[1])
                return
            if self._head.unfinished and self._may_hold and not named:
                self._held.append(event)
                if len(self._held) == 1:
                    yield commands.RequestWakeup(_HOLD_SECONDS)
                return
            if self._head.over or named:
                self._head = None
        elif self._head is not None:
            self._head = None  # the server has spoken, or one of them is gone
        yield from self._release()
        yield from super().relay_messages(event)

    def _goes_on(self, host: str, error: RequestError) -> bool:
        return goes_on(self._router, self.context, host, error, status=error.status)

    def _release(self) -> layer.CommandGenerator[None]:
        held, self._held = self._held, []
        for event in held:
            yield from super().relay_messages(event)

    def _refuse(self, error: RequestError) -> layer.CommandGenerator[None]:
        self._held.clear()
        self._handle_event = self.done
        yield commands.SendData(self.context.client, answer(error))
        for connection in (self.context.server, self.context.client):
            if connection.state is not ConnectionState.CLOSED:
                yield commands.CloseConnection(connection)
        if self.flow:
            yield TcpEndHook(self.flow)
            self.flow.live = False

    def done(self, _: events.Event) -> layer.CommandGenerator[None]:
        """Take what comes late, a timer's end too."""
        yield from ()
