"""What `pointsman explain` and `llm.explain` tell is what the proxy would do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.config.resources import Affinity
from pointsman.config.table import Route, RoutingTable, Rule, Target
from pointsman.explaining import explain
from pointsman.routing.health import Health
from pointsman.routing.planning import make_plan
from pointsman.routing.request import Body, ClientRequest


def asked_by(user: str) -> ClientRequest:
    headers = ((b"x-user", user.encode()),) if user else ()
    body = Body(b"{}", limit=99)
    return ClientRequest("POST", "http", "llm.test", 80, "/", headers, body, ("llm.test", 80))


def told(rule: Rule, user: str) -> list[tuple[str, float]]:
    table = RoutingTable({"llm.test": Route("r", "llm.test", (rule,))})
    return [(step.provider, step.share) for step in explain(table, asked_by(user)).targets]


def targets(*weighted: tuple[int, int]) -> tuple[Target, ...]:
    return tuple(
        Target(f"p{i}", f"p{i}.test", weight=weight, priority=priority)
        for i, (weight, priority) in enumerate(weighted)
    )


@given(
    st.text("abcdef", min_size=1),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=5).filter(
        lambda weighted: any(weight for weight, _ in weighted)
    ),
)
def test_with_an_affinity_it_is_the_plans_first_target(
    user: str, weighted: list[tuple[int, int]]
) -> None:
    rule = Rule("x", "k", (), targets(*weighted), affinity=Affinity(header="x-user"))
    planned = make_plan(rule, asked_by(user), lambda: 0.0, Health(), 0)
    assert told(rule, user) == [(planned.order[0].provider, 1.0)]


def test_without_its_value_each_target_with_a_weight_is_told() -> None:
    chosen = targets((3, 0), (1, 0), (0, 0), (1, 1))
    rule = Rule("x", "k", (), chosen, affinity=Affinity(header="x-user"))
    assert told(rule, "") == [("p0", 0.75), ("p1", 0.25), ("p3", 1.0)]


@pytest.mark.parametrize("user", ["ann", ""])
def test_a_rule_without_any_weight_is_refused(user: str) -> None:
    rule = Rule("x", "k", (), targets((0, 0)), affinity=Affinity(header="x-user"))
    table = RoutingTable({"llm.test": Route("r", "llm.test", (rule,))})
    assert (explain(table, asked_by(user)).error or "").startswith("503")
