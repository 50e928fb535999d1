"""Spans of what is no plain call: copies, replays, refusals, what is observed or cut; headers."""

import ssl
import threading
from functools import partial
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect as ws_connect
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as ws_serve

from pointsman.demo.provider import Provider, Reply
from pointsman.demo.server import ThreadedServer
from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Far,
    Json,
    Proxy,
    assert_entry,
    chat,
    connect,
    eventually,
    llm_provider,
    llm_route,
    read_all,
    read_head,
    said,
    to,
    write_rules,
)
from tests.e2e.mitmweb import Web
from tests.e2e.otlp import Receiver, attributes

pytestmark = pytest.mark.e2e

URL = "https://api.openai.com/v1/chat/completions"
TRACE, CLIENTS = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CLIENTS}-01"
ON = ("--set", "llm_otel=true")


@pytest.fixture
def rules(tmp_path: Path, openai: Far, moonshot: Far) -> Path:
    copy = {"providerHost": "api.moonshot.cn"}
    return write_rules(
        tmp_path / "rules",
        openai.manifest(),
        moonshot.manifest(),
        llm_route("copied", "copied.test", to("api.openai.com", mirror=copy)),
        llm_route("watched", "localhost", to("api.openai.com", mode="observe")),
    )


def endless() -> Reply:
    """Answer with a stream that does not end by itself."""
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
    kind = [("content-type", "text/event-stream")]
    return Reply(200, kind, (event for _ in range(int(DEADLINE * 20))), chunk_delay=0.05)


def by_name(spans: list[Json]) -> dict[str, Json]:
    return {span["name"]: span for span in spans}


# --- what is no plain call ------------------------------------------------------------------------


def test_a_copy_has_a_trace_of_its_own_linked_to_the_clients(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, openai: Far, moonshot: Far
) -> None:
    proxy = start_proxy(rules, *ON, env=receiver.environment)
    with proxy.client(headers={"traceparent": PARENT}) as client:
        assert said(client.post("http://copied.test/", json=chat(model="m")))
    proxy.logged(2)
    spans = receiver.wait(3)
    (copy,) = (span for span in spans if "pointsman.mirror" in attributes(span))
    (whole,) = (s for s in spans if s["name"] == "chat m" and s is not copy)
    assert whole["traceId"] == TRACE
    assert copy["traceId"] != TRACE
    assert "parentSpanId" not in copy
    assert [(link["traceId"], link["spanId"]) for link in copy["links"]] == [
        (TRACE, whole["spanId"])
    ]
    assert attributes(copy)["pointsman.provider"] == "moonshot"
    assert attributes(copy)["gen_ai.usage.input_tokens"] > 0
    sent = moonshot.call().header("traceparent") or ""
    assert sent.split("-")[1:3] == [copy["traceId"], copy["spanId"]]
    assert (openai.call().header("traceparent") or "").split("-")[1] == TRACE


def test_what_is_only_observed_is_traced_where_it_went(
    start_proxy: StartProxy, receiver: Receiver, rules: Path
) -> None:
    proxy = start_proxy(rules, *ON, env=receiver.environment)
    with (
        ThreadedServer([Provider("theirs", "localhost")]) as theirs,
        proxy.client(headers={"traceparent": PARENT}) as client,
    ):
        url = f"http://localhost:{theirs.port}/v1/chat/completions"
        assert said(client.post(url, json=chat(model="m")))
    assert_entry(proxy.entry(), flags=["OB"])
    found = attributes(by_name(receiver.wait(2))["chat m"])
    assert found["server.address"] == found["gen_ai.provider.name"] == "localhost"
    assert found["server.port"] == theirs.port
    assert found["pointsman.provider"] == "openai"
    assert found["pointsman.flags"] == ["OB"]
    assert "error.type" not in found


def test_denied_hosts_are_spans_with_an_error(
    start_proxy: StartProxy, receiver: Receiver, rules: Path
) -> None:
    proxy = start_proxy(rules, *ON, "--set", "llm_unknown=deny", env=receiver.environment)
    host = "api.deepseek.com"
    with connect(proxy.address) as conn:
        conn.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
        assert read_head(conn).startswith(b"HTTP/1.1 403 ")
    with proxy.tunnel(LOOPBACK, 443) as conn, pytest.raises(OSError):
        ssl.create_default_context().wrap_socket(conn, server_hostname=host)
    proxy.logged(2)
    for span in receiver.wait(2):
        assert span["name"] in ("CONNECT", "HTTP")
        assert span["status"] == {"code": "STATUS_CODE_ERROR"}
        assert attributes(span)["error.type"] == "host_not_allowed"
        assert attributes(span)["pointsman.flags"] == ["UAEX"]
        assert attributes(span)["pointsman.host"] == host


def test_a_client_that_leaves_and_a_drain_that_cuts(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, openai: Far
) -> None:
    openai.provider.replies.extend([endless(), endless()])
    options = ("--set", "llm_drain_timeout=200ms")
    proxy = start_proxy(rules, *ON, *options, env=receiver.environment)
    with proxy.client() as client:
        with client.stream("POST", URL, json=chat(model="m", stream=True)) as answer:
            assert next(answer.iter_raw())
        with client.stream("POST", URL, json=chat(model="n", stream=True)) as answer:
            chunks = answer.iter_raw()
            assert next(chunks)
            assert_entry(proxy.entry(), flags=["DC"])
            proxy.signal()
            with pytest.raises(httpx.TransportError):
                list(chunks)
    assert_entry(proxy.entry(), flags=["LR"])
    proxy.ended()
    spans = receiver.wait(4)
    whole = by_name(spans)
    for model, told in (("m", "client_disconnected"), ("n", "stopped")):
        found = attributes(whole[f"chat {model}"])
        assert found["error.type"] == told
        assert found["gen_ai.response.time_to_first_chunk"] > 0
        assert found["gen_ai.request.stream"] is True
        assert whole[f"chat {model}"]["status"]["code"] == "STATUS_CODE_ERROR"
    tried = [attributes(span)["error.type"] for span in spans if span["name"] == "attempt openai"]
    assert sorted(tried) == ["client_disconnected", "stopped"]


def test_a_websocket_is_a_span_of_its_handshake(
    start_proxy: StartProxy, receiver: Receiver, tmp_path: Path
) -> None:
    def echo(conn: ServerConnection) -> None:
        for message in conn:
            conn.send(message)

    far = ws_serve(echo, LOOPBACK, 0)
    threading.Thread(target=far.serve_forever, daemon=True).start()
    address = f"{LOOPBACK}:{far.socket.getsockname()[1]}"
    ours = llm_provider("ours", "ours.example", address=address, scheme="http")
    proxy = start_proxy(
        write_rules(tmp_path / "rules", ours),
        *ON,
        env=receiver.environment | {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"},
    )
    url = "ws://ours.example/v1/realtime?model=m"
    with ws_connect(url, proxy=proxy.url, open_timeout=DEADLINE, close_timeout=DEADLINE) as conn:
        conn.send("a secret prompt")
        assert conn.recv(DEADLINE) == "a secret prompt"
        (whole,) = (span for span in receiver.wait(2) if "parentSpanId" not in span)
    far.shutdown()
    assert whole["name"] == "GET"
    assert attributes(whole)["http.response.status_code"] == 101
    assert "error.type" not in attributes(whole)
    assert_entry(proxy.entry(), status=101)
    proxy.stop()
    assert "secret" not in receiver.text()


# --- at run time, and replays ---------------------------------------------------------------------


def test_it_is_switched_on_and_off_at_run_time_and_a_replay_has_a_trace_of_its_own(
    confdir: Path, receiver: Receiver, rules: Path, openai: Far
) -> None:
    environment = {**KEYS, **receiver.environment}
    with Web(confdir, rules, env=environment) as web:

        def switch(*, on: bool) -> None:
            assert web.api.put("/options", json={"llm_otel": on}).status_code == 200

        def has(name: str) -> bool:
            return name in by_name(receiver.spans())

        def ask(model: str) -> None:
            with web.proxy.client(headers={"traceparent": PARENT}) as client:
                assert said(client.post(URL, json=chat(model=model)))

        ask("before")
        assert openai.call().header("traceparent") == PARENT
        for model in ("first", "second"):
            switch(on=True)
            ask(model)
            assert (openai.call().header("traceparent") or "").split("-")[1] == TRACE
            switch(on=False)
            ask("between")
            assert openai.call().header("traceparent") == PARENT
            wanted = f"chat {model}"
            eventually(partial(has, wanted), what="the span of what was asked meanwhile")
        eventually(lambda: "pointsman.requests" in receiver.metrics(), what="the metrics")
        assert {span["name"] for span in receiver.spans()} == {
            "chat first",
            "chat second",
            "attempt openai",
        }
        switch(on=True)
        flow = web.flows(5)[-1]
        web.post(f"/flows/{flow['id']}/replay")
        spans = [span for span in receiver.wait(6) if span["name"] == "chat between"]
        eventually(lambda: openai.provider.calls, what="the replay")
        (replay,) = spans
        assert attributes(replay)["pointsman.replay"] is True
        assert replay["traceId"] != TRACE
        assert [link["traceId"] for link in replay["links"]] == [TRACE]
        sent = openai.call().header("traceparent") or ""
        assert sent.split("-")[1] == replay["traceId"]


# --- propagation ----------------------------------------------------------------------------------


def raw(proxy: Proxy, *headers: str) -> None:
    """Ask with these header lines as they are."""
    body = b'{"model":"m","messages":[]}'
    lines = [
        "POST http://api.openai.com/v1/chat/completions HTTP/1.1",
        *("Host: api.openai.com", "Connection: close", f"Content-Length: {len(body)}"),
        *headers,
    ]
    with connect(proxy.address) as conn:
        conn.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        assert read_all(conn).startswith(b"HTTP/1.1 200 ")
    proxy.entry()


def test_a_clients_trace_is_passed_on_and_all_else_left_alone(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, openai: Far
) -> None:
    proxy = start_proxy(rules, *ON, env=receiver.environment)

    def traced(*headers: str) -> list[tuple[str, str]]:
        raw(proxy, *headers)
        names = ("traceparent", "tracestate", "baggage")
        return [(n, v) for n, v in openai.call().headers if n.lower() in names]

    # What is no trace goes as it came, and is no parent.
    untouched: list[list[tuple[str, str]]] = [
        [],
        [("traceparent", "nonsense"), ("baggage", "a=b")],
        [("traceparent", f"00-{'0' * 32}-{CLIENTS}-01"), ("tracestate", "v=1")],
        [("traceparent", PARENT), ("traceparent", PARENT)],
        [("tracestate", "v=1")],
    ]
    for fields in untouched:
        assert traced(*(f"{name}: {value}" for name, value in fields)) == fields
    spans = receiver.wait(2 * len(untouched))
    assert all("parentSpanId" not in s for s in spans if s["name"] == "chat m")
    assert TRACE not in {span["traceId"] for span in spans}

    # A trace goes on, its state in one line, beside the client's baggage.
    found = traced(
        f"Traceparent: {PARENT}", "tracestate: a=1", "baggage: user=alice", "tracestate: b=2"
    )
    spans = receiver.wait(2 * len(untouched) + 2)
    (tried,) = (s for s in spans if s["traceId"] == TRACE and s["name"] == "attempt openai")
    assert [(name.lower(), value) for name, value in found] == [
        ("traceparent", f"00-{TRACE}-{tried['spanId']}-01"),
        ("tracestate", "a=1,b=2"),
        ("baggage", "user=alice"),
    ]
    assert "alice" not in receiver.text()

    # What the client does not sample is passed on as that, and not sent to the collector.
    ((_, parent),) = traced(f"traceparent: 00-{TRACE}-{CLIENTS}-00")
    assert parent.startswith(f"00-{TRACE}-")
    assert parent.endswith("-00")
    traced()
    assert len(receiver.wait(2 * len(untouched) + 4)) == 2 * len(untouched) + 4

    # A state that is none is dropped, as the convention has it, and the log says nothing.
    for _ in range(3):
        assert traced(f"traceparent: {PARENT}", "tracestate: , \x01 \xff ==,=,")
    assert "OTLP: " not in proxy.printed
    assert "key/value" not in proxy.printed
