"""The egress guard: which hosts are exempt, and what is done with known LLM hosts without a rule.

With `llm_unknown=deny` keys can't be used around the rules: a request that can be read gets 403
(`claiming.refused`, and a CONNECT here), a TLS connection is closed at its ClientHello. It is never
decrypted for that, so its server name and the name that it was opened by are all that is seen.
"""

import re
import time
from collections.abc import Sequence
from typing import TypedDict

from mitmproxy import exceptions, http
from mitmproxy.addons.next_layer import NeedsMoreData, NextLayer
from mitmproxy.connection import Client
from mitmproxy.net.http.url import hostport
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import TCPLayer

from pointsman.config.hosts import Hosts, known_llm_hosts, parse_hosts
from pointsman.config.resources import normalise_host
from pointsman.errors import MalformedRequestError, RequestError
from pointsman.proxy.claiming import connection_names, not_allowed
from pointsman.proxy.refusing import refusal_of
from pointsman.proxy.router import Router
from pointsman.telemetry.exchange import Exchange

# A fatal alert, access_denied (RFC 8446, 6.2): clients say so, where a bare close puzzles them.
_ACCESS_DENIED = bytes.fromhex("15 0303 0002 02 31")
_PROTOCOL_VERSION = bytes.fromhex("15 0303 0002 02 46")
_DECODE_ERROR = bytes.fromhex("15 0303 0002 02 32")
# OpenSSL takes no longer one either; mitmproxy would collect 16 MB.
_LONGEST_CLIENT_HELLO = 128 * 1024


_ODD_RECORD = re.compile(rb"\x16\x03[^\x00-\x03]", re.DOTALL)


class GuardedHosts(TypedDict):
    """What `Router.guard` takes."""

    passthrough: Hosts
    denied: Hosts


def guarded_hosts(passthrough: Sequence[str], unknown: str) -> GuardedHosts:
    """Return what the options llm_passthrough and llm_unknown mean.

    Raises:
        OptionsError: one can't be used.
    """
    if unknown not in {"pass", "deny"}:
        raise exceptions.OptionsError(
            f"llm_unknown: {unknown!r} is neither pass nor deny; write one of them"
        )
    try:
        exempt = parse_hosts(passthrough)
    except ValueError as error:
        raise exceptions.OptionsError(f"llm_passthrough: {error}") from None
    return {"passthrough": exempt, "denied": known_llm_hosts() if unknown == "deny" else Hosts()}


class Refused(layer.Layer):
    """Closes the client's connection."""

    def __init__(self, context: Context, *, alert: bytes = b"") -> None:
        super().__init__(context)
        self._alert = alert

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            if self._alert:
                yield commands.SendData(self.context.client, self._alert)
            yield commands.CloseConnection(self.context.client)


def refuse_tls(router: Router, context: Context, client_data: bytes) -> Refused | None:
    """Return what closes a connection whose ClientHello, or whose far end, names a denied host.

    A ClientHello without an end is refused whatever it names; so is one that names a host of ours
    in a record of a version that mitmproxy does not take for TLS, and servers do (RFC 8446, 5.1).

    Raises:
        NeedsMoreData: the ClientHello is not complete.
    """
    if context.client.transport_protocol != "tcp":
        return None
    odd = _ODD_RECORD.match(client_data) is not None
    if odd:
        client_data = client_data[:2] + b"\x01" + client_data[3:]
    try:
        hello = NextLayer._get_client_hello(context, client_data)  # noqa: SLF001 (see test_internals)
    except NeedsMoreData:
        if len(client_data) > _LONGEST_CLIENT_HELLO:
            return Refused(context, alert=_DECODE_ERROR)
        raise
    if hello is None or context.server.address is None:
        return None
    names = [*([hello.sni] if hello.sni else []), *connection_names(context)]
    return _refuse_odd(router, context, names) if odd else _refuse_denied(router, context, names)


def _refuse_odd(router: Router, context: Context, names: Sequence[str]) -> Refused | None:
    table = router.table
    host = next((name for name in names if table.lookup(name) or table.refuses(name)), None)
    if host is None:
        return None
    why = "This is no TLS record as RFC 8446 has it, so the connection can't be routed."
    record_refusal(router, context.client, host, MalformedRequestError(why))
    return Refused(context, alert=_PROTOCOL_VERSION)


def _refuse_denied(router: Router, context: Context, names: Sequence[str]) -> Refused | None:
    if not router.table.denied:
        return None
    host = _denied(router, names)
    if host is None or goes_on(router, context, host, not_allowed(host)):
        return None
    return Refused(context, alert=_ACCESS_DENIED)


def refuse_raw(router: Router, context: Context, chosen: layer.Layer | None) -> layer.Layer | None:
    """Return what closes a connection to a denied host that is neither TLS nor HTTP."""
    if not isinstance(chosen, TCPLayer) or context.server.address is None:
        return chosen
    host = _denied(router, connection_names(context))
    if host is None or goes_on(router, context, host, not_allowed(host)):
        return chosen
    context.layers.remove(chosen)
    return Refused(context)


def refuse_tunnel(router: Router, flow: http.HTTPFlow) -> None:
    """Answer a CONNECT to a denied host with 403. Who observes is told when it is used."""
    host = flow.request.host
    if router.observe or not router.table.refuses(host):
        return
    error = not_allowed(host)
    flow.response = refusal_of(error)
    record_refusal(router, flow.client_conn, host, error, method="CONNECT", status=error.status)


def _denied(router: Router, names: Sequence[str]) -> str | None:
    """Return the name that is refused; None also where one is ours, and so seen again later."""
    if any(router.table.lookup(name) for name in names):
        return None
    return next((name for name in names if router.table.refuses(name)), None)


def goes_on(
    router: Router,
    context: Context,
    host: str,
    error: RequestError,
    *,
    status: int | None = None,
) -> bool:
    """Record a connection to be refused; tell whether it goes on: who only observes refuses none.

    `status` is what the client is answered, where it is.
    """
    told = None if router.observe else status
    record_refusal(router, context.client, host, error, status=told)
    return router.observe


def record_refusal(  # noqa: PLR0913 (what is known of it)
    router: Router,
    client: Client,
    host: str,
    error: RequestError,
    *,
    method: str = "",
    status: int | None = None,
) -> None:
    """Log a connection that is refused, or would be but for who only observes."""
    now, peer = time.perf_counter(), client.peername
    route = router.table.lookup(host)
    exchange = Exchange(
        request_id=client.id,
        host=normalise_host(host),
        method=method,
        path="",
        client=hostport("", peer[0], peer[1]) if peer else None,
        started=now,
        workload=router.workload,
        namespace=router.namespace,
        route=route.name if route else None,
        route_host=route.host if route else None,
        status=status,
        error=None if router.observe else error.code,
        ended=now,
    )
    exchange.flag(error.flag)
    if router.observe:
        exchange.flag("OB")
    router.sinks.emit(exchange)
