"""No key stands where someone could read it: not on disk, not in a log, not on a screen."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsman.demo.provider import Reply
from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import (
    Far,
    Proxy,
    RawServer,
    chat,
    connect,
    eventually,
    llm_provider,
    openai_config,
    read_all,
    read_head,
    said,
    trusting,
    write_rules,
)

pytestmark = pytest.mark.e2e

URL = "https://api.openai.com/v1/chat/completions"
BEARER, HEADER, QUERY = "sk-client-bearer-51c8", "sk-client-header-e0b3", "sk-client-query-77aa"
ENVIRONMENT = {"EXTRA_KEY": "sk-extra-header-1f9d", "HEAD_KEY": "sk-half-sent-head-d41c"}
SECRETS = {*KEYS.values(), BEARER, HEADER, QUERY, *ENVIRONMENT.values()}
CREDENTIALS = {
    "authorization": f"Bearer {BEARER}",
    "x-api-key": HEADER,
    "api-key": HEADER,
    "x-goog-api-key": HEADER,
}


@pytest.fixture
def recording(
    start_proxy: StartProxy,
    openai: Far,
    raw_server: Callable[..., RawServer],
    tmp_path: Path,
) -> Proxy:
    """A proxy that writes down all it can: flows, HAR, an access log, debug messages."""

    def repeat(conn: socket.socket) -> None:
        head = read_head(conn)
        conn.sendall(b"NOT-HTTP " + head)

    garbling = raw_server(repeat)
    extra = openai_config(
        apiKey="${OPENAI_API_KEY}", headers={"x-extra": "${EXTRA_KEY}"}, model="small"
    )
    dead = llm_provider("dead", "dead.example", address="127.0.0.1:1", scheme="http", configs=extra)
    garbled = llm_provider(
        "garbled", "garbled.example", address=garbling.address, scheme="http", configs=extra
    )
    rules = write_rules(tmp_path / "rules", openai.manifest(configs=extra), dead, garbled)
    return start_proxy(
        rules,
        *("-w", str(tmp_path / "flows.mitm")),
        *("--set", f"hardump={tmp_path / 'flows.har'}"),
        *("--set", f"llm_access_log={tmp_path / 'access.log'}"),
        *("--set", "termlog_verbosity=debug", "--set", "flow_detail=4"),
        env=ENVIRONMENT,
    )


def assert_no_secret(proxy: Proxy, folder: Path) -> None:
    places = {name: (folder / name).read_text("latin-1") for name in ("flows.mitm", "flows.har")}
    places["access log"] = (folder / "access.log").read_text(encoding="utf-8")
    places["output"] = proxy.printed
    found = {
        (place, secret) for place, text in places.items() for secret in SECRETS if secret in text
    }
    assert not found
    assert "chat/completions" in places["flows.mitm"]
    assert "chat/completions" in places["flows.har"]


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_no_key_is_written_down(recording: Proxy, openai: Far, tmp_path: Path, http2: bool) -> None:
    with recording.client(http2=http2, headers=CREDENTIALS) as client:
        assert said(client.post(URL + f"?key={QUERY}&api_key={QUERY}", json=chat()))
        stream = client.post(URL, json=chat(stream=True))
        assert stream.content.endswith(b"data: [DONE]\n\n")
        assert client.get(f"https://api.openai.com/v1/models?key={QUERY}").status_code == 200
        # What breaks with a connection that was there before is tried once more, on a new one.
        openai.provider.replies.extend([Reply(drop="before_status")] * 2)
        assert client.post(URL, json=chat()).status_code == 502
        assert client.post(URL, content=b"{").status_code == 400
    recording.stop()

    for call in openai.calls(5):
        assert call.header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
        assert call.header("x-extra") == ENVIRONMENT["EXTRA_KEY"]
    assert_no_secret(recording, tmp_path)


def test_no_key_is_written_down_when_a_provider_fails(recording: Proxy, tmp_path: Path) -> None:
    with recording.client(headers=CREDENTIALS) as client:
        for host in ("dead.example", "garbled.example"):
            url = f"http://{host}/v1/chat/completions?key={QUERY}"
            assert client.post(url, json=chat()).status_code == 502
    recording.stop()
    assert_no_secret(recording, tmp_path)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_half_sent_head_is_not_written_down(
    recording: Proxy, openai: Far, tmp_path: Path, tls: bool
) -> None:
    key = ENVIRONMENT["HEAD_KEY"]
    half = f"POST /v1/chat/completions?key={key} HTTP/1.1\r\nAuthorization: Bearer {key}\r\nX-Api-"
    if tls:
        trust = trusting(recording.certificate)
        with (
            recording.tunnel("api.openai.com", 443) as plain,
            trust.wrap_socket(plain, server_hostname="api.openai.com") as conn,
        ):
            conn.sendall(half.encode())
    else:
        with connect(recording.address) as conn:
            conn.sendall(half.replace("/v1", "http://api.openai.com/v1", 1).encode())
    with recording.client(headers=CREDENTIALS) as client:
        assert said(client.post(URL, json=chat()))
    openai.calls(1)
    eventually(
        lambda: "closed connection before" in recording.printed, what="mitmproxy's own message"
    )
    recording.stop()
    assert_no_secret(recording, tmp_path)


def test_a_head_that_is_no_http_is_not_written_down(
    recording: Proxy, openai: Far, tmp_path: Path
) -> None:
    key = ENVIRONMENT["HEAD_KEY"]
    for head in (
        f"POST http://api.openai.com/?key={key} HTTP/1.1\r\n Authorization: Bearer {key}\r\n\r\n",
        f"Authorization: Bearer {key}\r\n\r\n",
        f"POST http://api.openai.com/ HTTP/1.1\r\nAuthorization Bearer {key}\r\n\r\n",
        f"POST http://api.openai.com/ HTTP/1.1\r\nX-Api-Key : {key}\r\nContent-Length: 0\r\n\r\n",
        f"POST http://api.openai.com/ HTTP/1.1\r\nX-Api-Key: {key}\r\nContent-Length: x\r\n\r\n",
    ):
        with connect(recording.address) as conn:
            conn.sendall(head.encode())
            read_all(conn)
    with recording.client(headers=CREDENTIALS) as client:
        assert said(client.post(URL, json=chat()))
    openai.calls(1)
    recording.stop()
    assert_no_secret(recording, tmp_path)
