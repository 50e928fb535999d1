"""`llm_unknown=deny`: keys can't be used around the rules, and all that is no LLM host passes.

A canary listens where the client's own connection leads: a denied request must not reach it.
"""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer
from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import (
    LOOPBACK,
    Far,
    Json,
    Proxy,
    RawServer,
    assert_entry,
    assert_refused,
    chat,
    connect,
    read_all,
    read_exactly,
    read_head,
    read_until,
    said,
    trusting,
    write_rules,
)

pytestmark = pytest.mark.e2e

DENY = ("--set", "llm_unknown=deny")
KNOWN = "api.deepseek.com"
OWN = "sk-own-7f21c0de"
OWN_KEY = {"authorization": f"Bearer {OWN}"}
CHAT = "/v1/chat/completions"
PROTOCOL_VERSION = bytes.fromhex("15 0303 0002 02 46")
ACCESS_DENIED = bytes.fromhex("15030300020231")
# What the log knows of a connection that was closed before it was read.
CLOSED: Json = {
    "host": KNOWN,
    "method": None,
    "path": None,
    "status": None,
    "flags": ["UAEX"],
    "error": "host_not_allowed",
    "attempts": [],
    "provider": None,
}


class Canary:
    """The server that the client's connection leads to, by TLS and without."""

    def __init__(self, authority: Authority) -> None:
        self.provider = Provider("canary", chunk_delay=0)
        names = (KNOWN, "harmless.example", LOOPBACK)
        self.secure = ThreadedServer([self.provider], tls=authority.issue(*names))
        self.plain = ThreadedServer([self.provider])

    def calls(self, count: int) -> None:
        assert len(self.provider.calls) == count
        self.provider.calls.clear()


@pytest.fixture(scope="module")
def module_canary(authority: Authority) -> Iterator[Canary]:
    canary = Canary(authority)
    with canary.secure, canary.plain:
        yield canary


@pytest.fixture
def canary(module_canary: Canary) -> Iterator[Canary]:
    module_canary.provider.calls.clear()
    yield module_canary
    module_canary.calls(0)


@pytest.fixture(scope="module")
def module_guard(
    confdir: Path, far_ends: dict[str, Far], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    rules = write_rules(tmp_path_factory.mktemp("rules"), far_ends["openai"].manifest())
    options = (*DENY, "--set", "llm_body_limit=64k")
    with Proxy(confdir, rules, *options, env=KEYS) as proxy:
        yield proxy


@pytest.fixture
def guard(module_guard: Proxy, canary: Canary, openai: Far) -> Iterator[Proxy]:
    """A proxy whose rules name api.openai.com alone, and that denies the other LLM hosts."""
    module_guard.forget()
    yield module_guard
    module_guard.assert_no_more_entries()
    assert OWN not in module_guard.printed


def hello(server_name: str | None) -> bytes:
    """Return a ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    client = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


# --- what can be read -----------------------------------------------------------------------------


def test_plain_http_is_refused_and_logged(guard: Proxy) -> None:
    with guard.client(headers=OWN_KEY) as client:
        answer = client.post(f"http://{KNOWN}{CHAT}", json=chat(model="m"))
    assert_refused(answer, 403, "host_not_allowed")
    assert KNOWN in answer.json()["error"]["message"]
    assert_entry(
        guard.entry(),
        **{**CLOSED, "method": "POST", "path": CHAT, "status": 403},
        route=None,
        client_model=None,
    )


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://api.anthropic.com/v1/messages", {"type": "permission_error"}),
        (
            "http://generativelanguage.googleapis.com/v1beta/models/g:generateContent",
            {"code": 403, "status": "PERMISSION_DENIED"},
        ),
    ],
)
def test_the_refusal_has_the_shape_of_the_api(guard: Proxy, url: str, error: Json) -> None:
    with guard.client() as client:
        answer = client.post(url, json={})
    assert answer.status_code == 403
    assert answer.headers["x-pointsman-error"] == "host_not_allowed"
    assert answer.json()["error"].items() >= error.items()
    guard.entry()


def test_a_large_body_is_refused_for_its_host(guard: Proxy) -> None:
    with guard.client() as client:
        answer = client.post(f"http://{KNOWN}/v1/files", content=b"x" * 300_000)
    assert_refused(answer, 403, "host_not_allowed")
    guard.entry()


@pytest.mark.parametrize("way", ["absolute", "tunnel"])
def test_a_host_header_counts_wherever_the_connection_leads(
    guard: Proxy, canary: Canary, way: str
) -> None:
    port = canary.plain.port
    if way == "tunnel":
        conn, target = guard.tunnel(LOOPBACK, port), CHAT
    else:
        conn, target = connect(guard.address), f"http://{LOOPBACK}:{port}{CHAT}"
    with conn:
        head = f"POST {target} HTTP/1.1\r\nHost: {KNOWN.upper()}.\r\nContent-Length: 2\r\n"
        conn.sendall(f"{head}Connection: close\r\n\r\n{{}}".encode())
        assert b"x-pointsman-error: host_not_allowed" in read_all(conn)
    assert guard.entry()["status"] == 403


@pytest.mark.parametrize(
    "first", ["POST /x http/1.1", " POST /x HTTP/1.1", "M-SEARCH /x HTTP/1.1", "!POST /x"]
)
def test_what_is_nearly_http_is_refused_by_its_host(
    guard: Proxy, canary: Canary, first: str
) -> None:
    with guard.tunnel(LOOPBACK, canary.plain.port) as conn:
        head = f"{first}\r\nAuthorization: Bearer {OWN}\r\nHost: {KNOWN}\r\n\r\n"
        conn.sendall(head.encode())
        assert b"x-pointsman-error: host_not_allowed" in read_all(conn)
    assert_entry(guard.entry(), **{**CLOSED, "status": 403})


def test_a_tunnel_to_it_is_not_opened(guard: Proxy) -> None:
    with connect(guard.address) as conn:
        conn.sendall(f"CONNECT {KNOWN}:443 HTTP/1.1\r\nHost: {KNOWN}:443\r\n\r\n".encode())
        head = read_head(conn)
        assert head.startswith(b"HTTP/1.1 403 ")
        assert b"x-pointsman-error: host_not_allowed" in head
        assert read_until(conn, b"}}").endswith(b'"code":"host_not_allowed"}}')
    assert_entry(guard.entry(), **{**CLOSED, "method": "CONNECT", "status": 403})


def test_an_sdk_is_told_why_by_its_proxy(guard: Proxy) -> None:
    with guard.client(headers=OWN_KEY) as client, pytest.raises(httpx.ProxyError, match="403"):
        client.post(f"https://{KNOWN}{CHAT}", json=chat())
    guard.entry()


def test_an_upstream_proxy_is_asked_for_no_tunnel_to_it(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, raw_server: Callable[..., object]
) -> None:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    proxy = start_proxy(rules, *DENY, mode="upstream:http://127.0.0.1:9")
    with proxy.client() as client, pytest.raises(httpx.ProxyError, match="403"):
        client.post(f"https://{KNOWN}{CHAT}", json=chat())
    assert_entry(proxy.entry(), **{**CLOSED, "method": "CONNECT", "status": 403})


# --- what is encrypted ----------------------------------------------------------------------------


@pytest.mark.parametrize("sni", [KNOWN, KNOWN.upper(), "shop.openai.azure.com"])
@pytest.mark.parametrize("pieces", [1, 3], ids=["whole", "in pieces"])
def test_tls_is_closed_at_its_client_hello(
    guard: Proxy, canary: Canary, sni: str, pieces: int
) -> None:
    whole = hello(sni)
    size = len(whole) // pieces + 1
    with guard.tunnel(LOOPBACK, canary.secure.port) as conn:
        for start in range(0, len(whole), size):
            conn.sendall(whole[start : start + size])
        assert read_all(conn) == ACCESS_DENIED
    assert_entry(guard.entry(), **{**CLOSED, "host": sni.lower()})


def test_clients_say_that_access_was_denied(
    guard: Proxy, canary: Canary, authority: Authority
) -> None:
    with (
        guard.tunnel(LOOPBACK, canary.secure.port) as plain,
        pytest.raises(ssl.SSLError, match="ACCESS_DENIED"),
    ):
        trusting(authority.certificate).wrap_socket(plain, server_hostname=KNOWN)
    guard.entry()


def test_a_hello_that_never_ends_is_not_collected(guard: Proxy, canary: Canary) -> None:
    """A handshake message may claim 16 MB; records carry 16 KB each."""
    with guard.tunnel(LOOPBACK, canary.secure.port) as conn:
        record = bytes.fromhex("160301") + (16384).to_bytes(2)
        first = bytes.fromhex("01ffffff") + b"\0" * 16380
        conn.sendall(record + first)
        try:
            for _ in range(64):
                conn.sendall(record + b"\0" * 16384)
            closed = read_all(conn) in {ACCESS_DENIED, b""}
        except ConnectionError:
            closed = True
    assert closed


def test_a_record_of_an_odd_version_hides_no_name(guard: Proxy, canary: Canary) -> None:
    """mitmproxy takes no such record for TLS; servers do, as RFC 8446 wants it."""
    for version in (b"\x04", b"\xff"):
        for host in (KNOWN, "api.openai.com"):
            whole = hello(host)
            with guard.tunnel(LOOPBACK, canary.secure.port) as conn:
                conn.sendall(whole[:2] + version + whole[3:])
                assert read_all(conn) == PROTOCOL_VERSION
            assert_entry(
                guard.entry(), host=host, status=None, flags=["DPE"], error="malformed_request"
            )


def test_a_record_of_an_odd_version_to_others_passes_as_it_is(
    guard: Proxy, raw_server: Callable[..., RawServer]
) -> None:
    whole = hello("harmless.example")
    odd = whole[:2] + b"\x04" + whole[3:]
    server = raw_server(lambda conn: conn.sendall(read_exactly(conn, len(odd))[::-1]))
    with guard.tunnel(LOOPBACK, server.port) as conn:
        conn.sendall(odd)
        assert read_all(conn) == odd[::-1]


def test_a_socks_client_names_its_server(
    start_proxy: StartProxy, openai: Far, tmp_path: Path
) -> None:
    """By TLS with a harmless name, and by a protocol that is neither TLS nor HTTP."""
    proxy = start_proxy(write_rules(tmp_path / "rules", openai.manifest()), *DENY, mode="socks5")
    for first in (hello("harmless.example"), b"\x00\x01\x02\x03\x04"):
        with connect(proxy.address) as conn:
            conn.sendall(b"\x05\x01\x00")
            assert read_exactly(conn, 2) == b"\x05\x00"
            name = KNOWN.encode()
            conn.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + (443).to_bytes(2))
            assert read_exactly(conn, 10)[:2] == b"\x05\x00"
            conn.sendall(first)
            assert read_all(conn) in {ACCESS_DENIED, b""}
        assert_entry(proxy.entry(), **CLOSED)


# --- what passes ----------------------------------------------------------------------------------


def test_hosts_with_rules_are_routed(guard: Proxy, openai: Far) -> None:
    for scheme in ("http", "https"):
        with guard.client(headers=OWN_KEY) as client:
            said(client.post(f"{scheme}://api.openai.com{CHAT}", json=chat(model="m")))
        assert openai.call().header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
        assert_entry(guard.entry(), status=200, flags=[])


@pytest.mark.parametrize("sni", ["harmless.example", None], ids=["a name", "no name"])
def test_what_is_no_llm_host_passes_undecrypted(
    guard: Proxy, canary: Canary, authority: Authority, sni: str | None
) -> None:
    """Without a server name nothing can be known."""
    context = trusting(authority.certificate)
    context.check_hostname = sni is not None
    with (
        guard.tunnel(LOOPBACK, canary.secure.port) as plain,
        context.wrap_socket(plain, server_hostname=sni) as tls,
    ):
        tls.sendall(b"GET /v1/models HTTP/1.1\r\nHost: harmless.example\r\n\r\n")
        assert read_exactly(tls, 12) == b"HTTP/1.1 200"
    canary.calls(1)


def test_a_host_inside_undecrypted_tls_is_not_seen(
    guard: Proxy, canary: Canary, authority: Authority
) -> None:
    """Domain fronting: what the documentation says of it holds."""
    with (
        guard.tunnel(LOOPBACK, canary.secure.port) as plain,
        trusting(authority.certificate).wrap_socket(
            plain, server_hostname="harmless.example"
        ) as tls,
    ):
        tls.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {KNOWN}\r\n\r\n".encode())
        assert read_exactly(tls, 12) == b"HTTP/1.1 200"
    canary.calls(1)


def test_a_denied_host_inside_a_connection_of_ours_is_refused(guard: Proxy) -> None:
    with guard.client() as client:
        answer = client.get("https://api.openai.com/v1/models", headers={"host": KNOWN})
    assert_refused(answer, 421, "misdirected")
    guard.entry()


def test_what_is_exempt_is_not_denied(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, canary: Canary, authority: Authority
) -> None:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    proxy = start_proxy(rules, *DENY, "--set", f"llm_passthrough={KNOWN}")
    with (
        proxy.tunnel(LOOPBACK, canary.secure.port) as plain,
        trusting(authority.certificate).wrap_socket(plain, server_hostname=KNOWN) as tls,
    ):
        tls.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {KNOWN}\r\n\r\n".encode())
        assert read_exactly(tls, 12) == b"HTTP/1.1 200"
    canary.calls(1)
    proxy.assert_no_more_entries()


def test_by_default_they_pass(pointsman: Proxy, canary: Canary, authority: Authority) -> None:
    with (
        pointsman.tunnel(LOOPBACK, canary.secure.port) as plain,
        trusting(authority.certificate).wrap_socket(plain, server_hostname=KNOWN) as tls,
    ):
        tls.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {KNOWN}\r\n\r\n".encode())
        assert read_exactly(tls, 12) == b"HTTP/1.1 200"
    canary.calls(1)


def test_who_observes_refuses_nothing_and_logs_what_would_be_refused(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, canary: Canary, authority: Authority
) -> None:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    options = ("--set", "llm_observe=true", "--set", "llm_body_limit=64k")
    proxy = start_proxy(rules, *DENY, *options)
    with (
        proxy.tunnel(LOOPBACK, canary.secure.port) as plain,
        trusting(authority.certificate).wrap_socket(plain, server_hostname=KNOWN) as tls,
    ):
        tls.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {KNOWN}\r\n\r\n".encode())
        assert read_exactly(tls, 12) == b"HTTP/1.1 200"
    canary.calls(1)
    assert_entry(proxy.entry(), **{**CLOSED, "flags": ["UAEX", "OB"], "error": None})
    for size in (2, 300_000):
        with proxy.client(headers={**OWN_KEY, "host": KNOWN}) as client:
            url = f"http://{LOOPBACK}:{canary.plain.port}/v1/files"
            client.post(url, content=b"x" * size)
        assert canary.provider.calls[0].header("authorization") == OWN_KEY["authorization"]
        assert len(canary.provider.calls[0].body) == size
        canary.calls(1)
        entry = proxy.entry()
        assert_entry(entry, host=KNOWN, flags=["UAEX", "OB"], error=None, request_bytes=size)
