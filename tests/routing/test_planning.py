import json
import time
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.config.backends import Backend, Endpoints
from pointsman.config.resources import Affinity
from pointsman.config.table import Ejection, RetryPolicy, Rule, Target
from pointsman.routing.balancing import (
    DrawSequence,
    NoWeightError,
    affinity_value,
    place,
    rank_by_hash,
)
from pointsman.routing.health import Health
from pointsman.routing.planning import (
    LONGEST_BACKOFF,
    RETRIABLE_STATUS,
    NoEndpointError,
    Plan,
    backoff,
    condition,
    make_plan,
    order_of,
    retry_after,
    shares,
    split,
    state_of,
)
from pointsman.routing.request import Body, ClientRequest

JUST_BELOW_ONE = 0.9999999999999999
CHAT = ClientRequest(
    "POST",
    "https",
    "llm.test",
    443,
    "/",
    (),
    Body(b"", limit=1 << 20),
    ("192.0.2.1", 443),
)
USER = Affinity(header="x-user")


def targets(*weights: int, priority: int = 0) -> tuple[Target, ...]:
    ejection = Ejection(consecutive_failures=1)
    return tuple(
        Target(
            f"p{priority}{i}",
            f"p{priority}{i}.test",
            weight=weight,
            priority=priority,
            ejection=ejection,
        )
        for i, weight in enumerate(weights)
    )


def rule_of(*chosen: Target, affinity: Affinity | None = None) -> Rule:
    return Rule("r", "r", (), chosen, affinity)


def user(name: str) -> ClientRequest:
    return replace(CHAT, headers=((b"X-User", name.encode()),))


def without(*ejected: Target) -> Health:
    health = Health()
    for target in ejected:
        health.failed(target, 0)
    return health


def plan(
    rule: Rule,
    r: float = 0.5,
    *,
    request: ClientRequest = CHAT,
    health: Health | None = None,
    now: float = 0.0,
) -> Plan:
    return make_plan(rule, request, lambda: r, health or Health(), now)


def names(chosen: tuple[Target, ...]) -> str:
    return " ".join(target.provider for target in chosen)


some_weights = st.lists(st.integers(0, 1000), min_size=1, max_size=6).filter(any)
draws = st.one_of(st.floats(0, 1, exclude_max=True), st.just(JUST_BELOW_ONE))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Return a rule with up to three tiers, of which at least one has a weight."""
    tiers = draw(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=3))
    chosen = [target for p, tier in enumerate(tiers) for target in targets(*tier, priority=p)]
    if not any(target.weight for target in chosen):
        chosen += targets(1, priority=len(tiers))
    return rule_of(*draw(st.permutations(chosen)), affinity=draw(st.sampled_from([None, USER])))


requests = st.sampled_from([CHAT, user("ann"), user("bob")])


class TestFirstChoice:
    @given(some_weights, draws)
    def test_with_all_healthy_it_is_the_one_of_balancing(
        self, weights: list[int], start: float
    ) -> None:
        rule = rule_of(*targets(*weights))
        here, there, health = DrawSequence(start), DrawSequence(start), Health()
        for _ in range(100):
            planned = make_plan(rule, CHAT, here.draw, health, 0)
            assert planned.order[0] is rule.targets[place(weights, there.draw())[0]]
            assert not planned.skipped

    @given(rules(), requests)
    def test_a_plan_takes_one_draw_and_with_affinity_none(
        self, rule: Rule, request: ClientRequest
    ) -> None:
        drawn: list[float] = []

        def draw() -> float:
            drawn.append(0.3)
            return 0.3

        make_plan(rule, request, draw, Health(), 0)
        decided = rule.affinity is not None and request is not CHAT
        assert len(drawn) == (0 if decided else 1)

    @pytest.mark.parametrize(
        ("weights", "shares"), [((50, 30, 20), (0, 600, 400)), ((1, 1, 1), (0, 500, 500))]
    )
    def test_the_weights_of_the_available_are_scaled_up(
        self, weights: tuple[int, ...], shares: tuple[int, ...]
    ) -> None:
        three = targets(*weights)
        rule, sequence, health = rule_of(*three), DrawSequence(0.1), without(three[0])
        firsts = Counter(
            make_plan(rule, CHAT, sequence.draw, health, 0).order[0].host for _ in range(1000)
        )
        for target, share in zip(three, shares, strict=True):
            assert abs(firsts[target.host] - share) <= 3

    def test_a_target_that_is_back_has_its_share_again(self) -> None:
        two = targets(1, 1)
        health = without(two[0])
        assert names(plan(rule_of(*two), 0.1, health=health).order) == "p01"
        assert names(plan(rule_of(*two), 0.1, health=health, now=30).order) == "p00 p01"
        health.begin(two[0], 30)
        assert names(plan(rule_of(*two), 0.1, health=health, now=30).order) == "p01"
        health.succeeded(two[0], 31)
        assert names(plan(rule_of(*two), 0.1, health=health, now=31).order) == "p00 p01"


class TestOrder:
    @given(rules(), requests, draws, st.data())
    def test_each_target_with_a_weight_stands_in_it_once_tier_by_tier(
        self, rule: Rule, request: ClientRequest, r: float, data: st.DataObject
    ) -> None:
        ejected = data.draw(st.lists(st.sampled_from(rule.targets), max_size=6))
        planned = plan(rule, r, request=request, health=without(*ejected))
        wanted = {t.host for t in rule.targets if t.weight}
        down = {t.host for t in ejected} & wanted
        order, skipped = [t.host for t in planned.order], [t.host for t in planned.skipped]
        if down == wanted:
            down = set()
        assert sorted(order) == sorted(wanted - down)
        assert sorted(skipped) == sorted(down)
        priorities = [t.priority for t in planned.order]
        assert priorities == sorted(priorities)
        assert planned.attempts == len(order) > 0

    @pytest.mark.parametrize("weights", [(1, 1, 1), (50, 30, 20), (90, 9, 1)])
    def test_the_split_of_the_fallbacks_is_as_even_as_that_of_the_first(
        self, weights: tuple[int, ...]
    ) -> None:
        times, rule, sequence = 10_000, rule_of(*targets(*weights)), DrawSequence(0.7)
        orders = Counter(
            names(make_plan(rule, CHAT, sequence.draw, Health(), 0).order[:2]) for _ in range(times)
        )
        for first, second in permutations(rule.targets, 2):
            left = sum(weights) - first.weight
            share = first.weight / sum(weights) * second.weight / left
            assert abs(orders[names((first, second))] - times * share) <= 4

    def test_later_tiers_are_split_by_the_same_draw(self) -> None:
        rule = rule_of(*targets(1), *targets(3, 1, priority=1))
        sequence = DrawSequence(0.2)
        seconds = Counter(
            make_plan(rule, CHAT, sequence.draw, Health(), 0).order[1].host for _ in range(1000)
        )
        assert abs(seconds["p10.test"] - 750) <= 3

    @given(st.integers(1, 40), draws)
    def test_many_targets_are_all_in_it(self, count: int, r: float) -> None:
        assert len(set(names(plan(rule_of(*targets(*[1] * count)), r).order).split())) == count

    @given(st.lists(st.integers(0, 10**9), min_size=1, max_size=5).filter(any), draws)
    def test_what_is_left_of_a_draw_is_where_it_lies(self, weights: list[int], r: float) -> None:
        index, rest = place(weights, r)
        assert 0 <= rest < 1
        assert sum(weights[:index]) + rest * weights[index] == pytest.approx(r * sum(weights))

    def test_rounding_does_not_make_it_more_than_a_draw(self) -> None:
        assert place((2993501925979148, 26086934869491493, 2), JUST_BELOW_ONE)[1] < 1


class TestPriorities:
    rule = rule_of(*targets(1, 1, priority=2), *targets(1, 0, 1), *targets(5, priority=1))

    def test_the_lowest_comes_first(self) -> None:
        assert names(plan(self.rule, 0.0).order) == "p00 p02 p10 p20 p21"

    def test_a_tier_of_ejected_ones_is_passed_over(self) -> None:
        planned = plan(self.rule, 0.0, health=without(*targets(1, 0, 1)))
        assert names(planned.order) == "p10 p20 p21"
        assert names(planned.skipped) == "p00 p02"

    def test_one_of_a_tier_that_is_left_has_it_alone(self) -> None:
        planned = plan(self.rule, 0.0, health=without(targets(1)[0]))
        assert names(planned.order) == "p02 p10 p20 p21"

    def test_a_tier_without_weight_is_never_used(self) -> None:
        rule = rule_of(*targets(0, 0), *targets(1, priority=1))
        assert names(plan(rule).order) == "p10"
        assert names(plan(rule, health=without(*rule.targets)).order) == "p10"

    @pytest.mark.parametrize("chosen", [(), targets(0), targets(0, 0)])
    def test_without_any_weight_there_is_no_plan(self, chosen: tuple[Target, ...]) -> None:
        for affinity in (None, USER):
            with pytest.raises(NoWeightError):
                plan(rule_of(*chosen, affinity=affinity), request=user("ann"))


class TestLastOneStanding:
    def test_a_lone_target_is_never_left_out(self) -> None:
        (one,) = targets(1)
        assert plan(rule_of(one), health=without(one)) == Plan((one,), (), 1)

    @given(rules(), requests, draws)
    def test_when_none_is_left_all_are_used_as_if_healthy(
        self, rule: Rule, request: ClientRequest, r: float
    ) -> None:
        down = without(*rule.targets)
        assert plan(rule, r, request=request, health=down) == plan(rule, r, request=request)

    def test_a_weightless_target_does_not_stand_in(self) -> None:
        two = targets(1, 0)
        assert names(plan(rule_of(*two), health=without(two[0])).order) == "p00"

    def test_while_the_only_one_that_is_due_is_probed_all_are_used(self) -> None:
        two = targets(1, 1)
        health = Health()
        health.failed(two[0], 0)
        health.failed(two[1], 20)
        rule = rule_of(*two)
        assert plan(rule, health=health, now=30) == Plan((two[0],), (two[1],), 1)
        health.begin(two[0], 30)
        assert plan(rule, 0.9, health=health, now=31) == Plan((two[1], two[0]), (), 2)


def test_shares_are_of_a_priority_and_a_split_is_of_all_while_the_first_is_healthy() -> None:
    chosen = (*targets(3, 1, 0), *targets(0, priority=1), *targets(1, priority=2))
    assert shares(chosen) == list(zip(chosen, (0.75, 0.25, 0, 0, 1), strict=True))
    assert split(chosen) == list(zip(chosen, (0.75, 0.25, 0, 0, 0), strict=True))
    later = chosen[2:]
    assert split(later) == list(zip(later, (0, 0, 1), strict=True))
    assert split(()) == shares(()) == []


class TestAffinity:
    rule = rule_of(*targets(5, 3, 2), *targets(1, 1, priority=1), affinity=USER)

    @given(st.text(min_size=1).filter(str.strip), draws, draws)
    def test_a_value_has_one_order_whatever_is_drawn(self, name: str, r: float, s: float) -> None:
        request = user(name)
        planned = plan(self.rule, r, request=request)
        assert planned == plan(self.rule, s, request=request)
        turned = replace(self.rule, targets=self.rule.targets[::-1])
        assert planned == plan(turned, request=request)

    def test_it_is_the_one_of_balancing(self) -> None:
        rule = rule_of(*targets(5, 3, 2), affinity=USER)
        for n in range(200):
            planned = plan(rule, request=user(f"u{n}"))
            assert planned.order == tuple(rank_by_hash(rule.targets, f"u{n}"))

    @given(st.text(min_size=1).filter(str.strip))
    def test_the_order_of_a_value_is_the_plans(self, name: str) -> None:
        request = user(name)
        value = affinity_value(USER, request)
        assert value is not None
        assert plan(self.rule, request=request).order == tuple(order_of(self.rule.targets, value))

    @given(st.integers(0, 10_000), st.sets(st.integers(0, 4)))
    def test_what_is_ejected_moves_no_one_else(self, n: int, down: set[int]) -> None:
        request = user(f"u{n}")
        ejected = [self.rule.targets[i] for i in down]
        usual = plan(self.rule, request=request).order
        left = tuple(target for target in usual if target not in ejected)
        assert plan(self.rule, request=request, health=without(*ejected)).order == (left or usual)

    def test_the_values_of_an_ejected_target_spread_by_weight(self) -> None:
        seconds = Counter(
            plan(self.rule, request=user(f"u{n}")).order[1].host
            for n in range(4000)
            if plan(self.rule, request=user(f"u{n}")).order[0].host == "p00.test"
        )
        assert seconds["p01.test"] / seconds.total() == pytest.approx(3 / 5, abs=0.05)

    def test_without_the_value_it_is_drawn(self) -> None:
        assert {names(plan(self.rule, r / 10).order[:1]) for r in range(10)} == {
            "p00",
            "p01",
            "p02",
        }

    def test_a_field_of_the_body_may_be_the_value(self) -> None:
        rule = replace(self.rule, affinity=Affinity(body_field="user"))
        request = replace(CHAT, body=Body(json.dumps({"user": "ann"}).encode(), limit=100))
        assert plan(rule, request=request) == plan(self.rule, request=user("ann"))


class TestAttempts:
    def test_each_target_once_unless_the_rule_says_how_many(self) -> None:
        rule = rule_of(*targets(1, 1, 1))
        assert plan(rule).attempts == 3
        for attempts in (1, 2, 7):
            retry = RetryPolicy(attempts=attempts)
            assert plan(replace(rule, retry=retry)).attempts == attempts

    def test_after_the_last_target_comes_the_first(self) -> None:
        planned = Plan(targets(1, 1, 1), (), 7)
        assert [planned.target(n).provider for n in range(7)] == [
            *("p00", "p01", "p02"),
            *("p00", "p01", "p02"),
            "p00",
        ]


class TestCondition:
    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (429, "429"),
            (408, "5xx"),
            (500, "5xx"),
            (502, "5xx"),
            (503, "5xx"),
            (504, "5xx"),
            (524, "5xx"),
            (529, "5xx"),
            (501, None),
            (505, None),
            (200, None),
            (302, None),
            (400, None),
            (401, None),
            (404, None),
        ],
    )
    def test_what_is_worth_a_retry(self, status: int, expected: str | None) -> None:
        assert condition(status) == expected

    def test_every_retriable_status_has_one(self) -> None:
        assert {s for s in range(1000) if condition(s)} == RETRIABLE_STATUS


class TestBackoff:
    @pytest.mark.parametrize(
        ("round_", "jitter", "expected"),
        [
            (0, 0.0, 0.05),
            (0, 0.5, 0.075),
            (1, 0.0, 0.1),
            (5, 0.0, 1.6),
            (6, 0.0, 2.5),
            (6, 0.5, 3.75),
        ],
    )
    def test_it_doubles_and_is_spread(self, round_: int, jitter: float, expected: float) -> None:
        assert backoff(RetryPolicy(backoff=0.1), round_, jitter) == pytest.approx(expected)

    @given(st.floats(0, 1e300), st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
    def test_it_has_a_bound(self, base: float, round_: int, jitter: float) -> None:
        assert 0 <= backoff(RetryPolicy(backoff=base), round_, jitter) <= LONGEST_BACKOFF


class TestRetryAfter:
    NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110's examples

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("120", 120.0),
            (" 120 ", 120.0),
            ("0", 0.0),
            ("-5", 0.0),
            ("1.5", 1.5),
            ("Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
            ("Sunday, 06-Nov-94 08:50:37 GMT", 60.0),
            ("Sun Nov  6 08:50:37 1994", 60.0),
            ("Sun, 06 Nov 1994 08:48:37 GMT", 0.0),
        ],
    )
    def test_seconds_and_dates(self, value: str, expected: float) -> None:
        assert retry_after(value, self.NOW) == expected

    def test_a_date_without_a_zone_is_in_gmt_wherever_we_are(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "EST5")
            time.tzset()
            assert retry_after("Sun Nov  6 08:50:37 1994", self.NOW) == 60
        time.tzset()

    @pytest.mark.parametrize(
        "value",
        [
            None,
            "",
            "soon",
            "5 minutes",
            "10, 20",
            "1e3",
            "+5",
            "0x10",
            "٣",
            "nan",
            "inf",
            "9" * 400,
            "Mon, 01 Jan 2024",
            "Sun, 31 Feb 2024 08:00:00 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 +99999999999",
        ],
    )
    def test_what_cannot_be_read_is_nothing(self, value: str | None) -> None:
        assert retry_after(value, self.NOW) is None

    @given(
        st.text()
        | st.from_regex(
            r"\A(Sun|Mon)[a-z]*,? [0-9]{1,5}[- ](Nov|Feb|6)[- ][0-9]{1,6} [0-9:]{1,9} [-+A-Z0-9]*\Z"
        )
    )
    def test_nothing_is_raised_and_nothing_is_negative_or_endless(self, value: str) -> None:
        seconds = retry_after(value, self.NOW)
        assert seconds is None or 0 <= seconds < float("inf")


class TestEndpoints:
    """A backend in the cluster is planned as the pods that it has."""

    PODS = tuple((f"10.0.0.{n}", 8000) for n in range(1, 6))

    def pool(self, *addresses: tuple[str, int], priority: int = 0, weight: int = 1) -> Target:
        endpoints = Endpoints(Backend("v1", "InferencePool", "ns", "pool"))
        endpoints.replace(addresses)
        ejection = Ejection(consecutive_failures=1)
        pool = Target("pool", "pool.test", weight=weight, priority=priority)
        return replace(pool, ejection=ejection, endpoints=endpoints)

    def addresses(self, planned: Plan) -> list[tuple[str, int] | None]:
        return [target.address for target in planned.order]

    def test_a_few_of_the_least_busy_are_tried(self) -> None:
        pool = self.pool(*self.PODS)
        assert pool.endpoints
        pool.endpoints.begin(self.PODS[0])
        planned = plan(rule_of(pool))
        assert self.addresses(planned) == list(self.PODS[1:4])
        assert planned.attempts == 3
        assert {target.provider for target in planned.order} == {"pool"}

    def test_an_ejected_pod_is_passed_over_and_the_others_stay(self) -> None:
        pool = self.pool(*self.PODS[:3])
        health = without(replace(pool, address=self.PODS[0]))
        assert self.addresses(plan(rule_of(pool), health=health)) == list(self.PODS[1:3])

    def test_when_all_pods_are_ejected_the_next_priority_has_it(self) -> None:
        pool, (other,) = self.pool(self.PODS[0]), targets(1, priority=1)
        health = without(replace(pool, address=self.PODS[0]))
        planned = plan(rule_of(pool, other), health=health)
        assert (planned.order, planned.skipped) == ((other,), (pool,))

    def test_when_all_pods_of_the_last_one_are_ejected_they_are_called(self) -> None:
        pool = self.pool(*self.PODS[:2])
        health = without(*(replace(pool, address=pod) for pod in self.PODS[:2]))
        assert self.addresses(plan(rule_of(pool), health=health)) == list(self.PODS[:2])

    def test_a_pool_without_pods_leaves_its_share_to_the_others(self) -> None:
        pool, others = self.pool(weight=1000), targets(1, 1, priority=0)
        for r in (0.0, 0.3, 0.7, JUST_BELOW_ONE):
            planned = plan(rule_of(pool, *others), r)
            assert set(planned.order) == set(others)
            assert planned.skipped == (pool,)

    def test_without_a_pod_it_is_not_called_even_as_the_last_one(self) -> None:
        pool, (other,) = self.pool(), targets(1, priority=1)
        with pytest.raises(NoEndpointError):
            plan(rule_of(pool))
        planned = plan(rule_of(pool, other), health=without(other))
        assert planned.order == (other,)

    def test_its_state_is_that_of_its_best_pod(self) -> None:
        pool, (plain,) = self.pool(*self.PODS[:2]), targets(1)
        one, two = (replace(pool, address=pod) for pod in self.PODS[:2])
        assert state_of(pool, without(one), 0.0) == "healthy"
        health = without(one, two)
        assert state_of(pool, health, 0.0) == "ejected"
        due = Ejection().most
        health.begin(two, due)
        assert state_of(pool, health, due) == "probing"
        assert state_of(self.pool(), Health(), 0.0) == "ejected"
        assert [state_of(plain, one, 0.0) for one in (Health(), without(plain))] == [
            "healthy",
            "ejected",
        ]

    def test_an_affinity_keeps_its_backend_not_its_pod(self) -> None:
        pool, (other,) = self.pool(*self.PODS[:2]), targets(1)
        rule = rule_of(pool, other, affinity=USER)
        user_of_pool = next(
            user(f"u{n}") for n in range(99) if plan(rule, request=user(f"u{n}")).order[0].endpoints
        )
        first = plan(rule, request=user_of_pool)
        assert first.order[0].address == self.PODS[0]
        assert pool.endpoints
        pool.endpoints.begin(self.PODS[0])
        assert plan(rule, request=user_of_pool).order[0].address == self.PODS[1]
