from collections.abc import Callable

import pytest

from pointsman.config.loading import Loaded, Problem

type Load = Callable[..., Loaded]
type Fail = Callable[..., tuple[Problem, ...]]


def provider(name: str, host: str, more: str = "") -> str:
    return (
        "apiVersion: istio.alibabacloud.com/v1beta1\nkind: LLMProvider\n"
        f"metadata: {{name: {name}}}\nspec:\n  host: {host}\n{more}"
    )


def route(name: str, host: str, *, to: str = "p.test", more: str = "", meta: str = "") -> str:
    return (
        "apiVersion: istio.alibabacloud.com/v1beta1\nkind: LLMRoute\n"
        f"metadata: {{name: {name}{meta}}}\nspec:\n  host: {host}\n{more}"
        f"  rules:\n  - backendRefs:\n    - providerHost: {to}\n"
    )


def only_for(**labels: str) -> str:
    return f"  workloadSelector: {{labels: {labels}}}\n"


P = provider("p", "p.test")


def test_two_providers_of_one_host_are_an_error_that_names_both(problems: Fail) -> None:
    (problem,) = problems(files={"a.yaml": P, "b.yaml": provider("q", "P.test")})
    assert (problem.file, problem.line) == ("rules/b.yaml", 5)
    assert (problem.resource, problem.field) == ("LLMProvider/q", "spec.host")
    assert "LLMProvider p at rules/a.yaml:1 has the host p.test too" in problem.message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (only_for(app="a"), only_for(app="b")),
        (only_for(app="a", v="1"), only_for(app="a", v="2")),
    ],
)
def test_providers_that_never_meet_may_share_a_host(rules: Load, one: str, other: str) -> None:
    assert rules(provider("p", "p.test", one), provider("q", "p.test", other)).providers == (
        "p",
        "q",
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [(only_for(app="a"), ""), (only_for(app="a"), only_for(v="1")), ("", only_for(app="a"))],
)
def test_providers_that_may_meet_may_not_share_a_host(problems: Fail, one: str, other: str) -> None:
    (problem,) = problems(provider("p", "p.test", one), provider("q", "p.test", other))
    assert "give each a workloadSelector" in problem.message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (route("a", "demo"), route("b", "demo")),
        (route("a", "demo"), route("b", "demo.default")),
        (route("a", "demo.default.svc.cluster.local"), route("b", "Demo.")),
        (route("a", "demo", meta=", namespace: x"), route("b", "demo.x.svc")),
        (route("a", "demo", meta=", namespace: x"), route("b", "demo")),
        (route("a", "'*.p.test'"), route("b", "'*.P.test'")),
    ],
)
def test_two_routes_of_one_host_are_an_error(problems: Fail, one: str, other: str) -> None:
    (problem,) = problems(P, one, other)
    assert (problem.line, problem.resource, problem.field) == (20, "LLMRoute/b", "spec.host")
    assert "the LLMRoute a at rules/a.yaml:7" in problem.message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (route("a", "demo"), route("b", "demo.x")),
        (route("a", "demo.x"), route("b", "demo")),
        (route("a", "a.test"), route("b", "'*.a.test'")),
        (route("a", "a", more=only_for(v="1")), route("b", "a", more=only_for(v="2"))),
        (route("a", "p.test"), route("b", "b")),
    ],
)
def test_routes_of_different_hosts_are_none(rules: Load, one: str, other: str) -> None:
    assert rules(P, one, other).routes == ("a", "b")


def test_an_unknown_provider_host_is_an_error_with_a_suggestion(problems: Fail) -> None:
    (problem,) = problems(P, route("r", "r.test", to="p.tst"))
    assert problem.line == 14
    assert problem.field == "spec.rules[0].backendRefs[0].providerHost"
    assert problem.message == 'no LLMProvider has the host p.tst; did you mean "p.test"?'
    (problem,) = problems(P, route("r", "r.test", to="api.other.com"))
    assert problem.message.endswith("add one with that spec.host")


def test_an_unknown_mirror_is_the_same_error(problems: Fail) -> None:
    text = route("r", "r.test") + "    mirror: {providerHost: p.tst}\n"
    (problem,) = problems(P, text)
    assert (problem.line, problem.field) == (15, "spec.rules[0].mirror.providerHost")
    assert problem.message == 'no LLMProvider has the host p.tst; did you mean "p.test"?'
    (problem,) = problems(P, text.replace("p.tst", "api.other.com"))
    assert problem.message.endswith("add one with that spec.host")


def test_a_mirror_may_be_a_backend_too(rules: Load) -> None:
    loaded = rules(P, route("r", "r.test") + "    mirror: {providerHost: P.test}\n")
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    "faulty",
    [
        provider("q", "q.test", "  pth: /v1\n"),
        provider("q", "q.test").replace("LLMProvider", "LLMProvidr"),
        provider("q", "q.test").replace("v1beta1", "v1"),
        provider("q", "https://q.test"),
        provider("q", "q.test").replace("host", "hots"),
        "a: b: c",
        "- q.test",
    ],
)
def test_a_provider_that_is_at_fault_itself_is_not_called_unknown(
    problems: Fail, faulty: str
) -> None:
    mirrored = route("s", "s.test") + "    mirror: {providerHost: q.test}\n"
    found = problems(route("r", "r.test", to="q.test"), mirrored, P, faulty)
    assert found
    assert not [p for p in found if "no LLMProvider has" in p.message]


def test_faults_of_one_document_do_not_hide_those_of_another(problems: Fail) -> None:
    found = problems(provider("q", "q.test", "  pth: /v1\n"), route("r", "r", to="nowhere.test"))
    assert [p.field for p in found] == ["spec.pth", "spec.rules[0].backendRefs[0].providerHost"]


def test_rule_names_are_unique_in_a_route(problems: Fail) -> None:
    rule = "  - name: a\n    backendRefs: [{providerHost: p.test}]\n"
    text = route("r", "r").partition("  rules:")[0] + f"  rules:\n{rule}{rule}"
    (problem,) = problems(P, text)
    assert (problem.line, problem.field) == (15, "spec.rules[1].name")
    assert problem.message == "the rule in line 13 has this name too; rename one of them"


def test_a_provider_stands_once_in_a_rule(problems: Fail) -> None:
    text = route("r", "r") + "      weight: 1\n    - {providerHost: P.test, weight: 2}\n"
    (problem,) = problems(P, text)
    assert (problem.line, problem.field) == (16, "spec.rules[0].backendRefs[1].providerHost")
    assert "add up the weights" in problem.message


def test_a_name_stands_once_in_a_namespace(problems: Fail) -> None:
    again = provider("p, namespace: default", "q.test")
    (problem,) = problems(files={"a.yaml": P, "b.yaml": again})
    assert (problem.file, problem.line, problem.field) == ("rules/b.yaml", 3, "metadata.name")
    assert "stands at rules/a.yaml:1 too" in problem.message


def test_one_manifest_in_two_files_is_told_once(problems: Fail) -> None:
    (problem,) = problems(files={"a.yaml": P, "b.yaml": P})
    assert "of this name stands at" in problem.message


def test_one_name_may_stand_in_two_namespaces_and_for_two_kinds(rules: Load) -> None:
    loaded = rules(P, provider("p, namespace: x", "q.test"), route("p", "r.test"))
    assert loaded.providers == ("p", "p")


def test_a_config_for_a_rule_that_no_route_has_is_a_warning(rules: Load) -> None:
    configs = "  configs:\n    routeSpecificConfigs:\n      vip-rout: {openAIConfig: {model: m}}\n"
    text = route("r", "r").replace("- backendRefs", "- name: vip-route\n    backendRefs")
    (warning,) = rules(provider("p", "p.test", configs), text).warnings
    assert warning.line == 8
    assert warning.field == "spec.configs.routeSpecificConfigs.vip-rout"
    assert warning.message == 'no LLMRoute has such a rule; did you mean "vip-route"?'


@pytest.mark.parametrize(
    "matches", ["", "matches: []", "matches: [{headers: {a: {}}}, {}]", "matches: [{headers: {}}]"]
)
def test_a_rule_after_one_that_takes_all_is_a_warning(rules: Load, matches: str) -> None:
    to = "backendRefs: [{providerHost: p.test}]"
    text = (
        route("r", "r").partition("  rules:")[0]
        + f"  rules:\n  - name: vip\n    {to}\n    matches: [{{headers: {{a: {{}}}}}}]\n"
        + f"  - name: rest\n    {to}\n    {matches}\n"
        + f"  - name: late\n    {to}\n    matches: [{{model: m}}]\n  - {to}\n"
    )
    first, second = rules(P, text).warnings
    assert (first.line, first.field) == (19, "spec.rules[2]")
    assert first.message == (
        "never reached: the rule rest before it takes every request; put this one before it, or"
        " remove one of them"
    )
    assert second.field == "spec.rules[3]"


@pytest.mark.parametrize(
    "match", ["gateways: [mesh]", "sourceLabels: {a: b}", "path: {}", "headers: {a: {}}"]
)
def test_a_rule_after_one_with_conditions_is_none(rules: Load, match: str) -> None:
    text = (
        route("r", "r")
        + f"    matches: [{{{match}}}]\n  - backendRefs: [{{providerHost: p.test}}]\n"
    )
    assert rules(P, text).warnings == ()
