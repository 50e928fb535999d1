"""What is not ours stays untouched: which connections are passed on without a look inside.

And what is ours must not be taken for something else: mitmproxy takes a connection for raw TCP when
its first bytes do not look like HTTP, be they only the first one or two of a request.
"""

import re

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from mitmproxy.addons.next_layer import NeedsMoreData
from mitmproxy.proxy import layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import HttpLayer, TCPLayer
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.tls import ClientHelloData

from pointsman.config.table import RoutingTable
from pointsman.proxy.claiming import connection_names, host_of, is_ours

_H2C_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# What may still become a request line or a TLS record.
_UNDECIDED = re.compile(rb"(?:[A-Z]{1,20}|\x16\x03?)?\Z")
_METHOD = re.compile(rb"[A-Z]{1,20} ")
_VERSION = re.compile(rb" HTTP/\d")


def leave_encrypted(table: RoutingTable, hello: ClientHelloData) -> bool:
    """Tell whether a TLS connection goes on undecrypted: none of its names is ours."""
    if hello.context.server.address is None:
        return False  # TLS to the proxy itself
    return not any(table.lookup(name) for name in names_of(hello))


def names_of(hello: ClientHelloData) -> list[str]:
    """Return the names that a TLS connection goes by."""
    sni = hello.client_hello.sni
    return [*([sni] if sni else []), *connection_names(hello.context)]


def await_more(context: Context, client_data: bytes, server_data: bytes) -> None:
    """Let the choice of a layer wait while the client's bytes do not tell what they begin.

    Raises:
        NeedsMoreData: they do not.
    """
    undecided = _UNDECIDED.match(client_data.lstrip(b"\r\n")) is not None
    if client_data and undecided and not server_data and context.server.address:
        raise NeedsMoreData


def reconsider(
    table: RoutingTable, context: Context, client_data: bytes, chosen: layer.Layer | None
) -> layer.Layer | None:
    """Mend mitmproxy's choice between HTTP and raw bytes."""
    if context.client.alpn or context.server.address is None or not context.layers:
        return chosen
    begins = client_data.lstrip(b"\r\n")
    if type(chosen) is TCPLayer and (is_ours(table, context) or _METHOD.match(begins)):
        context.layers.remove(chosen)
        return HttpLayer(context, HTTPMode.transparent)
    if type(chosen) is HttpLayer and chosen.mode is HTTPMode.transparent:
        line, end, _ = begins.partition(b"\n")
        other_protocol = end and not _VERSION.search(line)
        if (other_protocol or _is_h2c_of_others(table, begins)) and not is_ours(table, context):
            context.layers.remove(chosen)
            return TCPLayer(context, ignore=True)
    return chosen


def _is_h2c_of_others(table: RoutingTable, client_data: bytes) -> bool:
    """Tell of HTTP/2 without TLS (gRPC inside a cluster), which mitmproxy takes for broken HTTP/1.

    Where the first bytes already name a host of ours, or a denied one, it is left to fail. A client
    that waits for the server's settings before it names a host can't be told.
    """
    if not client_data.startswith(_H2C_PREFACE[: len(client_data)]) or len(client_data) < 16:  # noqa: PLR2004
        return False
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
    )
    try:
        found = connection.receive_data(client_data)
    except (h2.exceptions.ProtocolError, ValueError):
        return True
    hosts = [
        host_of(str(value))
        for event in found
        if isinstance(event, h2.events.RequestReceived)
        for name, value in event.headers
        if str(name) == ":authority"
    ]
    return not any(table.lookup(host) or table.refuses(host) for host in hosts)
