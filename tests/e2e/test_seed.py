"""The documentation's scenarios by its own manifests: curl over plain HTTP, providers over TLS."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import Far, Json, Proxy, assert_entry, chat, said, seed, sse, write_rules

pytestmark = pytest.mark.e2e

QUESTION = "Please introduce yourself."
BODY = chat(QUESTION)


def ask(proxy: Proxy, host: str, *headers: str) -> Json:
    """Do what the documentation does: `curl --location 'http://…' --header … --data …`."""
    named = [
        part for header in ("Content-Type: application/json", *headers) for part in ("-H", header)
    ]
    done = proxy.curl("--location", f"http://{host}", *named, "--data", json.dumps(BODY))
    answer: Json = json.loads(done.stdout)
    return answer


def test_a_provider_alone_gets_model_key_and_path(
    start_proxy: StartProxy, tmp_path: Path, dashscope: Far
) -> None:
    rules = write_rules(tmp_path / "rules", seed("LLMProvider", dashscope))
    proxy = start_proxy(rules)

    answer = ask(proxy, "dashscope.aliyuncs.com")

    assert answer["model"] == "qwen1.5-72b-chat"
    call = dashscope.call()
    assert (call.method, call.path) == ("POST", "/compatible-mode/v1/chat/completions")
    assert call.header("host") == "dashscope.aliyuncs.com"
    assert call.header("authorization") == f"Bearer {KEYS['DASHSCOPE_API_KEY']}"
    assert call.json() == {**BODY, "model": "qwen1.5-72b-chat"}
    entry = proxy.entry()
    usage = answer["usage"]
    assert_entry(
        entry,
        host="dashscope.aliyuncs.com",
        method="POST",
        path="/",
        route=None,
        provider="dashscope-qwen",
        provider_host="dashscope.aliyuncs.com",
        upstream_path="/compatible-mode/v1/chat/completions",
        status=200,
        flags=[],
        error=None,
        client_model=None,
        request_model="qwen1.5-72b-chat",
        response_model="qwen1.5-72b-chat",
        stream=False,
        request_prompt_tokens=usage["prompt_tokens"],
        request_completion_tokens=usage["completion_tokens"],
        total_tokens=usage["total_tokens"],
        usage_source="response",
        finish_reason="stop",
    )
    assert [attempt["status"] for attempt in entry["attempts"]] == [200]


def test_a_header_chooses_the_rule_and_its_own_model(pointsman: Proxy, dashscope: Far) -> None:
    plain = ask(pointsman, "dashscope.aliyuncs.com")
    subscriber = ask(pointsman, "dashscope.aliyuncs.com", "user-type: subscriber")
    other = ask(pointsman, "dashscope.aliyuncs.com", "user-type: guest")

    models = ["qwen1.5-72b-chat", "qwen-turbo", "qwen1.5-72b-chat"]
    assert [answer["model"] for answer in (plain, subscriber, other)] == models
    assert [call.json()["model"] for call in dashscope.calls(3)] == models
    entries = pointsman.logged(3)
    assert [entry["request_model"] for entry in entries] == models
    assert {entry["route"] for entry in entries} == {"dashscope-route"}
    assert entries[1]["rule"] == "vip-route"
    assert entries[0]["rule"] == entries[2]["rule"] != "vip-route"


def test_equal_weights_share_twenty_requests_evenly(
    pointsman: Proxy, dashscope: Far, moonshot: Far
) -> None:
    with pointsman.client() as client:
        answers = [client.post("http://demo-llm-server", json=BODY) for _ in range(20)]

    counts = Counter(answer.json()["model"] for answer in answers)
    assert set(counts) == {"qwen1.5-72b-chat", "moonshot-v1-8k"}
    assert all(9 <= count <= 11 for count in counts.values()), counts
    for call in dashscope.calls(counts["qwen1.5-72b-chat"]):
        assert call.path == "/compatible-mode/v1/chat/completions"
        assert call.header("host") == "dashscope.aliyuncs.com"
    for call in moonshot.calls(counts["moonshot-v1-8k"]):
        assert call.path == "/v1/chat/completions"
        assert call.header("host") == "api.moonshot.cn"
        assert call.header("authorization") == f"Bearer {KEYS['MOONSHOT_API_KEY']}"
        assert call.json()["stream"] is False
    entries = pointsman.logged(20)
    assert Counter(entry["response_model"] for entry in entries) == counts
    assert {(entry["host"], entry["rule"]) for entry in entries} == {
        ("demo-llm-server", "migrate-rule")
    }


@pytest.mark.parametrize(
    "name",
    [
        "demo-llm-server.default",
        "demo-llm-server.default.svc",
        "demo-llm-server.default.svc.cluster.local",
        "Demo-LLM-Server.default.svc.cluster.local.:8080",
    ],
)
def test_a_service_answers_to_its_kubernetes_names(pointsman: Proxy, name: str) -> None:
    with pointsman.client() as client:
        assert said(client.post(f"http://{name}/v1/chat/completions", json=BODY))
    assert_entry(pointsman.entry(), route="demo-llm-server", status=200)


def test_a_client_that_streams_gets_a_stream_where_the_provider_may_not_be_asked_for_one(
    pointsman: Proxy, dashscope: Far, moonshot: Far
) -> None:
    """The provider is called as the documentation's Moonshot says, with `stream: false`."""
    with pointsman.client() as client:
        answer = client.post("http://api.moonshot.cn", json=chat(stream=True, model="mine"))
    assert answer.headers["content-type"] == "text/event-stream"
    events = sse(answer.content)
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events).startswith(
        "This is"
    )
    assert moonshot.call().json() == chat(stream=False, model="moonshot-v1-8k")
    assert_entry(pointsman.entry(), client_model="mine", request_model="moonshot-v1-8k")
