"""HTTPS through CONNECT: the client trusts mitmproxy's authority and changes nothing else."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator

import openai as sdk
import pytest

from pointsman.demo.authority import Authority
from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import (
    Far,
    Proxy,
    RawServer,
    assert_entry,
    assert_refused,
    chat,
    llm_provider,
    openai_config,
    read_head,
    said,
    server_context,
    trusting,
    write_rules,
)

pytestmark = pytest.mark.e2e

URL = "https://api.openai.com/v1/chat/completions"
OWN = "sk-of-the-client-7d2f"
OWN_KEY = {"authorization": f"Bearer {OWN}"}


def assert_key_swapped(openai: Far, count: int = 1) -> None:
    for call in openai.calls(count):
        keys = [v for n, v in call.headers if n.lower() == "authorization"]
        assert keys == [f"Bearer {KEYS['OPENAI_API_KEY']}"]
        assert OWN not in repr(call)


def test_http1_gets_the_providers_key_and_keeps_its_own_to_itself(
    pointsman: Proxy, openai: Far
) -> None:
    with pointsman.client(headers={**OWN_KEY, "x-api-key": OWN}) as client:
        answer = client.post(URL + f"?key={OWN}&keep=1", json=chat(model="small"))

    assert said(answer) == "This is openai with small. You said: Hello there"
    assert answer.http_version == "HTTP/1.1"
    assert KEYS["OPENAI_API_KEY"] not in repr(answer.headers) + answer.text
    (call,) = openai.provider.calls
    assert call.path == "/v1/chat/completions?keep=1"
    assert call.header("host") == "api.openai.com"
    assert call.json() == chat(model="small")
    assert_key_swapped(openai)
    assert_entry(pointsman.entry(), host="api.openai.com", status=200, request_model="small")


def test_http2_streams_share_one_connection(pointsman: Proxy, openai: Far) -> None:
    openai.provider.chunk_delay = 0.01

    async def ask() -> list[str]:
        async with pointsman.async_client(http2=True, headers=OWN_KEY) as client:
            await client.post(URL, json=chat("0", model="m"))  # opens the connection
            requests = (
                client.post(URL, json=chat(str(n), model="m", stream=n % 2 == 0))
                for n in range(1, 9)
            )
            answers = await asyncio.gather(*requests)
        assert {answer.http_version for answer in answers} == {"HTTP/2"}
        return [answer.text for answer in answers]

    texts = asyncio.run(ask())

    assert [n for n, text in enumerate(texts, 1) if str(n) in text] == list(range(1, 9))
    assert {call.http_version for call in openai.provider.calls} == {"2"}
    assert_key_swapped(openai, 9)
    entries = pointsman.logged(9)
    assert len({entry["client"] for entry in entries}) == 1
    assert {entry["request_prompt_tokens"] for entry in entries} == {1}


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_curl_gets_its_answer(pointsman: Proxy, openai: Far, version: str) -> None:
    body = json.dumps(chat(model="m"))
    header = ("-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {OWN}")
    flag = "--http2" if version == "2" else "--http1.1"
    done = pointsman.curl(flag, *header, "--data", body, "-w", "%{stderr}%{http_version}", URL)
    assert done.stderr == version
    assert json.loads(done.stdout)["model"] == "m"
    assert_key_swapped(openai)
    assert_entry(pointsman.entry(), status=200)


@pytest.fixture
def openai_client(pointsman: Proxy) -> Iterator[sdk.OpenAI]:
    """Return OpenAI's SDK with its own base URL, a made-up key and the proxy."""
    http_client = sdk.DefaultHttpxClient(
        proxy=pointsman.url, verify=trusting(pointsman.certificate), trust_env=False
    )
    with sdk.OpenAI(api_key=OWN, http_client=http_client, max_retries=0) as client:
        assert str(client.base_url) == "https://api.openai.com/v1/"
        yield client


def test_the_openai_sdk_gets_an_answer(
    pointsman: Proxy, openai: Far, openai_client: sdk.OpenAI
) -> None:
    answer = openai_client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "Good day"}]
    )
    assert answer.choices[0].message.content == "This is openai with small. You said: Good day"
    assert answer.usage
    assert answer.usage.prompt_tokens == 2
    assert_key_swapped(openai)
    assert_entry(pointsman.entry(), request_prompt_tokens=2, status=200)


def test_the_openai_sdk_streams(pointsman: Proxy, openai: Far, openai_client: sdk.OpenAI) -> None:
    stream = openai_client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "Good day"}], stream=True
    )
    with stream:
        chunks = list(stream)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "This is openai with small. You said: Good day"
    assert openai.provider.calls[0].json()["stream_options"] == {"include_usage": True}
    assert_key_swapped(openai)
    assert_entry(pointsman.entry(), stream=True, request_prompt_tokens=2, total_tokens=11)


def test_the_openai_sdk_understands_our_errors(pointsman: Proxy, openai_client: sdk.OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError) as raised:
        openai_client.chat.completions.create(
            model="", messages=[{"role": "user", "content": "Good day"}], extra_body={"model": None}
        )
    assert raised.value.code == "model_missing"
    assert raised.value.param == "model"
    assert_entry(pointsman.entry(), status=400, error="model_missing", attempts=[])


def test_other_paths_keep_their_bodies(
    pointsman: Proxy, openai: Far, openai_client: sdk.OpenAI
) -> None:
    found = openai_client.embeddings.create(model="vectors", input=["one", "two words"])
    assert len(found.data) == 2
    assert [model.id for model in openai_client.models.list()] == []
    paths = [call.path for call in openai.provider.calls]
    assert paths == ["/v1/embeddings", "/v1/models"]
    assert_key_swapped(openai, 2)
    embeddings, models = pointsman.logged(2)
    assert_entry(embeddings, request_prompt_tokens=3, request_model="vectors")
    assert_entry(models, request_prompt_tokens=None, method="GET", status=200)


def test_host_and_server_name_are_the_providers_whatever_address_is_called(
    start_proxy: StartProxy,
    raw_server: Callable[..., RawServer],
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    context = server_context(authority, "api.one.example", "other.example")
    names: list[str | None] = []
    hosts: list[bytes] = []

    def note(_: object, name: str | None, __: object) -> None:
        names.append(name)

    def serve(conn: socket.socket) -> None:
        lines = read_head(conn).split(b"\r\n")
        hosts.extend(line for line in lines if line.lower().startswith(b"host:"))
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    context.set_servername_callback(note)
    server = raw_server(serve, tls=context)
    far_end = {"address": server.address, "configs": openai_config(model="m")}
    trust = {"caFile": str(authority.certificate)}
    rules = write_rules(
        tmp_path_factory.mktemp("sni"),
        llm_provider("one", "api.one.example", tls=trust, **far_end),
        llm_provider(
            "two", "api.two.example", port=8443, tls={**trust, "sni": "other.example"}, **far_end
        ),
    )
    proxy = start_proxy(rules)
    with proxy.client() as client:
        for name in ("one", "two"):
            assert client.get(f"http://api.{name}.example/v1/models").status_code == 200
    assert names == ["api.one.example", "other.example"]
    assert [host.lower() for host in hosts] == [
        b"host: api.one.example",
        b"host: api.two.example:8443",
    ]
    assert [entry["status"] for entry in proxy.logged(2)] == [200, 200]


@pytest.mark.parametrize("host", ["distrusted.example", "misnamed.example"])
def test_a_provider_with_the_wrong_certificate_gets_nothing(
    pointsman: Proxy, openai: Far, host: str
) -> None:
    with pointsman.client() as client:
        answer = client.post(f"https://{host}/v1/chat/completions", json=chat())
    assert_refused(answer, 502, "upstream_failure")
    assert "TLS" in answer.json()["error"]["message"]
    openai.calls(0)
    entry = pointsman.entry()
    assert_entry(entry, status=502, flags=["UF"], error="upstream_failure")
    assert "certificate" in entry["attempts"][0]["error"].lower()
