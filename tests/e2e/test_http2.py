"""Providers and clients over HTTP/2 that leave, refuse, limit, and are asked once more."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from h2.errors import ErrorCodes

from pointsman.demo.authority import Authority
from pointsman.demo.openai_answers import dump
from tests.e2e.conftest import StartProxy
from tests.e2e.faults import ROLE, WORD
from tests.e2e.harness import (
    Far,
    Json,
    Proxy,
    RawServer,
    assert_entry,
    chat,
    eventually,
    llm_provider,
    llm_route,
    openai_config,
    server_context,
    to,
    trusting,
    write_rules,
)
from tests.e2e.http2 import Act, Http2Client, Http2Server, Served

pytestmark = pytest.mark.e2e

ANSWER = dump(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
).encode()
FAILURE = b'{"error":{"message":"no"}}'
DONE = b"data: [DONE]\n\n"
URL = "https://api.example/v1/chat/completions"

type Started = tuple[Proxy, httpx.Client]
type StartStage = Callable[..., Started]


@pytest.fixture
def start(start_proxy: StartProxy, authority: Authority, tmp_path: Path) -> Iterator[StartStage]:
    """Start providers `a.example`, `b.example` … and a proxy that routes `api.example` to them."""
    with ExitStack() as stack:

        def begin(*far_ends: Http2Server, before: Json | None = None, **rule: Json) -> Started:
            manifests = []
            for name, far in zip("abc", far_ends, strict=False):
                tls = server_context(authority, f"{name}.example")
                tls.set_alpn_protocols(["h2"])
                manifests.append(
                    llm_provider(
                        name,
                        f"{name}.example",
                        path="/v1/chat/completions",
                        address=stack.enter_context(RawServer(far.serve, tls=tls)).address,
                        tls={"caFile": str(authority.certificate)},
                        configs=openai_config(apiKey="sk-of-the-rules-1f0c"),
                        # Several attempts may go to each.
                        outlierDetection={"consecutiveFailures": 1000},
                    )
                )
            refs = [
                {"providerHost": f"{name}.example", "weight": 1, "priority": n}
                for n, name in enumerate("abc"[: len(far_ends)])
            ]
            rules = [*([before] if before else []), {"name": "r", "backendRefs": refs, **rule}]
            route = llm_route("api", "api.example", *rules)
            proxy = start_proxy(write_rules(tmp_path / "rules", *manifests, route))
            return proxy, stack.enter_context(proxy.client(http2=True))

        yield begin


def saying(status: int, body: bytes) -> Act:
    return lambda served, stream: served.say(stream, status, body)


def streamed(client: httpx.Client) -> bytes:
    with client.stream("POST", URL, json=chat(model="m", stream=True)) as answer:
        return b"".join(answer.iter_raw())


def slowly(served: Served, stream: int, *, midway: Callable[[], None]) -> None:
    """Stream an answer for half a second, and do something in the middle of it."""
    served.begin(stream)
    served.h2.send_data(stream, ROLE + WORD)
    served.later(0.2, midway)
    served.later(0.4, lambda: served.h2.send_data(stream, WORD))
    served.later(0.5, lambda: served.h2.send_data(stream, DONE, end_stream=True))


# --- a provider that leaves -----------------------------------------------------------------------


def test_an_answer_under_way_outlives_that_its_provider_leaves(start: StartStage) -> None:
    far = Http2Server(
        lambda served, stream: slowly(served, stream, midway=lambda: served.leave(stream))
    )
    proxy, client = start(far)
    assert streamed(client).endswith(DONE)
    assert_entry(proxy.entry(), status=200, flags=[], error=None)
    assert streamed(client).endswith(DONE)
    proxy.entry()
    assert far.connections == 2  # the one that is left takes no more


def test_what_a_leaving_provider_has_not_begun_with_is_sent_again(start: StartStage) -> None:
    def leaving(served: Served, stream: int) -> None:
        if served.number == 1 and stream > 1:
            served.leave(1)
        else:
            served.say(stream, 200, ANSWER)

    far = Http2Server(leaving)
    proxy, client = start(far)
    assert [client.post(URL, json=chat(model="m")).status_code for _ in range(2)] == [200, 200]
    first, second = proxy.logged(2)
    assert len(first["attempts"]) == 1
    assert [attempt["error"] for attempt in second["attempts"]] == ["not begun with", None]


def test_a_stream_that_is_refused_is_sent_again_once(start: StartStage) -> None:
    def refusing(served: Served, stream: int) -> None:
        if len(far.begun) in {1, 3, 4}:
            served.h2.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
        else:
            served.say(stream, 200, ANSWER)

    far = Http2Server(refusing)
    proxy, client = start(far)
    assert client.post(URL, json=chat(model="m")).status_code == 200
    assert client.post(URL, json=chat(model="m")).status_code == 502
    assert [len(entry["attempts"]) for entry in proxy.logged(2)] == [2, 2]
    assert len(far.begun) == 4


def test_a_refused_stream_goes_to_the_next_provider_where_there_is_one(start: StartStage) -> None:
    first = Http2Server(
        lambda served, stream: served.h2.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
    )
    second = Http2Server(saying(200, ANSWER))
    proxy, client = start(first, second)
    assert client.post(URL, json=chat(model="m")).status_code == 200
    assert_entry(proxy.entry(), provider="b")
    assert len(first.begun) == 1


# --- a request that comes back --------------------------------------------------------------------


def test_a_retry_comes_back_to_a_provider_over_its_old_connection(start: StartStage) -> None:
    def at_last(served: Served, stream: int) -> None:
        served.say(stream, *((500, FAILURE) if len(first.begun) == 1 else (200, ANSWER)))

    first, second = Http2Server(at_last), Http2Server(saying(500, FAILURE))
    proxy, client = start(first, second, retry={"attempts": 3})
    assert client.post(URL, json=chat(model="m")).status_code == 200
    entry = proxy.entry()
    assert [attempt["provider"] for attempt in entry["attempts"]] == ["a", "b", "a"]
    assert_entry(entry, status=200, flags=[], total_tokens=3)


def test_a_request_that_was_given_up_while_it_waited_is_never_sent(start: StartStage) -> None:
    """The provider takes one stream at a time, and the first one takes long."""

    def slow(served: Served, stream: int) -> None:
        served.later(1.5, lambda: served.say(stream, 200, ANSWER))

    first, second = Http2Server(slow, streams=1), Http2Server(saying(200, ANSWER))
    patient = {"name": "patient", "matches": [{"headers": {"x-patient": {}}}], **to("a.example")}
    proxy, client = start(first, second, before=patient, retry={"perTryTimeout": "500ms"})
    ahead = threading.Thread(
        target=client.post,
        args=(URL,),
        kwargs={"json": chat(model="m"), "headers": {"x-patient": "1"}},
    )
    ahead.start()
    eventually(lambda: first.begun, what="the first request")
    time.sleep(0.3)  # the provider's settings have come by now
    assert client.post(URL, json=chat(model="m")).status_code == 200
    ahead.join()
    entries = {entry["rule"]: entry for entry in proxy.logged(2)}
    assert [a["provider"] for a in entries["r"]["attempts"]] == ["a", "b"]
    assert client.post(URL, json=chat(model="m"), headers={"x-patient": "1"}).status_code == 200
    proxy.entry()
    assert first.begun == [1, 3]  # the patient ones


# --- a client that leaves -------------------------------------------------------------------------


def test_a_client_that_begins_nothing_more_gets_its_answer(pointsman: Proxy, openai: Far) -> None:
    trust = trusting(pointsman.certificate)
    trust.set_alpn_protocols(["h2"])
    openai.provider.chunk_delay = 0.05
    with (
        pointsman.tunnel("api.openai.com", 443) as plain,
        trust.wrap_socket(plain, server_hostname="api.openai.com") as conn,
    ):
        client = Http2Client(conn, "api.openai.com")
        stream = client.post(dump(chat("count to ten", model="m", stream=True)).encode())
        client.read_until(stream, b"data:")
        client.leave()
        client.read_until(stream, b"[DONE]")
        assert conn.recv(65536) is not None
    openai.provider.chunk_delay = 0
    assert_entry(pointsman.entry(), status=200, flags=[])
