"""Providers that fail before their answer has begun: the client never learns of it.

Each row of the table is a provider of its own. Where a healthy provider stands behind it the
client gets that one's answer, whole and with nothing of the failed one in it; where none does, it
gets the provider's own answer, or an error that tells no hosts and no keys.
"""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer
from tests.e2e.faults import (
    CHUNKED,
    COOKIE,
    FAILED_MODEL,
    MARK,
    ROLE,
    SSE_ERROR,
    BlackHole,
    FailingProvider,
    FailingServer,
    Fault,
    answer,
    chunk,
    head,
    reset,
    sending,
    until_client_leaves,
)
from tests.e2e.harness import (
    LOOPBACK,
    Far,
    Json,
    Proxy,
    assert_entry,
    chat,
    llm_provider,
    llm_route,
    openai_config,
    said,
    server_context,
    sse,
    write_rules,
)

pytestmark = pytest.mark.e2e

KEYS = {"GOOD_KEY": "sk-good-5f0e11", "FAILED_KEY": "sk-failed-77ad02"}
CLIENT_KEY = "sk-client-c31a9d"
LIMIT = "300ms"
STALLED_SECONDS = 0.3


@dataclass(frozen=True)
class Row:
    """A fault, and what comes of it.

    Attributes:
        attempt: status and error of the failed attempt in the log; the error is a pattern.
        alone: status and error code for the client when there is no other provider; a code of
            None: the provider's own answer.
        flag: the log's flag then: it is cut, but with `UE`.
        spec: the provider's manifest, where it is not the usual one.
        plain, streamed: for which requests this is a failure before the answer.
    """

    fault: Fault | None
    attempt: tuple[int | None, str]
    alone: tuple[int, str | None]
    flag: str = ""
    spec: Json | None = None
    plain: bool = True
    streamed: bool = True
    calls: int = 1


def own(status: int) -> dict[str, Any]:
    return {"attempt": (status, f"status {status}"), "alone": (status, None)}


def no_http(what: str = "upstream_reset", flag: str = "UC") -> dict[str, Any]:
    return {"attempt": (None, what), "alone": (502, what), "flag": flag}


SLOW: Json = {"timeouts": {"firstByte": LIMIT, "idle": LIMIT}}
TIMED_OUT: dict[str, Any] = {
    "attempt": (None, "no first byte in time"),
    "alone": (504, "upstream_timeout"),
    "flag": "UT",
    "spec": SLOW,
}
OPENED: dict[str, Any] = {
    "attempt": (200, "upstream_reset"),
    "alone": (200, None),
    "flag": "UC",
    "plain": False,
}
UNREACHED: dict[str, Any] = {"alone": (502, "upstream_failure"), "flag": "UF", "calls": 0}
UNENDING = sending(
    b"HTTP/1.1 503 Oh\r\n" + COOKIE.encode() + b"Content-Length: 999\r\n\r\n" + MARK.encode(),
    then=until_client_leaves,
)

ROWS = {
    "refused": Row(None, attempt=(None, ".*(refused|connect).*"), **UNREACHED),
    "black-hole": Row(
        None,
        attempt=(None, ".+"),
        alone=(504, "connect_timeout"),
        flag="UF",
        spec={"timeouts": {"connect": LIMIT}},
        calls=0,
    ),
    "untrusted": Row(None, attempt=(None, ".*certificate.*"), **UNREACHED),
    "reset": Row(reset, **no_http()),
    "closed": Row(sending(), **no_http()),
    "half-a-head": Row(
        sending(b"HTTP/1.1 200 OK\r\nContent-Ty"), **no_http("upstream_protocol_error", "UPE")
    ),
    "garbage": Row(
        sending(b"\x00\xffnoise " + MARK.encode() + b"\r\n\r\n"),
        **no_http("upstream_protocol_error", "UPE"),
    ),
    "another-protocol": Row(
        sending(b"SSH-2.0-" + MARK.encode() + b"\r\n\r\n"),
        **no_http("upstream_protocol_error", "UPE"),
    ),
    "two-lengths": Row(
        sending(
            b"HTTP/1.1 200 OK\r\n"
            + COOKIE.encode()
            + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        **{
            **no_http("upstream_protocol_error", "UPE"),
            "attempt": (200, "upstream_protocol_error"),
        },
    ),
    "408": Row(sending(answer("408 Request Timeout")), **own(408)),
    "429": Row(sending(answer("429 Too Many Requests")), **own(429)),
    "429-now": Row(sending(answer("429 Too Many Requests", "Retry-After: 0")), **own(429)),
    "429-soon": Row(sending(answer("429 Too Many Requests", "Retry-After: 1")), **own(429)),
    "429-late": Row(sending(answer("429 Too Many Requests", "Retry-After: 3600")), **own(429)),
    "500": Row(sending(answer("500 Internal Server Error")), **own(500)),
    "502": Row(sending(answer("502 Bad Gateway")), **own(502)),
    "503": Row(sending(answer("503 Service Unavailable")), **own(503)),
    "504": Row(sending(answer("504 Gateway Timeout")), **own(504)),
    "529": Row(sending(answer("529 Overloaded")), **own(529)),
    "500-cut-short": Row(
        sending(b"HTTP/1.1 500 Oh\r\nContent-Length: 99\r\n\r\n" + MARK.encode()),
        attempt=(500, "status 500"),
        alone=(500, None),
        flag="UC",
    ),
    "503-that-never-ends": Row(
        UNENDING, attempt=(503, "no first byte in time"), alone=(503, None), flag="SI", spec=SLOW
    ),
    "no-head": Row(until_client_leaves, **TIMED_OUT),
    "head-only": Row(
        sending(head(framing=CHUNKED), then=until_client_leaves),
        **{**TIMED_OUT, "attempt": (200, "no first byte in time")},
        plain=False,
    ),
    "comments-only": Row(
        sending(head(framing=CHUNKED), chunk(b": wait\n\n") * 3, then=until_client_leaves),
        **{**TIMED_OUT, "attempt": (200, "no first byte in time")},
        plain=False,
    ),
    "role-then-reset": Row(sending(head(framing=CHUNKED), chunk(ROLE), then=reset), **OPENED),
    "role-then-closed": Row(sending(head(framing=CHUNKED), chunk(ROLE)), **OPENED),
    "error-event": Row(
        sending(head(), SSE_ERROR),
        attempt=(200, "stream opened with an error"),
        alone=(200, None),
        flag="UE",
        plain=False,
    ),
    "role-then-error": Row(
        sending(head(framing=CHUNKED), chunk(ROLE), chunk(SSE_ERROR), chunk(b"")),
        attempt=(200, "stream opened with an error"),
        alone=(200, None),
        flag="UE",
        plain=False,
    ),
}

BOTH = [
    pytest.param(name, streamed, id=f"{name}-{'streamed' if streamed else 'plain'}")
    for name, row in ROWS.items()
    for streamed in (False, True)
    if (row.streamed if streamed else row.plain)
]


class Stage:
    """One proxy, one healthy provider, and for each row a failing one with two routes."""

    def __init__(self, proxy: Proxy, good: Far, failing: dict[str, FailingProvider]) -> None:
        self.proxy = proxy
        self.good = good
        self.failing = failing


def no_ejection(**more: Any) -> Json:
    """What a Retry-After sets aside is back at once."""
    detection = {"consecutiveFailures": 100_000, "baseEjection": "1ms", "maxEjection": "1ms"}
    return {"outlierDetection": detection, **more}


def failing_config() -> Json:
    return openai_config(
        model=FAILED_MODEL, apiKey="${FAILED_KEY}", headers={"x-for-the-failed": MARK}
    )


@pytest.fixture(scope="module")
def stage(
    confdir: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    stranger = Authority(tmp_path_factory.mktemp("stranger"))
    with ExitStack() as stack:
        provider = Provider("good", "good.example", key=KEYS["GOOD_KEY"], chunk_delay=0)
        tls = authority.issue("good.example")
        server = stack.enter_context(ThreadedServer([provider], tls=tls))
        good = Far(provider, server, authority, "GOOD_KEY")
        context = server_context(authority, "*.fault.example")
        distrusted = server_context(stranger, "*.fault.example")
        failing: dict[str, FailingProvider] = {}
        resources = [
            good.manifest(
                configs=openai_config(model="good-model", apiKey="${GOOD_KEY}"),
                **no_ejection(),
            )
        ]
        for name, row in ROWS.items():
            far = failing[name] = FailingProvider(row.fault or sending())
            tls_for = distrusted if name == "untrusted" else context
            match name:
                case "refused":
                    # Bound, so that no other server gets the port, but not listening.
                    bound = stack.enter_context(socket.socket())
                    bound.bind((LOOPBACK, 0))
                    address = f"{LOOPBACK}:{bound.getsockname()[1]}"
                case "black-hole":
                    address = stack.enter_context(BlackHole()).address
                case _:
                    listening = FailingServer(far.serve, tls=tls_for)
                    address = stack.enter_context(listening).address
            for kind, others in (("backed", ["good.example"]), ("alone", [])):
                host = f"{kind}-{name}.fault.example"
                spec = {
                    "path": "/v1/chat/completions",
                    "address": address,
                    "tls": {"caFile": str(authority.certificate)},
                    "configs": failing_config(),
                    **no_ejection(**(row.spec or {})),
                }
                refs = [
                    {"providerHost": each, "priority": priority}
                    for priority, each in enumerate([host, *others])
                ]
                resources += [
                    llm_provider(f"{kind}-{name}", host, **spec),
                    llm_route(f"{kind}-{name}", f"{kind}-{name}.test", {"backendRefs": refs}),
                ]
        rules = write_rules(tmp_path_factory.mktemp("faults"), *resources)
        with Proxy(confdir, rules, env=KEYS) as proxy:
            yield Stage(proxy, good, failing)


@pytest.fixture
def fresh(stage: Stage) -> Iterator[Stage]:
    stage.proxy.forget()
    stage.good.provider.calls.clear()
    for far in stage.failing.values():
        far.requests.clear()
    yield stage
    stage.proxy.assert_no_more_entries()


@pytest.fixture(params=[False, True], ids=["http1", "http2"])
def client(request: pytest.FixtureRequest, fresh: Stage) -> Iterator[httpx.Client]:
    with fresh.proxy.client(http2=request.param) as opened:
        yield opened


def ask(client: httpx.Client, host: str, *, streamed: bool) -> httpx.Response:
    headers = {"authorization": f"Bearer {CLIENT_KEY}", "cookie": "own=client"}
    body = chat("Is anyone there?", model="client-model", **({"stream": True} if streamed else {}))
    return client.post(f"https://{host}/v1/chat/completions", json=body, headers=headers)


def assert_nothing_leaked(text: str) -> None:
    for secret in (MARK, FAILED_MODEL, *KEYS.values(), CLIENT_KEY, "fault.example", LOOPBACK):
        assert secret not in text, f"{secret} in {text}"


def everything(answered: httpx.Response) -> str:
    return f"{answered.headers.multi_items()}\n{answered.text}"


@pytest.mark.parametrize(("name", "streamed"), BOTH)
def test_a_failure_before_the_answer_is_the_next_providers_answer(
    fresh: Stage, client: httpx.Client, name: str, streamed: bool
) -> None:
    row, failing = ROWS[name], fresh.failing[name]

    answered = ask(client, f"backed-{name}.test", streamed=streamed)

    assert answered.status_code == 200, answered.text
    if streamed:
        deltas = [event["choices"][0]["delta"] for event in sse(answered.content)]
        text = "".join(delta.get("content") or "" for delta in deltas)
    else:
        text = said(answered)
    assert text == "This is good with good-model. You said: Is anyone there?"
    assert_nothing_leaked(everything(answered))
    assert "set-cookie" not in answered.headers

    call = fresh.good.call()
    assert call.json()["model"] == "good-model"
    assert call.header("authorization") == f"Bearer {KEYS['GOOD_KEY']}"
    assert call.header("host") == "good.example"
    assert_nothing_leaked(str(call.headers).replace(KEYS["GOOD_KEY"], "") + call.body.decode())

    assert len(failing.requests) == row.calls
    for sent_head, sent_body in failing.requests:
        assert f"Bearer {KEYS['FAILED_KEY']}" in sent_head
        assert CLIENT_KEY not in sent_head
        assert KEYS["GOOD_KEY"] not in sent_head
        assert json.loads(sent_body)["model"] == FAILED_MODEL

    entry = fresh.proxy.entry()
    assert_entry(
        entry,
        status=200,
        flags=[],
        error=None,
        provider="good",
        provider_host="good.example",
        request_model="good-model",
        response_model="good-model",
        usage_source="response",
        finish_reason="stop",
        stream=streamed,
        request_prompt_tokens=3,
    )
    assert entry["response_bytes"] == len(answered.content)
    failed, succeeded = entry["attempts"]
    assert_entry(succeeded, provider="good", status=200, error=None)
    status, error = row.attempt
    assert_entry(failed, provider=f"backed-{name}", status=status)
    assert re.fullmatch(error, failed["error"], re.IGNORECASE | re.DOTALL), failed


@pytest.mark.parametrize(("name", "streamed"), BOTH)
def test_a_failure_with_no_one_behind_it_is_told_to_the_client(
    fresh: Stage, client: httpx.Client, name: str, streamed: bool
) -> None:
    row, failing = ROWS[name], fresh.failing[name]
    status, code = row.alone
    if code is None and row.flag not in {"", "UE"}:
        # It has begun by then: the last attempt's answer is passed on as it comes.
        with pytest.raises(httpx.RemoteProtocolError):
            ask(client, f"alone-{name}.test", streamed=streamed)
    else:
        answered = ask(client, f"alone-{name}.test", streamed=streamed)
        assert answered.status_code == status, answered.text
        assert answered.headers.get("x-pointsman-error") == code
        if code is None:
            assert MARK in answered.text
            assert answered.headers["set-cookie"] == f"session={MARK}; Path=/"
        else:
            assert_nothing_leaked(everything(answered))
            assert answered.json()["error"]["code"] == code
    assert len(failing.requests) == row.calls
    fresh.good.calls(0)
    entry = fresh.proxy.entry()
    assert_entry(entry, status=status, flags=[row.flag] if row.flag else [])
    assert len(entry["attempts"]) == 1
