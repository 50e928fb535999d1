"""How the proxy ends: what is under way ends first, nothing is lost, everything is logged."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from pointsman.demo.provider import Reply
from tests.e2e.conftest import StartProxy
from tests.e2e.harness import (
    Far,
    Json,
    Proxy,
    RawServer,
    assert_entry,
    chat,
    connect,
    eventually,
    llm_route,
    openai_config,
    read_all,
    read_exactly,
    read_head,
    said,
    to,
    write_rules,
)

pytestmark = pytest.mark.e2e

URL = "https://api.openai.com/v1/chat/completions"
WHOLE = [f"data: {json.dumps({'choices': [{'delta': {'content': str(n)}}]})}\n\n" for n in range(8)]
STREAM_SECONDS = 4.0
STREAMS = 50

http_versions = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


def streamed(seconds: float = STREAM_SECONDS) -> Reply:
    """Return an answer of events that takes this long."""
    pieces = [piece.encode() for piece in [*WHOLE, "data: [DONE]\n\n"]]
    return Reply(
        headers=[("content-type", "text/event-stream")],
        body=pieces,
        chunk_delay=seconds / (len(pieces) - 1),
    )


@pytest.fixture
def start(start_proxy: StartProxy, openai: Far, tmp_path: Path) -> Callable[..., Proxy]:
    def started(*options: str, timeout: str = "15s", **rule: Json) -> Proxy:
        mirrored = llm_route("mirrored", "mirrored.test", to("api.openai.com", **rule))
        config = openai_config(apiKey="${OPENAI_API_KEY}", model="m", stream=None)
        config["defaultConfig"]["openAIConfig"].pop("stream")
        rules = write_rules(
            tmp_path / "rules", openai.manifest(configs=config, streamUsage="asIs"), mirrored
        )
        return start_proxy(rules, "--set", f"llm_drain_timeout={timeout}", *options)

    return started


def refuses_connections(proxy: Proxy) -> bool:
    try:
        connect(proxy.address).close()
    except ConnectionRefusedError:
        return True
    return False


@http_versions
def test_a_stream_under_way_ends_before_the_process(
    start: Callable[..., Proxy], openai: Far, http2: bool
) -> None:
    openai.provider.replies.append(streamed())
    proxy = start()
    with (
        proxy.client(http2=http2) as client,
        client.stream("POST", URL, json=chat(stream=True)) as answer,
    ):
        chunks = answer.iter_raw()
        got = next(chunks)
        proxy.signal()
        eventually(lambda: refuses_connections(proxy), what="a closed listener")
        got += b"".join(chunks)
    assert got == "".join([*WHOLE, "data: [DONE]\n\n"]).encode()
    assert_entry(proxy.entry(), status=200, flags=[], error=None)
    proxy.ended()


@http_versions
def test_a_stream_that_lasts_longer_is_cut_and_logged(
    start: Callable[..., Proxy], openai: Far, http2: bool
) -> None:
    openai.provider.replies.append(streamed(60.0))
    proxy = start(timeout="500ms")
    with (
        proxy.client(http2=http2) as client,
        client.stream("POST", URL, json=chat(stream=True)) as answer,
    ):
        chunks = answer.iter_raw()
        next(chunks)
        proxy.signal()
        with pytest.raises(httpx.TransportError):
            list(chunks)
    assert_entry(proxy.entry(), status=200, flags=["LR"], error="drain_timeout")
    proxy.says("the drain has timed out after 0.5 s; requests cut: 1")
    proxy.ended()


def test_a_second_signal_ends_at_once(start: Callable[..., Proxy], openai: Far) -> None:
    openai.provider.replies.append(streamed(60.0))
    proxy = start(timeout="60s")
    with (
        proxy.client() as client,
        client.stream("POST", URL, json=chat(stream=True)) as answer,
    ):
        chunks = answer.iter_raw()
        next(chunks)
        proxy.signal()
        eventually(lambda: refuses_connections(proxy), what="a closed listener")
        proxy.signal()
        assert_entry(proxy.entry(), status=200, flags=["LR"], error="stopped")
        proxy.ended()


def test_ctrl_c_ends_at_once(start: Callable[..., Proxy], openai: Far) -> None:
    openai.provider.replies.append(streamed(60.0))
    proxy = start(timeout="60s")
    with (
        proxy.client() as client,
        client.stream("POST", URL, json=chat(stream=True)) as answer,
    ):
        chunks = answer.iter_raw()
        next(chunks)
        proxy.signal(signal.SIGINT)
        assert_entry(proxy.entry(), status=200, flags=["LR"], error="stopped")
        proxy.ended()


def test_fifty_streams_end_and_are_counted(start: Callable[..., Proxy], openai: Far) -> None:
    openai.provider.replies.extend(streamed() for _ in range(STREAMS))
    proxy = start()
    begun = 0

    async def read(client: httpx.AsyncClient) -> bytes:
        nonlocal begun
        got = b""
        async with client.stream("POST", URL, json=chat(stream=True)) as answer:
            async for chunk in answer.aiter_raw():
                begun += not got
                got += chunk
                if begun == STREAMS:
                    begun += 1
                    proxy.signal()
        return got

    async def read_all_of_them() -> list[bytes]:
        limits = httpx.Limits(max_connections=STREAMS)
        async with proxy.async_client(limits=limits) as client:
            return await asyncio.gather(*(read(client) for _ in range(STREAMS)))

    whole = "".join([*WHOLE, "data: [DONE]\n\n"]).encode()
    assert asyncio.run(read_all_of_them()) == [whole] * STREAMS
    entries = proxy.logged(STREAMS)
    assert {(entry["status"], entry["error"]) for entry in entries} == {(200, None)}
    assert len({entry["request_id"] for entry in entries}) == STREAMS
    proxy.ended()
    assert [call.outcome for call in openai.calls(STREAMS)] == ["complete"] * STREAMS


@http_versions
def test_a_connection_that_stands_is_served_once_more_and_then_closed(
    start: Callable[..., Proxy], openai: Far, http2: bool
) -> None:
    proxy = start()
    with proxy.client(http2=http2) as client, proxy.client() as other:
        assert said(client.post(URL, json=chat()))
        openai.provider.replies.append(streamed())
        with other.stream("POST", URL, json=chat(stream=True)) as held:
            chunks = held.iter_raw()
            next(chunks)
            proxy.signal()
            eventually(lambda: refuses_connections(proxy), what="a closed listener")
            answer = client.post(URL, json=chat())
            assert said(answer)
            assert answer.headers.get("connection") == (None if http2 else "close")
            # The next would need a new connection. (httpx writes into a closed one of HTTP/2.)
            with pytest.raises(httpx.TransportError):
                client.post(URL, json=chat())
            assert b"".join(chunks).endswith(b"data: [DONE]\n\n")
    assert [entry["status"] for entry in proxy.logged(3)] == [200, 200, 200]
    proxy.ended()


def test_own_answers_ask_for_another_connection_too(
    start: Callable[..., Proxy], openai: Far
) -> None:
    proxy = start()
    with proxy.client() as client, proxy.client() as other:
        assert said(client.post(URL, json=chat()))
        openai.provider.replies.append(streamed())
        with other.stream("POST", URL, json=chat(stream=True)) as held:
            chunks = held.iter_raw()
            next(chunks)
            proxy.signal()
            eventually(lambda: refuses_connections(proxy), what="a closed listener")
            refused = client.post(URL, content=b"{")
            assert refused.status_code == 400
            assert refused.headers["connection"] == "close"
            list(chunks)
    assert sorted(entry["status"] for entry in proxy.logged(3)) == [200, 200, 400]
    proxy.ended()


def test_an_idle_relayed_connection_does_not_hold_the_exit(
    start: Callable[..., Proxy], raw_server: Callable[..., RawServer]
) -> None:
    def echo(conn: socket.socket) -> None:
        while data := conn.recv(4096):
            conn.sendall(data)

    far = raw_server(echo)
    proxy = start(timeout="60s")
    with proxy.tunnel("127.0.0.1", far.port) as idle:
        idle.sendall(b"hello")
        assert read_exactly(idle, 5) == b"hello"
        proxy.signal()
        assert read_all(idle) == b""
        proxy.ended()


def test_a_relayed_connection_that_moves_bytes_may_end(
    start: Callable[..., Proxy], raw_server: Callable[..., RawServer]
) -> None:
    """A download that takes longer than what counts as idle."""
    pieces = 20

    def send(conn: socket.socket) -> None:
        conn.recv(4096)
        for _ in range(pieces):
            time.sleep(0.25)
            conn.sendall(b"x" * 1000)

    far = raw_server(send)
    proxy = start(timeout="60s")
    with proxy.tunnel("127.0.0.1", far.port) as moving:
        moving.sendall(b"hello")
        assert read_exactly(moving, 1000)
        proxy.signal()
        assert len(read_all(moving)) == (pieces - 1) * 1000
    proxy.ended()


def test_a_client_that_has_only_just_connected_is_served(
    start: Callable[..., Proxy], openai: Far
) -> None:
    proxy = start()
    with proxy.client() as client:
        assert said(client.post(URL, json=chat()))  # it has started
    with connect(proxy.address) as conn:
        conn.sendall(b"POST http://api.openai.com/v1/chat/completions HTTP/1.1\r\n")
        proxy.signal()
        eventually(lambda: refuses_connections(proxy), what="a closed listener")
        body = json.dumps(chat()).encode()
        conn.sendall(b"Host: api.openai.com\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert b" 200 " in read_head(conn).partition(b"\r\n")[0]
        assert read_all(conn)
    assert [entry["flags"] for entry in proxy.logged(2)] == [[], []]
    proxy.ended()


def test_a_copy_under_way_has_its_line(start: Callable[..., Proxy], openai: Far) -> None:
    openai.provider.replies.extend([Reply.json({"choices": []}), Reply(delay=60)])
    proxy = start(mirror={"providerHost": "api.openai.com", "percent": 100})
    with proxy.client() as client:
        url = "http://mirrored.test/v1/chat/completions"
        assert client.post(url, json=chat()).status_code == 200
    eventually(lambda: len(openai.provider.calls) == 2, what="the copy's call")
    proxy.entry()
    proxy.signal()
    entry = proxy.entry()
    assert_entry(entry, mirror=True, status=None, flags=["LR"], error="stopped")
    assert entry["attempts"][0]["error"] == "stopped"
    proxy.ended()


def test_an_odd_time_out_is_a_start_up_error(
    start_proxy: StartProxy, confdir: Path, openai: Far, tmp_path: Path
) -> None:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    proxy = Proxy(
        confdir, rules, "--set", "llm_drain_timeout=75", env={"OPENAI_API_KEY": "sk-any-key-12345"}
    )
    proxy.start()
    assert proxy.wait() == 1
    assert "llm_drain_timeout: '75' is not a duration; write a number with a unit" in proxy.printed
