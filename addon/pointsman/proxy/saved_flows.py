"""Saved traffic, of mitmproxy or as HAR, as the requests that routing sees."""

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit, urlunsplit

from mitmproxy import exceptions, http
from mitmproxy.flow import Flow
from mitmproxy.io import FlowReader
from mitmproxy.io.har import request_to_flow
from mitmproxy.proxy.mode_specs import RegularMode, UpstreamMode

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
        flows = _har(file) if _is_har(file) else _mitm(file)
        for flow in flows:
            ours = isinstance(flow, http.HTTPFlow) and flow.request.method != "CONNECT"
            yield request_of(flow) if ours else None  # type: ignore[arg-type]


def _is_har(file: BufferedReader) -> bool:
    return file.peek(16)[:16].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _mitm(file: BinaryIO) -> Iterator[Flow]:
    try:
        yield from FlowReader(file).stream()
    except Exception:  # noqa: BLE001 (of a broken file, any; a length that can't be, MemoryError)
        raise ValueError("it is no saved traffic (.mitm or HAR), or is cut short") from None


def _har(file: BinaryIO) -> Iterator[Flow | None]:
    """Yield a flow for each entry; None for one that is no HTTP exchange, or is incomplete."""
    try:
        entries = json.loads(file.read().decode("utf-8-sig"))["log"]["entries"]
        each = list(entries)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("it is no HAR file, or is cut short") from None
    for entry in each:
        yield _har_flow(entry)


def _har_flow(entry: Any) -> Flow | None:
    try:
        request = entry["request"]
        url = str(request["url"])
        if not url.startswith(("http://", "https://")):
            return None
        text = request.get("postData", {}).get("text")
        headers = {h["name"].lower(): h["value"] for h in request["headers"]}
        size = request.get("bodySize") or 0
        declared = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        left_out = text is None and (size > 0 or declared)
        # What became of it is no matter: a browser leaves that out of what it has blocked.
        sent = {name: value for name, value in request.items() if name != "postData" or text}
        sent["url"] = url if url.isascii() else _in_ascii(url)
        given = {**_NO_ANSWER, **entry, "request": sent, "response": _NO_ANSWER["response"]}
        flow = request_to_flow(given)
    except (ValueError, KeyError, TypeError, AttributeError, exceptions.OptionsError):
        return None
    if left_out:
        flow.request.raw_content = None
    return flow


def _in_ascii(url: str) -> str:
    """Return a URL as it goes over the wire; browsers save it as people read it."""
    parts = urlsplit(url)
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urlunsplit(
        parts._replace(netloc=parts.netloc.encode("idna").decode(), path=path, query=query)
    )


_NO_ANSWER: dict[str, Any] = {
    "startedDateTime": "1970-01-01T00:00:00Z",
    "time": 0,
    "timings": {"send": 0, "wait": 0, "receive": 0, "connect": 0, "ssl": 0},
    "response": {"httpVersion": "HTTP/1.1", "status": 0, "headers": [], "content": {}},
}


def request_of(flow: http.HTTPFlow) -> SavedRequest:
    """Return a flow's request as routing sees it, with its credentials as the flow shows them."""
    request = flow.request
    raw = request.raw_content
    told = [host_of(request.host_header or ""), host_of(request.authority)]
    around = [flow.client_conn.sni or "", request.host]
    if isinstance(flow.client_conn.proxy_mode, RegularMode | UpstreamMode) and not around[0]:
        told = []  # absolute-form: the request line takes precedence (RFC 9112, 3.2.2)
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
