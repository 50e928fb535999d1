from collections.abc import Callable

import pytest

from pointsman.config.loading import Instance, Loaded
from pointsman.config.table import (
    DEFAULT_CONNECT_TIMEOUT,
    RETRY_BY_DEFAULT,
    CallConfig,
    Condition,
    Ejection,
    RetryPolicy,
    Route,
    Rule,
    Target,
    TimeLimits,
)

type Load = Callable[..., Loaded]


def provider(name: str, more: str = "", host: str = "") -> str:
    return (
        "apiVersion: istio.alibabacloud.com/v1beta1\nkind: LLMProvider\n"
        f"metadata: {{name: {name}}}\nspec:\n  host: {host or name + '.test'}\n{more}"
    )


def route(name: str, host: str, rules: str = "", more: str = "", namespace: str = "") -> str:
    meta = f", namespace: {namespace}" if namespace else ""
    return (
        "apiVersion: istio.alibabacloud.com/v1beta1\nkind: LLMRoute\n"
        f"metadata: {{name: {name}{meta}}}\nspec:\n  host: {host}\n{more}"
        f"  rules:\n{rules or '  - backendRefs: [{providerHost: p.test}]'}\n"
    )


def only_for(**labels: str) -> str:
    return f"  workloadSelector: {{labels: {labels}}}\n"


def found(loaded: Loaded, host: str) -> Route:
    route = loaded.table.lookup(host)
    assert route is not None
    return route


def weights(rule: Rule) -> list[tuple[str, int]]:
    return [(target.provider, target.weight) for target in rule.targets]


P = provider("p")


def test_a_provider_without_a_route_answers_for_its_own_host(rules: Load) -> None:
    alone = found(rules(P), "P.Test.")
    assert (alone.name, alone.host) == (None, "p.test")
    (rule,) = alone.rules
    assert (rule.name, rule.key, rule.matches) == ("default", "provider/p.test", ())
    assert weights(rule) == [("p", 1)]


def test_a_route_shadows_the_provider_of_its_host(rules: Load) -> None:
    assert found(rules(P, route("r", "p.test")), "p.test").name == "r"


def test_a_route_that_is_not_for_this_workload_shadows_nothing(rules: Load) -> None:
    loaded = rules(P, route("r", "p.test", more=only_for(app="a")))
    assert found(loaded, "p.test").name is None
    assert loaded.routes == ("r",)


def test_a_host_without_dots_answers_to_its_kubernetes_names(rules: Load) -> None:
    loaded = rules(P, route("r", "Demo", namespace="Ns"), route("s", "other"))
    forms = ["demo", "demo.ns", "demo.ns.svc", "demo.ns.svc.cluster.local"]
    assert [found(loaded, form).name for form in forms] == ["r"] * 4
    assert found(loaded, "other.default.svc").name == "s"
    assert loaded.table.lookup("demo.default") is None
    assert loaded.table.lookup("p.test.default") is None


def test_no_form_of_a_routes_name_leads_past_its_rules(rules: Load) -> None:
    """A provider has the full name of the Service that the route is for: its rules come first."""
    full = "demo.prod.svc.cluster.local"
    to_it = f"  - backendRefs: [{{providerHost: {full}}}]"
    loaded = rules(provider("q", host=full), route("r", "demo", to_it, namespace="prod"))
    for form in ("demo", "demo.prod", "demo.prod.svc", full):
        assert found(loaded, form).name == "r"
    assert weights(found(loaded, full).rules[0]) == [("q", 1)]


def test_an_ip_address_has_no_kubernetes_names(rules: Load) -> None:
    assert set(rules(P, route("r", "'[::1]'")).table.exact) == {"p.test", "::1"}


def test_the_longest_wildcard_wins_and_exact_names_before_all(rules: Load) -> None:
    loaded = rules(P, route("a", "'*.x'"), route("b", "'*.long.x'"), route("c", "one.long.x"))
    assert [suffix for suffix, _ in loaded.table.wildcards] == [".long.x", ".x"]
    hosts = ["one.long.x", "two.long.x", "three.x"]
    assert [found(loaded, host).name for host in hosts] == ["c", "b", "a"]
    assert loaded.table.lookup("x") is None


def test_a_wildcard_route_covers_the_hosts_of_providers(rules: Load) -> None:
    assert found(rules(P, route("r", "'*.test'")), "p.test").name == "r"


def test_names_and_keys_of_rules_are_stable(rules: Load) -> None:
    to = "backendRefs: [{providerHost: p.test}]"
    text = route("r", "r", f"  - name: vip\n    {to}\n  - {to}", namespace="ns")
    ruled = found(rules(P, text), "r").rules
    assert [(rule.name, rule.key) for rule in ruled] == [
        ("vip", "ns/r/vip"),
        ("rules[1]", "ns/r/rules[1]"),
    ]
    unnamed = found(rules(P, route("r", "r")), "r").rules[0]
    assert unnamed.key == "default/r/rules[0]"


@pytest.mark.parametrize(
    ("refs", "expected"),
    [
        ("[{providerHost: p.test}]", [("p", 1)]),
        ("[{providerHost: p.test, weight: 0}]", [("p", 1)]),
        ("[{providerHost: p.test, weight: 30}]", [("p", 1)]),
        ("[{providerHost: p.test}, {providerHost: q.test, weight: 5}]", [("p", 0), ("q", 5)]),
        ("[{providerHost: p.test, weight: 2}, {providerHost: q.test, weight: 1}]",
         [("p", 2), ("q", 1)]),
    ],
)  # fmt: skip
def test_a_single_backend_takes_all_and_an_omitted_weight_is_none(
    rules: Load, refs: str, expected: list[tuple[str, int]]
) -> None:
    loaded = rules(P, provider("q"), route("r", "r", f"  - backendRefs: {refs}"))
    assert weights(found(loaded, "r").rules[0]) == expected


BOTH = "  - backendRefs: [{providerHost: p.test, weight: 1}, {providerHost: q.test, weight: 1}]"


def test_a_backend_that_does_not_apply_here_is_left_out_with_a_warning(rules: Load) -> None:
    loaded = rules(P, provider("q", only_for(app="a")), route("r", "r", BOTH))
    assert weights(found(loaded, "r").rules[0]) == [("p", 1)]
    (warning,) = loaded.warnings
    assert warning.field == "spec.rules[0].backendRefs[1].providerHost"
    assert "the provider q.test does not apply to this workload" in warning.message


def test_a_rule_stays_when_all_its_backends_are_gone(rules: Load) -> None:
    loaded = rules(provider("p", only_for(app="a")), route("r", "r"))
    assert found(loaded, "r").rules[0].targets == ()


def test_the_provider_for_this_workload_is_taken(rules: Load) -> None:
    texts = (
        provider("one", only_for(app="a"), host="p.test"),
        provider("two", only_for(app="b"), host="p.test"),
        route("r", "r"),
    )
    for app, name in (("a", "one"), ("b", "two")):
        loaded = rules(*texts, instance=Instance({"app": app, "x": "y"}))
        assert weights(found(loaded, "r").rules[0]) == [(name, 1)]
        assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("gateways", "served", "there"),
    [
        ("", {"mesh"}, True),
        ("", {"edge"}, False),
        ("  gateways: []\n", {"mesh"}, True),
        ("  gateways: [edge]\n", {"mesh"}, False),
        ("  gateways: [edge, mesh]\n", {"mesh"}, True),
        ("  gateways: [edge]\n", {"edge", "mesh"}, True),
    ],
)
def test_a_route_is_served_by_the_gateways_it_names(
    rules: Load, gateways: str, served: set[str], there: bool
) -> None:
    instance = Instance(gateways=frozenset(served))
    loaded = rules(P, route("r", "r", more=gateways), instance=instance)
    assert (loaded.table.lookup("r") is not None) == there


def compiled(rules: Load, match: str, instance: Instance | None = None) -> Rule:
    text = f"  - matches: [{match}]\n    backendRefs: [{{providerHost: p.test}}]"
    return found(rules(P, route("r", "r", text), instance=instance), "r").rules[0]


def condition(rules: Load, match: str) -> Condition:
    (only,) = compiled(rules, match).matches[0].conditions
    return only


@pytest.mark.parametrize(
    ("match", "excluded"),
    [
        ("{}", None),
        ("{sourceLabels: {app: a}}", None),
        ("{sourceLabels: {app: b}}", "it wants the label app=b, and this workload has app=a"),
        ("{sourceLabels: {v: '1'}}", "it wants the label v=1, and this workload has no label v"),
        ("{gateways: [mesh, edge]}", None),
        ("{gateways: [edge]}", "it wants the gateway edge, and this instance serves mesh"),
    ],
)
def test_a_match_that_cannot_apply_here_says_why(
    rules: Load, match: str, excluded: str | None
) -> None:
    rule = compiled(rules, match, Instance({"app": "a"}))
    assert rule.matches[0].excluded == excluded


@pytest.mark.parametrize(
    ("match", "text", "yes", "no"),
    [
        ("{exact: subscriber}", "= subscriber", ["subscriber"], ["Subscriber", "subscriber ", ""]),
        ("{prefix: gpt-}", "starts with gpt-", ["gpt-", "gpt-4"], ["xgpt-", "GPT-4"]),
        ("{regex: 'a|bc*'}", "matches a|bc*", ["a", "bcc"], ["ab", "xa", "", "a\n"]),
        ("{regex: '^a.*$'}", "matches ^a.*$", ["abc", "a", "a数😀"], ["ba"]),
        ("{}", "present", ["", "x"], []),
    ],
)
def test_conditions_test_what_they_say(
    rules: Load, match: str, text: str, yes: list[str], no: list[str]
) -> None:
    found = condition(rules, f"{{headers: {{User-Type: {match}}}}}")
    assert (found.kind, found.name, found.text) == ("header", "user-type", text)
    assert [v for v in yes + no if found.test(v)] == yes


@pytest.mark.parametrize(("kind", "value"), [("path", "/v1"), ("method", "GET"), ("model", "m")])
def test_a_bare_text_is_exact_for_what_is_not_a_header(rules: Load, kind: str, value: str) -> None:
    found = condition(rules, f"{{{kind}: {value}}}")
    assert (found.kind, found.name, found.text) == (kind, "", f"= {value}")


def test_what_stands_in_one_match_becomes_its_conditions(rules: Load) -> None:
    match = "{headers: {a: {}, B: {exact: x}}, path: {prefix: /v1}, method: POST, model: m}"
    found = compiled(rules, match).matches[0].conditions
    assert [(c.kind, c.name) for c in found] == [
        ("header", "a"), ("header", "b"), ("path", ""), ("method", ""), ("model", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["\udc80", "a\udcffb", "\ud83d-\ude00", "\0", "é" * 10_000])
def test_a_regex_takes_any_value(rules: Load, value: str) -> None:
    assert condition(rules, "{headers: {a: {regex: '(?s).*'}}}").test(value)


def test_affinity_and_mode_reach_the_rule(rules: Load) -> None:
    text = (
        "  - backendRefs: [{providerHost: p.test}]\n"
        "    affinity: {header: X-User}\n    mode: observe"
    )
    rule = found(rules(P, route("r", "r", text)), "r").rules[0]
    assert rule.observe
    assert rule.affinity is not None
    assert rule.affinity.header == "x-user"
    assert not found(rules(P, route("r", "r")), "r").rules[0].observe


# --- failing over and mirroring -------------------------------------------------------------------


def target(rules: Load, more: str) -> Target:
    return found(rules(provider("p", more)), "p.test").rules[0].targets[0]


@pytest.mark.parametrize(
    ("timeouts", "expected"),
    [
        ("", TimeLimits()),
        ("  timeouts: {}\n", TimeLimits()),
        ("  timeouts: {connect: 250ms}\n", TimeLimits(connect=0.25)),
        ("  timeouts: {idle: 1m30s}\n", TimeLimits(idle=90.0)),
        ("  timeouts: {firstByte: 2.5s}\n", TimeLimits(DEFAULT_CONNECT_TIMEOUT, first_byte=2.5)),
    ],
)
def test_time_limits_are_the_targets_and_only_connecting_has_a_default(
    rules: Load, timeouts: str, expected: TimeLimits
) -> None:
    assert target(rules, timeouts).limits == expected


@pytest.mark.parametrize(
    ("detection", "expected"),
    [
        ("", Ejection()),
        ("  outlierDetection: {}\n", Ejection()),
        ("  outlierDetection: {consecutiveFailures: 1}\n", Ejection(consecutive_failures=1)),
        ("  outlierDetection: {baseEjection: 1s, maxEjection: 1s}\n", Ejection(5, 1.0, 1.0)),
        ("  outlierDetection: {maxEjection: 1h}\n", Ejection(most=3600.0)),
    ],
)
def test_ejection_is_the_targets_with_its_defaults(
    rules: Load, detection: str, expected: Ejection
) -> None:
    assert target(rules, detection).ejection == expected


def ruled(rules: Load, more: str, *others: str, instance: Instance | None = None) -> Loaded:
    text = f"  - name: vip\n    backendRefs: [{{providerHost: p.test}}]\n    {more}"
    return rules(P, *others, route("r", "r", text), instance=instance)


@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        ("", RetryPolicy()),
        ("retry: {attempts: 1}", RetryPolicy(attempts=1)),
        ("retry: {retryOn: [429, 5xx, 429]}", RetryPolicy(on=frozenset({"429", "5xx"}))),
        ("retry: {retryOn: ['429']}", RetryPolicy(on=frozenset({"429"}))),
        ("retry: {perTryTimeout: 20s}", RetryPolicy(None, RETRY_BY_DEFAULT, 20.0)),
        ("retry: {backoff: 1s}", RetryPolicy(backoff=1.0)),
        ("retry: {backoff: 0s}", RetryPolicy(backoff=0.0)),
    ],
)
def test_retry_reaches_the_rule(rules: Load, retry: str, expected: RetryPolicy) -> None:
    assert found(ruled(rules, retry), "r").rules[0].retry == expected


def test_every_condition_can_be_written(rules: Load) -> None:
    on = ", ".join(sorted(RETRY_BY_DEFAULT))
    assert found(ruled(rules, f"retry: {{retryOn: [{on}]}}"), "r").rules[0].retry == RetryPolicy()


def test_what_answers_without_a_route_has_the_default_policy(rules: Load) -> None:
    rule = found(rules(P), "p.test").rules[0]
    assert (rule.retry, rule.mirror) == (RetryPolicy(), None)


def test_a_mirror_is_compiled_as_a_backend_of_its_rule(rules: Load) -> None:
    configs = (
        "  timeouts: {connect: 1s}\n  configs:\n    defaultConfig: {openAIConfig: {model: a}}\n"
        "    routeSpecificConfigs: {vip: {openAIConfig: {model: b}}}\n"
    )
    loaded = ruled(rules, "mirror: {providerHost: Q.test, percent: 2.5}", provider("q", configs))
    mirror = found(loaded, "r").rules[0].mirror
    assert mirror is not None
    assert (mirror.percent, mirror.target.provider) == (2.5, "q")
    assert (mirror.target.config, mirror.target.limits) == (CallConfig(model="b"), TimeLimits(1.0))
    assert weights(found(loaded, "r").rules[0]) == [("p", 1)]


@pytest.mark.parametrize(("percent", "expected"), [("", 100), (", percent: 0", 0)])
def test_a_mirror_takes_all_unless_it_says_less(rules: Load, percent: str, expected: int) -> None:
    loaded = ruled(rules, f"mirror: {{providerHost: p.test{percent}}}")
    mirror = found(loaded, "r").rules[0].mirror
    assert mirror is not None
    assert mirror.percent == expected


def test_a_mirror_that_does_not_apply_here_is_left_out_with_a_warning(rules: Load) -> None:
    mirror, other = "mirror: {providerHost: q.test}", provider("q", only_for(app="a"))
    loaded = ruled(rules, mirror, other)
    assert found(loaded, "r").rules[0].mirror is None
    (warning,) = loaded.warnings
    assert warning.field == "spec.rules[0].mirror.providerHost"
    assert "the provider q.test does not apply to this workload" in warning.message
    assert warning.message.endswith("so this mirror is left out here")
    assert ruled(rules, mirror, other, instance=Instance({"app": "a"})).warnings == ()


def tiers(rule: Rule) -> list[tuple[int, str, int]]:
    return [(target.priority, target.provider, target.weight) for target in rule.targets]


def split(*refs: str) -> str:
    return "".join(f"    - {{providerHost: {ref}}}\n" for ref in refs)


@pytest.mark.parametrize(
    ("refs", "expected"),
    [
        (["p.test, priority: 3"], [(3, "p", 1)]),
        (["p.test", "q.test, priority: 1"], [(0, "p", 1), (1, "q", 1)]),
        (["p.test, weight: 0", "q.test, priority: 9, weight: 0"], [(0, "p", 1), (9, "q", 1)]),
        (["p.test, priority: 7", "q.test, priority: 2"], [(2, "q", 1), (7, "p", 1)]),
        (
            ["p.test, priority: 1", "q.test", "s.test, priority: 1, weight: 0"],
            [(0, "q", 1), (1, "p", 1), (1, "s", 1)],
        ),
        (
            ["p.test, priority: 1, weight: 20", "q.test, weight: 0", "s.test, priority: 1"],
            [(0, "q", 1), (1, "p", 20), (1, "s", 0)],
        ),
        (
            ["s.test, weight: 3", "p.test, priority: 1", "q.test, weight: 1"],
            [(0, "s", 3), (0, "q", 1), (1, "p", 1)],
        ),
        (
            ["s.test, priority: 1", "q.test, priority: 1, weight: 4"],
            [(1, "s", 0), (1, "q", 4)],
        ),
    ],
)
def test_weights_count_within_a_priority(
    rules: Load, refs: list[str], expected: list[tuple[int, str, int]]
) -> None:
    """Without any weight a priority is shared evenly; the targets are in the order of theirs."""
    text = "  - backendRefs:\n" + split(*refs)
    loaded = rules(P, provider("q"), provider("s"), route("r", "r", text))
    assert tiers(found(loaded, "r").rules[0]) == expected


def test_what_is_left_out_changes_no_other_weight(rules: Load) -> None:
    refs = ["p.test, weight: 0", "q.test, weight: 1", "s.test, priority: 1"]
    text = "  - backendRefs:\n" + split(*refs)
    loaded = rules(P, provider("q", only_for(app="a")), provider("s"), route("r", "r", text))
    assert tiers(found(loaded, "r").rules[0]) == [(0, "p", 0), (1, "s", 1)]
    assert loaded.warnings[0].field == "spec.rules[0].backendRefs[1].providerHost"


HIDDEN = "a value that is not shown"


@pytest.mark.parametrize(
    ("match", "text", "unmet"),
    [
        ("exact: Bearer vip-key", f"= {HIDDEN}", f"is not {HIDDEN}"),
        ("prefix: Bearer vip", f"starts with {HIDDEN}", f"does not start with {HIDDEN}"),
        ("regex: .*vip.*", f"matches {HIDDEN}", f"does not match {HIDDEN}"),
    ],
)
def test_a_condition_on_a_key_does_not_show_it(
    rules: Load, match: str, text: str, unmet: str
) -> None:
    found = condition(rules, f"{{headers: {{Authorization: {{{match}}}}}}}")
    assert (found.text, found.unmet) == (text, unmet)
    assert found.test("Bearer vip-key")
    assert condition(rules, "{headers: {authorization: {}}}").text == "present"
