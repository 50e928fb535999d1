"""How an answer is framed for a client whose connection outlives the provider's."""

import pytest
from mitmproxy import http

from pointsman.proxy.framing import frame, part


def exchange(
    version: str = "HTTP/1.1", method: str = "POST", status: int = 200
) -> tuple[http.Request, http.Response]:
    request = http.Request.make(method, "http://llm.test/")
    request.http_version = version
    response = http.Response.make(status, b"")
    response.headers = http.Headers()
    return request, response


@pytest.mark.parametrize(
    ("version", "given", "resized", "framed"),
    [
        ("HTTP/1.1", {"content-length": "3"}, False, {"content-length": "3"}),
        ("HTTP/1.1", {"content-length": "3"}, True, {"transfer-encoding": "chunked"}),
        ("HTTP/1.1", {}, False, {"transfer-encoding": "chunked"}),
        ("HTTP/1.0", {}, False, {"connection": "close"}),
        ("HTTP/1.0", {"transfer-encoding": "chunked"}, False, {"connection": "close"}),
        ("HTTP/1.0", {"content-length": "3"}, False, {"content-length": "3"}),
        ("HTTP/2.0", {"transfer-encoding": "chunked"}, False, {}),
        ("HTTP/2.0", {"content-length": "3"}, True, {}),
    ],
)
def test_the_client_can_tell_where_the_body_ends(
    version: str, given: dict[str, str], resized: bool, framed: dict[str, str]
) -> None:
    request, response = exchange(version)
    response.headers.update(given)
    frame(request, response, resized=resized)
    assert dict(response.headers) == framed


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 204), ("GET", 304)])
def test_what_has_no_body_is_not_framed(method: str, status: int) -> None:
    request, response = exchange(method=method, status=status)
    frame(request, response, resized=False)
    assert dict(response.headers) == {}


@pytest.mark.parametrize(("version", "told"), [("HTTP/1.1", "close"), ("HTTP/2.0", None)])
def test_a_client_is_asked_to_come_by_another_connection(version: str, told: str | None) -> None:
    request, response = exchange(version)
    part(request, response)
    assert response.headers.get("connection") == told
