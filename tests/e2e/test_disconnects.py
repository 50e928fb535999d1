"""Clients that go away: the provider is told at once, and the log has one line with DC."""

import ssl
from collections.abc import Iterator

import pytest

from pointsman.demo.openai_answers import dump
from pointsman.demo.provider import Call, Reply
from tests.e2e.harness import (
    DEADLINE,
    Far,
    Proxy,
    assert_entry,
    chat,
    connect,
    eventually,
    read_until,
    said,
    trusting,
)
from tests.e2e.http2 import Http2Client

pytestmark = pytest.mark.e2e

URL = "https://api.openai.com/v1/chat/completions"
EVENT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
BODY = dump(chat(model="m", stream=True)).encode()


@pytest.fixture
def endless(openai: Far) -> Far:
    """A provider whose next stream ends with the client, or after the deadline."""

    def pieces() -> Iterator[bytes]:
        for _ in range(int(DEADLINE * 100)):
            yield EVENT

    headers = [("content-type", "text/event-stream")]
    openai.provider.replies.append(Reply(headers=headers, body=pieces(), chunk_delay=0.01))
    return openai


def assert_disconnected(pointsman: Proxy, far: Far) -> None:
    call: Call = far.call()
    eventually(lambda: call.outcome != "open", what="the provider is told")
    assert call.outcome == "disconnected"
    entry = pointsman.entry()
    assert_entry(entry, flags=["DC"], status=200, response_model="m", usage_source=None)
    assert entry["time_to_first_token_ms"] is not None
    assert entry["response_bytes"] >= len(EVENT)


def request(target: str) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: api.openai.com\r\nContent-Length: {len(BODY)}\r\n\r\n"
    return head.encode() + BODY


def test_a_plain_http_client_that_closes_ends_the_call(pointsman: Proxy, endless: Far) -> None:
    with connect(pointsman.address) as conn:
        conn.sendall(request("http://api.openai.com/v1/chat/completions"))
        read_until(conn, EVENT)
    assert_disconnected(pointsman, endless)


def test_an_https_client_that_closes_ends_the_call(pointsman: Proxy, endless: Far) -> None:
    with (
        pointsman.tunnel("api.openai.com", 443) as plain,
        trusting(pointsman.certificate).wrap_socket(
            plain, server_hostname="api.openai.com"
        ) as conn,
    ):
        conn.sendall(request("/v1/chat/completions"))
        read_until(conn, EVENT)
    assert_disconnected(pointsman, endless)


def test_a_client_that_leaves_before_the_status_ends_the_call(
    pointsman: Proxy, openai: Far
) -> None:
    openai.provider.replies.append(Reply(delay=DEADLINE))
    with connect(pointsman.address) as conn:
        conn.sendall(request("http://api.openai.com/v1/chat/completions"))
        eventually(lambda: openai.provider.calls, what="the call")
    call = openai.call()
    eventually(lambda: call.outcome == "disconnected", what="the provider is told")
    assert_entry(pointsman.entry(), flags=["DC"], status=None)


def test_a_client_that_leaves_in_the_middle_of_its_request_calls_no_one(
    pointsman: Proxy, openai: Far
) -> None:
    with connect(pointsman.address) as conn:
        conn.sendall(request("http://api.openai.com/v1/chat/completions")[:-5])
    assert_entry(pointsman.entry(), flags=["DC"], status=None, attempts=[])
    openai.calls(0)


def h2_trust(pointsman: Proxy) -> ssl.SSLContext:
    trust = trusting(pointsman.certificate)
    trust.set_alpn_protocols(["h2"])
    return trust


def test_an_http2_client_that_resets_its_stream_keeps_its_connection(
    pointsman: Proxy, endless: Far
) -> None:
    with (
        pointsman.tunnel("api.openai.com", 443) as plain,
        h2_trust(pointsman).wrap_socket(plain, server_hostname="api.openai.com") as conn,
    ):
        client = Http2Client(conn, "api.openai.com")
        stream = client.post(BODY)
        client.read_until(stream, EVENT)
        client.reset(stream)
        assert_disconnected(pointsman, endless)

        client.read_until(client.post(BODY), b"data: [DONE]")
    assert_entry(pointsman.entry(), flags=[], status=200)


def test_an_http2_client_that_closes_ends_all_its_calls(pointsman: Proxy, endless: Far) -> None:
    endless.provider.replies.append(
        Reply(
            headers=[("content-type", "text/event-stream")], body=[EVENT] * 2000, chunk_delay=0.01
        )
    )
    with (
        pointsman.tunnel("api.openai.com", 443) as plain,
        h2_trust(pointsman).wrap_socket(plain, server_hostname="api.openai.com") as conn,
    ):
        client = Http2Client(conn, "api.openai.com")
        for stream in [client.post(BODY), client.post(BODY)]:
            client.read_until(stream, EVENT)
    for call in endless.calls(2):
        eventually(lambda call=call: call.outcome != "open", what="the provider is told")  # type: ignore[misc]
        assert call.outcome == "disconnected"
    assert [entry["flags"] for entry in pointsman.logged(2)] == [["DC"], ["DC"]]


def test_the_proxy_goes_on_after_clients_have_gone(pointsman: Proxy, openai: Far) -> None:
    for _ in range(5):
        with connect(pointsman.address) as conn:
            conn.sendall(b"POST http://api.openai.com/ HT")
    with pointsman.client() as client:
        assert said(client.post(URL, json=chat(model="m")))
    assert openai.call()
    pointsman.entry()
