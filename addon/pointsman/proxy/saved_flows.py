"""Saved traffic, of mitmproxy or as HAR, as the requests that routing sees."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mitmproxy import exceptions, http
from mitmproxy.io import FlowReader

from pointsman.proxy.claiming import host_of, is_address, port_of
from pointsman.proxy.router import DEFAULT_BODY_LIMIT
from pointsman.routing.request import Body, ClientRequest, StreamedBody


@dataclass(frozen=True, slots=True)
class SavedRequest:
    """A request by each name that it goes by, the first being its own word."""

    request: ClientRequest
    names: tuple[str, ...]


def read(path: Path) -> Iterator[SavedRequest | None]:
    """Yield the requests of a file; None for a flow that is no HTTP request (TCP, a tunnel).

    A request whose body was not saved has a `StreamedBody`.

    Raises:
        OSError: the file can't be read.
        ValueError: it is neither mitmproxy's nor HAR, or is cut short.
    """
    with path.open("rb") as file:
        try:
            for flow in FlowReader(file).stream():
                ours = isinstance(flow, http.HTTPFlow) and flow.request.method != "CONNECT"
                yield request_of(flow) if ours else None  # type: ignore[arg-type]
        except exceptions.FlowReadException:
            raise ValueError("it is no saved traffic (.mitm or HAR), or is cut short") from None


def request_of(flow: http.HTTPFlow) -> SavedRequest:
    """Return a flow's request as routing sees it, with its credentials as the flow shows them."""
    request = flow.request
    raw = request.raw_content
    told = [host_of(request.host_header or ""), host_of(request.authority)]
    around = [flow.client_conn.sni or "", request.host]
    names = [name for name in told if name] + [n for n in around if n and not is_address(n)]
    host = names[0] if names else request.host
    encoding = request.headers.get("content-encoding", "")
    body = StreamedBody() if raw is None else Body(raw, encoding, limit=DEFAULT_BODY_LIMIT)
    client_request = ClientRequest(
        method=request.method,
        scheme=request.scheme,
        host=host,
        port=port_of(request.host_header or "") or request.port,
        path=request.path,
        headers=request.headers.fields,
        body=body,
        address=(request.host, request.port),
        multiplexed=request.is_http2 or request.is_http3,
    )
    return SavedRequest(client_request, tuple(dict.fromkeys(names)) or (request.host,))
