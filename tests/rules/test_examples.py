"""Every example loads as it stands and routes as its comment says."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from pointsman.config.loading import Instance, Loaded, load
from pointsman.config.table import Ejection, RetryPolicy, TimeLimits
from pointsman.errors import NoRouteError
from pointsman.proxy.router import Decision, Router
from pointsman.routing.request import ClientRequest
from pointsman.routing.rewriting import Outgoing, forward, rewrite

type MakeRequest = Callable[..., ClientRequest]
type LoadExample = Callable[..., Loaded]

EXAMPLES = Path(__file__).resolve().parents[2] / "rules" / "examples"
SEED = Path(__file__).resolve().parents[1] / "config" / "data" / "seed"

CLIENT_KEY = "Bearer sk-the-clients-own"
DASHSCOPE = "/compatible-mode/v1/chat/completions"
QWEN = {"Authorization": "Bearer sk-DASHSCOPE_API_KEY"}
MOONSHOT = {"Authorization": "Bearer sk-MOONSHOT_API_KEY"}
SIDECAR = Instance()
LLAMA = "meta-llama/Llama-3.3-70B-Instruct-Turbo"


@dataclass(frozen=True)
class Case:
    """A request, and what becomes of it. A rule of None: no rule matches.

    `body` is sent with messages. `sent` is what its other fields become; None: unchanged bytes.
    `gets` are headers that leave; a value of None means that there is no such header.
    """

    example: str
    method: str
    url: str
    rule: str | None
    provider: str = ""
    to: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    sent: Mapping[str, Any] | None = None
    gets: Mapping[str, str | None] = field(default_factory=dict)
    instance: Instance = SIDECAR
    observe: bool = False
    address: tuple[str, int] | None = None


def _post(example: str, url: str, rule: str, provider: str, to: str, **more: Any) -> Case:
    return Case(example, "POST", url, rule, provider, to, **more)


CASES = [
    _post(
        "subscriber",
        "http://dashscope.aliyuncs.com",
        "rules[1]",
        "dashscope-qwen",
        f"https://dashscope.aliyuncs.com{DASHSCOPE}",
        sent={"model": "qwen1.5-72b-chat"},
        gets=QWEN,
    ),
    _post(
        "subscriber",
        "http://dashscope.aliyuncs.com",
        "vip-route",
        "dashscope-qwen",
        f"https://dashscope.aliyuncs.com{DASHSCOPE}",
        headers={"User-Type": "subscriber"},
        sent={"model": "qwen-turbo"},
        gets=QWEN,
    ),
    _post(
        "traffic-split",
        "http://demo-llm-server",
        "migrate-rule",
        "dashscope-qwen",
        f"https://dashscope.aliyuncs.com{DASHSCOPE}",
        sent={"model": "qwen1.5-72b-chat"},
        gets=QWEN,
    ),
    _post(
        "traffic-split",
        "http://demo-llm-server.default.svc.cluster.local:80/v1/chat/completions",
        "migrate-rule",
        "moonshot",
        "https://api.moonshot.cn/v1/chat/completions",
        sent={"model": "moonshot-v1-8k", "stream": False},
        gets=MOONSHOT,
    ),
    _post(
        "traffic-split",
        "https://dashscope.aliyuncs.com/",
        "default",
        "dashscope-qwen",
        f"https://dashscope.aliyuncs.com{DASHSCOPE}",
        sent={"model": "qwen1.5-72b-chat"},
    ),
    *[
        _post(
            "model-mapping",
            "https://api.openai.com/v1/chat/completions",
            "all",
            "deepseek",
            "https://api.deepseek.com/chat/completions",
            headers={"OpenAI-Organization": "org"},
            body={"model": asked} if asked else {},
            sent={"model": model},
            gets={
                "Authorization": "Bearer sk-DEEPSEEK_API_KEY",
                "Host": "api.deepseek.com",
                "OpenAI-Organization": None,
            },
        )
        for asked, model in [
            ("gpt-4o", "deepseek-chat"),
            ("o3-mini", "deepseek-reasoner"),
            ("gpt-3.5-turbo", "deepseek-chat"),
            (None, "deepseek-chat"),
        ]
    ],
    _post(
        "headers-and-params",
        "https://openrouter.ai/api/v1/chat/completions",
        "interactive",
        "openrouter",
        "https://openrouter.ai/api/v1/chat/completions",
        headers={"X-Title": "mine"},
        body={"model": "openai/gpt-4o-mini", "temperature": 1, "provider": {"order": ["a"]}},
        sent={
            "model": "openai/gpt-4o-mini",
            "temperature": 1,
            "max_tokens": 1024,
            "provider": {"data_collection": "deny"},
        },
        gets={"X-Title": "platform", "Authorization": "Bearer sk-OPENROUTER_API_KEY"},
    ),
    _post(
        "headers-and-params",
        "https://openrouter.ai/api/v1/chat/completions",
        "batch",
        "openrouter",
        "https://openrouter.ai/api/v1/chat/completions",
        headers={"x-job": ""},
        body={"model": "openai/gpt-4o-mini", "max_tokens": 9999},
        sent={
            "model": "openai/gpt-4o-mini",
            "temperature": 0.2,
            "max_tokens": 256,
            "provider": {"data_collection": "deny"},
        },
        gets={"X-Title": "platform"},
    ),
    _post(
        "match-path-method-model",
        "http://llm-gateway/v1/embeddings",
        "embeddings",
        "openai",
        "https://api.openai.com/v1/embeddings",
        body={"model": "text-embedding-3-small"},
        gets={"Authorization": "Bearer sk-OPENAI_API_KEY"},
    ),
    *[
        _post(
            "match-path-method-model",
            "http://llm-gateway/v1/chat/completions",
            "fast",
            "groq",
            "https://api.groq.com/openai/v1/chat/completions",
            body={"model": model},
            gets={"Authorization": "Bearer sk-GROQ_API_KEY"},
        )
        for model in ["llama-3.1-8b-instant", "qwen/qwen3-32b", "moonshotai/kimi-k2-instruct"]
    ],
    _post(
        "match-path-method-model",
        "http://llm-gateway/",
        "posts",
        "openai",
        "https://api.openai.com/v1/chat/completions",
        body={"model": "gpt-4o"},
        gets={"Authorization": "Bearer sk-OPENAI_API_KEY"},
    ),
    Case("match-path-method-model", "GET", "http://llm-gateway/v1/embeddings", None),
    *[
        _post(
            "affinity",
            "http://chat-server",
            "by-session",
            provider,
            to,
            headers={"x-session-id": session},
            sent={"model": LLAMA},
        )
        for session, provider, to in [
            ("2", "together", "https://api.together.xyz/v1/chat/completions"),
            ("42", "together", "https://api.together.xyz/v1/chat/completions"),
            ("4", "deepinfra", "https://api.deepinfra.com/v1/openai/chat/completions"),
        ]
    ],
    _post(
        "failover",
        "http://api.openai.com/v1/chat/completions",
        "all",
        "openai",
        "https://api.openai.com/v1/chat/completions",
        body={"model": "gpt-4o"},
        gets={"Authorization": "Bearer sk-OPENAI_API_KEY"},
    ),
    _post(
        "mirror",
        "http://chat-server",
        "with-a-candidate",
        "moonshot",
        "https://api.moonshot.cn/v1/chat/completions",
        sent={"model": "moonshot-v1-8k"},
        gets=MOONSHOT,
    ),
    _post(
        "observe",
        "https://api.openai.com/v1/chat/completions?key=k",
        "would-be-deepseek",
        "deepseek",
        "https://api.openai.com/v1/chat/completions?key=k",
        body={"model": "gpt-4o", "stream": True},
        gets={"Authorization": CLIENT_KEY, "Cookie": "c=1"},
        headers={"Cookie": "c=1"},
        observe=True,
        address=("api.openai.com", 443),
    ),
    _post(
        "key-from-file",
        "http://api.deepseek.com",
        "default",
        "deepseek",
        "https://api.deepseek.com/chat/completions",
        sent={"model": "deepseek-chat"},
        gets={"Authorization": "Bearer sk-from-the-file"},
    ),
    _post(
        "key-from-file",
        "http://api.groq.com",
        "default",
        "groq",
        "https://api.groq.com/openai/v1/chat/completions",
        sent={"model": "llama-3.1-8b-instant"},
        gets={"Authorization": "Bearer sk-GROQ_API_KEY"},
    ),
    _post(
        "local-server",
        "https://api.openai.com/v1/chat/completions",
        "all",
        "ollama",
        "http://ollama.local:11434/v1/chat/completions",
        headers={"Cookie": "c=1"},
        body={"model": "gpt-4o"},
        sent={"model": "llama3.2"},
        gets={"Authorization": None, "Cookie": None, "Host": "ollama.local:11434"},
        address=("127.0.0.1", 11434),
    ),
    Case(
        "local-server",
        "GET",
        "https://api.openai.com/v1/models",
        "all",
        "ollama",
        "http://ollama.local:11434/v1/models",
        gets={"Authorization": None},
        address=("127.0.0.1", 11434),
    ),
    _post(
        "in-cluster-server",
        "http://llm",
        "own-first",
        "service/models/vllm",
        "http://vllm.models.svc.cluster.local:8000/v1/chat/completions",
        headers={"Cookie": "c=1"},
        body={"model": "qwen3"},
        gets={
            "Authorization": None,
            "Cookie": None,
            "Host": "vllm.models.svc.cluster.local:8000",
        },
    ),
    Case(
        "in-cluster-server",
        "GET",
        "http://llm.models.svc/metrics",
        "own-first",
        "service/models/vllm",
        "http://vllm.models.svc.cluster.local:8000/metrics",
        gets={"Authorization": None},
    ),
    _post(
        "private-ca",
        "http://llm.company.example",
        "default",
        "company",
        "https://llm.company.example/v1/chat/completions",
        body={"model": "qwen3-32b"},
        gets={"Authorization": "Bearer sk-COMPANY_API_KEY"},
        address=("10.0.0.7", 8443),
    ),
    *[
        _post(
            "wildcard-host",
            f"http://{host}.internal.example",
            rule,
            "dashscope",
            f"https://dashscope.aliyuncs.com{DASHSCOPE}",
            sent={"model": model},
            gets=QWEN,
        )
        for host, rule, model in [
            ("team-a", "interactive", "qwen-plus"),
            ("chat.team-b", "interactive", "qwen-plus"),
            ("batch", "batch", "qwen-turbo"),
        ]
    ],
    _post(
        "stream-usage",
        "https://api.openai.com/v1/chat/completions",
        "default",
        "openai",
        "https://api.openai.com/v1/chat/completions",
        body={"model": "gpt-4o", "stream": True},
        sent={"model": "gpt-4o", "stream": True, "stream_options": {"include_usage": True}},
        gets={"Authorization": CLIENT_KEY, "Accept-Encoding": "identity"},
    ),
    _post(
        "stream-usage",
        "https://api.openai.com/v1/chat/completions",
        "default",
        "openai",
        "https://api.openai.com/v1/chat/completions",
        body={"model": "gpt-4o"},
    ),
    _post(
        "stream-usage",
        "http://api.groq.com",
        "default",
        "groq",
        "https://api.groq.com/openai/v1/chat/completions",
        body={"stream": True},
        sent={"stream": True, "model": "llama-3.1-8b-instant"},
    ),
    *[
        _post(
            "workload-selector",
            "http://api.moonshot.cn",
            rule,
            "moonshot",
            "https://api.moonshot.cn/v1/chat/completions",
            sent={"model": model},
            gets=MOONSHOT,
            instance=Instance(labels=labels),
        )
        for labels, rule, model in [
            ({}, "default", "moonshot-v1-8k"),
            ({"team": "shop", "tier": "batch"}, "default", "moonshot-v1-8k"),
            ({"team": "research"}, "long-context", "moonshot-v1-128k"),
            ({"team": "research", "tier": "batch"}, "batch", "moonshot-v1-32k"),
        ]
    ],
    _post(
        "workload-selector",
        "http://llm-egress",
        "through-the-gateway",
        "moonshot",
        "https://api.moonshot.cn/v1/chat/completions",
        sent={"model": "moonshot-v1-8k"},
        instance=Instance(gateways=frozenset({"egress"})),
    ),
]

NAMES = sorted(folder.name for folder in EXAMPLES.iterdir() if folder.is_dir())


def _files(name: str) -> list[Path]:
    return sorted((EXAMPLES / name).glob("*.yaml"))


def _comment(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def _instructions(name: str) -> str:
    return "\n".join(line for file in _files(name) for line in _comment(file))


@pytest.fixture
def load_example(tmp_path: Path) -> LoadExample:
    """Load a copy of an example, with the variables and files that its comment asks for."""

    def load_copy(name: str, instance: Instance) -> Loaded:
        folder = tmp_path / name
        shutil.copytree(EXAMPLES / name, folder, dirs_exist_ok=True)
        instructions = _instructions(name)
        if "keys/deepseek" in instructions:
            (folder / "keys").mkdir(exist_ok=True)
            (folder / "keys" / "deepseek").write_text("sk-from-the-file\n", encoding="utf-8")
        if "certs/ca.pem" in instructions:
            (folder / "certs").mkdir(exist_ok=True)
            trustme.CA().cert_pem.write_to_path(folder / "certs" / "ca.pem")
        variables = {
            variable: f"sk-{variable}"
            for line in re.findall(r"^# +export (.+)$", instructions, re.MULTILINE)
            for variable in re.findall(r"(\w+)=\.\.\.", line)
        }
        return load(folder, instance=instance, environ=variables)

    return load_copy


def _requested(case: Case, make_request: MakeRequest) -> ClientRequest:
    body: Mapping[str, Any] | bytes = b""
    if case.method == "POST":
        body = {**case.body, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Authorization": CLIENT_KEY, "Content-Type": "application/json", **case.headers}
    return make_request(case.method, case.url, headers=headers, body=body)


def _decided(loaded: Loaded, request: ClientRequest, provider: str) -> Decision:
    """Decide, often enough for a split to come to the provider."""
    router = Router()
    router.go_live(loaded.table)
    route = loaded.table.lookup(request.host)
    assert route
    decisions = [router.decide(route, request) for _ in range(20)]
    return next((d for d in decisions if d.target.provider == provider), decisions[0])


def _url(outgoing: Outgoing) -> str:
    port = {"http": 80, "https": 443}[outgoing.scheme]
    authority = outgoing.host if outgoing.port == port else f"{outgoing.host}:{outgoing.port}"
    return f"{outgoing.scheme}://{authority}{outgoing.path}"


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{i}-{case.example}-{case.rule}" for i, case in enumerate(CASES)]
)
def test_an_example_does_what_it_says(
    case: Case, load_example: LoadExample, make_request: MakeRequest
) -> None:
    loaded = load_example(case.example, case.instance)
    assert loaded.warnings == ()
    request = _requested(case, make_request)
    if case.rule is None:
        with pytest.raises(NoRouteError):
            _decided(loaded, request, case.provider)
        return
    decision = _decided(loaded, request, case.provider)
    target = decision.target
    assert (decision.rule.name, target.provider) == (case.rule, case.provider)
    assert decision.observe == case.observe
    outgoing = forward(request) if decision.observe else rewrite(target, request)
    assert _url(outgoing) == case.to
    assert outgoing.address == (case.address or (outgoing.host, outgoing.port))
    _check_headers(request, outgoing, case.gets)
    if case.sent is None:
        assert outgoing.body == request.body.raw
    else:
        body = json.loads(outgoing.body)
        assert body.pop("messages") == [{"role": "user", "content": "Hello"}]
        assert body == case.sent


def _check_headers(
    request: ClientRequest, outgoing: Outgoing, wanted: Mapping[str, str | None]
) -> None:
    headers = {name.decode().lower(): value.decode() for name, value in outgoing.headers}
    for name, value in wanted.items():
        assert headers.get(name.lower()) == value
    if outgoing.host != request.host:
        assert headers.get("authorization") != CLIENT_KEY


def test_every_example_has_a_case() -> None:
    assert {case.example for case in CASES} == set(NAMES)


def test_the_reference_lists_every_example(rules: Path) -> None:
    readme = (rules / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(examples/([\w-]+)\)", readme)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_example_begins_with_how_to_try_it(name: str) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
    assert all(3 <= len(_comment(file)) <= 10 for file in _files(name))
    instructions = _instructions(name)
    assert f"mitmdump -s addon/main.py --set llm_rules=rules/examples/{name}" in instructions
    assert instructions.count("curl -") == 1
    assert set(re.findall(r"rules/examples/([\w-]+)", instructions)) == {name}


# --- what a single request can't show -------------------------------------------------------------


def test_the_two_scenarios_are_the_documented_manifests() -> None:
    def documents(file: Path) -> Any:
        return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))

    for name in ("LLMProvider.yaml", "LLMRoute.yaml"):
        assert documents(EXAMPLES / "subscriber" / name) == documents(SEED / name)
    split = EXAMPLES / "traffic-split"
    for name, seed in {
        "LLMProvider-moonshot.yaml": "LLMProvider-moonshot.yaml",
        "LLMRoute.yaml": "LLMRoute-demo.yaml",
        "demo-llm-server.yaml": "demo-llm-server.yaml",
    }.items():
        assert documents(split / name) == documents(SEED / seed)
    (provider,) = documents(SEED / "LLMProvider.yaml")
    del provider["spec"]["configs"]["routeSpecificConfigs"]  # as it is before the first scenario
    assert documents(split / "LLMProvider.yaml") == [provider]


def test_the_service_beside_the_split_is_skipped(load_example: LoadExample) -> None:
    assert load_example("traffic-split", SIDECAR).skipped == ("Service",)


@pytest.mark.parametrize(
    ("example", "url", "shares"),
    [
        ("traffic-split", "http://demo-llm-server", {"dashscope-qwen": 50, "moonshot": 50}),
        ("affinity", "http://chat-server", {"together": 75, "deepinfra": 25}),
    ],
)
def test_a_split_follows_the_weights(
    example: str,
    url: str,
    shares: Mapping[str, int],
    load_example: LoadExample,
    make_request: MakeRequest,
) -> None:
    table = load_example(example, SIDECAR).table
    request = make_request("POST", url, body={"messages": []})
    route = table.lookup(request.host)
    assert route
    router = Router()
    counts = Counter(router.decide(route, request).target.provider for _ in range(100))
    assert counts == {name: pytest.approx(share, abs=2) for name, share in shares.items()}


def test_a_session_keeps_its_provider(load_example: LoadExample, make_request: MakeRequest) -> None:
    table = load_example("affinity", SIDECAR).table
    route = table.lookup("chat-server")
    assert route

    def provider(session: int) -> str:
        headers = {"x-session-id": str(session)}
        request = make_request("POST", "http://chat-server", headers=headers)
        return Router().decide(route, request).target.provider

    first = [provider(session) for session in range(1000)]
    assert first == [provider(session) for session in range(1000)]
    assert Counter(first)["together"] == pytest.approx(750, abs=50)


def test_failover_goes_to_providers_of_its_own_and_back(
    load_example: LoadExample, make_request: MakeRequest
) -> None:
    route = load_example("failover", SIDECAR).table.lookup("api.openai.com")
    assert route
    (rule,) = route.rules
    assert [(t.priority, t.provider, t.weight) for t in rule.targets] == [
        (0, "openai", 1),
        (1, "deepseek", 1),
        (1, "groq", 1),
    ]
    assert rule.retry == RetryPolicy(attempts=4, per_try_timeout=30.0, backoff=0.1)
    first, *others = rule.targets
    assert first.limits == TimeLimits(connect=2.0, first_byte=20.0, idle=60.0)
    assert first.ejection == Ejection(consecutive_failures=3, base=60.0, most=600.0)
    assert {(t.limits, t.ejection) for t in others} == {(TimeLimits(), Ejection())}
    url, body = "http://api.openai.com/v1/chat/completions", {"model": "gpt-4o", "messages": []}
    request = make_request("POST", url, headers={"Authorization": CLIENT_KEY}, body=body)
    sent = [rewrite(target, request) for target in rule.targets]
    assert [(_url(one), one.model) for one in sent] == [
        ("https://api.openai.com/v1/chat/completions", "gpt-4o"),
        ("https://api.deepseek.com/chat/completions", "deepseek-chat"),
        ("https://api.groq.com/openai/v1/chat/completions", "llama-3.3-70b-versatile"),
    ]
    keys = [dict(one.headers)[b"authorization"].decode() for one in sent]
    assert keys == [f"Bearer sk-{name}_API_KEY" for name in ("OPENAI", "DEEPSEEK", "GROQ")]


def test_a_mirrored_request_has_its_providers_own_rewrite(
    load_example: LoadExample, make_request: MakeRequest
) -> None:
    route = load_example("mirror", SIDECAR).table.lookup("chat-server")
    assert route
    (rule,) = route.rules
    assert [target.provider for target in rule.targets] == ["moonshot"]
    assert rule.mirror
    assert rule.mirror.percent == 5
    headers = {"Authorization": CLIENT_KEY}
    request = make_request("POST", "http://chat-server", headers=headers, body={"messages": []})
    copy = rewrite(rule.mirror.target, request)
    assert (_url(copy), copy.model) == (
        "https://api.deepseek.com/chat/completions",
        "deepseek-chat",
    )
    assert dict(copy.headers)[b"authorization"] == b"Bearer sk-DEEPSEEK_API_KEY"


def test_the_wildcard_does_not_cover_its_own_suffix(load_example: LoadExample) -> None:
    table = load_example("wildcard-host", SIDECAR).table
    assert table.lookup("internal.example") is None


def test_the_gateways_host_is_unknown_in_a_sidecar(load_example: LoadExample) -> None:
    assert load_example("workload-selector", SIDECAR).table.lookup("llm-egress") is None


def test_the_private_authority_is_all_that_is_trusted(
    load_example: LoadExample, tmp_path: Path
) -> None:
    route = load_example("private-ca", SIDECAR).table.lookup("llm.company.example")
    assert route
    tls = route.rules[0].targets[0].tls
    assert tls.ca_file == str(tmp_path / "private-ca" / "certs" / "ca.pem")
    assert (tls.sni, tls.verify) == ("gateway.company.example", True)


def test_only_the_counted_provider_is_asked_for_usage(
    load_example: LoadExample, make_request: MakeRequest
) -> None:
    table = load_example("stream-usage", SIDECAR).table
    body = {"model": "m", "stream": True, "messages": []}
    asked = {}
    for host in ("api.openai.com", "api.groq.com"):
        route = table.lookup(host)
        assert route
        request = make_request("POST", f"https://{host}/v1/chat/completions", body=body)
        asked[host] = rewrite(route.rules[0].targets[0], request).asked_usage
    assert asked == {"api.openai.com": True, "api.groq.com": False}
