from collections.abc import Callable

import pytest

from pointsman.config.loading import Loaded, Problem

type Load = Callable[..., Loaded]
type Fail = Callable[..., tuple[Problem, ...]]

# What a case adds begins on line 6.
PROVIDER = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: p}
spec:
  host: p.test
"""
ROUTE = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMRoute
metadata: {name: r}
spec:
  host: r.test
"""
SECRET = "sk-0123456789abcdef-secret"


def one(problems: tuple[Problem, ...]) -> Problem:
    assert len(problems) == 1, [str(p) for p in problems]
    return problems[0]


@pytest.mark.parametrize(
    ("added", "line", "field", "gist"),
    [
        ("  pth: /v1", 6, "pth", 'unknown field "pth"; did you mean "path"?'),
        ("  zzz: 1", 6, "zzz", 'unknown field "zzz"; known are workloadSelector, host, path'),
        ("  stream_usage: asIs", 6, "stream_usage", 'did you mean "streamUsage"?'),
        ("  path: v1/chat", 6, "path", "write it as /v1/chat/completions"),
        ('  path: "/v1\\0"', 6, "path", "is not a path"),
        ("  path:\n  - a", 6, "path", "write a text, not a mapping or a list"),
        ("  path: 5", 6, "path", "quote it"),
        ('  port: "443"', 6, "port", "write a whole number, without quotes"),
        ("  port: 443.5", 6, "port", "write a whole number"),
        ("  port: true", 6, "port", "write a whole number, without quotes"),
        ("  port: 65536", 6, "port", "at most 65535"),
        ("  port: 0", 6, "port", "greater than 0"),
        ("  scheme: ftp", 6, "scheme", "write http or https"),
        ("  address: 10.0.0.1", 6, "address", "write host:port"),
        ("  streamUsage: off", 6, "streamUsage", "write inject or asIs"),
        ("  scheme: http\n  tls: {sni: x}", 4, "", "tls has no meaning with scheme http"),
        ("  tls: {insecureSkipVerify: yes}", 6, "tls.insecureSkipVerify", "write true or false"),
        ("  tls: [a]", 6, "tls", "write a mapping"),
        (
            "  tls: {caFile: ca.pem, insecureSkipVerify: true}",
            6,
            "tls",
            "caFile and insecureSkipVerify exclude each other",
        ),
        ("  tls: {cafile: x}", 6, "tls.cafile", 'did you mean "caFile"?'),
        (
            "  workloadSelector:\n    labels:\n      v: 1",
            8,
            "workloadSelector.labels.v",
            "quote it",
        ),
        ("  workloadSelector:\n    labels: [a]", 7, "workloadSelector.labels", "write a mapping"),
        (
            "  workloadSelector:\n    labels:\n      app.kubernetes.io/name: true",
            8,
            'workloadSelector.labels["app.kubernetes.io/name"]',
            "quote it",
        ),
        ("  configs:\n    default: {}", 7, "configs.default", 'did you mean "defaultConfig"?'),
        ("  configs:\n    defaultConfig: {}", 7, "configs.defaultConfig", "found none"),
        ("  configs: {defaultConfig: {openAIConfig: }}", 6, "configs.defaultConfig", "found none"),
        (
            "  configs:\n    defaultConfig:\n      openaiConfig: {}",
            8,
            "configs.defaultConfig.openaiConfig",
            'did you mean "openAIConfig"?',
        ),
        (
            "  configs: {routeSpecificConfigs: {vip: {openAIConfig: {modle: x}}}}",
            6,
            "configs.routeSpecificConfigs.vip.openAIConfig.modle",
            'did you mean "model"?',
        ),
        ("  timeouts: {idle: 5}", 6, "timeouts.idle", "a number with a unit, such as 250ms or 30s"),
        ("  timeouts: {connect: 0s}", 6, "timeouts.connect", "it must be greater than 0"),
        ("  timeouts: {firstByte: 0ms}", 6, "timeouts.firstByte", "it must be greater than 0"),
        ("  timeouts: {idle: 0h}", 6, "timeouts.idle", "it must be greater than 0"),
        ("  timeouts: {first: 1s}", 6, "timeouts.first", 'did you mean "firstByte"?'),
        (
            "  outlierDetection: {consecutiveFailures: 0}",
            6,
            "outlierDetection.consecutiveFailures",
            "greater than 0",
        ),
        (
            "  outlierDetection:\n    baseEjection: 0s",
            7,
            "outlierDetection.baseEjection",
            "it must be greater than 0",
        ),
        ("  outlierDetection: {maxEjection: }", 6, "outlierDetection.maxEjection", "it is empty"),
        (
            "  outlierDetection: {baseEjection: 2m, maxEjection: 1m}",
            6,
            "outlierDetection",
            "baseEjection (120s) is longer than maxEjection (60s); lower baseEjection or raise",
        ),
        (
            "  outlierDetection: {baseEjection: 10m}",
            6,
            "outlierDetection",
            "baseEjection (600s) is longer than maxEjection (300s, the default)",
        ),
        (
            "  outlierDetection: {maxEjection: 500ms}",
            6,
            "outlierDetection",
            "baseEjection (30s, the default) is longer than maxEjection (0.5s)",
        ),
        (
            "  configs:\n    defaultConfig:\n      geminiConfig: {}",
            8,
            "configs.defaultConfig.geminiConfig",
            "geminiConfig is not supported yet; remove it",
        ),
        (
            "  configs:\n    defaultConfig:\n      anthropicConfig: {}",
            8,
            "configs.defaultConfig.anthropicConfig",
            "anthropicConfig is not supported yet",
        ),
        (
            "  configs:\n    defaultConfig:\n      azureOpenAIConfig: {}",
            8,
            "configs.defaultConfig.azureOpenAIConfig",
            "azureOpenAIConfig is not supported yet",
        ),
    ],
)
def test_a_fault_in_a_provider(
    problems: Fail, added: str, line: int, field: str, gist: str
) -> None:
    problem = one(problems(PROVIDER + added))
    assert (problem.file, problem.line) == ("rules/a.yaml", line)
    assert problem.resource == "LLMProvider/p"
    assert problem.field == ("spec." + field if field else "spec")
    assert gist in problem.message


@pytest.mark.parametrize(
    ("added", "line", "field", "gist"),
    [
        ("      model: 4", 9, ".model", "quote it"),
        ("      model:\n      stream: 'no'", 10, ".stream", "write true or false, without quotes"),
        ('      model: ""', 9, ".model", "it is empty"),
        ('      model: " \t"', 9, ".model", "it is empty; write a text or remove the field"),
        ('      modelMapping: {a: " "}', 9, ".modelMapping.a", "it is empty"),
        ("      apiKey: a\n      apiKeyFrom: {env: A}", 8, "", "exclude each other; keep one"),
        ("      apiKeyFrom: {}", 9, ".apiKeyFrom", "exactly one of env, file; found none"),
        (
            "      apiKeyFrom: {env: A, file: b}",
            9,
            ".apiKeyFrom",
            "exactly one of env, file; found env and file",
        ),
        ("      modelMapping:\n        '*x': y", 9, ".modelMapping", "* stands only at the end"),
        ("      headers:\n        X-Y: 1", 10, ".headers.X-Y", "quote it"),
        ("      headers:\n        x y: a", 10, '.headers["x y"]', "not an HTTP header name"),
        ("      headers:\n        Host: a", 10, ".headers.Host", "belongs to the connection"),
        ("      headers:\n        X: a\n        x: b", 9, ".headers", "stands there twice"),
        ('      headers:\n        X: "a\\nb"', 10, ".headers.X", "control characters"),
        ("      apiKey: k\n      headers: {Authorization: x}", 8, "", "exclude each other"),
        ("      params: {set: {model: x}}", 9, ".params.set", "use the field model"),
        ("      params: {set: [a]}", 9, ".params.set", "write a mapping"),
    ],
)
def test_a_fault_in_a_config(problems: Fail, added: str, line: int, field: str, gist: str) -> None:
    config = "  configs:\n    defaultConfig:\n     openAIConfig:\n"
    problem = one(problems(PROVIDER + config + added))
    assert problem.line == line
    assert problem.field == "spec.configs.defaultConfig.openAIConfig" + field
    assert gist in problem.message


@pytest.mark.parametrize(
    ("added", "line", "field", "gist"),
    [
        ("  rules: []", 6, "rules", "the list is empty"),
        ("  rules: {a: b}", 6, "rules", "write a list"),
        ("  rules:", 6, "rules", "it is empty; write a list"),
        ("  rules:\n  - name: a", 7, "rules[0].backendRefs", "the field backendRefs is missing"),
        ("  rules:\n  - name: a\n    backendRefs: []", 8, "rules[0].backendRefs", "list is empty"),
        (
            "  rules:\n  - backendRefs:\n    - providerHost: p.test\n      weight: '1'",
            9,
            "rules[0].backendRefs[0].weight",
            "write a whole number, without quotes",
        ),
        (
            "  rules:\n  - backendRefs:\n    - providerHost: p.test\n      weight: -1",
            9,
            "rules[0].backendRefs[0].weight",
            "at least 0",
        ),
        (
            "  rules:\n  - backendRefs:\n    - provider: p.test",
            8,
            "rules[0].backendRefs[0].provider",
            'did you mean "providerHost"?',
        ),
        (
            "  rules:\n  - backendRefs:\n    - {}",
            8,
            "rules[0].backendRefs[0]",
            "exactly one of providerHost, backendRef",
        ),
        *(
            (
                f"  rules:\n  - backendRefs:\n    - backendRef: {ref}",
                8,
                f"rules[0].backendRefs[0].backendRef{field}",
                gist,
            )
            for ref, field, gist in (
                ("{}", ".name", "the field name is missing"),
                ("{name: Vllm_1}", ".name", "not a name that Kubernetes has"),
                ("{name: vllm, namespace: ''}", ".namespace", "no namespace that Kubernetes has"),
                ("{name: vllm, namespace: a.b}", ".namespace", "no namespace that Kubernetes has"),
                ("{name: vllm, kind: Pod}", "", "only these can be a backend: kind Service"),
                ("{name: vllm, kind: InferencePool}", "", "with the group inference.networking"),
                ("{name: vllm, group: apps}", "", "kind Service with no group"),
                ("{name: vllm, port: 0}", ".port", "greater than 0"),
                (
                    "{name: v, kind: InferencePool, group: inference.networking.k8s.io, port: 1}",
                    "",
                    "an InferencePool has its own ports; remove port",
                ),
                (
                    "{name: v, kind: InferencePool, group: inference.networking.x-k8s.io}",
                    "",
                    "this instance reads none; set llm_kubernetes=true, or name the Service",
                ),
            )
        ),
        (
            (
                "  rules:\n  - backendRefs:\n    - {backendRef: {name: v}, weight: 1}\n"
                "    - {backendRef: {name: v, namespace: default, group: core}, weight: 1}"
            ),
            9,
            "rules[0].backendRefs[1].backendRef",
            "this rule has that backend already",
        ),
        (
            "  rules:\n  - backendRefs:\n    - {providerHost: p.test, priority: -1}",
            8,
            "rules[0].backendRefs[0].priority",
            "at least 0",
        ),
        (
            "  rules:\n  - backendRefs:\n    - {providerHost: p.test, priority: low}",
            8,
            "rules[0].backendRefs[0].priority",
            "write a whole number",
        ),
        (
            "  rules:\n  - backendRefs: [{providerHost: p.test}, {providerHost: q, weight: 0}]",
            7,
            "rules[0]",
            "give at least one a weight above 0, or each its own priority",
        ),
    ],
)
def test_a_fault_in_a_route(problems: Fail, added: str, line: int, field: str, gist: str) -> None:
    found = problems(PROVIDER, ROUTE + added)
    problem = next(p for p in found if gist in p.message)
    assert problem.line == line + 6
    assert problem.resource == "LLMRoute/r"
    assert problem.field == "spec." + field


@pytest.mark.parametrize(
    ("added", "line", "field", "gist"),
    [
        ("matches: [{headers: {user-type: vip}}]", 8, "matches[0].headers.user-type", "{exact: …}"),
        (
            "matches: [{headers: {a: {exact: x, prefix: y}}}]",
            8,
            "matches[0].headers.a",
            "found exact and prefix",
        ),
        ("matches: [{headers: {a: {exact: 1}}}]", 8, "matches[0].headers.a.exact", "quote it"),
        ("matches: [{headers: {a: {exact: }}}]", 8, "matches[0].headers.a", "found none"),
        ("matches: [{headers: {a: }}]", 8, "matches[0].headers.a", "{} for presence"),
        ("matches: [{headers: {a: {}, A: {}}}]", 8, "matches[0].headers", "stands there twice"),
        (
            "matches: [{headers: {a: {regex: '('}}}]",
            8,
            "matches[0].headers.a.regex",
            "not an RE2 expression",
        ),
        ("matches: [{headers: {a: {regex: '(?=x)'}}}]", 8, "matches[0].headers.a.regex", "RE2"),
        ("matches: [{headers: {a: {exact: ''}}}]", 8, "matches[0].headers.a.exact", "{} where"),
        ("matches: [{headers: {a: {prefix: ' '}}}]", 8, "matches[0].headers.a.prefix", "empty"),
        ("matches: [{headers: {a: {regex: ''}}}]", 8, "matches[0].headers.a.regex", "empty"),
        ("matches: [{model: ' '}]", 8, "matches[0].model.exact", "it is empty; write a text"),
        ("matches: [{model: {prefix: ''}}]", 8, "matches[0].model.prefix", "empty"),
        ("matches: [{path: ''}]", 8, "matches[0].path.exact", "empty"),
        ("matches: [{path: {regex: ''}}]", 8, "matches[0].path.regex", "empty"),
        ("matches: [{method: {regex: ' '}}]", 8, "matches[0].method.regex", "empty"),
        ("matches: [{path: v1}]", 8, "matches[0].path", "a path begins with /"),
        ("matches: [{path: {prefix: v1/}}]", 8, "matches[0].path", "write it as /v1/embeddings"),
        ("matches: [{path: '/v1?a=b'}]", 8, "matches[0].path", "without its query"),
        ("matches: [{path: {prefix: '/v1#a'}}]", 8, "matches[0].path", "before ? and #"),
        ("matches: [{method: post}]", 8, "matches[0].method", "never matches; write POST"),
        ("matches: [{method: {prefix: p}}]", 8, "matches[0].method", "never matches; write P"),
        ("matches: [{method: 'P0ST'}]", 8, "matches[0].method", "capital letters, such as POST"),
        ("matches: [{header: {}}]", 8, "matches[0].header", 'did you mean "headers"?'),
        ("matches: [{sourceLabels: {v: 1}}]", 8, "matches[0].sourceLabels.v", "quote it"),
        ("matches:\n    - gateways: mesh", 9, "matches[0].gateways", "write a list"),
        ("mode: watch", 8, "mode", "write route or observe"),
        ("affinity: {header: a, cookie: b}", 8, "affinity", "found cookie and header"),
        ("name: 3", 8, "name", "quote it"),
        ("mirror: {percent: 5}", 8, "mirror.providerHost", "the field providerHost is missing"),
        (
            "mirror: {providerHost: p.test, percent: 101}",
            8,
            "mirror.percent",
            "it must be at most 100",
        ),
        ("mirror: {providerHost: p.test, percent: -0.1}", 8, "mirror.percent", "at least 0"),
        ("mirror: {providerHost: p.test, percent: '5'}", 8, "mirror.percent", "write a number"),
        ("mirror: {providerHost: p.test, percent: true}", 8, "mirror.percent", "write a number"),
        (
            "retry: {}",
            8,
            "retry",
            "retry is empty; remove it for the default, or write attempts: 1",
        ),
        ("retry: {attempts: 0}", 8, "retry.attempts", "at least 1"),
        ("retry: {attempts: }", 8, "retry", "retry is empty"),
        (
            "retry: {retryOn: []}",
            8,
            "retry.retryOn",
            "to switch retries off, write attempts: 1 instead",
        ),
        ("retry: {retryOn: }", 8, "retry.retryOn", "it is empty; write a list"),
        ("retry: {retryOn: 429}", 8, "retry.retryOn", "write a list"),
        (
            "retry: {retryOn: [429, 503]}",
            8,
            "retry.retryOn[1]",
            "write connect-failure, reset, 429, 5xx or first-byte-timeout",
        ),
        ("retry: {perTryTimeout: 0s}", 8, "retry.perTryTimeout", "it must be greater than 0"),
        ("retry: {perTryTimeout: 5 s}", 8, "retry.perTryTimeout", "is not a duration"),
        ("retry: {backoff: 25}", 8, "retry.backoff", "is not a duration"),
        ("retry: {atempts: 2}", 8, "retry.atempts", 'did you mean "attempts"?'),
    ],
)
def test_a_fault_in_a_rule(problems: Fail, added: str, line: int, field: str, gist: str) -> None:
    rule = f"  rules:\n  - backendRefs: [{{providerHost: p.test}}]\n    {added}"
    problem = one(problems(ROUTE + rule + "\n---\n" + PROVIDER))
    assert problem.line == line
    assert problem.field == "spec.rules[0]." + field
    assert gist in problem.message


@pytest.mark.parametrize(
    "match",
    [
        "{method: M-SEARCH}",
        "{method: {regex: '(?i)post'}}",
        "{path: {prefix: /}}",
        "{path: {regex: '.*v1'}}",
        "{path: {}, method: {}, model: {}, headers: {a: {}}}",
    ],
)
def test_conditions_that_can_hold_are_no_fault(rules: Load, match: str) -> None:
    rule = f"  rules:\n  - backendRefs: [{{providerHost: p.test}}]\n    matches: [{match}]\n"
    assert rules(PROVIDER, ROUTE + rule).routes == ("r",)


LABEL = "a" * 63
LONGEST = f"{LABEL}.{LABEL}.{LABEL}.{'b' * 61}"


@pytest.mark.parametrize(
    ("host", "gist"),
    [
        ("a:80", "'a:80' is not a host name; write it without port: a"),
        ("p.test:8443", "write it without port: p.test"),
        ("'[::1]:80'", "write it without port: ::1"),
        ("'::1::'", "write the bare host name"),
        ("'fe80::1%eth0'", "write the bare host name"),
        ("https://p.test:80", "without scheme, port or path"),
        (f"{LABEL}a.test", "at most 63 characters; shorten"),
        (f"{LONGEST}b", "at most 253 characters, and this one has 254; shorten it"),
    ],
)
def test_a_host_that_can_not_be(problems: Fail, host: str, gist: str) -> None:
    rule = "  rules:\n  - backendRefs: [{providerHost: p.test}]\n"
    for text in (PROVIDER, ROUTE + rule):
        mine = text.replace("host: p.test", f"host: {host}").replace(
            "host: r.test", f"host: {host}"
        )
        other = [] if text is PROVIDER else [PROVIDER]
        problem = one(problems(mine, *other))
        assert (problem.line, problem.field) == (5, "spec.host")
        assert gist in problem.message


@pytest.mark.parametrize("host", [LONGEST, f"{LONGEST}.", "'::1'", "'[2001:DB8::1]'", "192.0.2.1"])
def test_a_host_may_be_a_long_name_or_an_address(rules: Load, host: str) -> None:
    assert rules(PROVIDER.replace("p.test", host)).providers == ("p",)


def test_a_single_priority_needs_a_weight_whatever_its_number(problems: Fail) -> None:
    refs = "[{providerHost: p.test, priority: 2}, {providerHost: q.test, priority: 2, weight: 0}]"
    providers = (PROVIDER, PROVIDER.replace("name: p", "name: q").replace("p.test", "q.test"))
    problem = one(problems(*providers, ROUTE + f"  rules:\n  - backendRefs: {refs}"))
    assert problem.field == "spec.rules[0]"
    assert "the weights of backendRefs are all zero" in problem.message


def test_what_is_not_supported_yet_is_told_beside_other_faults(problems: Fail) -> None:
    config = "  configs: {defaultConfig: {geminiConfig: {modle: x}}}\n"
    found = problems(PROVIDER + config + "  timeouts: {connect: 3x}\n  port: x")
    assert [(p.field, p.message.partition(";")[0]) for p in found] == [
        ("spec.configs.defaultConfig.geminiConfig.modle", 'unknown field "modle"'),
        ("spec.configs.defaultConfig.geminiConfig", "geminiConfig is not supported yet"),
        ("spec.timeouts.connect", "'3x' is not a duration"),
        ("spec.port", "write a whole number, without quotes"),
    ]


@pytest.mark.parametrize(
    ("text", "place", "gist"),
    [
        (
            PROVIDER.replace("LLMProvider", "LLMProvidr"),
            (2, "LLMProvidr/p", "kind"),
            'unknown kind "LLMProvidr"; did you mean "LLMProvider"?',
        ),
        (
            PROVIDER.replace("LLMProvider", "ASMSwimLane"),
            (2, "ASMSwimLane/p", "kind"),
            "known are LLMProvider and LLMRoute",
        ),
        (
            PROVIDER.replace("v1beta1", "v1"),
            (1, "LLMProvider/p", "apiVersion"),
            "istio.alibabacloud.com/v1 is not supported; write istio.alibabacloud.com/v1beta1",
        ),
        (
            PROVIDER.replace("/v1beta1", ""),
            (1, "LLMProvider/p", "apiVersion"),
            "write istio.alibabacloud.com/v1beta1",
        ),
        (
            PROVIDER.replace("metadata: {name: p}\n", ""),
            (1, "LLMProvider", "metadata"),
            "the field metadata is missing; add it",
        ),
        (
            PROVIDER.replace("name: p", "name: 7"),
            (3, "LLMProvider", "metadata.name"),
            "quote it",
        ),
        (
            PROVIDER.replace("host: p.test", "path: /v1"),
            (4, "LLMProvider/p", "spec.host"),
            "the field host is missing; add it",
        ),
        (
            PROVIDER.replace("p.test", "https://p.test/v1"),
            (5, "LLMProvider/p", "spec.host"),
            "write the bare host name",
        ),
    ],
)
def test_a_fault_in_the_frame_of_a_document(
    problems: Fail, text: str, place: tuple[int, str, str], gist: str
) -> None:
    problem = one(problems(text))
    assert (problem.line, problem.resource, problem.field) == place
    assert gist in problem.message


@pytest.mark.parametrize(
    "config",
    [
        f"{{apiKey: [{SECRET}]}}",
        f"{{apiKey: {{{SECRET}: 1}}}}",
        f'{{apiKey: "{SECRET}\\nx"}}',
        f'{{apiKey: "{SECRET}\\u00e9"}}',
        f"{{apiKey:{SECRET}, model: x}}",
        f"{{apiKey:{SECRET}}}",
        f"apiKey:{SECRET}",
        f"{{apikey: {SECRET}}}",
        f"{{apiKey: {SECRET}, apiKey: {SECRET}}}",
        f"{{apiKey:{SECRET}, apiKey:{SECRET}}}",
        f"{{apiKey: {SECRET}, apiKeyFrom: {{env: A}}}}",
        f"{{apiKey: ${{{SECRET}}}}}",
        f'{{apiKey: "${{{SECRET}"}}',
        f"{{apiKey: Bearer {SECRET}}}",
        f'{{headers: {{X-Key: "${{{SECRET}"}}}}',
        f"{{apiKeyFrom: {{env: {SECRET}}}}}",
        f"{{apiKeyFrom: {SECRET}}}",
        f"{{apiKey: *{SECRET}}}",
        f"{{apiKey: !{SECRET} x}}",
        f"{{headers: {{Authorization:Bearer {SECRET}}}}}",
        f"{{headers: {{Authorization: [{SECRET}]}}}}",
        f"{{headers: {{Authorization: Bearer {SECRET}}}, apiKey: {SECRET}}}",
        f'{{headers: {{X-Key: "{SECRET}\\n"}}}}',
        f"{{headers: {SECRET}}}",
        f"{{apiKey: {SECRET}, model: 4}}",
    ],
)
def test_no_message_repeats_a_key(problems: Fail, config: str) -> None:
    text = f"{PROVIDER}  configs:\n    defaultConfig:\n      openAIConfig: {config}\n"
    for problem in problems(text, environ={"A": SECRET}):
        assert "0123456789" not in str(problem)
        assert "0123456789" not in repr(problem)


@pytest.mark.parametrize(
    "key", ["sk-RLSECRET", "0f3a9c27b1d84e56", "AIzaSyRLSECRET-x", "gsk_RLSECRET"]
)
@pytest.mark.parametrize(
    "config",
    [
        "{KEY: x}",
        "{KEY: x, KEY: y}",
        '{apiKey: "${KEY}"}',
        '{apiKey: "${KEY"}',
        "{apiKeyFrom: {env: KEY}}",
        "{apiKeyFrom: {KEY: x}}",
        "{headers: {KEY: [x]}}",
        "{headers: {KEY: x, KEY: y}}",
        '{headers: {a: "${KEY}"}}',
    ],
)
def test_no_message_repeats_a_key_that_stands_where_a_name_belongs(
    problems: Fail, key: str, config: str
) -> None:
    text = f"{PROVIDER}  configs:\n    defaultConfig:\n      openAIConfig: "
    found = problems(text + config.replace("KEY", key) + "\n", environ={})
    for problem in found:
        assert key.lower() not in repr(problem).lower()
        assert key.lower() not in str(problem).lower()
        assert problem.line == 8


def test_each_use_of_an_extension_is_named(rules: Load) -> None:
    loaded = rules(
        PROVIDER
        + "  port: 8443\n  streamUsage: asIs\n  tls:\n  configs:\n    defaultConfig:\n"
        + "      openAIConfig:\n        model: m\n        params: {set: {seed: 1}}\n",
        ROUTE.replace("r.test", "'*.r.test'")
        + "  rules:\n  - matches: [{path: /v1, headers: {a: {}}}]\n"
        + "    backendRefs: [{providerHost: p.test}]\n",
    )
    assert [(p.line, p.field) for p in loaded.extensions] == [
        (6, "spec.port"),
        (7, "spec.streamUsage"),
        (13, "spec.configs.defaultConfig.openAIConfig.params"),
        (19, "spec.host"),
        (21, "spec.rules[0].matches[0].path"),
    ]
    assert "port is an extension of Pointsman" in loaded.extensions[0].message


def test_failing_over_and_mirroring_are_extensions(rules: Load) -> None:
    loaded = rules(
        PROVIDER + "  timeouts: {idle: 5s}\n  outlierDetection: {}\n",
        ROUTE
        + "  rules:\n  - backendRefs: [{providerHost: p.test, priority: 0}]\n"
        + "    retry: {attempts: 2}\n    mirror: {providerHost: p.test}\n",
    )
    assert [p.field for p in loaded.extensions] == [
        "spec.timeouts",
        "spec.outlierDetection",
        "spec.rules[0].backendRefs[0].priority",
        "spec.rules[0].retry",
        "spec.rules[0].mirror",
    ]


def test_what_kubernetes_adds_to_an_object_is_no_fault(rules: Load) -> None:
    metadata = "{name: p, uid: x, labels: {a: b}, managedFields: [{a: 1}]}"
    loaded = rules(PROVIDER.replace("{name: p}", metadata) + "status: {ready: true}\n")
    assert loaded.providers == ("p",)
    assert loaded.extensions == ()
