"""Odd requests, odd answers, odd days: what is ours stays routed, and its keys stay unseen.

A canary listens where the client's own connection leads. Whoever reaches it went round the rules.
"""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from websockets.sync.client import connect as ws_connect
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as ws_serve
from websockets.typing import Subprotocol

from pointsman.demo.provider import Call, Provider
from pointsman.demo.server import ThreadedServer
from tests.e2e import harness
from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Far,
    Json,
    Proxy,
    RawServer,
    assert_entry,
    assert_refused,
    chat,
    connect,
    head_lines,
    llm_provider,
    llm_route,
    openai_config,
    read_all,
    read_exactly,
    read_head,
    said,
    sse,
    to,
    trusting,
    write_rules,
)

pytestmark = pytest.mark.e2e

# A host of ours whose own address is the canary's.
OURS = "localhost"
KEY = "sk-rules-6e0f31aa"
OWN = "sk-client-90b7cc12"
MODEL = "routed"
BASE = "/compatible-mode/v1"
CHAT = f"{BASE}/chat/completions"
BODY = b'{"model":"asked","messages":[{"role":"user","content":"Hello"}]}'
STREAM_BODY = BODY[:-1] + b',"stream":true}'
PAUSE = 0.05  # seconds between two segments of a request

SPOKEN = (
    b'{"model":"m","choices":[{"message":{"role":"assistant","content":"hi"}}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}'
)
STREAMED = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\ndata: [DONE]\n\n'


# --- the stage ------------------------------------------------------------------------------------


class Scripted:
    """A provider that says the same bytes to every request and then hangs up."""

    def __init__(self) -> None:
        self.answer = b""

    def __call__(self, conn: socket.socket) -> None:
        """Serve one connection."""
        read_request(conn)
        conn.sendall(self.answer)


class Stage:
    """A proxy with one provider of our host, one scripted provider and the canary."""

    def __init__(self, proxy: Proxy, provider: Provider, scripted: Scripted) -> None:
        self.proxy = proxy
        self.provider = provider
        self.scripted = scripted
        self.reached: list[object] = []
        self.canary_port = 0

    def canary(self, conn: socket.socket) -> None:
        """Remember that someone came."""
        self.reached.append(conn)

    def call(self) -> Call:
        """Return the one call of our provider: by the rules, and nothing went elsewhere."""
        (call,) = self.provider.calls
        assert call.header("authorization") == f"Bearer {KEY}"
        assert call.header("host") == OURS
        assert OWN not in f"{call.headers}{call.path}"
        assert not self.reached
        return call

    def assert_nothing_sent(self) -> None:
        """Assert that no one was called."""
        assert not self.provider.calls
        assert not self.reached

    def tunnel(self, host: str = OURS, *, sni: str | None = None) -> socket.socket:
        """Open a tunnel to the canary's port; with a server name, TLS without ALPN in it."""
        plain = self.proxy.tunnel(host, self.canary_port)
        if sni is None:
            return plain
        return trusting(self.proxy.certificate).wrap_socket(plain, server_hostname=sni)


def read_request(conn: socket.socket) -> bytes:
    """Read a request with its body; return its head."""
    head = read_head(conn)
    fields = dict(line.lower().split(": ", 1) for line in head_lines(head)[1:])
    read_exactly(conn, int(fields.get("content-length", "0")))
    return head


@pytest.fixture(scope="module")
def shared_stage(confdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    provider, scripted = Provider("ours", OURS, key=KEY, chunk_delay=0), Scripted()
    with ExitStack() as stack:
        server = stack.enter_context(ThreadedServer([provider]))
        raw = stack.enter_context(RawServer(scripted))
        rules = write_rules(
            tmp_path_factory.mktemp("hardening"),
            ours(f"{LOOPBACK}:{server.port}"),
            llm_provider(
                "scripted",
                "scripted.example",
                address=raw.address,
                scheme="http",
                configs=openai_config(apiKey=KEY),
            ),
            llm_route("named", "named.example", to(OURS)),
        )
        proxy = stack.enter_context(Proxy(confdir, rules))
        stage = Stage(proxy, provider, scripted)
        stage.canary_port = stack.enter_context(RawServer(stage.canary)).port
        yield stage


@pytest.fixture
def stage(shared_stage: Stage) -> Iterator[Stage]:
    """The module's stage, with nothing on it that the test has not caused."""
    shared_stage.provider.calls.clear()
    shared_stage.reached.clear()
    shared_stage.proxy.forget()
    yield shared_stage
    shared_stage.proxy.assert_no_more_entries()


def ours(address: str) -> Json:
    """Return the manifest of our host."""
    config = openai_config(apiKey=KEY, model=MODEL)
    return llm_provider("ours", OURS, address=address, scheme="http", path=CHAT, configs=config)


def request(
    *hosts: str,
    method: str = "POST",
    target: str = "/v1/chat/completions",
    version: str = "1.1",
    body: bytes = BODY,
    fields: tuple[str, ...] = (),
) -> bytes:
    """Return a request with these Host headers and the client's own key."""
    lines = [
        f"{method} {target} HTTP/{version}",
        *(f"Host: {host}" for host in hosts),
        f"Authorization: Bearer {OWN}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *fields,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def ask(conn: socket.socket, *segments: bytes) -> bytes:
    """Send segments one by one; return all that comes back."""
    with closing(conn):
        for segment in segments:
            conn.sendall(segment)
            time.sleep(PAUSE if len(segments) > 1 else 0)
        return read_all(conn)


def assert_told(answer: bytes, status: int, code: str) -> None:
    """Assert that Pointsman itself answered, on a raw socket."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert f"x-pointsman-error: {code}".encode() in head.lower()
    assert f'"code":"{code}"'.encode() in body.replace(b": ", b":")


encrypted = pytest.mark.parametrize("sni", [None, OURS], ids=["plain", "tls"])


# --- whose request is it --------------------------------------------------------------------------


@encrypted
@pytest.mark.parametrize(
    "host",
    [OURS, f"{OURS}:", f"user:x@{OURS}", "LOCALHOST", f"{OURS}.", "User@LocalHost.:80"],
)
def test_our_host_is_ours_however_it_is_written(stage: Stage, sni: str | None, host: str) -> None:
    answer = ask(stage.tunnel(sni=sni), request(host))
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    call = stage.call()
    assert (call.path, call.json()["model"]) == (CHAT, MODEL)
    assert_entry(stage.proxy.entry(), status=200, provider="ours")


@pytest.mark.parametrize("host", ["LOCALHOST", f"{OURS}.", "LocalHost."])
@pytest.mark.parametrize("named", [True, False], ids=["host", "no host"])
def test_a_tunnel_is_ours_however_connect_writes_it(stage: Stage, host: str, named: bool) -> None:
    hosts, version = ((host,), "1.1") if named else ((), "1.0")
    answer = ask(stage.tunnel(host), request(*hosts, version=version))
    assert b" 200 " in answer.partition(b"\r\n")[0]
    stage.call()
    stage.proxy.entry()


@encrypted
def test_a_request_that_arrives_byte_by_byte_is_routed(stage: Stage, sni: str | None) -> None:
    whole = request(OURS)
    answer = ask(stage.tunnel(sni=sni), whole[:1], whole[1:2], whole[2:5], whole[5:])
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    stage.call()
    stage.proxy.entry()


def test_a_request_to_an_address_is_told_by_its_host_byte_by_byte(stage: Stage) -> None:
    """Only the head names our host: the first byte must not settle what the tunnel carries."""
    whole = request(OURS)
    tunnel = stage.proxy.tunnel("127.0.0.9", 80)
    answer = ask(tunnel, whole[:1], whole[1:2], whole[2:5], whole[5:])
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    stage.call()
    stage.proxy.entry()


@encrypted
@pytest.mark.parametrize("method", ["P", "p", "M-SEARCH"])
def test_an_odd_method_is_routed(stage: Stage, sni: str | None, method: str) -> None:
    """mitmproxy takes what does not begin with three letters for another protocol."""
    answer = ask(stage.tunnel(sni=sni), request(OURS, method=method))
    assert answer.startswith(b"HTTP/1.1 404 "), answer
    assert stage.call().path == CHAT
    assert_entry(stage.proxy.entry(), status=404, provider="ours")


@encrypted
@pytest.mark.parametrize("method", ["TRACE", "track"])
def test_what_would_be_answered_by_the_key_is_refused(
    stage: Stage, sni: str | None, method: str
) -> None:
    answer = ask(stage.tunnel(sni=sni), request(OURS, method=method))
    assert_told(answer, 501, "method_not_supported")
    assert_entry(stage.proxy.entry(), status=501, error="method_not_supported", attempts=[])


@encrypted
def test_a_request_without_a_host_belongs_to_its_connection(stage: Stage, sni: str | None) -> None:
    answer = ask(stage.tunnel(sni=sni), request(version="1.0"))
    assert b" 200 " in answer.partition(b"\r\n")[0]
    stage.call()
    assert_entry(stage.proxy.entry(), status=200, host=OURS)


@encrypted
@pytest.mark.parametrize(
    "hosts", [(OURS, "other.example"), ("other.example", OURS), (OURS, "LOCALHOST")]
)
def test_two_host_headers_are_refused(
    stage: Stage, sni: str | None, hosts: tuple[str, ...]
) -> None:
    assert_told(ask(stage.tunnel(sni=sni), request(*hosts)), 400, "ambiguous_host")
    stage.assert_nothing_sent()
    assert_entry(stage.proxy.entry(), status=400, flags=["DPE"], attempts=[])


@encrypted
@pytest.mark.parametrize("port", ["0", "65536", "9" * 5000], ids=["0", "65536", "5000 digits"])
def test_a_port_that_can_not_be_is_refused(stage: Stage, sni: str | None, port: str) -> None:
    told = ask(stage.tunnel(sni=sni), request(f"{OURS}:{port}"))
    assert_told(told, 400, "ambiguous_host")
    stage.assert_nothing_sent()
    assert_entry(stage.proxy.entry(), status=400, flags=["DPE"], attempts=[])


@encrypted
def test_another_host_than_the_connections_is_refused(stage: Stage, sni: str | None) -> None:
    assert_told(ask(stage.tunnel(sni=sni), request("other.example")), 421, "misdirected")
    stage.assert_nothing_sent()
    assert_entry(stage.proxy.entry(), status=421, flags=["DPE"], attempts=[])


def test_a_tunnel_to_our_host_is_decrypted_whatever_its_server_name(stage: Stage) -> None:
    """Undecrypted, it would reach the host with the client's own key and model."""
    answer = ask(stage.tunnel(sni="other.example"), request(OURS))
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    stage.call()
    stage.proxy.entry()


def test_a_tunnel_to_our_host_carries_no_other_host(stage: Stage) -> None:
    answer = ask(stage.tunnel(sni="other.example"), request("other.example"))
    assert_told(answer, 421, "misdirected")
    stage.assert_nothing_sent()
    stage.proxy.entry()


NEARLY_HTTP = [
    b"POST /x http/1.1",
    b" POST /x HTTP/1.1",
    b"P0ST /x HTTP/1.1",
    b"POST\t/x\tHTTP/1.1",
    b"!POST /x HTTP/1.1",
    b"POST /x",
    b"\0\r\nPOST /x HTTP/1.1",
]


@pytest.mark.parametrize("first", NEARLY_HTTP)
@pytest.mark.parametrize(
    "field", ["Host: localhost", "hOST : LOCALHOST.:80", "Host:\r\n localhost"]
)
def test_what_is_nearly_http_does_not_reach_our_host(
    stage: Stage, first: bytes, field: str
) -> None:
    """A lenient server would take it, with the client's key, in clear."""
    rest = f"\r\nAuthorization: Bearer {OWN}\r\n{field}\r\nContent-Length: 2\r\n\r\n{{}}"
    answer = ask(stage.tunnel("127.0.0.1"), first + rest.encode())
    assert_told(answer, 400, "malformed_request")
    stage.assert_nothing_sent()
    entry = stage.proxy.entry()
    assert_entry(entry, host=OURS, status=400, flags=["DPE"], error="malformed_request")
    assert OWN not in stage.proxy.printed


@pytest.mark.parametrize("first", NEARLY_HTTP[:-1])
@pytest.mark.parametrize("size", [1, 16])
def test_what_is_nearly_http_does_not_in_pieces_either(
    stage: Stage, raw_server: Callable[..., RawServer], first: bytes, size: int
) -> None:
    """The server sees no field of it: they are held back until the Host is there."""
    received: list[bytes] = []
    server = raw_server(lambda conn: received.append(read_all(conn)))
    whole = first + f"\r\nAuthorization: {OWN}\r\nHost: {OURS}\r\n\r\n".encode()
    if whole.startswith(b"POST /x"):  # mitmproxy waits for no end of the line here: it is HTTP
        whole = b" " + whole
    with stage.proxy.tunnel(LOOPBACK, server.port) as conn:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):
            for start in range(0, len(whole), size):
                conn.sendall(whole[start : start + size])
        with suppress(ConnectionError):
            assert_told(read_all(conn), 400, "malformed_request")
    assert_entry(stage.proxy.entry(), host=OURS, status=400, flags=["DPE"])
    assert b"Auth" not in b"".join(received)


def test_what_only_looks_like_a_head_is_not_held_for_long(
    stage: Stage, raw_server: Callable[..., RawServer]
) -> None:
    said_so_far = b" ASK a/b\r\nname: value\r\n"
    server = raw_server(lambda conn: conn.sendall(read_exactly(conn, len(said_so_far))))
    with stage.proxy.tunnel(LOOPBACK, server.port) as conn:
        conn.sendall(said_so_far)
        assert read_exactly(conn, len(said_so_far)) == said_so_far


# --- HTTP/2 ---------------------------------------------------------------------------------------


class Http2:
    """An HTTP/2 client in a tunnel, which says what others do not."""

    def __init__(self, proxy: Proxy, host: str, port: int) -> None:
        trust = trusting(proxy.certificate)
        trust.set_alpn_protocols(["h2"])
        self._conn = trust.wrap_socket(proxy.tunnel(host, port), server_hostname=host)
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self._h2.initiate_connection()
        self._flush()

    def _flush(self) -> None:
        self._conn.sendall(self._h2.data_to_send())

    def ask(
        self, authority: str, body: bytes = BODY, trailers: tuple[tuple[str, str], ...] = ()
    ) -> int:
        """Send a request; return its stream."""
        stream: int = self._h2.get_next_available_stream_id()
        fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", authority),
            (":path", "/v1/chat/completions"),
            ("authorization", f"Bearer {OWN}"),
        ]
        self._h2.send_headers(stream, fields)
        self._h2.send_data(stream, body, end_stream=not trailers)
        if trailers:
            self._h2.send_headers(stream, trailers, end_stream=True)
        self._flush()
        return stream

    def answers(self, count: int) -> dict[int, tuple[str, bytes]]:
        """Read until that many streams have ended; return their status and body."""
        statuses: dict[int, str] = {}
        bodies: dict[int, bytes] = {}
        ended: set[int] = set()
        while len(ended) < count:
            data = self._conn.recv(65536)
            assert data, f"closed with {statuses} {bodies}"
            for event in self._h2.receive_data(data):
                assert not isinstance(event, h2.events.StreamReset), event
                if isinstance(event, h2.events.ResponseReceived):
                    fields = {str(name): str(value) for name, value in event.headers}
                    statuses[event.stream_id] = fields[":status"]
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id)
            self._flush()
        return {stream: (statuses[stream], bodies.get(stream, b"")) for stream in ended}

    def close(self) -> None:
        """Hang up."""
        self._conn.close()


def test_another_authority_than_the_connections_is_refused(stage: Stage) -> None:
    with closing(Http2(stage.proxy, OURS, stage.canary_port)) as client:
        refused, routed = client.ask("other.example"), client.ask(OURS)
        answers = client.answers(2)
    assert answers[refused][0] == "421"
    assert b"misdirected" in answers[refused][1]
    assert answers[routed][0] == "200"
    stage.call()
    assert {entry["status"] for entry in stage.proxy.logged(2)} == {200, 421}


@pytest.mark.parametrize("upstream", ["http1", "http2"])
def test_trailers_of_a_request_harm_no_stream(
    pointsman: Proxy, stage: Stage, openai: Far, upstream: str
) -> None:
    """HTTP/1 can't carry them to the provider; what they say is written nowhere."""
    secret = "sk-client-trailer-2f7d"
    provider = openai.provider if upstream == "http2" else stage.provider
    proxy = pointsman if upstream == "http2" else stage.proxy
    provider.chunk_delay = PAUSE
    host, port = provider.host, 443 if upstream == "http2" else stage.canary_port
    trailers = (("authorization", f"Bearer {secret}"), ("x-checksum", "1"))
    with closing(Http2(proxy, host, port)) as client:
        before = client.ask(host, STREAM_BODY)
        trailed = [client.ask(host, body, trailers) for body in (BODY, STREAM_BODY)]
        after = client.ask(host)
        answers = client.answers(4)
    provider.chunk_delay = 0
    assert {status for status, _ in answers.values()} == {"200"}
    for stream in (before, trailed[1]):
        assert sse(answers[stream][1])
    for stream in (trailed[0], after):
        assert b'"choices"' in answers[stream][1]
    calls = list(provider.calls)
    assert len(calls) == 4
    assert secret not in str(calls)
    assert {entry["status"] for entry in proxy.logged(4)} == {200}
    assert secret not in proxy.printed


@pytest.mark.parametrize("size", [len(BODY), 3_000_000], ids=["read", "passed on unread"])
def test_trailers_of_a_chunked_request_are_dropped(stage: Stage, size: int) -> None:
    secret = "sk-client-trailer-90ad"
    path = "/v1/chat/completions" if size == len(BODY) else "/v1/files"
    trailers = f"Authorization: Bearer {secret}\r\nX-Sum: 1\r\n".encode()
    body = chunked(BODY.ljust(size), trailers)
    head = f"POST {path} HTTP/1.1\r\nHost: {OURS}\r\nTransfer-Encoding: chunked\r\n"
    with stage.tunnel() as conn:
        for _ in range(2):  # the connection goes on
            conn.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            answer = read_head(conn)
            fields = dict(line.lower().split(": ", 1) for line in head_lines(answer)[1:])
            read_exactly(conn, int(fields["content-length"]))
    assert len(stage.provider.calls) == 2
    assert {len(call.body) >= size for call in stage.provider.calls} == {True}
    assert secret not in str(stage.provider.calls)
    assert not stage.reached
    assert {entry["error"] for entry in stage.proxy.logged(2)} == {None}


# --- passwords of proxies -------------------------------------------------------------------------


@pytest.fixture
def guarded(start_proxy: StartProxy, openai: Far, tmp_path: Path) -> Proxy:
    """A proxy that wants a password, and reads little."""
    rules = write_rules(tmp_path / "rules", openai.manifest())
    return start_proxy(rules, *("--set", "proxyauth=user:pass", "--set", "llm_body_limit=1k"))


def test_a_proxy_password_is_asked_for_before_anything_is_sent(guarded: Proxy, openai: Far) -> None:
    """Also for a body that is passed on unread, whether or not its length is known."""
    large = b"x" * 5000
    url = "http://api.openai.com/v1"
    with guarded.client() as client:
        assert client.post(f"{url}/chat/completions", json=chat(model="m")).status_code == 407
        assert client.post(f"{url}/files", content=large).status_code == 407
        assert client.post(f"{url}/files", content=iter([large, large])).status_code == 407
        with pytest.raises(httpx.ProxyError, match="407"):
            client.post("https://api.openai.com/v1/files", content=large)
    openai.calls(0)
    assert {entry["status"] for entry in guarded.logged(3)} == {407}


def test_a_proxy_password_opens_plain_http(guarded: Proxy, openai: Far) -> None:
    url = "http://api.openai.com/v1/chat/completions"
    with httpx.Client(
        proxy=f"http://user:pass@{LOOPBACK}:{guarded.port}", trust_env=False
    ) as client:
        assert said(client.post(url, json=chat(model="m")))
    call = openai.call()
    assert call.header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
    assert call.header("proxy-authorization") is None
    assert_entry(guarded.entry(), status=200)


def test_an_upstream_proxy_gets_its_password(
    start_proxy: StartProxy, raw_server: Callable[..., RawServer], tmp_path: Path
) -> None:
    """Over plain HTTP there is no CONNECT that could carry it."""
    heads: list[bytes] = []

    def company(conn: socket.socket) -> None:
        heads.append(read_request(conn))
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(SPOKEN), SPOKEN))

    upstream = raw_server(company)
    rules = write_rules(tmp_path / "rules", ours(f"{LOOPBACK}:1"))
    proxy = start_proxy(
        rules, "--set", "upstream_auth=u:p", mode=f"upstream:http://{upstream.address}"
    )
    with proxy.client() as client:
        assert said(client.post(f"http://{OURS}/", json=chat())) == "hi"
    (head,) = heads
    first, *fields = head_lines(head)
    assert first.startswith("POST http://")
    assert [f for f in fields if f.lower().startswith("proxy-auth")] == [
        "proxy-authorization: Basic dTpw"
    ]
    assert_entry(proxy.entry(), status=200)


# --- odd answers ----------------------------------------------------------------------------------

JSON_HEAD = b"Content-Type: application/json\r\n"
SSE_HEAD = b"Content-Type: text/event-stream\r\n"
SIZED = b"Content-Length: %d\r\n" % len(SPOKEN)
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def chunked(body: bytes, trailers: bytes = b"") -> bytes:
    return b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers)


http_versions = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


@http_versions
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.0 200 OK\r\n" + JSON_HEAD + b"\r\n" + SPOKEN, SPOKEN),
        (b"HTTP/1.0 200 OK\r\n" + SSE_HEAD + b"\r\n" + STREAMED, STREAMED),
        (INTERIM + b"HTTP/1.1 200 OK\r\n" + JSON_HEAD + SIZED + b"\r\n" + SPOKEN, SPOKEN),
        (
            b"HTTP/1.1 200 OK\r\n" + JSON_HEAD + CHUNKED + b"\r\n" + chunked(SPOKEN, b"X-T: 1\r\n"),
            SPOKEN,
        ),
    ],
    ids=["to the end, JSON", "to the end, events", "after 103 and 100", "with trailers"],
)
def test_an_odd_answer_arrives_whole(stage: Stage, answer: bytes, body: bytes, http2: bool) -> None:
    stage.scripted.answer = answer
    with stage.proxy.client(http2=http2) as client:
        for _ in range(2):  # the client's connection outlives the provider's
            got = client.post("https://scripted.example/v1/chat/completions", content=BODY)
            assert (got.status_code, got.content) == (200, body)
    first, second = stage.proxy.logged(2)
    assert_entry(first, status=200, flags=[], error=None, response_bytes=len(body))
    assert first["client"] == second["client"]


@http_versions
def test_an_answer_with_two_lengths_is_a_502(stage: Stage, http2: bool) -> None:
    both = b"HTTP/1.1 200 OK\r\n" + JSON_HEAD + SIZED + CHUNKED + b"\r\n" + chunked(SPOKEN)
    stage.scripted.answer = both
    with stage.proxy.client(http2=http2) as client:
        got = client.post("https://scripted.example/v1/chat/completions", content=BODY)
    assert_refused(got, 502, "upstream_protocol_error")
    assert_entry(stage.proxy.entry(), status=502, flags=["UPE"], error="upstream_protocol_error")


@pytest.mark.parametrize(("body", "end"), [(STREAM_BODY, b"[DONE]\n\n"), (BODY, b"}")])
def test_a_client_of_http_1_0_gets_no_chunks(stage: Stage, body: bytes, end: bytes) -> None:
    """It would take their sizes for the body's."""
    sent = request(OURS, target=f"http://{OURS}/", version="1.0", body=body)
    head, _, got = ask(connect(stage.proxy.address), sent).partition(b"\r\n\r\n")
    assert b" 200 " in head.partition(b"\r\n")[0]
    assert b"transfer-encoding" not in head.lower()
    assert got.startswith((b"data: ", b"{"))
    assert got.endswith(end)
    stage.call()
    assert_entry(stage.proxy.entry(), status=200, response_bytes=len(got))


def test_a_chunked_answer_is_unwrapped_for_http_1_0(stage: Stage) -> None:
    stage.scripted.answer = b"HTTP/1.1 200 OK\r\n" + JSON_HEAD + CHUNKED + b"\r\n" + chunked(SPOKEN)
    sent = request("scripted.example", target="http://scripted.example/", version="1.0")
    head, _, got = ask(connect(stage.proxy.address), sent).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert got == SPOKEN
    stage.proxy.entry()


# --- spellings of a path --------------------------------------------------------------------------


@pytest.mark.parametrize("host", [OURS, "named.example"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat%2Fcompletions",
        "/v1/./chat/completions",
        "/v1/Chat/Completions",
        "/v1/chat/completions;x",
        "/v1//chat/completions/",
    ],
)
def test_another_spelling_of_the_chat_path_is_rewritten_too(
    stage: Stage, host: str, path: str
) -> None:
    """Unread, it would reach the model that the client names, with the rules' key."""
    sent = request(host, target=f"http://{host}{path}")
    answer = ask(connect(stage.proxy.address), sent)
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    call = stage.call()
    assert (call.path, call.json()["model"]) == (CHAT, MODEL)
    stage.proxy.entry()


@pytest.mark.parametrize(
    "path", [f"{BASE}/../../admin", f"{BASE}/%2e%2e/..%2Fadmin", f"{BASE}//../../admin"]
)
def test_a_path_does_not_climb_out_of_the_base(stage: Stage, path: str) -> None:
    ask(
        connect(stage.proxy.address),
        request("named.example", target=f"http://named.example{path}"),
    )
    assert stage.call().path == f"{BASE}/admin"
    stage.proxy.entry()


# --- keys and prompts -----------------------------------------------------------------------------


@http_versions
def test_proxy_debug_shows_neither_keys_nor_prompts(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, http2: bool
) -> None:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    options = ("--set", "proxy_debug=true", "--set", "termlog_verbosity=debug")
    proxy = start_proxy(rules, *options)
    prompt = "the prompt is nobody's business"
    with proxy.client(http2=http2, headers={"authorization": f"Bearer {OWN}"}) as client:
        for scheme in ("https", "http"):
            for stream in (False, True):
                url = f"{scheme}://api.openai.com/v1/chat/completions?api_key={OWN}"
                body = chat(prompt, model="m", stream=stream)
                assert client.post(url, json=body).status_code == 200
    openai.calls(4)
    proxy.logged(4)
    proxy.stop()
    assert "(the bytes are not logged)" in proxy.printed
    found = [
        line
        for line in proxy.printed.splitlines()
        if any(text in line for text in (OWN, KEYS["OPENAI_API_KEY"], prompt))
    ]
    assert not found, chr(10).join(found)


def test_keys_in_a_websockets_protocols_and_query_stay_here(
    start_proxy: StartProxy, tmp_path: Path
) -> None:
    """OpenAI's clients in a browser have no other place for them."""
    heads: list[str] = []

    def echo(conn: ServerConnection) -> None:
        assert conn.request
        heads.append(f"{conn.request.path} {conn.request.headers}")
        for message in conn:
            conn.send(message)

    far = ws_serve(echo, LOOPBACK, 0, subprotocols=[Subprotocol("realtime")])
    thread = threading.Thread(target=far.serve_forever, daemon=True)
    thread.start()
    port = far.socket.getsockname()[1]
    rules = write_rules(
        tmp_path / "rules",
        ours(f"{LOOPBACK}:{port}"),
        llm_route("named", "named.example", to(OURS)),
    )
    flows = tmp_path / "flows.mitm"
    proxy = start_proxy(rules, "-w", str(flows))
    offered = [Subprotocol("realtime"), Subprotocol(f"openai-insecure-api-key.{OWN}")]
    url = f"ws://named.example/v1/realtime?model=m&access_token={OWN}&%61ccess_token={OWN}"
    with ws_connect(
        url, proxy=proxy.url, subprotocols=offered, open_timeout=DEADLINE, close_timeout=DEADLINE
    ) as conn:
        conn.send("hello")
        assert conn.recv(DEADLINE) == "hello"
        assert conn.subprotocol == "realtime"
    assert_entry(proxy.entry(), status=101)
    proxy.stop()
    far.shutdown()
    thread.join(DEADLINE)

    (head,) = heads
    assert head.startswith(f"{BASE}/realtime?model=m ")
    assert f"Bearer {KEY}" in head
    saved = flows.read_bytes()
    assert b"openai-insecure-api-key.***" in saved
    for place in (head, saved.decode("latin-1"), proxy.printed):
        assert OWN not in place
    assert KEY.encode() not in saved


# --- the life of the process ----------------------------------------------------------------------


def test_a_misspelt_option_ends_the_start(confdir: Path, openai: Far, tmp_path: Path) -> None:
    """mitmproxy ignores it in silence, and the default rules would be the ones that count."""
    rules = write_rules(tmp_path / "rules", openai.manifest())
    proxy = Proxy(confdir, rules, "--set", "llm_ruls=x", env=KEYS)
    proxy.start()
    assert proxy.wait() == 1
    assert 'unknown option llm_ruls; did you mean "llm_rules"?' in proxy.printed
    assert "Traceback" not in proxy.printed


@pytest.mark.parametrize(
    "text",
    [None, "this is no Python(\n", "addons = []\n"],
    ids=["touched", "broken", "emptied"],
)
def test_a_change_of_the_script_does_not_end_routing(
    start_proxy: StartProxy,
    openai: Far,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
) -> None:
    """mitmproxy loads a changed script anew; while an upgrade writes it, nothing would route.

    A second script tells when mitmproxy has looked.
    """
    ignored = shutil.ignore_patterns("__pycache__")
    script = shutil.copytree(harness.ADDON.parent, tmp_path / "addon", ignore=ignored) / "main.py"
    witness = tmp_path / "witness.py"
    witness.write_text("", encoding="utf-8")
    monkeypatch.setattr(harness, "ADDON", script)
    rules = write_rules(tmp_path / "rules", openai.manifest())
    proxy = start_proxy(rules, scripts=[str(witness)])
    url = "https://api.openai.com/v1/chat/completions"
    with proxy.client() as old:
        assert said(old.post(url, json=chat(model="m")))
        if text is None:
            os.utime(script)
        else:
            script.write_text(text, encoding="utf-8")
        for times in (2, 3):
            os.utime(witness)
            proxy.out.wait(partial(has_loaded, witness, times), "another look")
        with proxy.client() as new:
            for client in (old, new):
                assert said(client.post(url, json=chat(model="m")))
    openai.calls(3)
    assert [entry["status"] for entry in proxy.logged(3)] == [200] * 3
    assert not has_loaded(script, 2, proxy.out.lines())


def has_loaded(script: Path, times: int, lines: list[str]) -> bool:
    """Tell whether mitmproxy says that it has loaded a script that often."""
    return sum(f"Loading script {script}" in line for line in lines) >= times
