"""Answers that break off once they have begun, and connections that do not last."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.openai_answers import Answer, dump
from pointsman.demo.openai_answers import chat as chat_completion
from pointsman.demo.provider import Call, Provider, Reply
from pointsman.demo.server import ThreadedServer
from tests.e2e.faults import (
    CHUNKED,
    ROLE,
    SSE_ERROR,
    WORD,
    FailingProvider,
    FailingServer,
    Fault,
    chunk,
    head,
    reset,
    sending,
    until_client_leaves,
)
from tests.e2e.harness import (
    DEADLINE,
    Far,
    Json,
    Proxy,
    assert_entry,
    chat,
    eventually,
    llm_provider,
    llm_route,
    openai_config,
    read_exactly,
    read_head,
    said,
    server_context,
    to,
    write_rules,
)

pytestmark = pytest.mark.e2e

KEYS = {"GOOD_KEY": "sk-good-5f0e11"}
CUT_JSON = head(content_type="application/json", framing="Content-Length: 500") + b'{"choices": ['
IDLE: Json = {"timeouts": {"idle": "300ms"}}
PATIENT: Json = {
    "outlierDetection": {
        "consecutiveFailures": 100_000,
        "baseEjection": "1ms",
        "maxEjection": "1ms",
    }
}
HTML = b"<html><body>Just a moment...</body></html>"
FAULTS: dict[str, Fault] = {
    "reset": sending(head(framing=CHUNKED), chunk(ROLE), chunk(WORD), then=reset),
    "closed": sending(head(framing=CHUNKED), chunk(ROLE), chunk(WORD)),
    "idle": sending(head(framing=CHUNKED), chunk(ROLE), chunk(WORD), then=until_client_leaves),
    "error": sending(head(), ROLE, WORD, SSE_ERROR),
    "cut-json": sending(CUT_JSON),
    "reset-json": sending(CUT_JSON, then=reset),
    "idle-json": sending(CUT_JSON, then=until_client_leaves),
    "html": sending(head(), HTML),
    "bad-chunk": sending(head(framing=CHUNKED), chunk(ROLE), chunk(WORD), b"ZZ\r\nnoise"),
}


class KeepAlive:
    """A provider that says keep-alive and then hangs up, after each answer."""

    def __init__(self, *, after: str) -> None:
        self.after = after  # "answer": at once; "request": when the next one is there
        self.answered = 0
        self.dropped = 0

    def serve(self, conn: socket.socket) -> None:
        body = dump(chat_completion(Answer("x", 1, "m", "Kept", 1))).encode()
        fields = b"Content-Type: application/json\r\nConnection: keep-alive\r\n"
        self._read(conn)
        self.answered += 1
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        conn.sendall(b"HTTP/1.1 200 OK\r\n" + fields + length + body)
        if self.after == "request" and self._read(conn):
            self.dropped += 1

    def _read(self, conn: socket.socket) -> bool:
        try:
            found = read_head(conn)
        except (AssertionError, OSError):
            return False
        lines = found.lower().split(b"\r\n")
        length = next((line for line in lines if line.startswith(b"content-length:")), b":0")
        read_exactly(conn, int(length.partition(b":")[2]))
        return True


class Stage:
    def __init__(
        self,
        proxy: Proxy,
        good: Far,
        flaky: Far,
        failing: dict[str, FailingProvider],
        keeping: dict[str, KeepAlive],
    ) -> None:
        self.proxy = proxy
        self.good = good
        self.flaky = flaky
        self.failing = failing
        self.keeping = keeping


@pytest.fixture(scope="module")
def running(
    confdir: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    trust = {"caFile": str(authority.certificate)}
    with ExitStack() as stack:

        def far(name: str) -> Far:
            provider = Provider(name, f"{name}.example", key=KEYS["GOOD_KEY"], chunk_delay=0)
            server = ThreadedServer([provider], tls=authority.issue(f"{name}.example"))
            return Far(provider, stack.enter_context(server), authority, "GOOD_KEY")

        good, flaky = far("good"), far("flaky")
        configs = openai_config(apiKey="${GOOD_KEY}")
        resources = [each.manifest(configs=configs, **PATIENT) for each in (good, flaky)]
        context = server_context(authority, "*.fault.example")
        failing = {name: FailingProvider(fault) for name, fault in FAULTS.items()}
        keeping = {after: KeepAlive(after=after) for after in ("answer", "request")}
        ends: dict[str, FailingProvider | KeepAlive] = {
            **failing,
            **{f"keep-{after}": each for after, each in keeping.items()},
        }
        for name, end in ends.items():
            server = stack.enter_context(FailingServer(end.serve, tls=context))
            host = f"{name}.fault.example"
            spec = {**PATIENT, **(IDLE if name.startswith("idle") else {})}
            resources += [
                llm_provider(
                    name,
                    host,
                    path="/v1/chat/completions",
                    address=server.address,
                    tls=trust,
                    configs=configs,
                    **spec,
                ),
                llm_route(
                    name,
                    f"{name}.test",
                    {
                        "backendRefs": [
                            {"providerHost": host},
                            {"providerHost": "good.example", "priority": 1},
                        ]
                    },
                ),
                llm_route(f"{name}-alone", f"{name}-alone.test", to(host)),
            ]
        resources.append(
            llm_route(
                "many",
                "many.test",
                {
                    "backendRefs": [
                        {"providerHost": "flaky.example"},
                        {"providerHost": "good.example", "priority": 1},
                    ]
                },
            )
        )
        rules = write_rules(tmp_path_factory.mktemp("streams"), *resources)
        with Proxy(confdir, rules, env=KEYS) as proxy:
            yield Stage(proxy, good, flaky, failing, keeping)


@pytest.fixture
def stage(running: Stage) -> Iterator[Stage]:
    running.proxy.forget()
    for far in (running.good, running.flaky):
        far.provider.calls.clear()
        far.provider.script = None
    for each in running.failing.values():
        each.requests.clear()
        each.left.clear()
    yield running
    running.proxy.assert_no_more_entries()


@pytest.fixture(params=[False, True], ids=["http1", "http2"])
def client(request: pytest.FixtureRequest, stage: Stage) -> Iterator[httpx.Client]:
    with stage.proxy.client(http2=request.param) as opened:
        yield opened


def collect(client: httpx.Client, host: str, *, stream: bool) -> tuple[int, bytes, bool]:
    """Return the status, what came of the body, and whether it ended as it should."""
    body = chat("Hi", model="m", **({"stream": True} if stream else {}))
    got = bytearray()
    with client.stream("POST", f"https://{host}/v1/chat/completions", json=body) as answer:
        try:
            for piece in answer.iter_raw():
                got += piece
        except httpx.RemoteProtocolError:
            return answer.status_code, bytes(got), False
        return answer.status_code, bytes(got), True


@pytest.mark.parametrize("name", ["reset", "closed", "bad-chunk"])
def test_a_stream_that_breaks_off_is_broken_off(
    stage: Stage, client: httpx.Client, name: str
) -> None:
    status, got, whole = collect(client, f"{name}.test", stream=True)
    assert status == 200
    assert not whole
    assert got in {ROLE + WORD, ROLE}
    stage.good.calls(0)
    assert len(stage.failing[name].requests) == 1
    entry = stage.proxy.entry()
    flag = "UPE" if name == "bad-chunk" else "UC"
    assert_entry(entry, status=200, flags=[flag])
    assert entry["error"]
    (attempt,) = entry["attempts"]
    assert attempt["status"] == 200
    assert attempt["error"]


def test_a_stream_that_stops_ends_with_an_error_event(stage: Stage, client: httpx.Client) -> None:
    status, got, whole = collect(client, "idle.test", stream=True)
    assert (status, whole) == (200, True)
    assert got.startswith(ROLE + WORD)
    (event,) = [part for part in got.removeprefix(ROLE + WORD).split(b"\n\n") if part]
    error = json.loads(event.removeprefix(b"data: "))["error"]
    assert error["code"] == "idle_timeout"
    assert "fault.example" not in str(error)
    stage.good.calls(0)
    eventually(lambda: stage.failing["idle"].left, what="the provider is told")
    entry = stage.proxy.entry()
    assert_entry(entry, status=200, flags=["SI"], error="idle_timeout")
    (attempt,) = entry["attempts"]
    assert attempt["error"]
    # The connection goes on.
    assert collect(client, "good.example", stream=True)[2]
    stage.good.calls(1)
    stage.proxy.entry()


def test_a_later_error_event_is_the_clients(stage: Stage, client: httpx.Client) -> None:
    assert collect(client, "error.test", stream=True) == (200, ROLE + WORD + SSE_ERROR, True)
    stage.good.calls(0)
    entry = stage.proxy.entry()
    assert_entry(entry, status=200, flags=["UE"], error="error in the answer")
    assert [attempt["error"] for attempt in entry["attempts"]] == ["error in the answer"]


@pytest.mark.parametrize("name", ["cut-json", "reset-json", "idle-json"])
def test_half_a_document_never_looks_whole(stage: Stage, client: httpx.Client, name: str) -> None:
    status, got, whole = collect(client, f"{name}.test", stream=False)
    assert status == 200
    assert not whole
    assert b'{"choices": ['.startswith(got)
    stage.good.calls(0)
    assert_entry(stage.proxy.entry(), flags=["SI" if name == "idle-json" else "UC"])


def test_what_is_no_event_stream_passes_as_it_came(stage: Stage, client: httpx.Client) -> None:
    """It says that it is one, and ends as it should: there is no telling that it is not."""
    assert collect(client, "html-alone.test", stream=True) == (200, HTML, True)
    stage.good.calls(0)
    entry = stage.proxy.entry()
    assert_entry(entry, status=200, flags=[], request_prompt_tokens=None, usage_source=None)


@pytest.mark.parametrize(
    "host", ["keep-answer.test", "keep-answer-alone.test", "keep-request.test"]
)
def test_a_connection_that_is_not_kept_costs_no_request(
    stage: Stage, client: httpx.Client, host: str
) -> None:
    """It hangs up after its answer, or only when the next request is on its way."""
    for _ in range(20):
        answer = client.post(f"https://{host}/v1/chat/completions", json=chat(model="m"))
        assert answer.status_code == 200, answer.text
    entries = stage.proxy.logged(20)
    assert all(entry["flags"] == [] for entry in entries)


def test_a_stale_connection_costs_no_request_where_no_one_else_could_take_it(stage: Stage) -> None:
    with stage.proxy.client() as client:
        answers = [
            client.post("http://keep-request-alone.test/", json=chat(model="m")) for _ in range(3)
        ]
    stage.proxy.logged(3)
    assert [answer.status_code for answer in answers] == [200, 200, 200]


@pytest.mark.parametrize("cut", ["status", "reset"])
def test_ten_requests_of_one_connection_fail_apart(stage: Stage, cut: str) -> None:
    """Some of ten fail over; the others, on the same connection, are not disturbed."""

    def script(call: Call) -> Reply | None:
        number = int(call.json()["messages"][0]["content"])
        if cut == "reset":
            # The whole connection of the ten breaks.
            return Reply(drop="before_status", delay=0.1) if number == 7 else Reply(delay=DEADLINE)
        if number % 3:
            return None
        return Reply.json({"error": {"message": "busy"}}, 503, [("x-flaky", "yes")])

    async def one(client: httpx.AsyncClient, number: int) -> httpx.Response:
        stream: Json = {"stream": True} if number % 2 else {}
        body = chat(str(number), model="m", **stream)
        return await client.post("https://many.test/v1/chat/completions", json=body)

    async def run() -> list[httpx.Response]:
        async with stage.proxy.async_client(http2=True) as client:
            await one(client, 0)  # from here on it knows that it can share the connection
            stage.flaky.call()
            stage.flaky.provider.script = script
            return await asyncio.gather(*(one(client, number) for number in range(10)))

    answers = asyncio.run(run())
    failed = {0, 3, 6, 9} if cut == "status" else set(range(10))
    for number, answer in enumerate(answers):
        assert answer.http_version == "HTTP/2"
        assert answer.status_code == 200
        assert "x-flaky" not in answer.headers
        who = "good" if number in failed else "flaky"
        last = f"said: {number}"
        if number % 2:
            assert answer.content.rstrip().endswith(b"data: [DONE]")
            words = [
                json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                for line in answer.text.splitlines()
                if line.startswith("data: {")
            ]
            assert "".join(words) == f"This is {who} with m. You {last}"
        else:
            assert said(answer) == f"This is {who} with m. You {last}"
    calls = stage.flaky.calls(10)
    assert {call.http_version for call in calls} == {"2"}
    stage.good.calls(len(failed))
    _, *entries = stage.proxy.logged(11)
    assert len({entry["client"] for entry in entries}) == 1
    assert sorted(len(entry["attempts"]) for entry in entries) == sorted(
        2 if number in failed else 1 for number in range(10)
    )


def test_a_short_wait_between_requests_is_safe(stage: Stage) -> None:
    """Around the moment at which the provider's hanging up arrives."""
    with stage.proxy.client() as client:
        for number in range(40):
            answer = client.post("http://keep-answer-alone.test/", json=chat(model="m"))
            assert answer.status_code == 200, answer.text
            time.sleep(number % 8 / 2000)
    stage.proxy.logged(40)
