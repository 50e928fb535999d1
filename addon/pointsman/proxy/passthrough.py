"""What is not ours stays untouched: which connections are passed on without a look inside."""

from mitmproxy.connection import Client
from mitmproxy.proxy import layer, mode_specs
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import TCPLayer
from mitmproxy.tls import ClientHelloData

from pointsman.config.table import RoutingTable

_H2C_PREFACE = b"PRI * HTTP/2.0\r\n"


def leave_encrypted(table: RoutingTable, hello: ClientHelloData) -> bool:
    """Tell whether a TLS connection goes on undecrypted: its server name is none of ours.

    Without a server name the address that the client wants to reach counts: the name in a CONNECT.
    """
    context = hello.context
    if context.server.address is None:
        return False  # TLS to the proxy itself
    names = [hello.client_hello.sni or context.server.address[0]]
    if isinstance(context.client.proxy_mode, mode_specs.ReverseMode):
        # The client knows this proxy by another name than the host that it stands for.
        names.append(context.server.address[0])
    return not any(table.lookup(name) for name in names)


def raw_layer(context: Context, client_data: bytes) -> layer.Layer | None:
    """Return a layer that relays bytes, for what mitmproxy would take for broken HTTP/1.

    HTTP/2 without TLS and without an upgrade, as gRPC speaks it inside a cluster, begins with a
    preface. No LLM API is called that way.
    """
    # The first bytes decide, the more so as a preface may arrive in two reads.
    begins = client_data[: len(_H2C_PREFACE)]
    plain = isinstance(context.client, Client) and not context.client.tls_established
    if context.server.address is not None and plain and begins == _H2C_PREFACE:
        return TCPLayer(context, ignore=True)
    return None
