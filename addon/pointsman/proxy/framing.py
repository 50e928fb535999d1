"""How an answer's body is framed for its client, whose connection outlives the provider's."""

from mitmproxy import http

_BODILESS = frozenset({204, 304})


def frame(request: http.Request, response: http.Response, *, resized: bool) -> None:
    """Set the headers that tell the client where the body ends.

    `resized`: it may not be as long as the provider has announced. For HTTP/1 see RFC 9112,
    section 6; HTTP/2 frames bodies itself.
    """
    headers = response.headers
    if resized:
        headers.pop("content-length", None)
    if request.is_http2 or request.is_http3:
        headers.pop("transfer-encoding", None)
        return
    framed = "content-length" in headers or "transfer-encoding" in headers
    bodiless = request.method == "HEAD" or response.status_code in _BODILESS
    if request.http_version != "HTTP/1.1":
        if headers.pop("transfer-encoding", None) is not None or not framed:
            headers["connection"] = "close"  # the end of the body is the connection's
    elif not framed and not bodiless:
        headers["transfer-encoding"] = "chunked"
        response.http_version = "HTTP/1.1"


def part(request: http.Request, response: http.Response) -> None:
    """Ask the client to come again by another connection; over HTTP/2 the layer does that."""
    if not (request.is_http2 or request.is_http3):
        response.headers["connection"] = "close"
