"""The page's numbers: counted as the access log has them, bounded, and merged over processes."""

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.protocols.usage import Usage
from pointsman.telemetry.exchange import Attempt, DecisionRecord, Exchange, RuleVerdict
from pointsman.telemetry.live import (
    LAST_EXCHANGES,
    SLOT_SECONDS,
    SLOTS,
    Live,
    bucket,
    merge,
    quantile,
    read_cursor,
    show_cursor,
)
from pointsman.telemetry.reading import Reading, TargetReading


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def exchange(request_id: str = "r", **fields: Any) -> Exchange:
    shown = {
        "route": "front",
        "rule": "split",
        "provider": "east",
        "request_model": "east-1",
        "status": 200,
        "usage": Usage(prompt_tokens=5, completion_tokens=3),
        "cost_usd": 0.25,
        "first_token": 1.2,
        "ended": 2.0,
        "overhead": 0.0005,
        **fields,
    }
    return Exchange(request_id, "front", "POST", "/", None, started=1.0, **shown)


def test_what_an_exchange_adds() -> None:
    live = Live(Clock())
    live.record(exchange())
    live.record(exchange(provider="west", status=503, usage=None, cost_usd=None))
    seen = live.snapshot()
    assert seen["totals"] == {
        "requests": 2,
        "mirrored": 0,
        "errors": 1,
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "cost_usd": 0.25,
        "with_prompt_tokens": 1,
        "with_completion_tokens": 1,
        "with_cost": 1,
        "without_usage": 0,  # what failed has no tokens to tell of
        "without_price": 0,
    }
    rules = {(r["route"], r["rule"], r["provider"]): r["requests"] for r in seen["rules"]}
    assert rules == {("front", "split", "east"): 1, ("front", "split", "west"): 1}
    models = {(m["provider"], m["model"]): m["cost_usd"] for m in seen["models"]}
    assert models == {("east", "east-1"): 0.25, ("west", "east-1"): 0.0}
    (slot,) = seen["slots"]
    assert slot["providers"] == {"east": 1, "west": 1}
    assert quantile(slot["time_to_first_token"], 0.5) == pytest.approx(200, rel=0.2)
    assert quantile(slot["overhead"], 0.99) == pytest.approx(0.5, rel=0.2)


def test_an_answer_without_usage_is_told_from_one_without_a_price() -> None:
    live = Live(Clock())
    live.record(exchange(usage=None, cost_usd=None))
    live.record(exchange(cost_usd=None))
    live.record(exchange(usage=None, cost_usd=None, request_model=None))  # a list of models, say
    totals = live.snapshot()["totals"]
    assert (totals["without_usage"], totals["without_price"], totals["with_cost"]) == (1, 1, 0)


def test_a_split_is_of_what_was_chosen_first_by_rules() -> None:
    """Wherever requests end; what a person has sent again is none of it."""
    live = Live(Clock())
    moved = [Attempt("west", "west.test", 1.0, 1.1), Attempt("east", "east.test", 1.1, 1.2)]
    for _ in range(3):
        live.record(exchange(attempts=moved))
    live.record(exchange(attempts=moved[1:]))
    live.record(exchange(provider="west", attempts=moved[:1], replay=True))
    rows = {row["provider"]: row for row in live.snapshot()["rules"]}
    assert {name: row.get("chosen", 0) for name, row in rows.items()} == {"east": 1, "west": 3}
    assert {name: row["requests"] for name, row in rows.items()} == {"east": 4, "west": 1}


def test_who_was_called_has_the_tokens_of_what_is_only_observed() -> None:
    live = Live(Clock())
    own = [Attempt("own", "own.test", 1.0, 1.1)]
    live.record(exchange(flags=["OB"], attempts=own))
    (model,), (rule,) = live.snapshot()["models"], live.snapshot()["rules"]
    assert (model["provider"], model["cost_usd"]) == ("own", 0.25)
    assert (rule["provider"], rule["chosen"]) == ("east", 1)


def test_the_model_that_answered_is_counted() -> None:
    live = Live(Clock())
    live.record(exchange(response_model="east-1-2026"))
    assert [m["model"] for m in live.snapshot()["models"]] == ["east-1-2026"]


def test_a_mirrored_copy_costs_and_is_no_request() -> None:
    live = Live(Clock())
    live.record(exchange(mirror=True, status=500))
    seen = live.snapshot()
    assert seen["rules"] == seen["slots"] == []
    totals = seen["totals"]
    assert (totals["requests"], totals["errors"], totals["mirrored"]) == (0, 0, 1)
    assert totals["cost_usd"] == 0.25


def test_the_last_exchanges_come_newest_first_with_their_decision() -> None:
    clock = Clock()
    live = Live(clock)
    decision = DecisionRecord((RuleVerdict("split", matched=True, reason="it"),), 0.25, ("east",))
    for number in range(LAST_EXCHANGES + 5):
        clock.now += 1
        live.record(exchange(str(number), decision=decision))
    shown = live.snapshot()["exchanges"]
    assert [e["request_id"] for e in shown[:2]] == [
        str(LAST_EXCHANGES + 4),
        str(LAST_EXCHANGES + 3),
    ]
    assert len(shown) == LAST_EXCHANGES
    assert shown[0]["decision"]["draw"] == 0.25
    assert shown[0]["decision"]["rules"][0]["rule"] == "split"
    assert shown[0]["timestamp"].endswith("+00:00")
    json.dumps(live.snapshot())


def test_what_a_client_chooses_is_bounded() -> None:
    live = Live(Clock())
    for number in range(5000):
        live.record(
            exchange(
                request_model=f"{number}{'x' * 10_000}",
                provider=f"p{number}",
                client_model="y" * 10_000,
            )
        )
    seen = live.snapshot()
    assert seen["totals"]["requests"] == 5000
    assert sum(m["requests"] for m in seen["models"]) == 5000
    assert sum(r["requests"] for r in seen["rules"]) == 5000
    assert sum(sum(slot["providers"].values()) for slot in seen["slots"]) == 5000
    assert all(len(slot["providers"]) <= 101 for slot in seen["slots"])
    assert len(seen["models"]) < 300
    assert len(seen["rules"]) < 2100
    assert len(json.dumps(seen["models"])) < 200_000
    assert all(len(e["client_model"]) < 300 for e in seen["exchanges"])


def test_a_path_of_any_length_is_kept_short() -> None:
    live = Live()
    made = replace(exchange(upstream_path="u" * 60_000), path="p" * 60_000, host="h" * 60_000)
    live.record(made)
    (shown,) = live.snapshot()["exchanges"]
    assert [len(shown[name]) for name in ("path", "upstream_path", "host")] == [257] * 3
    assert len(made.path) == 60_000  # others read it too
    assert len(pickle.dumps(live._exchanges)) < 5000


def test_slots_end_and_old_ones_go() -> None:
    clock = Clock()
    live = Live(clock)
    for _ in range(SLOTS * 2):
        live.record(exchange())
        clock.now += SLOT_SECONDS
    assert len(live.snapshot()["slots"]) < SLOTS
    clock.now += SLOTS * SLOT_SECONDS
    assert live.snapshot()["slots"] == []
    assert live.snapshot()["totals"]["requests"] == SLOTS * 2


def test_snapshots_of_several_processes_are_as_of_one() -> None:
    clock = Clock()
    one, two, all_of_it = Live(clock), Live(clock), Live(clock)
    for number in range(30):
        clock.now += 0.7
        made = exchange(str(number), provider=("east", "west")[number % 2], status=200 + number % 3)
        (one, two)[number % 3 == 0].record(made)
        all_of_it.record(made)
    merged, wanted = merge([one.snapshot(), two.snapshot()]), all_of_it.snapshot()
    assert sorted(merged.pop("cursor").values()) == [10, 20]
    assert list(wanted.pop("cursor").values()) == [30]
    assert merged.pop("processes") == 2
    assert wanted.pop("processes") == 1
    for name in ("rules", "models"):
        merged[name].sort(key=repr)
        wanted[name].sort(key=repr)
    assert merged == wanted


def test_a_target_is_in_the_worst_of_its_states() -> None:
    now = [
        Reading(
            2,
            1,
            (TargetReading("front", "split", "east", state=state), TargetReading("a", "b", "c")),
        )
        for state in ("healthy", "ejected", "probing")
    ]
    merged = merge([Live().snapshot(None, each) for each in now])
    states = {target["provider"]: target["state"] for target in merged["targets"]}
    assert states == {"east": "ejected", "c": "healthy"}
    assert (merged["requests_open"], merged["streams_open"]) == (6, 3)


def test_a_backend_is_told_with_as_many_ejected_endpoints_as_any_process_knows() -> None:
    pool = TargetReading("front", "split", "pool", endpoints=3)
    looks = [Reading(targets=(replace(pool, ejected_endpoints=count),)) for count in (0, 2, 1)]
    (target,) = merge([Live().snapshot(None, each) for each in looks])["targets"]
    assert (target["state"], target["endpoints"], target["ejected_endpoints"]) == ("healthy", 3, 2)


def test_a_cursor_leaves_out_what_was_seen() -> None:
    live = Live()
    for number in range(3):
        live.record(exchange(str(number)))
    cursor = live.snapshot()["cursor"]
    assert live.snapshot(cursor)["exchanges"] == []
    live.record(exchange("new"))
    assert [e["request_id"] for e in live.snapshot(cursor)["exchanges"]] == ["new"]
    assert live.snapshot(cursor)["totals"]["requests"] == 4
    assert len(live.snapshot({"another": 3})["exchanges"]) == 4
    assert len(live.snapshot(dict.fromkeys(cursor, 10))["exchanges"]) == 4
    assert len(live.snapshot(dict.fromkeys(cursor, -1))["exchanges"]) == 4
    for number in range(LAST_EXCHANGES + 50):
        live.record(exchange(str(number)))
    assert len(live.snapshot(cursor)["exchanges"]) == LAST_EXCHANGES


def test_a_cursor_survives_a_query() -> None:
    cursor = {"a1": 3, "b:2": 0}
    assert read_cursor(show_cursor(cursor)) == cursor
    assert read_cursor("") == {}
    for text in ("a", "a:", "a:b", "a:1;b:2x", "a:-1", "a:1_0", "a:\u0663", f"a:{'9' * 5000}"):
        with pytest.raises(ValueError, match="is no count"):
            read_cursor(text)
    with pytest.raises(ValueError, match="too many names"):
        read_cursor(show_cursor({str(number): 1 for number in range(1000)}))


def test_the_split_starts_anew_where_a_rule_has_other_targets() -> None:
    live = Live()
    split = (TargetReading("front", "split", "east", 1), TargetReading("front", "split", "west", 1))
    other = TargetReading("other", "all", "east")
    live.rules_live([*split, other])
    live.record(exchange())
    live.record(exchange(route="other", rule="all"))
    live.record(exchange(route="front", rule=None, provider=None, status=404))
    live.rules_live([*split, replace(other, state="ejected"), TargetReading("new", "all", "east")])
    assert len(live.snapshot()["rules"]) == 3
    live.rules_live([replace(split[0], weight=3), split[1], other])
    rules = {(r["route"], r["rule"]) for r in live.snapshot()["rules"]}
    assert rules == {("other", "all"), ("front", "")}
    assert live.snapshot()["totals"]["requests"] == 3


def test_what_has_no_route_is_counted_by_its_host() -> None:
    live = Live()
    live.record(exchange(route=None, rule="default", route_host="api.openai.com"))
    assert [r["route"] for r in live.snapshot()["rules"]] == ["api.openai.com"]


def test_of_no_process_there_is_an_empty_snapshot() -> None:
    assert merge([])["exchanges"] == []
    assert merge([])["processes"] == 0
    assert merge([])["cursor"] == {}


@given(st.floats(min_value=0.001, max_value=1e9))
def test_a_bucket_holds_what_is_up_to_its_bound_and_above_the_one_before(value: float) -> None:
    number = bucket(value)
    assert 2 ** ((number - 1) / 4) <= value * 1.000001
    assert value <= 2 ** (number / 4) * 1.000001


def test_a_quantile_of_nothing_is_unknown() -> None:
    assert quantile({}, 0.5) is None


def test_an_absurd_count_spoils_no_sum() -> None:
    live = Live()
    live.record(exchange(cost_usd=float("inf")))
    live.record(exchange(usage=Usage(prompt_tokens=10**400, completion_tokens=3)))
    one = live.snapshot()
    one["totals"]["cost_usd"] = None  # as infinite numbers come out of JSON
    assert merge([one, live.snapshot()])["totals"]["cost_usd"] == 0.25
    assert live.snapshot()["totals"]["prompt_tokens"] == 5


def test_refused_hosts_take_no_rows_from_the_rules() -> None:
    live = Live()
    live.rules_live([TargetReading("front", "split", "east"), TargetReading("late", "all", "west")])
    for number in range(3000):
        live.record(
            exchange(
                route=None, rule=None, provider=None, provider_host=None, status=403, usage=None
            ),
        )
        live.record(replace(exchange(route=None, rule=None, provider=None), host=f"h{number}"))
    live.record(exchange(route="late", rule="all", provider="west"))
    rows = {(r["route"], r["rule"], r["provider"]): r["requests"] for r in live.snapshot()["rules"]}
    assert rows == {("", "", ""): 6000, ("late", "all", "west"): 1}


def test_models_that_are_used_stay_when_a_client_makes_names_up() -> None:
    live = Live()
    for number in range(500):
        live.record(exchange(request_model=f"made-up-{number}"))
        live.record(exchange(request_model="real"))
    live.record(exchange(provider="west", request_model="quiet"))
    models = {(m["provider"], m["model"]): m["requests"] for m in live.snapshot()["models"]}
    assert models["east", "real"] == 500
    assert models["west", "quiet"] == 1
    assert models["east", "made-up-499"] == 1
    assert sum(models.values()) == 1001
    assert len(models) < 60


def test_routes_of_one_name_are_told_apart_by_their_host() -> None:
    live = Live()
    live.rules_live([TargetReading("r", "all", "p", host=host) for host in ("a.test", "b.test")])
    for host in ("a.test", "b.test", "b.test"):
        live.record(exchange(route="r", rule="all", provider="p", route_host=host))
    snapshots = [live.snapshot(), live.snapshot()]
    assert {row["host"]: row["requests"] for row in merge(snapshots)["rules"]} == {
        "a.test": 2,
        "b.test": 4,
    }


def test_what_ends_under_a_rule_that_is_gone_brings_no_row_back() -> None:
    live = Live()
    live.rules_live([TargetReading("front", "renamed", "east")])
    live.record(exchange())
    live.record(exchange(rule="renamed", provider="gone"))
    seen = live.snapshot()
    assert seen["rules"] == []
    assert seen["totals"]["requests"] == 2


def test_a_clock_that_is_set_back_begins_new_slots() -> None:
    clock = Clock()
    live = Live(clock)
    live.record(exchange())
    clock.now -= 3600
    for _ in range(3):
        live.record(exchange())
        clock.now += SLOT_SECONDS
    slots = live.snapshot()["slots"]
    assert [slot["providers"] for slot in slots] == [{"east": 1}] * 3
    assert all(slot["start"] <= clock.now for slot in slots)
