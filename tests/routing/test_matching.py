import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.config.loading import Instance, load
from pointsman.config.resources import Affinity
from pointsman.config.table import CompiledMatch, Condition, Route, Rule
from pointsman.routing.matching import explain, match, reads_body
from pointsman.routing.request import Body, ClientRequest

CHAT = ClientRequest(
    "POST",
    "https",
    "llm.test",
    443,
    "/v1/chat/completions?trace=1",
    (),
    Body(b"", limit=1 << 20),
    ("192.0.2.1", 443),
)
API = "istio.alibabacloud.com/v1beta1"
PROVIDER = {
    "apiVersion": API,
    "kind": "LLMProvider",
    "metadata": {"name": "provider"},
    "spec": {"host": "api.test", "path": "/v1/chat/completions"},
}

type Rules = Callable[..., Route]


@pytest.fixture
def route(tmp_path: Path) -> Rules:
    """Load a route with these rules: each a name and its matches."""

    def load_route(instance: Instance | None = None, **rules: list[dict[str, Any]] | None) -> Route:
        backends = [{"providerHost": "api.test"}]
        spec = {
            "host": "llm.test",
            "rules": [
                {"name": name, "backendRefs": backends, **({"matches": m} if m else {})}
                for name, m in rules.items()
            ],
        }
        document = {"apiVersion": API, "kind": "LLMRoute", "metadata": {"name": "r"}, "spec": spec}
        text = "\n---\n".join(map(json.dumps, (PROVIDER, document)))
        (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
        found = load(tmp_path, instance=instance or Instance(), environ={}).table.lookup("llm.test")
        assert found is not None
        return found

    return load_route


def headers(*pairs: tuple[bytes, bytes]) -> ClientRequest:
    return replace(CHAT, headers=pairs)


def header(test: Mapping[str, str], name: str = "x-user") -> list[dict[str, Any]]:
    return [{"headers": {name: test}}]


def matched(route: Route, request: ClientRequest) -> str | None:
    found = match(route, request)
    return found.name if found else None


def test_first_matching_rule_wins(route: Rules) -> None:
    rules = route(no=header({"exact": "b"}), first=header({"prefix": "a"}), second=header({}))
    assert matched(rules, headers((b"x-user", b"ann"))) == "first"
    assert matched(rules, headers((b"x-user", b"zoe"))) == "second"


def test_a_rule_without_matches_takes_everything(route: Rules) -> None:
    rules = route(vip=header({"exact": "vip"}), rest=None)
    assert matched(rules, CHAT) == "rest"
    assert matched(rules, replace(CHAT, method="GET", path="")) == "rest"
    assert matched(rules, headers((b"x-user", b"vip"))) == "vip"


def test_a_catch_all_hides_the_rules_after_it(route: Rules) -> None:
    assert matched(route(rest=None, vip=header({})), headers((b"x-user", b"vip"))) == "rest"


def test_no_matching_rule_is_none(route: Rules) -> None:
    assert match(route(vip=header({"exact": "vip"})), CHAT) is None


def test_matches_are_ored_and_conditions_anded(route: Rules) -> None:
    rules = route(
        both_or_other=[
            {"headers": {"x-a": {"exact": "1"}, "x-b": {"exact": "2"}}, "method": "POST"},
            {"headers": {"x-c": {}}},
        ]
    )
    a, b, c = (b"x-a", b"1"), (b"x-b", b"2"), (b"x-c", b"")
    assert matched(rules, headers(a, b))
    assert matched(rules, headers(c))
    assert not matched(rules, headers(a))
    assert not matched(rules, headers(b))
    assert not matched(rules, headers(a, (b"x-b", b"3")))
    assert not matched(rules, replace(headers(a, b), method="PUT"))


@pytest.mark.parametrize(
    ("test", "value", "expected"),
    [
        ({"exact": "subscriber"}, b"subscriber", True),
        ({"exact": "subscriber"}, b"Subscriber", False),
        ({"exact": "subscriber"}, b"subscriber2", False),
        ({"exact": "a.c"}, b"abc", False),
        ({"prefix": "sub"}, b"subscriber", True),
        ({"prefix": "sub"}, b"sub", True),
        ({"prefix": "sub"}, b"a sub", False),
        ({"prefix": "sub"}, b"Subscriber", False),
        ({"regex": "sub.*"}, b"subscriber", True),
        ({"regex": "sub"}, b"subscriber", False),
        ({"regex": "criber"}, b"subscriber", False),
        ({"regex": "a|ab"}, b"ab", True),
        ({"regex": "(?i)VIP-[0-9]{2}"}, b"vip-07", True),
        ({"regex": "[0-9]+"}, b"", False),
        ({"regex": "é."}, "éa".encode(), True),
        ({}, b"anything", True),
        ({}, b"", True),
    ],
)
def test_a_value_is_compared_as_written(
    route: Rules, test: dict[str, str], value: bytes, expected: bool
) -> None:
    assert bool(matched(route(rule=header(test)), headers((b"x-user", value)))) is expected


@pytest.mark.parametrize("test", [{"exact": "a"}, {"prefix": "a"}, {"regex": ".*"}, {}])
def test_an_absent_header_matches_nothing(route: Rules, test: dict[str, str]) -> None:
    assert not matched(route(rule=header(test)), headers((b"x-other", b"a")))


@pytest.mark.parametrize("written", ["x-user", "X-User", "X-USER"])
@pytest.mark.parametrize("sent", [b"x-user", b"X-User", b"X-USER"])
def test_header_names_have_no_case(route: Rules, written: str, sent: bytes) -> None:
    assert matched(route(rule=header({"exact": "Ann"}, written)), headers((sent, b"Ann")))


def test_repeated_headers_are_compared_joined(route: Rules) -> None:
    sent = headers((b"X-User", b"a"), (b"x-user", b"b"))
    assert matched(route(rule=header({"exact": "a,b"})), sent)
    assert matched(route(rule=header({"regex": "a, ?b"})), sent)
    assert not matched(route(rule=header({"exact": "b"})), sent)


@pytest.mark.parametrize(
    ("test", "expected"),
    [({}, True), ({"prefix": "a"}, True), ({"regex": "a.z"}, True), ({"exact": "az"}, False)],
)
def test_a_header_value_that_is_no_utf8_is_still_a_value(
    route: Rules, test: dict[str, str], expected: bool
) -> None:
    assert bool(matched(route(rule=header(test)), headers((b"x-user", b"a\xffz")))) is expected


@pytest.mark.parametrize("path", ["/a\udcff", "/a%FF"])
def test_a_path_that_is_no_utf8_is_still_a_path(route: Rules, path: str) -> None:
    assert matched(route(rule=[{"path": {"regex": "/a.+"}}]), replace(CHAT, path=path))


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ({"path": "/v1/chat/completions"}, True),
        ({"path": {"prefix": "/v1/"}}, True),
        ({"path": {"regex": ".*trace.*"}}, False),  # the query is no part of the path
        ({"path": "/v1"}, False),
        ({"method": "POST"}, True),
        ({"method": "PUT"}, False),
        ({"method": {"regex": "GET|POST"}}, True),
        ({"model": "gpt-4o"}, True),
        ({"model": {"prefix": "gpt-"}}, True),
        ({"model": {}}, True),
        ({"model": "gpt-4"}, False),
        ({"model": {"prefix": "GPT"}}, False),
    ],
)
def test_path_method_and_model_match(route: Rules, test: dict[str, Any], expected: bool) -> None:
    sent = replace(CHAT, body=Body(b'{"model":"gpt-4o"}', limit=100))
    assert bool(matched(route(rule=[test]), sent)) is expected


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"model":null}', b"not json"])
def test_a_request_without_a_model_has_no_model_to_match(route: Rules, raw: bytes) -> None:
    sent = replace(CHAT, body=Body(raw, limit=100))
    assert not matched(route(rule=[{"model": {"regex": ".*"}}]), sent)


def test_matches_for_other_workloads_and_gateways_never_hold(route: Rules) -> None:
    here = Instance(labels={"app": "web"}, gateways=frozenset({"mesh"}))
    rules = route(
        here,
        label=[{"sourceLabels": {"app": "batch"}}],
        gateway=[{"gateways": ["edge"]}],
        mine=[{"sourceLabels": {"app": "batch"}}, {"sourceLabels": {"app": "web"}}],
    )
    assert matched(rules, CHAT) == "mine"
    assert [verdict.reason for verdict in explain(rules, CHAT)] == [
        "it wants the label app=batch, and this workload has app=web",
        "it wants the gateway edge, and this instance serves mesh",
        "an empty match takes all",
    ]


def test_a_match_with_an_excluded_label_fails_whatever_else_holds(route: Rules) -> None:
    rules = route(rule=[{"sourceLabels": {"app": "batch"}, "headers": {"x-user": {}}}])
    assert match(rules, headers((b"x-user", b"a"))) is None


def test_explain_says_why_each_rule_was_passed_over(route: Rules) -> None:
    rules = route(
        vip=[{"headers": {"x-user": {"exact": "vip"}}}, {"headers": {"x-tier": {"prefix": "p"}}}],
        models=[{"model": {"regex": "gpt.*"}, "method": "POST"}],
        rest=None,
        never=None,
    )
    sent = headers((b"X-User", b"ann"))
    assert [(v.rule.name, v.matched, v.reason) for v in explain(rules, sent)] == [
        (
            "vip",
            False,
            "header x-user is not vip; header x-tier is absent (wanted: starts with p)",
        ),
        ("models", False, "model is absent (wanted: matches gpt.*)"),
        ("rest", True, "it has no matches, so it takes every request"),
    ]


@pytest.mark.parametrize(
    ("match", "reason"),
    [
        ({"method": "PUT"}, "method is not PUT"),
        ({"path": {"prefix": "/v2"}}, "path does not start with /v2"),
        ({"path": {"regex": "/v[2-9].*"}}, "path does not match /v[2-9].*"),
    ],
)
def test_a_reason_reads_as_a_sentence(route: Rules, match: dict[str, Any], reason: str) -> None:
    (verdict,) = explain(route(one=[match]), headers())
    assert (verdict.matched, verdict.reason) == (False, reason)


def test_explain_says_what_made_a_rule_match(route: Rules) -> None:
    rules = route(vip=[{"headers": {"x-user": {"exact": "vip"}}, "method": {"prefix": "P"}}])
    (verdict,) = explain(rules, headers((b"x-user", b"vip")))
    assert (verdict.matched, verdict.reason) == (
        True,
        "header x-user = vip and method starts with P",
    )


@pytest.mark.parametrize(
    ("matches", "affinity", "expected"),
    [
        (None, None, False),
        ([{"headers": {"x-user": {}}, "path": "/v1", "method": "POST"}], None, False),
        ([{"headers": {"x-user": {}}}, {"model": {}}], None, True),
        (None, {"header": "x-user"}, False),
        (None, {"cookie": "session"}, False),
        (None, {"bodyField": "user"}, True),
    ],
)
def test_a_rule_tells_whether_it_looks_at_the_body(
    route: Rules,
    matches: list[dict[str, Any]] | None,
    affinity: dict[str, str] | None,
    expected: bool,
) -> None:
    (rule,) = route(rule=matches).rules
    kept_by = Affinity.model_validate(affinity) if affinity else None
    assert reads_body(replace(rule, affinity=kept_by)) is expected


# --- any route, any request -----------------------------------------------------------------------

WORDS = ["", "a", "ab", "b"]
NAMES = ["x-a", "x-b"]


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    kind: Literal["header", "path", "method", "model"]
    kind = draw(st.sampled_from(["header", "path", "method", "model"]))
    wanted = draw(st.sampled_from(WORDS))
    name = draw(st.sampled_from(NAMES)) if kind == "header" else ""
    if draw(st.booleans()):
        return Condition(kind, name, wanted.__eq__, f"= {wanted}")
    return Condition(kind, name, lambda value: value.startswith(wanted), f"starts with {wanted}")


matches = st.builds(
    CompiledMatch,
    st.lists(conditions(), max_size=3).map(tuple),
    st.sampled_from([None, None, None, "not here"]),
)
rules_of = st.lists(st.lists(matches, max_size=3).map(tuple), max_size=4)
requests = st.builds(
    lambda method, path, model, sent: replace(
        CHAT,
        method=method,
        path=path,
        headers=tuple((name.encode(), value.encode()) for name, value in sent),
        body=Body(json.dumps({"model": model}).encode(), limit=1000),
    ),
    st.sampled_from(["POST", "a", "b"]),
    st.sampled_from(WORDS),
    st.sampled_from([None, *WORDS]),
    st.lists(st.tuples(st.sampled_from(["X-A", "x-b"]), st.sampled_from(WORDS)), max_size=3),
)


def holds(condition: Condition, request: ClientRequest) -> bool:
    values: dict[str, str | None] = {
        "header": request.header_values.get(condition.name),
        "path": request.bare_path,
        "method": request.method,
        "model": request.model,
    }
    value = values[condition.kind]
    return value is not None and condition.test(value)


@given(rules_of, requests)
def test_match_and_explain_agree_with_the_definition(
    rules: list[tuple[CompiledMatch, ...]], request: ClientRequest
) -> None:
    made = tuple(Rule(str(i), str(i), rule, ()) for i, rule in enumerate(rules))
    route = Route("r", "llm.test", made)
    expected = next(
        (
            rule
            for rule in made
            if not rule.matches
            or any(
                one.excluded is None and all(holds(c, request) for c in one.conditions)
                for one in rule.matches
            )
        ),
        None,
    )
    assert match(route, request) is expected

    verdicts = list(explain(route, request))
    assert all(verdict.reason for verdict in verdicts)
    assert not any(verdict.matched for verdict in verdicts[:-1])
    if expected is None:
        assert [v.rule for v in verdicts] == list(made)
        assert not any(v.matched for v in verdicts)
    else:
        assert verdicts[-1].rule is expected
        assert verdicts[-1].matched
        assert [v.rule for v in verdicts] == list(made[: len(verdicts)])
