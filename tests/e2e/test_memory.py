"""Memory is bounded, whatever a client or a provider sends: what can't go on is not taken in."""

import contextlib
import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import h2.events
import httpx
import pytest

from pointsman.demo.authority import Authority
from tests.e2e.faults import BlackHole
from tests.e2e.harness import (
    DEADLINE,
    Proxy,
    RawServer,
    assert_entry,
    assert_refused,
    chat,
    connect,
    eventually,
    head_lines,
    llm_provider,
    openai_config,
    read_all,
    read_exactly,
    read_head,
    server_context,
    trusting,
    write_rules,
)
from tests.e2e.http2 import Http2Client, Http2Server

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="it is read from /proc"),
]

MIB = 1024 * 1024
MUCH = 128 * MIB  # what is sent, or would be
BOUND = 32 * MIB  # what the process may grow by meanwhile
STILL = 1.0  # seconds in which nothing moves


@dataclass
class Sender:
    """A provider over HTTP/1 that sends as fast as it is read."""

    head: bytes = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    sent: int = 0

    def serve(self, conn: socket.socket) -> None:
        read_head(conn)
        conn.settimeout(4 * DEADLINE)
        with contextlib.suppress(OSError):
            conn.sendall(self.head + b"Content-Length: %d\r\n\r\n" % MUCH)
            for _ in range(MUCH // MIB):
                conn.sendall(bytes(MIB))
                self.sent += MIB
            conn.recv(1)


@dataclass
class Headless:
    """A provider whose head does not end."""

    sent: int = 0

    def serve(self, conn: socket.socket) -> None:
        read_head(conn)
        with contextlib.suppress(OSError):
            conn.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while self.sent < MUCH:
                conn.sendall(b"x" * MIB)
                self.sent += MIB


@dataclass
class Stage:
    """A proxy with providers that send much, and one that takes little."""

    proxy: Proxy
    sender: Sender
    headless: Headless
    other: Http2Server
    taking: threading.Event
    ports: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def http2(self, host: str, *, room: int = 0) -> Iterator[Http2Client]:
        trust = trusting(self.proxy.certificate)
        trust.set_alpn_protocols(["h2"])
        with (
            self.proxy.tunnel(host, 443) as plain,
            trust.wrap_socket(plain, server_hostname=host) as conn,
        ):
            conn.settimeout(DEADLINE)
            yield Http2Client(conn, host, room=room)


@dataclass
class Answering:
    """A provider that takes whole requests and answers them."""

    requests: int = 0

    def serve(self, conn: socket.socket) -> None:
        fields = [line.split(": ", 1) for line in head_lines(read_head(conn).lower())[1:]]
        read_exactly(conn, int(dict(fields)["content-length"]))
        self.requests += 1
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


@pytest.fixture
def stage(confdir: Path, authority: Authority, tmp_path: Path) -> Iterator[Stage]:
    sender, headless, taking = Sender(), Headless(), threading.Event()
    other = Http2Server(
        lambda served, stream: served.fill(stream, 5 if other.received else MUCH),
        taking=taking.is_set,
    )
    tls = server_context(authority, "h2.example")
    tls.set_alpn_protocols(["h2"])
    with ExitStack() as stack:

        def listening(serve: Callable[[socket.socket], None], tls: ssl.SSLContext | None) -> str:
            return stack.enter_context(RawServer(serve, tls=tls)).address

        plain = {"scheme": "http", "configs": None}
        rules = write_rules(
            tmp_path,
            llm_provider("h1", "h1.example", address=listening(sender.serve, None), **plain),
            llm_provider(
                "headless", "headless.example", address=listening(headless.serve, None), **plain
            ),
            llm_provider(
                "h2",
                "h2.example",
                address=listening(other.serve, tls),
                configs=None,
                tls={"caFile": str(authority.certificate)},
            ),
            llm_provider(
                "away",
                "away.example",
                address=stack.enter_context(BlackHole()).address,
                timeouts={"connect": "3s"},
                configs=None,
            ),
        )
        proxy = stack.enter_context(Proxy(confdir, rules, "--set", "llm_body_limit=64k"))
        yield Stage(proxy, sender, headless, other, taking)


def until_still(look: Callable[[], int]) -> int:
    """Wait until a count no longer changes; return it."""
    seen, since = look(), time.monotonic()
    until = since + 2 * DEADLINE
    while time.monotonic() < since + STILL:
        assert time.monotonic() < until, "it goes on and on"
        time.sleep(0.02)
        if (now := look()) != seen:
            seen, since = now, time.monotonic()
    return seen


def read_whole(client: Http2Client, stream: int) -> int:
    """Read a stream to its end; return the size of its body."""
    size = 0
    while True:
        for event in client.read(stream):
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream:
                size += len(event.data or b"")
            if isinstance(event, h2.events.StreamEnded) and event.stream_id == stream:
                return size


def test_a_provider_is_not_read_faster_than_an_http2_client_reads(stage: Stage) -> None:
    with stage.proxy.grows_less_than(BOUND), stage.http2("h1.example") as client:
        stream = client.begin("GET", "/v1/files/f/content")
        client.read()
        assert until_still(lambda: stage.sender.sent) < MUCH
        client.h2.increment_flow_control_window(65535)
        client.h2.increment_flow_control_window(65535, stream)
        client.flush()
        read = read_whole(client, stream)
    assert read > MUCH - 65536  # what was read before is not counted
    assert_entry(stage.proxy.entry(), status=200, flags=[], response_bytes=MUCH)


def test_an_http2_provider_is_not_either(stage: Stage) -> None:
    with stage.proxy.grows_less_than(BOUND), stage.http2("h2.example") as client:
        stream = client.begin("GET", "/v1/files/f/content")
        client.read()
        assert until_still(lambda: stage.other.sent) < MUCH
        client.h2.increment_flow_control_window(65535)
        client.h2.increment_flow_control_window(65535, stream)
        client.flush()
        read_whole(client, stream)
    assert_entry(stage.proxy.entry(), status=200, flags=[], response_bytes=MUCH)


def test_a_stalled_stream_stops_no_other_of_its_connection(stage: Stage) -> None:
    with stage.proxy.grows_less_than(BOUND), stage.http2("h1.example", room=8 * MIB) as client:
        stalled = client.begin("GET", "/v1/files/f/content")
        client.read()
        until_still(lambda: stage.sender.sent)
        assert read_whole(client, client.begin("GET", "/v1/files/g/content")) == MUCH
        client.reset(stalled)
        entries = stage.proxy.logged(2)
    assert [entry["flags"] for entry in entries] == [[], ["DC"]]


def test_an_upload_is_not_read_faster_than_its_provider_reads(stage: Stage) -> None:
    with stage.proxy.grows_less_than(BOUND), stage.http2("h2.example") as client:
        stream = client.begin("POST", "/v1/files", size=MUCH)
        left = upload(client, stream, MUCH, lambda: until_still(lambda: stage.other.received))
        assert left > 0
        stage.taking.set()
        assert upload(client, stream, left, lambda: None) == 0
        assert read_whole(client, stream) == 5
    assert stage.other.received == MUCH
    assert_entry(stage.proxy.entry(), status=200, flags=[], request_bytes=MUCH)


def upload(client: Http2Client, stream: int, size: int, stuck: Callable[[], object]) -> int:
    """Send a body to its end, until it is stuck or answered; return how much of it is left."""
    while size:
        room = client.h2.local_flow_control_window(stream)
        part = min(size, room, client.h2.max_outbound_frame_size)
        if part:
            size -= part
            client.h2.send_data(stream, bytes(part), end_stream=not size)
            client.flush()
            continue
        try:
            answered = any(isinstance(event, h2.events.ResponseReceived) for event in client.read())
        except TimeoutError:
            stuck()
            return size
        if answered:
            return size
    return size


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_an_upload_is_not_read_while_its_provider_is_connected_to(
    stage: Stage, http2: bool
) -> None:
    with stage.proxy.grows_less_than(BOUND):
        if http2:
            with stage.http2("away.example") as client:
                stream = client.begin("POST", "/v1/files", size=MUCH)
                assert upload(client, stream, MUCH, lambda: None) > 0
        else:
            with (
                stage.proxy.tunnel("away.example", 443) as plain,
                trusting(stage.proxy.certificate).wrap_socket(
                    plain, server_hostname="away.example"
                ) as conn,
            ):
                conn.settimeout(4 * DEADLINE)
                head = f"POST /v1/files HTTP/1.1\r\nHost: away.example\r\nContent-Length: {MUCH}"
                conn.sendall(f"{head}\r\n\r\n".encode())
                for _ in range(MUCH // MIB):  # the answer comes midway; what follows is discarded
                    conn.sendall(bytes(MIB))
                assert b" 504 " in read_head(conn)
        assert_entry(stage.proxy.entry(), status=504, flags=["UF"])


def test_a_clients_head_without_an_end_is_refused(stage: Stage) -> None:
    with stage.proxy.grows_less_than(BOUND), connect(stage.proxy.address) as conn:
        conn.sendall(b"POST http://h1.example/v1/chat/completions HTTP/1.1\r\nX-Long: ")
        with contextlib.suppress(OSError):
            for _ in range(MUCH // MIB):
                conn.sendall(b"x" * MIB)
    stage.proxy.assert_no_more_entries()


def test_a_clients_long_head_is_told(stage: Stage) -> None:
    with connect(stage.proxy.address) as conn:
        conn.sendall(b"POST http://h1.example/v1/chat/completions HTTP/1.1\r\nX-Long: ")
        conn.sendall(b"x" * 300_000)
        assert read_head(conn).startswith(b"HTTP/1.1 431 ")


def test_a_providers_head_without_an_end_is_a_502(stage: Stage) -> None:
    with stage.proxy.grows_less_than(BOUND), stage.proxy.client() as client:
        answer = client.get("http://headless.example/v1/models")
    assert (answer.status_code, answer.headers["x-pointsman-error"]) == (
        502,
        "upstream_protocol_error",
    )
    assert stage.headless.sent < MUCH
    assert_entry(stage.proxy.entry(), status=502, flags=["UPE"])


def test_a_client_hello_without_an_end_is_not_kept(stage: Stage) -> None:
    record = b"\x16\x03\x01" + (16384).to_bytes(2) + b"x" * 16384
    hello = b"\x16\x03\x01" + (16384).to_bytes(2) + b"\x01\xff\xff\xff" + b"x" * 16380
    with (
        stage.proxy.grows_less_than(BOUND),
        stage.proxy.tunnel("h1.example", 443) as conn,
        contextlib.suppress(OSError),
    ):
        conn.sendall(hello)
        for _ in range(MUCH // 16384):
            conn.sendall(record)
        read_all(conn)


# --- bodies that are held -------------------------------------------------------------------------


@pytest.fixture
def answering(confdir: Path, tmp_path: Path) -> Iterator[tuple[Proxy, Answering]]:
    far = Answering()
    with RawServer(far.serve) as server:
        rules = write_rules(
            tmp_path,
            llm_provider(
                "p",
                "p.example",
                address=server.address,
                scheme="http",
                path="/v1/chat/completions",
                configs=openai_config(model="m"),
            ),
        )
        with Proxy(confdir, rules, "--set", "llm_body_memory=40m") as proxy:
            yield proxy, far


def ask(proxy: Proxy, size: int) -> httpx.Response:
    with proxy.client(timeout=2 * DEADLINE) as client:
        body = json.dumps(chat("x" * size))
        return client.post("http://p.example/v1/chat/completions", content=body)


def test_bodies_are_not_kept_when_they_have_been_answered(
    answering: tuple[Proxy, Answering],
) -> None:
    proxy, _ = answering
    ask(proxy, 20 * MIB)
    with proxy.grows_less_than(240 * MIB):  # one, several times over
        for _ in range(12):
            assert ask(proxy, 20 * MIB).status_code == 200
    proxy.logged(13)
    eventually(lambda: proxy.memory < 180 * MIB, what="the memory is given back")


def test_half_sent_bodies_end_with_their_clients(answering: tuple[Proxy, Answering]) -> None:
    proxy, far = answering
    head = f"POST http://p.example/ HTTP/1.1\r\nHost: p.example\r\nContent-Length: {30 * MIB}"
    with proxy.grows_less_than(160 * MIB):
        for _ in range(10):
            with connect(proxy.address) as conn:
                conn.sendall(f"{head}\r\n\r\n".encode() + bytes(29 * MIB))
            proxy.entry()
    eventually(lambda: proxy.memory < 180 * MIB, what="the memory is given back")
    assert ask(proxy, 30 * MIB).status_code == 200  # nothing is counted as held
    proxy.entry()
    assert far.requests == 1


def test_what_all_bodies_hold_is_bounded(answering: tuple[Proxy, Answering]) -> None:
    proxy, far = answering
    head = f"POST http://p.example/ HTTP/1.1\r\nHost: p.example\r\nContent-Length: {30 * MIB}"
    with connect(proxy.address) as conn:
        conn.sendall(f"{head}\r\n\r\n".encode() + bytes(29 * MIB))
        time.sleep(STILL)  # it has been read
        answer = ask(proxy, 20 * MIB)
        assert_refused(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert_entry(proxy.entry(), status=503, flags=["OM"], attempts=[])
        assert ask(proxy, 1000).status_code == 200
        proxy.entry()
    assert_entry(proxy.entry(), flags=["DC"])
    assert ask(proxy, 20 * MIB).status_code == 200
    proxy.entry()
    assert far.requests == 2


def test_what_a_body_becomes_when_it_is_decompressed_is_held_too(
    answering: tuple[Proxy, Answering],
) -> None:
    proxy, far = answering
    small = gzip.compress(json.dumps(chat("x" * 30 * MIB)).encode())
    head = (
        "POST http://p.example/v1/chat/completions HTTP/1.1\r\nHost: p.example\r\n"
        f"Content-Encoding: gzip\r\nContent-Length: {len(small)}\r\n\r\n"
    ).encode()
    ahead = (
        b"POST http://p.example/ HTTP/1.1\r\nHost: p.example\r\nContent-Length: 20000000\r\n\r\n"
    )
    with connect(proxy.address) as first, connect(proxy.address) as second:
        first.sendall(ahead + b"\r\n\r\n" + bytes(19_000_000))
        time.sleep(STILL)
        second.sendall(head + small)
        assert b" 503 " in read_head(second)
    assert {entry["flags"][0] for entry in proxy.logged(2)} == {"OM", "DC"}
    assert far.requests == 0
