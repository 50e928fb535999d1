"""Clients that go away while providers fail and others might be tried: nothing more is sent."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.openai_answers import dump
from pointsman.demo.provider import Provider, Reply
from pointsman.demo.server import ThreadedServer
from tests.e2e.faults import WORD, BlackHole
from tests.e2e.harness import (
    DEADLINE,
    Far,
    Json,
    Proxy,
    assert_entry,
    chat,
    connect,
    eventually,
    llm_provider,
    llm_route,
    openai_config,
    read_until,
    trusting,
    write_rules,
)
from tests.e2e.http2 import Http2Client

pytestmark = pytest.mark.e2e

KEYS = {"KEY": "sk-c-11d0a7"}
BODY = dump(chat(model="m", stream=True)).encode()
CONNECT = 0.6
BACKOFF = 1.0
SOON = 0.4  # in less than this, a provider learns that its client has gone
HOLD = Reply(delay=DEADLINE)
BUSY = Reply.json({"error": {"message": "busy"}}, 503)
ENDLESS = [("content-type", "text/event-stream")]

type Leave = Callable[[], None]


class Stage:
    def __init__(self, proxy: Proxy, first: Far, second: Far, hole: BlackHole) -> None:
        self.proxy = proxy
        self.first = first
        self.second = second
        self.hole = hole


@pytest.fixture(scope="module")
def running(
    confdir: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    with ExitStack() as stack:

        def far(name: str) -> Far:
            provider = Provider(name, f"{name}.example", key=KEYS["KEY"], chunk_delay=0)
            server = ThreadedServer([provider], tls=authority.issue(f"{name}.example"))
            return Far(provider, stack.enter_context(server), authority, "KEY")

        first, second = far("first"), far("second")
        hole = stack.enter_context(BlackHole())
        configs = openai_config(apiKey="${KEY}")
        patient = {"consecutiveFailures": 100_000}

        def refs(*names: str) -> list[Json]:
            return [
                {"providerHost": f"{name}.example", "priority": priority}
                for priority, name in enumerate(names)
            ]

        slow_backoff = {"attempts": 3, "backoff": f"{BACKOFF}s"}
        rules = write_rules(
            tmp_path_factory.mktemp("clients"),
            *(each.manifest(configs=configs, outlierDetection=patient) for each in (first, second)),
            llm_provider(
                "hole",
                "hole.example",
                address=hole.address,
                configs=configs,
                timeouts={"connect": f"{CONNECT}s"},
                outlierDetection=patient,
            ),
            llm_route("hole", "hole.test", {"backendRefs": refs("hole", "second")}),
            llm_route("two", "two.test", {"backendRefs": refs("first", "second")}),
            llm_route("again", "again.test", {"backendRefs": refs("first"), "retry": slow_backoff}),
        )
        with Proxy(confdir, rules, env=KEYS) as proxy:
            yield Stage(proxy, first, second, hole)


@pytest.fixture
def stage(running: Stage) -> Iterator[Stage]:
    running.proxy.forget()
    for far in (running.first, running.second):
        far.provider.calls.clear()
        far.provider.replies.clear()
    running.hole.closed.clear()
    yield running
    running.proxy.assert_no_more_entries()


class Client:
    """A client of one kind with one request under way."""

    def __init__(self, proxy: Proxy, host: str, kind: str, stack: ExitStack) -> None:
        self._kind = kind
        if kind == "plain":
            self._conn = stack.enter_context(connect(proxy.address))
            self._conn.sendall(self._head(f"http://{host}", host) + BODY)
            return
        plain = stack.enter_context(proxy.tunnel(host, 443))
        trust = trusting(proxy.certificate)
        trust.set_alpn_protocols(["h2"] if kind.startswith("http2") else ["http/1.1"])
        self._conn = stack.enter_context(trust.wrap_socket(plain, server_hostname=host))
        if kind.startswith("http2"):
            self._h2 = Http2Client(self._conn, host)
            self._stream = self._h2.post(BODY)
        else:
            self._conn.sendall(self._head("", host) + BODY)

    @staticmethod
    def _head(base: str, host: str) -> bytes:
        fields = f"Host: {host}\r\nContent-Length: {len(BODY)}\r\n\r\n"
        return f"POST {base}/v1/chat/completions HTTP/1.1\r\n{fields}".encode()

    def read_until(self, wanted: bytes) -> None:
        if self._kind.startswith("http2"):
            self._h2.read_until(self._stream, wanted)
        else:
            read_until(self._conn, wanted)

    def leave(self) -> None:
        if self._kind == "http2-reset":
            self._h2.reset(self._stream)
        else:
            self._conn.close()

    def assert_still_served(self, stage: "Stage") -> None:
        """After a reset of one stream, the connection goes on."""
        if self._kind == "http2-reset":
            self._h2.read_until(self._h2.post(BODY), b"data: [DONE]")
            assert_entry(stage.proxy.entry(), status=200, flags=[])


@pytest.fixture(params=["plain", "https", "http2-close", "http2-reset"])
def client(request: pytest.FixtureRequest, stage: Stage) -> Iterator[Callable[[str], Client]]:
    with ExitStack() as stack:
        yield lambda host: Client(stage.proxy, host, request.param, stack)


def assert_gone(stage: Stage, *attempts: str, status: int | None = None) -> None:
    entry = stage.proxy.entry()
    assert_entry(entry, flags=["DC"], status=status, error="client disconnected")
    found = [f"{a['provider']} {a['status'] or a['error']}" for a in entry["attempts"]]
    assert found == list(attempts)


def assert_told(far: Far, call: int = -1) -> None:
    called = eventually(lambda: far.provider.calls, what="the call")[call]
    eventually(lambda: called.outcome == "disconnected", what="the provider is told", within=SOON)


def test_while_it_connects(stage: Stage, client: Callable[[str], Client]) -> None:
    accepted = stage.hole.accepted
    leaving = client("hole.test")
    eventually(lambda: stage.hole.accepted > accepted, what="a connection")
    leaving.leave()
    assert stage.hole.closed.wait(CONNECT * 2)
    assert_gone(stage, "hole client disconnected")
    time.sleep(0.1)
    stage.second.calls(0)


def test_before_the_headers_of_the_second_provider(
    stage: Stage, client: Callable[[str], Client]
) -> None:
    stage.first.provider.replies.append(BUSY)
    stage.second.provider.replies.append(HOLD)
    leaving = client("two.test")
    eventually(lambda: stage.second.provider.calls, what="the second call")
    leaving.leave()
    assert_told(stage.second)
    assert_gone(stage, "first 503", "second client disconnected")
    leaving.assert_still_served(stage)


def test_during_the_backoff(stage: Stage, client: Callable[[str], Client]) -> None:
    stage.first.provider.replies.append(BUSY)
    leaving = client("again.test")
    call = eventually(lambda: stage.first.provider.calls, what="the call")[0]
    eventually(lambda: call.outcome == "complete", what="the refusal")
    time.sleep(0.1)
    leaving.leave()
    left = time.monotonic()
    assert_gone(stage, "first 503")
    assert time.monotonic() - left < SOON
    stage.first.calls(1)
    leaving.assert_still_served(stage)
    stage.first.provider.calls.clear()
    time.sleep(BACKOFF + 0.1)
    stage.first.calls(0)


def test_in_the_middle_of_the_second_providers_stream(
    stage: Stage, client: Callable[[str], Client]
) -> None:
    stage.first.provider.replies.append(Reply(drop="before_status"))
    pieces = (WORD for _ in range(2000))
    stage.second.provider.replies.append(Reply(headers=ENDLESS, body=pieces, chunk_delay=0.01))
    leaving = client("two.test")
    leaving.read_until(WORD)
    leaving.leave()
    assert_told(stage.second)
    entry = stage.proxy.entry()
    assert_entry(entry, flags=["DC"], status=200, provider="second")
    assert [attempt["status"] for attempt in entry["attempts"]] == [None, 200]
    leaving.assert_still_served(stage)


def test_before_the_first_content(stage: Stage, client: Callable[[str], Client]) -> None:
    """The provider has begun its stream, the client has nothing of it yet."""
    empty = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
    pieces = (empty for _ in range(2000))
    stage.first.provider.replies.append(Reply(headers=ENDLESS, body=pieces, chunk_delay=0.01))
    leaving = client("two.test")
    eventually(lambda: stage.first.provider.calls, what="the call")
    time.sleep(0.1)
    leaving.leave()
    assert_told(stage.first)
    entry = stage.proxy.entry()
    assert_entry(entry, flags=["DC"], provider="first")
    stage.second.calls(0)
    leaving.assert_still_served(stage)
