"""Copies of requests: sent beside the client's own, logged apart, and of no effect on it."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect as ws_connect
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as ws_serve

from pointsman.demo.authority import Authority
from pointsman.demo.openai_answers import dump
from pointsman.demo.provider import Call, Provider, Reply
from pointsman.demo.server import ThreadedServer
from tests.e2e.conftest import StartFar, StartProxy
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Far,
    Json,
    Proxy,
    assert_entry,
    chat,
    closed_port,
    connect,
    eventually,
    llm_provider,
    llm_route,
    openai_config,
    read_until,
    said,
    sse,
    to,
    write_rules,
)

pytestmark = pytest.mark.e2e

KEYS = {"OWN_KEY": "sk-own-3c0d41", "COPY_KEY": "sk-copy-e8f5b7"}
CLIENT_KEY = "sk-client-44aa0c"
BUSY = Reply.json({"error": {"message": "busy"}}, 503)


class Stage:
    def __init__(self, proxy: Proxy, own: Far, copy: Far) -> None:
        self.proxy = proxy
        self.own = own
        self.copy = copy

    def entries(self, count: int = 2) -> tuple[list[Json], list[Json]]:
        """Return the next log entries: of requests, of copies."""
        entries = self.proxy.logged(count)
        own = [entry for entry in entries if "mirror" not in entry]
        copies = [entry for entry in entries if "mirror" in entry]
        assert all(entry["mirror"] is True for entry in copies)
        return own, copies


@pytest.fixture(scope="module")
def running(
    confdir: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    with ExitStack() as stack:

        def far(name: str) -> Far:
            variable = f"{name.upper()}_KEY"
            provider = Provider(name, f"{name}.example", key=KEYS[variable], chunk_delay=0)
            server = ThreadedServer([provider], tls=authority.issue(f"{name}.example"))
            return Far(provider, stack.enter_context(server), authority, variable)

        own, copy = far("own"), far("copy")
        patient = {"consecutiveFailures": 100_000}
        rules = write_rules(
            tmp_path_factory.mktemp("mirror"),
            own.manifest(
                configs=openai_config(apiKey="${OWN_KEY}", model="own-model"),
                outlierDetection=patient,
            ),
            copy.manifest(configs=openai_config(apiKey="${COPY_KEY}", model="copy-model")),
            llm_provider(
                "dead",
                "dead.example",
                address=f"{LOOPBACK}:{closed_port()}",
                configs=openai_config(),
            ),
            *(
                llm_route(
                    f"share-{percent}",
                    f"share-{percent}.test",
                    to(
                        "own.example",
                        mirror={"providerHost": "copy.example", "percent": percent},
                    ),
                )
                for percent in (0, 50, 100)
            ),
            llm_route(
                "dead",
                "dead.test",
                to("own.example", mirror={"providerHost": "dead.example"}),
            ),
            llm_route(
                "again",
                "again.test",
                to(
                    "own.example",
                    mirror={"providerHost": "copy.example"},
                    retry={"attempts": 3, "backoff": "10ms"},
                ),
            ),
        )
        with Proxy(confdir, rules, env=KEYS) as proxy:
            yield Stage(proxy, own, copy)


@pytest.fixture
def stage(running: Stage) -> Iterator[Stage]:
    running.proxy.forget()
    for far in (running.own, running.copy):
        far.provider.calls.clear()
        far.provider.replies.clear()
    yield running
    running.proxy.assert_no_more_entries()


@pytest.fixture(params=[False, True], ids=["http1", "http2"])
def client(request: pytest.FixtureRequest, stage: Stage) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {CLIENT_KEY}", "cookie": "session=client"}
    with stage.proxy.client(http2=request.param, headers=headers) as opened:
        yield opened


def is_open(call: Call) -> bool:
    return call.outcome == "open"


def ask(client: httpx.Client, host: str, *, stream: bool = False) -> httpx.Response:
    body = chat("Hi", model="client-model", **({"stream": True} if stream else {}))
    return client.post(f"https://{host}/v1/chat/completions", json=body)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_copy_has_its_own_key_model_and_line(
    stage: Stage, client: httpx.Client, stream: bool
) -> None:
    answer = ask(client, "share-100.test", stream=stream)
    if stream:
        assert sse(answer.content)[0]["model"] == "own-model"
    else:
        assert said(answer) == "This is own with own-model. You said: Hi"
    assert "copy" not in answer.text + str(answer.headers)

    (own,), (copy,) = stage.entries()
    call, copied = stage.own.call(), stage.copy.call()
    assert call.json()["model"] == "own-model"
    assert copied.json()["model"] == "copy-model"
    assert copied.json()["messages"] == call.json()["messages"]
    assert copied.header("authorization") == f"Bearer {KEYS['COPY_KEY']}"
    assert copied.header("host") == "copy.example"
    assert copied.header("cookie") is None
    for secret in (CLIENT_KEY, KEYS["OWN_KEY"]):
        assert secret not in str(copied.headers)
    assert KEYS["COPY_KEY"] not in str(call.headers)

    assert_entry(own, provider="own", request_model="own-model", status=200, flags=[])
    assert_entry(
        copy,
        provider="copy",
        provider_host="copy.example",
        request_model="copy-model",
        response_model="copy-model",
        client_model="client-model",
        request_id=own["request_id"],
        route="share-100",
        rule=own["rule"],
        status=200,
        flags=[],
        error=None,
        request_prompt_tokens=1,
        usage_source="response",
        finish_reason="stop",
        stream=stream,
    )
    (attempt,) = copy["attempts"]
    assert_entry(attempt, provider="copy", status=200, error=None)
    assert len(own["attempts"]) == 1


@pytest.mark.parametrize(("percent", "copies"), [(0, {0}), (50, {9, 10, 11}), (100, {20})])
def test_the_share_is_exact(stage: Stage, percent: int, copies: set[int]) -> None:
    with stage.proxy.client() as client:
        for _ in range(20):
            answer = client.post(
                f"http://share-{percent}.test/v1/chat/completions", json=chat(model="m")
            )
            assert answer.status_code == 200
    time.sleep(0.3)
    made = len(stage.copy.provider.calls)
    assert made in copies
    own, copied = stage.entries(20 + made)
    assert (len(own), len(copied)) == (20, made)
    stage.own.calls(20)


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (BUSY, {"status": 503}),
        (Reply(drop="before_status"), {"status": None, "flags": ["UF"]}),
        (Reply(body=b'{"half', drop="mid_body"), {"status": 200, "flags": ["UF"]}),
        (Reply(body=b"\x00\xff no JSON"), {"status": 200, "request_prompt_tokens": None}),
    ],
    ids=["503", "reset", "cut", "garbage"],
)
def test_a_copy_that_fails_is_logged_and_nothing_else(
    stage: Stage, client: httpx.Client, reply: Reply, wanted: Json
) -> None:
    stage.copy.provider.replies.append(reply)
    assert said(ask(client, "share-100.test")).startswith("This is own")
    (own,), (copy,) = stage.entries()
    assert_entry(own, status=200, flags=[], error=None)
    assert_entry(copy, **wanted)
    stage.own.calls(1)
    stage.copy.calls(1)


def test_a_copy_that_reaches_no_one_is_logged(stage: Stage, client: httpx.Client) -> None:
    assert said(ask(client, "dead.test"))
    (own,), (copy,) = stage.entries()
    assert_entry(own, status=200, flags=[])
    assert_entry(copy, status=None, flags=["UF"], provider="dead")
    assert copy["error"]
    assert copy["attempts"][0]["error"]


def test_a_slow_copy_keeps_no_one_waiting(stage: Stage, client: httpx.Client) -> None:
    stage.copy.provider.replies.append(Reply.json({}, 200))
    stage.copy.provider.replies[-1] = Reply(body=b"{}", delay=1.0)
    started = time.monotonic()
    assert said(ask(client, "share-100.test"))
    assert time.monotonic() - started < 0.9
    (own,), (copy,) = stage.entries()
    assert own["duration_ms"] < 900
    assert copy["duration_ms"] >= 900
    stage.copy.calls(1)


def test_a_client_that_leaves_does_not_cut_the_copy(stage: Stage) -> None:
    stage.copy.provider.chunk_delay = 0.05
    body = dump(chat("Hi", model="m", stream=True)).encode()
    try:
        with connect(stage.proxy.address) as conn:
            head = f"Host: share-100.test\r\nContent-Length: {len(body)}\r\n\r\n"
            conn.sendall(
                f"POST http://share-100.test/v1/chat/completions HTTP/1.1\r\n{head}".encode() + body
            )
            read_until(conn, b"data: [DONE]\n\n")
        call = eventually(lambda: stage.copy.provider.calls, what="the copy")[0]
        assert is_open(call)
        eventually(lambda: not is_open(call), what="the copy's end")
        assert call.outcome == "complete"
    finally:
        stage.copy.provider.chunk_delay = 0
    (own,), (copy,) = stage.entries()
    assert_entry(own, status=200)
    assert_entry(copy, status=200, finish_reason="stop", usage_source="response")


def test_a_request_is_copied_once_however_often_it_is_tried(
    stage: Stage, client: httpx.Client
) -> None:
    stage.own.provider.replies.extend([BUSY, Reply(drop="before_status")])
    assert said(ask(client, "again.test"))
    (own,), (copy,) = stage.entries()
    assert len(own["attempts"]) == 3
    assert len(copy["attempts"]) == 1
    stage.copy.calls(1)


def test_odd_paths_are_copied_too(stage: Stage) -> None:
    """Bytes that are no ASCII in a request line, as a client in a hurry sends them."""
    path = "/v1/models?q=\u00fc%20"
    with connect(stage.proxy.address) as conn:
        conn.sendall(
            f"GET http://share-100.test{path} HTTP/1.1\r\nHost: share-100.test\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        while conn.recv(65536):
            pass
    (own,), (copy,) = stage.entries()
    stage.own.provider.calls.clear()
    # The provider's server refuses it by itself.
    assert own["status"] == 400
    assert copy["status"] == 200
    assert stage.copy.call().path == "/v1/models?q=%C3%BC%20"


def test_a_chunked_request_is_copied_whole(stage: Stage, client: httpx.Client) -> None:
    content = dump(chat("Hi", model="m")).encode()
    answer = client.post(
        "https://share-100.test/v1/chat/completions",
        content=iter([content[:10], content[10:]]),
    )
    assert said(answer)
    stage.entries()
    assert stage.copy.call().json()["messages"] == stage.own.call().json()["messages"]


# --- with a proxy of their own --------------------------------------------------------------------


def mirrored(own: Far, copy: Far, **spec: object) -> tuple[Json, ...]:
    """Return rules by which all of `both.test` goes to one provider and is copied to the other."""
    return (
        own.manifest(configs=openai_config(apiKey=KEYS["OWN_KEY"])),
        copy.manifest(**{"configs": openai_config(apiKey=KEYS["COPY_KEY"]), **spec}),
        llm_route("both", "both.test", to("own.example", mirror={"providerHost": "copy.example"})),
    )


@pytest.fixture
def own(start_far: StartFar) -> Far:
    return start_far("own", "own.example")


@pytest.fixture
def copy(start_far: StartFar) -> Far:
    return start_far("copy", "copy.example")


def ask_plainly(proxy: Proxy) -> None:
    with proxy.client() as client:
        assert said(client.post("http://both.test/v1/chat/completions", json=chat(model="m")))


@pytest.mark.parametrize(
    ("limit", "reply", "wanted"),
    [
        ("firstByte", Reply(body=b"{}", delay=DEADLINE), {"status": None, "flags": ["UT"]}),
        (
            "idle",
            Reply(body=[b'{"half', b"}"], chunk_delay=DEADLINE),
            {"status": 200, "flags": ["SI"]},
        ),
    ],
)
def test_a_copy_has_its_providers_time_limits(
    *,
    start_proxy: StartProxy,
    own: Far,
    copy: Far,
    tmp_path: Path,
    limit: str,
    reply: Reply,
    wanted: Json,
) -> None:
    copy.provider.replies.append(reply)
    proxy = start_proxy(
        write_rules(tmp_path / "rules", *mirrored(own, copy, timeouts={limit: "100ms"}))
    )
    ask_plainly(proxy)
    entries = proxy.logged(2)
    assert_entry(next(entry for entry in entries if "mirror" in entry), **wanted)


def test_a_copy_trusts_the_ca_file_as_it_is_now(
    start_proxy: StartProxy, own: Far, copy: Far, authority: Authority, tmp_path: Path
) -> None:
    pinned, stranger = tmp_path / "pinned.pem", tmp_path / "stranger"
    stranger.mkdir()
    trusted, other = authority.certificate, Authority(stranger).certificate
    shutil.copy(trusted, pinned)
    rules = mirrored(own, copy, tls={"caFile": str(pinned)})
    proxy = start_proxy(write_rules(tmp_path / "rules", *rules))
    for file, status in ((trusted, 200), (other, None), (trusted, 200)):
        shutil.copy(file, pinned)
        ask_plainly(proxy)
        copied = next(entry for entry in proxy.logged(2) if "mirror" in entry)
        assert_entry(copied, status=status)
    copy.calls(2)


@pytest.mark.parametrize(
    ("option", "status"),
    [
        ("ssl_verify_upstream_trusted_ca={}", 200),
        ("ssl_insecure=true", 200),
        ("llm_observe=false", None),
    ],
)
def test_a_copy_trusts_whom_mitmproxy_trusts(
    *,
    start_proxy: StartProxy,
    own: Far,
    copy: Far,
    authority: Authority,
    tmp_path: Path,
    option: str,
    status: int | None,
) -> None:
    rules = mirrored(own, copy, tls=None)
    given = option.format(authority.certificate)
    proxy = start_proxy(write_rules(tmp_path / "rules", *rules), "--set", given)
    ask_plainly(proxy)
    assert_entry(next(e for e in proxy.logged(2) if "mirror" in e), status=status)


def test_nothing_is_copied_past_an_upstream_proxy(
    start_proxy: StartProxy, own: Far, copy: Far, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    company = start_proxy(tmp_path / "none")
    rules = write_rules(tmp_path / "rules", *mirrored(own, copy))
    proxy = start_proxy(rules, mode=f"upstream:{company.url}")
    proxy.says("nothing is mirrored")
    for _ in range(2):
        ask_plainly(proxy)
    own.calls(2)
    copy.calls(0)
    assert all("mirror" not in entry for entry in proxy.logged(2))
    proxy.says("mirrored requests are dropped: they would have to go by the upstream proxy")


def test_a_websocket_is_not_copied(
    start_proxy: StartProxy, own: Far, copy: Far, tmp_path: Path
) -> None:
    """What follows its handshake is no HTTP, which a copy could not follow."""

    def echo(conn: ServerConnection) -> None:
        for message in conn:
            conn.send(message)

    with ws_serve(echo, LOOPBACK, 0) as far:
        thread = threading.Thread(target=far.serve_forever, daemon=True)
        thread.start()
        address = f"{LOOPBACK}:{far.socket.getsockname()[1]}"
        own_rules, *others = mirrored(own, copy)
        own_rules["spec"].update(scheme="http", address=address, tls=None)
        proxy = start_proxy(write_rules(tmp_path / "rules", own_rules, *others))
        url = "ws://both.test/v1/realtime?model=m"
        with ws_connect(url, proxy=proxy.url, open_timeout=DEADLINE) as conn:
            for message in ("hello", "again"):
                conn.send(message)
                assert conn.recv(DEADLINE) == message
        far.shutdown()
        thread.join(DEADLINE)
    assert_entry(proxy.entry(), status=101)
    copy.calls(0)
