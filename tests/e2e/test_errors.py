"""What clients are told when a request can't be routed, and that nothing of it goes upstream."""

import re
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest

from pointsman.demo.provider import Reply
from tests.e2e.harness import (
    Far,
    Proxy,
    RawServer,
    assert_entry,
    assert_refused,
    chat,
    connect,
    read_all,
    read_exactly,
    read_head,
    said,
)

pytestmark = pytest.mark.e2e

CHAT = "https://api.openai.com/v1/chat/completions"
LIMIT = 64 * 1024


@pytest.fixture(params=[False, True], ids=["http1", "http2"])
def client(request: pytest.FixtureRequest, pointsman: Proxy) -> Iterator[httpx.Client]:
    with pointsman.client(http2=request.param) as opened:
        yield opened


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"messages": [}', "malformed_body"),
        (b'["not an object"]', "malformed_body"),
        (b"", "malformed_body"),
        (b'{"messages": []}', "model_missing"),
        (b'{"messages": [], "model": null}', "model_missing"),
    ],
)
def test_a_body_that_cannot_be_routed_is_refused(
    pointsman: Proxy, openai: Far, client: httpx.Client, body: bytes, code: str
) -> None:
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert_refused(answer, 400, code)
    openai.calls(0)
    assert_entry(pointsman.entry(), status=400, error=code, attempts=[], request_bytes=len(body))


def test_a_client_is_answered_on_the_same_connection_after_an_error(
    pointsman: Proxy, openai: Far, client: httpx.Client
) -> None:
    assert client.post(CHAT, content=b"{").status_code == 400
    assert said(client.post(CHAT, json=chat(model="m")))
    openai.calls(1)
    refused, routed = pointsman.logged(2)
    assert refused["client"] == routed["client"]


def test_a_body_over_the_limit_is_refused_by_its_length(
    pointsman: Proxy, openai: Far, client: httpx.Client
) -> None:
    answer = client.post(CHAT, content=b" " * (LIMIT + 1))
    assert_refused(answer, 413, "body_too_large")
    openai.calls(0)
    assert_entry(pointsman.entry(), status=413, flags=["DPE"], error="body_too_large", attempts=[])


def test_a_chunked_body_over_the_limit_is_refused(
    pointsman: Proxy, openai: Far, client: httpx.Client
) -> None:
    answer = client.post(CHAT, content=(b" " * 8192 for _ in range(64)))
    assert_refused(answer, 413, "body_too_large")
    openai.calls(0)
    assert_entry(pointsman.entry(), status=413, flags=["DPE"], attempts=[])


def test_a_body_at_the_limit_passes(pointsman: Proxy, openai: Far, client: httpx.Client) -> None:
    body = b'{"model":"m","messages":[]}'.ljust(LIMIT)
    assert said(client.post(CHAT, content=body))
    assert openai.call().body == body
    assert_entry(pointsman.entry(), status=200, request_bytes=LIMIT)


def test_a_host_whose_rules_do_not_match_answers_404(
    pointsman: Proxy, openai: Far, client: httpx.Client
) -> None:
    answer = client.post("https://picky.example/v1/chat/completions", json=chat(model="m"))
    assert_refused(answer, 404, "no_route")
    openai.calls(0)
    assert_entry(pointsman.entry(), status=404, flags=["NR"], route="picky", rule=None)

    known = {"tenant": "known"}
    assert said(client.post("https://picky.example/", json=chat(model="m"), headers=known))
    assert openai.call().header("host") == "api.openai.com"
    pointsman.entry()


def test_a_provider_that_refuses_the_connection_is_a_502(
    pointsman: Proxy, client: httpx.Client
) -> None:
    answer = client.post("https://refusing.example/v1/chat/completions", json=chat())
    assert_refused(answer, 502, "upstream_failure")
    entry = pointsman.entry()
    assert_entry(entry, status=502, flags=["UF"], error="upstream_failure", provider="refusing")
    (attempt,) = entry["attempts"]
    assert attempt["status"] is None
    assert attempt["error"]


def test_a_provider_that_hangs_up_before_its_answer_is_a_502(
    pointsman: Proxy, openai: Far, client: httpx.Client
) -> None:
    openai.provider.replies.append(Reply(drop="before_status"))
    answer = client.post(CHAT, json=chat(model="m"))
    assert_refused(answer, 502, "upstream_reset")
    openai.calls(1)
    assert_entry(pointsman.entry(), status=502, flags=["UC"], error="upstream_reset")
    assert said(client.post(CHAT, json=chat(model="m"))), "the next request has a new connection"
    pointsman.entry()


def test_a_providers_own_error_passes_as_it_is(
    pointsman: Proxy, openai: Far, client: httpx.Client
) -> None:
    limits = [("retry-after", "7"), ("x-ratelimit-remaining-requests", "0")]
    openai.provider.replies.append(Reply(429, limits, b"slow down"))
    answer = client.post(CHAT, json=chat(model="m"))
    assert (answer.status_code, answer.content) == (429, b"slow down")
    assert answer.headers["retry-after"] == "7"
    assert "x-pointsman-error" not in answer.headers
    assert_entry(pointsman.entry(), status=429, flags=[], error=None)


def test_an_unlisted_host_is_none_of_our_business(
    pointsman: Proxy, raw_server: Callable[..., RawServer], client: httpx.Client
) -> None:
    def serve(conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(b"HTTP/1.1 418 Teapot\r\nContent-Length: 2\r\nConnection: close\r\n\r\nme")

    server = raw_server(serve)
    answer = client.get(f"http://{server.address}/v1/chat/completions")
    assert (answer.status_code, answer.text) == (418, "me")
    pointsman.assert_no_more_entries()


# --- Expect: 100-continue -------------------------------------------------------------------------


def head(length: int) -> bytes:
    return (
        "POST http://api.openai.com/v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n"
        "Content-Type: application/json\r\nExpect: 100-continue\r\nConnection: close\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_a_client_that_waits_for_100_is_told_to_go_on(pointsman: Proxy, openai: Far) -> None:
    body = b'{"model":"m","messages":[]}'
    with connect(pointsman.address) as conn:
        conn.sendall(head(len(body)))
        assert read_head(conn).startswith(b"HTTP/1.1 100 ")
        conn.sendall(body)
        assert read_head(conn).startswith(b"HTTP/1.1 200 ")
        read_all(conn)
    call = openai.call()
    assert call.body == body
    assert call.header("expect") is None
    assert_entry(pointsman.entry(), status=200)


def test_a_client_that_waits_for_100_need_not_send_what_is_too_large(
    pointsman: Proxy, openai: Far
) -> None:
    with connect(pointsman.address) as conn:
        conn.sendall(head(LIMIT + 1))
        answer = read_head(conn)
        assert answer.startswith(b"HTTP/1.1 413 ")
        (length,) = re.findall(rb"(?i)\r\ncontent-length: (\d+)\r\n", answer)
        assert b"body_too_large" in read_exactly(conn, int(length))
    openai.calls(0)
    assert_entry(pointsman.entry(), status=413, attempts=[])
