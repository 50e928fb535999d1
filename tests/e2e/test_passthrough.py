"""What is not ours: neither decrypted nor read nor changed; and WebSockets to what is ours."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.sync.client import connect as ws_connect
from websockets.sync.server import Server as WsServer
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as ws_serve

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider, Reply
from pointsman.demo.server import ThreadedServer
from tests.e2e.conftest import StartProxy
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Proxy,
    RawServer,
    assert_entry,
    chat,
    connect,
    head_lines,
    llm_provider,
    read_all,
    read_exactly,
    read_head,
    read_until,
    server_context,
    trusting,
    write_rules,
)

pytestmark = pytest.mark.e2e

PIECE = bytes(range(256)) * 256  # 64 KiB
PIECES = 64


# --- TLS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_an_unlisted_https_host_shows_its_own_certificate(
    pointsman: Proxy, authority: Authority, http2: bool
) -> None:
    """The client trusts the host's authority alone; mitmproxy's certificate would be refused."""
    provider = Provider("elsewhere")
    key = {"authorization": "Bearer own", "x-api-key": "own"}
    with (
        ThreadedServer([provider], tls=authority.issue("localhost")) as server,
        pointsman.client(http2=http2, verify=trusting(authority.certificate)) as client,
    ):
        url = f"https://localhost:{server.port}/v1/chat/completions"
        answer = client.post(url, json=chat(model="m"), headers=key)
    assert answer.status_code == 200
    assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    (call,) = provider.calls
    assert call.http_version == ("2" if http2 else "1.1")
    assert call.header("authorization") == "Bearer own"
    assert call.json() == chat(model="m")
    pointsman.assert_no_more_entries()


def test_an_unlisted_name_at_a_providers_address_is_not_decrypted(
    pointsman: Proxy, authority: Authority, raw_server: Callable[..., RawServer]
) -> None:
    """The server name decides, also where CONNECT names an address."""
    server = raw_server(echo, tls=server_context(authority, "other.example"))
    with (
        pointsman.tunnel(LOOPBACK, server.port) as plain,
        trusting(authority.certificate).wrap_socket(plain, server_hostname="other.example") as tls,
    ):
        tls.sendall(b"not HTTP\n")
        assert read_exactly(tls, 9) == b"not HTTP\n"


def test_an_unlisted_https_host_with_a_client_certificate_works(
    pointsman: Proxy, authority: Authority, raw_server: Callable[..., RawServer]
) -> None:
    """Mutual TLS works only where nobody stands in between."""
    context = server_context(authority, "localhost")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.certificate)
    mine = authority.issue("client.example")
    trust = trusting(authority.certificate)
    trust.load_cert_chain(mine.chain, mine.key)
    server = raw_server(echo, tls=context)
    with (
        pointsman.tunnel("localhost", server.port) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"hello")
        assert read_exactly(tls, 5) == b"hello"


def test_a_connection_is_closed_when_rules_come_to_name_its_host(
    start_proxy: StartProxy,
    authority: Authority,
    raw_server: Callable[..., RawServer],
    tmp_path: Path,
) -> None:
    """Its client comes again, and is routed. While bytes move, nothing is cut."""
    server = raw_server(echo, tls=server_context(authority, "late.example", "other.example"))
    rules = write_rules(tmp_path / "rules", llm_provider("p", "p.example"))
    proxy = start_proxy(rules)

    @contextmanager
    def relayed(host: str) -> Iterator[ssl.SSLSocket]:
        with (
            proxy.tunnel(LOOPBACK, server.port) as plain,
            trusting(authority.certificate).wrap_socket(plain, server_hostname=host) as tls,
        ):
            yield tls

    with relayed("late.example") as tls, relayed("other.example") as other:
        late = llm_provider("late", "late.example")
        write_rules(rules, llm_provider("p", "p.example"), late)
        proxy.says("connections to hosts that the rules name now: 1")
        until = time.monotonic() + 3
        while time.monotonic() < until:
            tls.sendall(b"x")
            assert read_exactly(tls, 1) == b"x"
            time.sleep(0.2)
        assert tls.recv(1) == b""
        other.sendall(b"hello")
        assert read_exactly(other, 5) == b"hello"
    with pytest.raises(ssl.SSLCertVerificationError), relayed("late.example"):
        pass


# --- raw TCP --------------------------------------------------------------------------------------


def echo(conn: socket.socket) -> None:
    while data := conn.recv(65536):
        conn.sendall(data)


@pytest.mark.parametrize(
    "first", [b"\x00\x01\x02\xff", b"SSH-2.0-one\r\n", b"*1\r\n$4\r\nPING\r\n"]
)
def test_a_tunnel_carries_any_protocol(
    pointsman: Proxy, raw_server: Callable[..., RawServer], first: bytes
) -> None:
    server = raw_server(echo)
    with pointsman.tunnel(LOOPBACK, server.port) as conn:
        for data in (first, PIECE, b"end"):
            conn.sendall(data)
            assert read_exactly(conn, len(data)) == data


def test_a_tunnel_to_a_server_that_speaks_first_carries_its_greeting(
    pointsman: Proxy, raw_server: Callable[..., RawServer]
) -> None:
    greeting = b"220 mail.test ESMTP\r\n"

    def greet(conn: socket.socket) -> None:
        conn.sendall(greeting)
        echo(conn)

    server = raw_server(greet)
    with pointsman.tunnel("localhost", server.port) as conn:
        assert read_exactly(conn, len(greeting)) == greeting
        conn.sendall(b"EHLO me\r\n")
        assert read_exactly(conn, 9) == b"EHLO me\r\n"


def test_http2_without_tls_is_relayed(
    pointsman: Proxy, raw_server: Callable[..., RawServer]
) -> None:
    """So gRPC speaks inside a cluster; the preface may come in two reads."""
    server = raw_server(echo)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    with pointsman.tunnel(LOOPBACK, server.port) as conn:
        conn.sendall(preface)
        assert read_exactly(conn, len(preface)) == preface


# --- plain HTTP -----------------------------------------------------------------------------------

SENT_HEADERS = [
    "X-First: 1",
    "accept-ENCODING: gzip;q=0.5, *;q=0",
    "Authorization: Bearer own",
    "Cookie: a=1; b=2",
    "X-Twice: one",
    "x-twice: two",
    "Transfer-Encoding: chunked",
    "User-Agent: none",
]
GOT_HEADERS = [
    "Server: mine",
    "Set-Cookie: a=1",
    "set-cookie: b=2",
    "Alt-Svc: h3=':443'",
    "Transfer-Encoding: chunked",
    "X-Empty: ",
]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def read_chunks(conn: socket.socket, size: int | None = None) -> bytes:
    """Read chunks up to this size of body, or to their end."""
    body = bytearray()
    while size is None or len(body) < size:
        length = int(read_until(conn, b"\r\n"), 16)
        data = read_exactly(conn, length + 2)
        if length == 0:
            assert size is None, f"it ended after {len(body)} of {size} bytes"
            break
        body += data[:-2]
    return bytes(body)


def test_plain_http_is_streamed_both_ways_and_nothing_of_it_changes(
    pointsman: Proxy, raw_server: Callable[..., RawServer]
) -> None:
    """Each side sends the rest only when the other has what came before: nothing is collected."""
    half_up, half_down = threading.Event(), threading.Event()
    heads: list[bytes] = []
    uploads: list[bytes] = []

    def serve(conn: socket.socket) -> None:
        heads.append(read_head(conn))
        first = read_chunks(conn, PIECES * len(PIECE))
        half_up.set()
        uploads.append(first + read_chunks(conn))
        conn.sendall(f"HTTP/1.1 203 Mine\r\n{'\r\n'.join(GOT_HEADERS)}\r\n\r\n".encode())
        for _ in range(PIECES):
            conn.sendall(chunk(PIECE))
        assert half_down.wait(DEADLINE)
        conn.sendall(chunk(b"last") + b"0\r\n\r\n")

    server = raw_server(serve)
    target = "/path;x?key=own&q=%7e#"
    host = f"Host: {LOOPBACK}:{server.port}"
    with connect(pointsman.address) as conn:
        lines = [f"POST http://{server.address}{target} HTTP/1.1", host, *SENT_HEADERS]
        conn.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        for _ in range(PIECES):
            conn.sendall(chunk(PIECE))
        assert half_up.wait(DEADLINE)
        conn.sendall(chunk(b"last") + b"0\r\n\r\n")

        answer = read_head(conn)
        got = read_chunks(conn, PIECES * len(PIECE))
        half_down.set()
        got += read_chunks(conn)

    assert head_lines(heads[0]) == [f"POST {target} HTTP/1.1", host, *SENT_HEADERS]
    assert uploads == [PIECE * PIECES + b"last"]
    assert head_lines(answer) == ["HTTP/1.1 203 Mine", *GOT_HEADERS]
    assert got == PIECE * PIECES + b"last"
    pointsman.assert_no_more_entries()


def test_an_interim_answer_does_not_end_the_request(
    pointsman: Proxy, raw_server: Callable[..., RawServer]
) -> None:
    def serve(conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
        time.sleep(0.1)
        conn.sendall(
            b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
        )

    server = raw_server(serve)
    with pointsman.client() as client:
        answer = client.get(f"http://{server.address}/")
    assert (answer.status_code, answer.text) == (200, "hi")


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_empty_lines_before_a_request_are_skipped(
    pointsman: Proxy, raw_server: Callable[..., RawServer], apart: bool
) -> None:
    def serve(conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    server = raw_server(serve)
    with connect(pointsman.address) as conn:
        conn.sendall(b"\r\n\r\n")
        if apart:
            time.sleep(0.1)
        conn.sendall(f"GET http://{server.address}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert read_head(conn).startswith(b"HTTP/1.1 200 ")


def test_an_answer_without_length_ends_with_its_connection(
    pointsman: Proxy, raw_server: Callable[..., RawServer]
) -> None:
    def serve(conn: socket.socket) -> None:
        read_head(conn)
        conn.sendall(b"HTTP/1.0 200 OK\r\n\r\nto the end")

    server = raw_server(serve)
    with connect(pointsman.address) as conn:
        conn.sendall(f"GET http://{server.address}/ HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        assert read_all(conn).endswith(b"\r\n\r\nto the end")


SUMS = b"X-Sum: 1\r\nx-SUM: two words\r\n"


@pytest.mark.parametrize("target", ["absolute", "tunnel"])
def test_trailers_pass_both_ways(
    pointsman: Proxy, raw_server: Callable[..., RawServer], target: str
) -> None:
    """And the connections go on after them: each second request comes by the first one's."""
    sent: list[bytes] = []
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    end = b"0\r\n" + SUMS + b"\r\n"

    def serve(conn: socket.socket) -> None:
        for _ in range(2):
            read_head(conn)
            sent.append(read_until(conn, b"0\r\n") + read_until(conn, b"\r\n\r\n"))
            conn.sendall(answer + chunk(b"down") + end)

    server = raw_server(serve)
    if target == "absolute":
        conn, begins = connect(pointsman.address), f"http://{server.address}"
    else:
        conn, begins = pointsman.tunnel(LOOPBACK, server.port), ""
    with conn:
        lines = [
            f"POST {begins}/ HTTP/1.1",
            f"Host: {server.address}",
            "Transfer-Encoding: chunked",
        ]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        for _ in range(2):
            conn.sendall(head + chunk(b"up") + end)
            assert read_head(conn) == answer
            whole = chunk(b"down") + end
            assert read_exactly(conn, len(whole)) == whole
    assert sent == [chunk(b"up") + end] * 2


def read_quietly(conn: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        read_all(conn)


def test_trailers_without_an_end_are_not_collected(
    pointsman: Proxy, raw_server: Callable[..., RawServer]
) -> None:
    server = raw_server(read_quietly)
    with connect(pointsman.address) as conn:
        head = f"POST http://{server.address}/ HTTP/1.1\r\nHost: x\r\n"
        conn.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n0\r\n".encode())
        with pytest.raises(ConnectionError):  # noqa: PT012 (any of them may be the one)
            for _ in range(1024):
                conn.sendall(b"X-More: " + b"x" * 8192 + b"\r\n")
            assert not read_all(conn)
            raise ConnectionError


def test_large_uploads_to_unlisted_hosts_have_no_limit(
    pointsman: Proxy, raw_server: Callable[..., RawServer]
) -> None:
    """`llm_body_limit` is for what has to be read."""
    received: list[int] = []

    def serve(conn: socket.socket) -> None:
        head = read_head(conn)
        assert f"content-length: {size}".encode() in head.lower()
        received.append(len(read_exactly(conn, size)))
        conn.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    size = 3 * 1024 * 1024
    server = raw_server(serve)
    with pointsman.client() as client:
        assert client.put(f"http://{server.address}/", content=b"x" * size).status_code == 204
    assert received == [size]


# --- WebSockets -----------------------------------------------------------------------------------


def ws_echo(conn: ServerConnection) -> None:
    for message in conn:
        conn.send(message)


@contextmanager
def ws_server(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve a WebSocket that says the same again; yield its port."""
    server: WsServer = ws_serve(ws_echo, LOOPBACK, 0, ssl=tls)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()
        thread.join(DEADLINE)


def talk(url: str, proxy: Proxy, trust: ssl.SSLContext | None = None, **headers: str) -> None:
    opened = ws_connect(
        url,
        proxy=proxy.url,
        ssl=trust,
        additional_headers=headers,
        open_timeout=DEADLINE,
        close_timeout=DEADLINE,
    )
    with opened as conn:
        for message in ("hello", b"\x00\xff", "x" * 70_000):
            conn.send(message)
            assert conn.recv(DEADLINE) == message


def test_a_websocket_to_an_unlisted_host_works(pointsman: Proxy) -> None:
    with ws_server() as port:
        talk(f"ws://{LOOPBACK}:{port}/", pointsman)
    pointsman.assert_no_more_entries()


def test_a_secure_websocket_to_an_unlisted_host_works(
    pointsman: Proxy, authority: Authority
) -> None:
    with ws_server(server_context(authority, "localhost")) as port:
        talk(f"wss://localhost:{port}/", pointsman, trusting(authority.certificate))
    pointsman.assert_no_more_entries()


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_websocket_to_a_host_that_is_accounted_for_works(
    start_proxy: StartProxy,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
    scheme: str,
) -> None:
    """OpenAI's realtime API; the default rules list it without configs."""
    host = f"realtime-{scheme}.example"
    with ws_server(server_context(authority, host) if scheme == "wss" else None) as port:
        trust = {"tls": {"caFile": str(authority.certificate)}} if scheme == "wss" else {}
        far_end = {"address": f"{LOOPBACK}:{port}", **trust}
        rules = write_rules(tmp_path_factory.mktemp("ws"), llm_provider("rt", host, **far_end))
        proxy = start_proxy(rules)
        client_trust = trusting(proxy.certificate) if scheme == "wss" else None
        talk(
            f"{scheme}://{host}/v1/realtime?model=m", proxy, client_trust, authorization="Bearer k"
        )
        assert_entry(proxy.entry(), status=101, flags=[], path="/v1/realtime", provider="rt")


def test_an_answer_to_a_head_request_has_no_body(pointsman: Proxy) -> None:
    provider = Provider("elsewhere")
    provider.replies.append(Reply(200, [("x-is", "here")]))
    with ThreadedServer([provider]) as server, pointsman.client() as client:
        answer = client.head(f"http://{server.host}:{server.port}/")
    assert (answer.status_code, answer.headers["x-is"], answer.content) == (200, "here", b"")
