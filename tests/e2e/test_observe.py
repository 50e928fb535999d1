"""Observing: decided and logged, and not one byte changed on the way to where it was going."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer
from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import Far, Json, Proxy, assert_entry, chat, llm_route, to, write_rules

pytestmark = pytest.mark.e2e

OWN = {
    "authorization": "Bearer sk-own",
    "x-api-key": "sk-own",
    "cookie": "session=1",
    "openai-organization": "org-own",
}


@pytest.fixture(params=[False, True], ids=["http", "https"])
def original(
    request: pytest.FixtureRequest, authority: Authority
) -> Iterator[tuple[Provider, str]]:
    """The application's own provider, on a name that resolves."""
    provider = Provider("original", chunk_delay=0)
    tls = authority.issue("localhost") if request.param else None
    with ThreadedServer([provider], tls=tls) as server:
        yield provider, f"{'https' if tls else 'http'}://localhost:{server.port}"


@pytest.fixture(params=["option", "rule"])
def observer(
    request: pytest.FixtureRequest, start_proxy: StartProxy, tmp_path: Path, openai: Far
) -> Proxy:
    """A proxy that would send localhost's requests to OpenAI, told not to in one way or another."""
    by_rule = request.param == "rule"
    rule = to("api.openai.com", name="moved", **({"mode": "observe"} if by_rule else {}))
    route = llm_route("local", "localhost", rule)
    return start_proxy(
        write_rules(tmp_path / "rules", openai.manifest(), route),
        *("--set", f"ssl_verify_upstream_trusted_ca={openai.authority.certificate}"),
        *(() if by_rule else ("--set", "llm_observe=true")),
    )


def test_an_observed_request_goes_where_it_was_going(
    observer: Proxy, openai: Far, original: tuple[Provider, str]
) -> None:
    provider, url = original
    # Neither order nor spaces of a body change, nor what Pointsman would refuse or rewrite.
    bodies = [b'{ "stream": true,"model" :"mine", "messages":[]}', b'{"messages": []}', b"no JSON"]
    target = f"{url}/v1/chat/completions?key=own&x=%7e"
    with observer.client(headers=OWN) as client:
        for body in bodies:
            client.post(target, content=body, headers={"content-type": "application/json"})

    calls = list(provider.calls)
    assert [call.body for call in calls] == bodies
    for call in calls:
        assert call.path == "/v1/chat/completions?key=own&x=%7e"
        assert call.header("host") == url.rpartition("/")[2]
        assert {name: call.header(name) for name in OWN} == OWN
        assert call.header("accept-encoding") == "gzip, deflate, br, zstd"
        assert not any(key in repr(call) for key in KEYS.values())
    openai.calls(0)
    entries = observer.logged(3)
    assert [entry["status"] for entry in entries] == [200, 400, 400]
    for entry in entries:
        assert_entry(
            entry,
            flags=["OB"],
            route="local",
            rule="moved",
            provider="openai",
            provider_host="api.openai.com",
            error=None,
        )
    assert_entry(entries[0], request_model="mine", stream=True, usage_source=None)


def test_an_observed_stream_is_byte_for_byte_the_originals(
    start_proxy: StartProxy, tmp_path: Path, openai: Far
) -> None:
    rule = to("api.openai.com", mode="observe")
    route = llm_route("local", "localhost", rule)
    proxy = start_proxy(write_rules(tmp_path / "rules", openai.manifest(), route))
    provider = Provider("original", chunk_delay=0)
    body: Json = chat(model="m", stream=True, stream_options={"include_usage": True})
    with ThreadedServer([provider]) as server, proxy.client() as client:
        url = f"http://localhost:{server.port}/v1/chat/completions"
        answer = client.post(url, json=body)
    assert provider.calls[0].json() == body
    assert b'"usage":null' in answer.content
    entry = proxy.entry()
    assert_entry(entry, flags=["OB"], usage_source="response", request_prompt_tokens=2)
    assert entry["response_bytes"] == len(answer.content)


def test_an_observed_host_that_does_not_answer_is_a_502(
    start_proxy: StartProxy, tmp_path: Path, openai: Far
) -> None:
    rule = to("api.openai.com", mode="observe")
    route = llm_route("local", "127.0.0.1", rule)
    proxy = start_proxy(write_rules(tmp_path / "rules", openai.manifest(), route))
    with proxy.client() as client:
        assert client.post("http://127.0.0.1:1/", json=chat()).status_code == 502
    openai.calls(0)
    assert_entry(proxy.entry(), flags=["OB", "UF"], status=502)
