"""The provider as its clients see it: over real sockets, by httpx and by OpenAI's own SDK."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import openai
import pytest

from pointsman.demo.provider import Call, Provider, Reply
from pointsman.demo.server import ThreadedServer, serve

CHAT = {"model": "small", "messages": [{"role": "user", "content": "hello there"}]}
TEXT = "This is east with small. You said: hello there"
AUTH = {"authorization": "Bearer sk-east"}


@pytest.fixture
def http(server: ThreadedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=AUTH, trust_env=False) as client:
        yield client


@pytest.fixture
def sdk(server: ThreadedServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-east", max_retries=0) as client:
        yield client


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- the API, as OpenAI's SDK sees it ---------------------------------------------------------


def test_a_chat_is_answered_as_the_model_that_was_asked(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "hello there"}]
    )
    assert answer.model == "small"
    assert answer.choices[0].message.content == TEXT
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 9)


def test_a_chat_is_streamed(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "hello there"}], stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_usage_is_streamed_when_asked_for(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="small",
        messages=[{"role": "user", "content": "hello there"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = stream
    assert all(chunk.usage is None for chunk in chunks)
    assert last.usage is not None
    assert last.usage.total_tokens == 11


def test_a_text_completion_is_answered_and_streamed(sdk: openai.OpenAI) -> None:
    whole = sdk.completions.create(model="small", prompt="hello there")
    stream = sdk.completions.create(model="small", prompt="hello there", stream=True)
    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in stream) == TEXT


def test_a_response_is_answered_and_streamed(sdk: openai.OpenAI) -> None:
    whole = sdk.responses.create(model="small", input="hello there")
    with sdk.responses.stream(model="small", input="hello there") as stream:
        streamed = stream.get_final_response()
    assert whole.output_text == streamed.output_text == TEXT
    assert whole.usage is not None
    assert whole.usage == streamed.usage
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (2, 9)


def test_embeddings_are_the_same_as_floats_and_as_base64(sdk: openai.OpenAI) -> None:
    by_default = sdk.embeddings.create(model="small", input=["hello", "there"])
    as_floats = sdk.embeddings.create(
        model="small", input=["hello", "there"], encoding_format="float"
    )
    assert by_default.data == as_floats.data
    assert by_default.usage.total_tokens == 2


def test_models_are_listed(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["small", "large"]


def test_another_key_is_refused(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as refusal:
        sdk.with_options(api_key="sk-west").models.list()
    assert refusal.value.code == "invalid_api_key"


# --- the API, as it is on the wire ------------------------------------------------------------


def test_no_key_is_refused(http: httpx.Client) -> None:
    del http.headers["authorization"]
    answer = http.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/unknown", CHAT, 404),
        ("/v1/chat/completions", {"messages": []}, 400),
        ("/v1/chat/completions", {"model": "small"}, 400),
        ("/v1/chat/completions", [], 400),
        ("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}, 400),
    ],
)
def test_what_the_api_refuses(http: httpx.Client, path: str, body: object, status: int) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_chat_endpoint_may_have_any_base_path(http: httpx.Client) -> None:
    assert http.post("/compatible-mode/v1/chat/completions", json=CHAT).status_code == 200


def test_a_document_has_a_length_and_a_stream_has_none(http: httpx.Client) -> None:
    document = http.post("/v1/chat/completions", json=CHAT)
    stream = http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert int(document.headers["content-length"]) == len(document.content)
    assert stream.headers["transfer-encoding"] == "chunked"
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.content.endswith(b"\n\ndata: [DONE]\n\n")


def test_a_stream_takes_its_time(http: httpx.Client, provider: Provider) -> None:
    provider.chunk_delay = 0.01
    began = time.monotonic()
    with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        first = time.monotonic() - began
        for _ in pieces:
            pass
    assert time.monotonic() - began > first + 0.08


# --- both versions of HTTP, plain and TLS -----------------------------------------------------


@pytest.mark.parametrize(("http2", "version"), [(False, "1.1"), (True, "2")])
def test_both_versions_of_http_are_spoken_over_tls(
    tls_server: ThreadedServer,
    provider: Provider,
    trust: ssl.SSLContext,
    http2: bool,
    version: str,
) -> None:
    with httpx.Client(http2=http2, http1=not http2, verify=trust, trust_env=False) as client:
        whole = client.post(f"{tls_server.url}/v1/chat/completions", json=CHAT, headers=AUTH)
        stream = client.post(
            f"{tls_server.url}/v1/chat/completions", json={**CHAT, "stream": True}, headers=AUTH
        )
    assert whole.json()["choices"][0]["message"]["content"] == TEXT
    assert stream.text.endswith("data: [DONE]\n\n")
    assert [call.http_version for call in provider.calls] == [version, version]


def test_http2_is_spoken_without_tls_to_who_begins_with_it(server: ThreadedServer) -> None:
    with httpx.Client(http1=False, http2=True, trust_env=False) as client:
        answer = client.post(f"{server.url}/v1/chat/completions", json=CHAT, headers=AUTH)
    assert answer.http_version == "HTTP/2"
    assert answer.status_code == 200


# --- what a test can see and do ---------------------------------------------------------------


def test_a_call_is_kept_as_it_was_on_the_wire(http: httpx.Client, provider: Provider) -> None:
    began = time.monotonic()
    http.post("/v1/chat%20x?a=1&b", content=b"raw", headers=[("X-Case", "One"), ("X-Case", "Two")])
    (call,) = provider.calls
    assert (call.provider, call.method, call.path) == ("east", "POST", "/v1/chat%20x?a=1&b")
    assert [pair for pair in call.headers if pair[0] == "X-Case"] == [
        ("X-Case", "One"),
        ("X-Case", "Two"),
    ]
    assert call.header("x-case") == "One"
    assert call.body == b"raw"
    assert began <= call.at <= time.monotonic()
    assert call.outcome == "complete"


def test_a_reply_is_used_once_and_needs_no_key(http: httpx.Client, provider: Provider) -> None:
    provider.replies.append(Reply(429, [("Retry-After", "7")], b"slow down"))
    first = http.get("/v1/models", headers={"authorization": "no"})
    assert (first.status_code, first.headers["retry-after"], first.text) == (429, "7", "slow down")
    assert http.get("/v1/models").status_code == 200


def test_a_script_decides_call_by_call(http: httpx.Client, provider: Provider) -> None:
    def script(call: Call) -> Reply | None:
        return Reply.json({"ok": True}, 503) if call.path == "/broken" else None

    provider.script = script
    assert http.get("/broken").status_code == 503
    assert http.get("/v1/models").status_code == 200
    assert http.get("/broken").json() == {"ok": True}


def test_a_reply_can_be_late(http: httpx.Client, provider: Provider) -> None:
    provider.replies.append(Reply(delay=5))
    with pytest.raises(httpx.ReadTimeout):
        http.get("/", timeout=0.1)
    http.close()
    wait_until(lambda: provider.calls[0].outcome == "disconnected")


@pytest.mark.parametrize("http2", [False, True])
def test_a_reply_can_drop_the_connection(
    tls_server: ThreadedServer, provider: Provider, trust: ssl.SSLContext, http2: bool
) -> None:
    provider.replies.extend(
        [Reply(drop="before_status"), Reply(body=[b"a", b"b"], drop="mid_body")]
    )
    with httpx.Client(http2=http2, verify=trust, trust_env=False) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(tls_server.url)
        received: list[bytes] = []
        with (
            pytest.raises(httpx.RemoteProtocolError),
            client.stream("GET", tls_server.url) as answer,
        ):
            received.extend(answer.iter_raw())
    assert b"".join(received) == b"ab"
    assert [call.outcome for call in provider.calls] == ["dropped", "dropped"]


@pytest.mark.parametrize("http2", [False, True])
def test_a_client_that_leaves_a_stream_is_noticed(
    tls_server: ThreadedServer, provider: Provider, trust: ssl.SSLContext, http2: bool
) -> None:
    provider.replies.append(Reply(body=[b"a"] * 100, chunk_delay=0.1))
    with (
        httpx.Client(http2=http2, verify=trust, trust_env=False) as client,
        client.stream("GET", tls_server.url) as answer,
    ):
        next(answer.iter_raw())
    wait_until(lambda: provider.calls[0].outcome == "disconnected")


# --- the listener -----------------------------------------------------------------------------


def test_providers_on_one_listener_are_told_apart_by_host() -> None:
    providers = [Provider("east", host="east.example"), Provider("west", host="west.example")]
    with (
        ThreadedServer(providers) as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
    ):
        for host in ("east.example", "WEST.example:443"):
            client.post("/v1/chat/completions", json=CHAT, headers={"host": host})
        assert client.get("/", headers={"host": "north.example"}).status_code == 421
    assert [len(provider.calls) for provider in providers] == [1, 1]


@pytest.mark.parametrize("http2", [False, True])
def test_closing_does_not_wait_for_clients(
    provider: Provider, tls_server: ThreadedServer, trust: ssl.SSLContext, http2: bool
) -> None:
    with (
        httpx.Client(http2=http2, verify=trust, trust_env=False) as idle,
        httpx.Client(http2=http2, verify=trust, trust_env=False) as busy,
    ):
        idle.get(f"{tls_server.url}/v1/models", headers=AUTH)
        provider.replies.append(Reply(body=[b"a"] * 100, chunk_delay=10))
        with busy.stream("GET", tls_server.url) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            began = time.monotonic()
            tls_server.close()
            assert time.monotonic() - began < 2
            with pytest.raises(httpx.RemoteProtocolError):
                next(pieces)


def test_a_port_that_is_taken_is_an_error_to_the_caller(server: ThreadedServer) -> None:
    with pytest.raises(OSError, match="address already in use"):
        ThreadedServer([], port=server.port).__enter__()


def test_providers_can_be_served_on_the_callers_own_loop(provider: Provider) -> None:
    async def ask() -> AsyncIterator[int]:
        listener = await serve([provider])
        try:
            async with httpx.AsyncClient(trust_env=False, headers=AUTH) as client:
                url = f"http://127.0.0.1:{listener.port}/v1/chat/completions"
                answers = await asyncio.gather(*(client.post(url, json=CHAT) for _ in range(20)))
        finally:
            await listener.close()
        for answer in answers:
            yield answer.status_code

    async def collect() -> list[int]:
        return [status async for status in ask()]

    assert asyncio.run(collect()) == [200] * 20
