"""Whose request is it? Every name that a request goes by, and what happens when they differ.

A request of ours must not leave unrouted because it is named in an odd way. So the names of its
connection (the server name of its TLS, the host of a CONNECT, the host that a reverse proxy stands
for) count beside the ones in its head; where they contradict each other, it is refused.
"""

from ipaddress import ip_address

from mitmproxy import http
from mitmproxy.proxy import mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode

from pointsman.config.resources import normalise_host
from pointsman.config.table import Route, RoutingTable
from pointsman.errors import AmbiguousHostError, HostNotAllowedError, MisdirectedError, RequestError

_HIGHEST_PORT = 65535
_LONGEST_PORT = len(str(_HIGHEST_PORT))  # Python refuses to read thousands of digits


def host_of(authority: str) -> str:
    """Return the host of an authority (`user@host:port`), without brackets; "" if it has none."""
    host = authority.strip().rpartition("@")[2]
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def port_of(authority: str) -> int | None:
    """Return the port of an authority; None if it has none, or one that can't be."""
    digits = _digits(authority)
    port = int(digits) if 0 < len(digits) <= _LONGEST_PORT else 0
    return port if 0 < port <= _HIGHEST_PORT else None


def _digits(authority: str) -> str:
    _, colon, port = authority.strip().rpartition("]")[2].rpartition(":")
    return port if colon and port.isascii() and port.isdecimal() else ""


def connection_names(context: Context) -> list[str]:
    """Return the names that the client has called the connection's far end by."""
    names = [context.client.sni] if context.client.sni else []
    if context.server.address and not is_address(context.server.address[0]):
        names.append(context.server.address[0])
    return names


def is_ours(table: RoutingTable, context: Context) -> bool:
    """Tell whether a connection leads to a host of ours, by its own names."""
    return any(table.lookup(name) for name in connection_names(context))


def claim(
    table: RoutingTable, request: http.Request, context: Context, mode: HTTPMode
) -> tuple[Route, str, RequestError | None] | None:
    """Return the route that answers for a request, and the host; None: it is not ours.

    The error is what it has to be refused with: its names contradict each other.
    """
    if mode is not HTTPMode.transparent:
        # Absolute-form: the request line takes precedence (RFC 9112, 3.2.2).
        route = table.lookup(request.host)
        return (route, request.host, _malformed(request, request.host)) if route else None
    named = _request_names(request)
    around = connection_names(context)
    for name in [*named, *around]:
        route = table.lookup(name)
        if route is not None:
            error = _malformed(request, name) or _contradiction(table, named, around, context)
            return route, name, error
    return None


def refused(
    table: RoutingTable, request: http.Request, context: Context, mode: HTTPMode
) -> tuple[Route, str, RequestError] | None:
    """Return what answers for a request that is not ours but names a host that is refused.

    Any of its names counts: the server that an absolute-form request line leads to may go by Host.
    """
    names = [*_request_names(request), *connection_names(context)]
    if mode is not HTTPMode.transparent:
        names.insert(0, request.host)
    host = next((name for name in names if table.refuses(name)), None)
    return None if host is None else (Route(None, host, ()), host, not_allowed(host))


def not_allowed(host: str) -> HostNotAllowedError:
    """Return what a request to such a host is answered with."""
    return HostNotAllowedError(
        f"{host} is an LLM host that no rule of this proxy names; requests to it are refused here."
    )


def _host_fields(request: http.Request) -> list[str]:
    return [value for field in request.headers.get_all("host") for value in field.split(",")]


def _request_names(request: http.Request) -> list[str]:
    names = [host_of(value) for value in _host_fields(request)]
    if not request.authority:
        return names
    first = host_of(request.authority)
    # Beside an authority, a Host that says the same says nothing.
    return [first, *(name for name in names if normalise_host(name) != normalise_host(first))]


def _malformed(request: http.Request, host: str) -> RequestError | None:
    """One dot at the end is the root of the names (RFC 3986, 3.2.2); two lead nowhere."""
    if host.endswith(".."):
        return AmbiguousHostError("The request's host ends with more than one dot.")
    named = (request.authority, *_host_fields(request))
    if any(_digits(authority) and port_of(authority) is None for authority in named):
        return AmbiguousHostError("The request's host has a port that can't be.")
    return None


def _contradiction(
    table: RoutingTable, named: list[str], around: list[str], context: Context
) -> RequestError | None:
    if len(named) > 1:
        return AmbiguousHostError("The request has more than one Host.")
    reverse = isinstance(context.client.proxy_mode, mode_specs.ReverseMode)
    if not named or not named[0] or reverse:
        return None  # a reverse proxy is known to its clients by a name of its own
    if table.lookup(named[0]) is None and any(table.lookup(name) for name in around):
        return MisdirectedError("The request names another host than its connection.")
    return None


def is_address(host: str) -> bool:
    """Tell whether a host is an IP address, and so no name."""
    host = host.strip("[]")
    if ":" not in host and not host[-1:].isdigit():
        return False  # most hosts, at a tenth of the time
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
