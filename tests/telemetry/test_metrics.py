"""Metrics: what is counted of an exchange, under which labels, and how many there can be."""

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

import pointsman
from pointsman.protocols.usage import Usage
from pointsman.telemetry.chunks import SECOND_BUCKETS, ChunkTimes
from pointsman.telemetry.exchange import Attempt, Exchange
from pointsman.telemetry.families import Families
from pointsman.telemetry.metrics import Metrics, render
from pointsman.telemetry.naming import RuleName
from pointsman.telemetry.reading import Reading, RulesReading, TargetReading
from pointsman.telemetry.series import observe_all
from pointsman.telemetry.sinks import Sinks

ALL = RuleName("shop", "shop.test", "all")
RULES = RulesReading(
    rules=frozenset({ALL, RuleName("llm.test", "llm.test", "default")}),
    providers={"api.openai.com": "openai", "llm.test": "local"},
    models=frozenset({"gpt-4o-mini"}),
)
CALL = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "openai",
    "gen_ai_request_model": "gpt-4o-mini",
    "gen_ai_response_model": "gpt-4o-mini-2024-07-18",
    "server_address": "api.openai.com",
}
TARGET = {"route": "shop", "route_host": "shop.test", "rule": "all", "provider": "openai"}

type Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scope:
    """Metrics in a registry of their own, and what they say."""

    def __init__(self, rules: RulesReading = RULES) -> None:
        self.reading = Reading()
        self.registry = CollectorRegistry()
        self.metrics = Metrics(lambda: self.reading, self.registry, lambda: 1700000000.0)
        self.metrics.rules_live(rules)

    def record(self, *exchanges: Exchange) -> None:
        for exchange in exchanges:
            self.metrics.record(exchange)

    def found(self) -> Found:
        text = render(self.registry).decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        """Return one series' value; labels that are empty need not be named."""
        wanted = set(labels.items())
        values = [
            value
            for (found, its), value in self.found().items()
            if found == name and {label for label in its if label[1]} == wanted
        ]
        assert len(values) <= 1
        return values[0] if values else None

    def labels(self, name: str, label: str) -> Counter[str]:
        """Return the values that a label has, with their series' sums."""
        sums: Counter[str] = Counter()
        for (found, its), value in self.found().items():
            if found == name:
                sums[dict(its)[label]] += int(value)
        return sums


@pytest.fixture
def scope() -> Scope:
    return Scope()


def exchange(**fields: Any) -> Exchange:
    """Return a chat request of one second that went well."""
    begun = {
        "request_id": "r1",
        "host": "shop.test",
        "method": "POST",
        "path": "/v1/chat/completions",
        "client": "10.0.0.1:5000",
        "started": 100.0,
        "route": "shop",
        "route_host": "shop.test",
        "rule": "all",
        "provider": "openai",
        "provider_host": "api.openai.com",
        "api": "openai-chat",
        "request_model": "gpt-4o-mini",
        "response_model": "gpt-4o-mini-2024-07-18",
        "status": 200,
        "ended": 101.0,
        "overhead": 0.0004,
        "attempts": [Attempt("openai", "api.openai.com", 100.0, 101.0, 200)],
    }
    return Exchange(**{**begun, **fields})


class TestRequests:
    def test_what_a_rule_chose_first_is_counted_wherever_it_ended(self, scope: Scope) -> None:
        moved = [
            Attempt("local", "llm.test", 100.0, 100.5, 503),
            Attempt("openai", "api.openai.com", 100.5, 101.0, 200),
        ]
        again = exchange(replay=True)
        scope.record(exchange(attempts=moved), exchange(), again, exchange(rule=None))
        assert scope.labels("pointsman_chosen_total", "provider") == {"local": 1, "openai": 1}

    def test_who_was_called_has_the_cost_of_what_is_only_observed(self, scope: Scope) -> None:
        called = [Attempt("llm.test", "llm.test", 100.0, 101.0, 200)]
        scope.record(exchange(flags=["OB"], attempts=called, cost_usd=5.0))
        assert scope.labels("pointsman_cost_usd_total", "provider") == {"local": 5}
        assert scope.labels("pointsman_chosen_total", "provider") == {"openai": 1}

    def test_a_request_counts_under_its_decision_and_its_outcome(self, scope: Scope) -> None:
        scope.record(exchange(), exchange(), exchange(status=404, flags=["NR"]))
        name = "pointsman_requests_total"
        good = {"model": "gpt-4o-mini", "status": "200", "flag": "-"}
        assert scope.value(name, **TARGET, **good) == 2
        refused = {"model": "gpt-4o-mini", "status": "404", "flag": "NR"}
        assert scope.value(name, **TARGET, **refused) == 1

    def test_what_there_is_not_is_a_dash(self, scope: Scope) -> None:
        nothing = dict.fromkeys(
            (
                *("route", "route_host", "rule", "provider", "provider_host"),
                *("request_model", "response_model"),
            )
        )
        scope.record(exchange(**nothing, status=None, flags=["DC"], attempts=[]))
        labels = ("route", "route_host", "rule", "provider", "model", "status")
        none = dict.fromkeys(labels, "-")
        assert scope.value("pointsman_requests_total", **none, flag="DC") == 1

    def test_several_flags_are_one_label_whatever_their_order(self, scope: Scope) -> None:
        scope.record(exchange(flags=["OB", "NR"]), exchange(flags=["NR", "OB"]))
        assert scope.labels("pointsman_requests_total", "flag") == {"NR,OB": 2}

    def test_a_mirrored_request_is_none_of_the_clients(self, scope: Scope) -> None:
        before = scope.found()
        copy = exchange(mirror=True, usage=Usage(7, 3, 10), cost_usd=0.5, api=None)
        scope.record(copy)
        grown = {key for key, value in scope.found().items() if before.get(key) != value}
        assert {name for name, _ in grown} == {
            "pointsman_mirrored_requests_total",
            "pointsman_mirrored_tokens_total",
            "pointsman_mirrored_cost_usd_total",
        }
        payer = {"provider": "openai", "model": "gpt-4o-mini"}
        assert scope.value("pointsman_mirrored_tokens_total", **payer, type="input") == 7
        assert scope.value("pointsman_mirrored_tokens_total", **payer, type="output") == 3
        assert scope.value("pointsman_mirrored_cost_usd_total", **payer) == 0.5

    def test_cost_and_overhead_add_up(self, scope: Scope) -> None:
        scope.record(exchange(cost_usd=0.25), exchange(cost_usd=0.5), exchange(cost_usd=None))
        payer = {"provider": "openai", "model": "gpt-4o-mini"}
        assert scope.value("pointsman_cost_usd_total", **payer) == 0.75
        assert scope.value("pointsman_overhead_seconds_count") == 3
        assert scope.value("pointsman_overhead_seconds_sum") == pytest.approx(0.0012)

    @pytest.mark.parametrize(
        ("status", "error", "outcome"),
        [
            (200, None, "ok"),
            (429, "status 429", "429"),
            (404, None, "404"),
            (999, "status 999", "_OTHER"),
            (599, "status 599", "5xx"),
            (None, "[Errno 111] Connect call failed ('10.0.0.1', 443)", "connect_failure"),
            (None, "no first byte in time", "timeout"),
            (200, "stream opened with an error", "stream_error"),
            (200, "The provider closed the connection.", "broken_off"),
            (None, "no key", "no_key"),
            (None, None, "-"),
        ],
    )
    def test_an_attempt_counts_by_what_became_of_it(
        self, scope: Scope, status: int | None, error: str | None, outcome: str
    ) -> None:
        attempt = Attempt("openai", "api.openai.com", 100.0, 100.5, status, error)
        scope.record(exchange(attempts=[attempt, attempt]))
        name = "pointsman_attempts_total"
        assert scope.value(name, provider="openai", outcome=outcome) == 2


class TestCalls:
    def test_tokens_are_counted_by_their_type(self, scope: Scope) -> None:
        scope.record(exchange(usage=Usage(90, 20, 110)), exchange(usage=Usage(10, None, None)))
        name = "gen_ai_client_token_usage"
        assert scope.value(f"{name}_sum", **CALL, gen_ai_token_type="input") == 100
        assert scope.value(f"{name}_count", **CALL, gen_ai_token_type="input") == 2
        assert scope.value(f"{name}_count", **CALL, gen_ai_token_type="output") == 1
        assert scope.value(f"{name}_bucket", **CALL, gen_ai_token_type="input", le="16.0") == 1

    def test_unknown_usage_is_not_zero(self, scope: Scope) -> None:
        scope.record(exchange(usage=None), exchange(usage=Usage()))
        assert not [key for key in scope.found() if key[0].startswith("gen_ai_client_token_usage")]

    def test_durations_have_the_buckets_of_the_convention(self, scope: Scope) -> None:
        scope.record(exchange(ended=100.05), exchange(ended=200.0))
        name = "gen_ai_client_operation_duration_seconds"
        bounds = {
            dict(labels)["le"] for found, labels in scope.found() if found == f"{name}_bucket"
        }
        assert {bound for bound in bounds if bound != "+Inf"} == {
            str(0.01 * 2**power) for power in range(14)
        }
        assert scope.value(f"{name}_bucket", **CALL, le="0.08") == 1
        assert scope.value(f"{name}_bucket", **CALL, le="81.92") == 1
        assert scope.value(f"{name}_bucket", **CALL, le="+Inf") == 2

    def test_a_failed_call_tells_its_error(self, scope: Scope) -> None:
        scope.record(
            exchange(status=429),
            exchange(status=502, flags=["UF"], error="upstream_failure"),
            exchange(flags=["UE"], error="error in the answer"),
        )
        name = "gen_ai_client_operation_duration_seconds_count"
        assert scope.labels(name, "error_type") == {
            "429": 1,
            "connect_failure": 1,
            "stream_error": 1,
        }

    def test_only_streams_have_a_first_chunk(self, scope: Scope) -> None:
        times = ChunkTimes(100.3)
        times.came(100.8, 1)
        scope.record(exchange(), exchange(first_token=100.3, chunk_times=times))
        first = "gen_ai_client_operation_time_to_first_chunk_seconds"
        assert scope.value(f"{first}_count", **CALL) == 1
        assert scope.value(f"{first}_sum", **CALL) == pytest.approx(0.3)
        chunks = "gen_ai_client_operation_time_per_output_chunk_seconds"
        assert scope.value(f"{chunks}_count", **CALL) == 1
        assert scope.value(f"{chunks}_bucket", **CALL, le="0.64") == 1
        assert scope.value(f"{chunks}_bucket", **CALL, le="0.32") == 0

    @pytest.mark.parametrize(
        ("api", "path", "operation"),
        [
            ("openai-chat", "/v1/chat/completions", "chat"),
            ("openai-responses", "/v1/responses", "chat"),
            ("anthropic-messages", "/v1/messages", "chat"),
            ("openai-completions", "/v1/completions", "text_completion"),
            ("openai-embeddings", "/v1/embeddings", "embeddings"),
            ("gemini", "/v1beta/models/m:streamGenerateContent", "generate_content"),
            ("gemini", "/v1beta/models/m:embedContent", "embeddings"),
        ],
    )
    def test_the_operation_is_the_conventions(
        self, scope: Scope, api: str, path: str, operation: str
    ) -> None:
        scope.record(exchange(api=api, path=path))
        name = "gen_ai_client_operation_duration_seconds_count"
        assert scope.labels(name, "gen_ai_operation_name") == {operation: 1}

    def test_what_is_no_call_of_a_model_is_a_request_and_no_more(self, scope: Scope) -> None:
        scope.record(exchange(api=None, path="/v1/models", method="GET"))
        assert scope.labels("pointsman_requests_total", "status") == {"200": 1}
        assert not [key for key in scope.found() if key[0].startswith("gen_ai_")]

    @pytest.mark.parametrize(
        ("host", "name"),
        [
            ("api.openai.com", "openai"),
            ("eu.api.openai.com", "openai"),
            ("my.openai.azure.com", "azure.ai.openai"),
            ("us-central1-aiplatform.googleapis.com", "gcp.vertex_ai"),
            ("my.openai.azure.us", "azure.ai.openai"),
            ("us-east-1.api.x.ai", "x_ai"),
            ("eu.api.mistral.ai", "mistral_ai"),
            ("notapi.x.ai", "mine"),
            ("bedrock-runtime.us-east-1.amazonaws.com", "aws.bedrock"),
            ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "aws.bedrock"),
            ("bedrock-runtime.example", "mine"),
            ("llm.test", "mine"),
        ],
    )
    def test_the_providers_name_is_the_conventions_where_it_has_one(
        self, host: str, name: str
    ) -> None:
        scope = Scope(replace(RULES, providers={host: "mine"}))
        attempt = Attempt("mine", host, 100.0, 101.0, 200)
        scope.record(exchange(provider="mine", provider_host=host, attempts=[attempt]))
        found = "gen_ai_client_operation_duration_seconds_count"
        assert scope.labels(found, "gen_ai_provider_name") == {name: 1}

    def test_an_observed_call_counts_for_the_host_that_it_went_to(self, scope: Scope) -> None:
        went = Attempt("api.openai.com", "API.openai.com", 100.0, 101.0, 200)
        scope.record(
            exchange(provider="local", provider_host="llm.test", flags=["OB"], attempts=[went])
        )
        name = "gen_ai_client_operation_duration_seconds_count"
        assert scope.labels(name, "gen_ai_provider_name") == {"openai": 1}
        assert scope.labels("pointsman_attempts_total", "provider") == {"openai": 1}


class TestBounds:
    def test_models_that_rules_do_not_name_are_other_past_a_limit(self, scope: Scope) -> None:
        scope.record(*(exchange(request_model=f"m-{n}") for n in range(300)), exchange())
        models = scope.labels("pointsman_requests_total", "model")
        assert len(models) == 102
        assert models["other"] == 200
        assert models["gpt-4o-mini"] == 1, "a model of the rules has its label at any time"

    def test_a_model_with_which_no_call_went_well_takes_no_place(self, scope: Scope) -> None:
        scope.record(*(exchange(request_model=f"m-{n}", status=404) for n in range(300)))
        scope.record(*(exchange(request_model=f"m-{n}", error="broken") for n in range(300)))
        assert scope.labels("pointsman_requests_total", "model") == {"other": 600}
        scope.record(exchange(request_model="real"), exchange(request_model="real", status=404))
        assert scope.labels("pointsman_requests_total", "model") == {"other": 600, "real": 2}

    @pytest.mark.parametrize("model", ["m" * 129, "line\nbreak", "cut \ud83d", "\0"])
    def test_a_model_that_is_no_name_is_other(self, scope: Scope, model: str) -> None:
        scope.record(exchange(request_model=model, response_model=model))
        assert scope.labels("pointsman_requests_total", "model") == {"other": 1}

    def test_names_of_the_rules_are_shown_as_they_can_be(self) -> None:
        scope = Scope(
            replace(RULES, rules=frozenset({ALL._replace(route="a\ud800b", rule="c\nd")}))
        )
        scope.record(exchange(route="a\ud800b", rule='c\n"d'))
        assert scope.labels("pointsman_requests_total", "route") == {"a\ufffdb": 1}
        assert scope.labels("pointsman_requests_total", "rule") == {'c\ufffd"d': 1}

    def test_hosts_that_no_rule_knows_are_other(self, scope: Scope) -> None:
        for n in range(50):
            host = f"{n}.made-up.test"
            attempt = Attempt(host, host, 100.0, 101.0, 200)
            scope.record(exchange(host=host, attempts=[attempt], flags=["OB"]))
        name = "gen_ai_client_operation_duration_seconds_count"
        assert scope.labels(name, "server_address") == {"other": 50}
        assert scope.labels("pointsman_attempts_total", "provider") == {"other": 50}

    def test_a_status_that_http_does_not_know_is_its_class(self, scope: Scope) -> None:
        scope.record(*(exchange(status=status) for status in (418, 498, 499, 799, 0)))
        found = scope.labels("pointsman_requests_total", "status")
        assert found == {"418": 1, "4xx": 2, "_OTHER": 2}

    def test_the_number_of_series_has_a_bound_whatever_comes(self, scope: Scope) -> None:
        chance = random.Random(7)
        for n in range(10_000):
            scope.record(
                exchange(
                    route=f"route-{n}",
                    request_model=f"m-{chance.randrange(2000)}",
                    response_model=f"m-{chance.randrange(2000)}",
                    status=chance.choice([200, 201, 206, 299]),
                    usage=Usage(1, 1, 2),
                )
            )
        sizes = Counter(name for name, _ in scope.found())
        assert sizes["pointsman_requests_total"] <= 2001
        assert sizes["gen_ai_client_operation_duration_seconds_count"] <= 301
        assert sizes["gen_ai_client_token_usage_count"] <= 602
        assert sum(scope.labels("pointsman_requests_total", "status").values()) == 10_000

    def test_series_of_rules_that_are_gone_go_with_the_next_reload(self, scope: Scope) -> None:
        local = Attempt("local", "llm.test", 100.0, 101.0, 200)
        other = exchange(rule="new", provider="local", provider_host="llm.test", attempts=[local])
        for generation in range(20):
            name = ALL._replace(rule=f"rule-{generation}")
            rules = replace(RULES, rules=frozenset({name}))
            scope.metrics.rules_live(rules)
            scope.record(replace(other, rule=f"rule-{generation}"))
        scope.metrics.rules_live(replace(RULES, providers={"llm.test": "local"}))
        assert scope.labels("pointsman_requests_total", "rule") == {}
        assert scope.labels("pointsman_attempts_total", "provider") == {"local": 20}
        scope.metrics.rules_live(replace(RULES, providers={}))
        assert scope.labels("pointsman_attempts_total", "provider") == {}
        assert not [key for key in scope.found() if key[0].startswith("gen_ai_")]

    def test_series_of_rules_that_stay_go_on(self, scope: Scope) -> None:
        nothing = dict.fromkeys(("rule", "provider", "provider_host"))
        refused = exchange(**nothing)
        kinds = (exchange(), refused, replace(refused, route=None, route_host=None))
        for reload in range(1, 4):
            scope.record(*kinds)
            scope.metrics.rules_live(RULES)
            assert scope.labels("pointsman_requests_total", "route") == {
                "shop": 2 * reload,
                "-": reload,
            }

    def test_what_is_under_way_at_a_reload_counts_for_its_provider(self, scope: Scope) -> None:
        scope.metrics.rules_live(replace(RULES, providers={"llm.test": "local"}))
        scope.record(exchange())
        assert scope.labels("pointsman_requests_total", "provider") == {"openai": 1}

    def test_no_label_holds_what_a_client_said(self, scope: Scope) -> None:
        scope.record(
            exchange(
                host="sk-secret.test",
                path="/v1/files/sk-secret",
                method="SK-SECRET",
                client_model="sk-secret",
                finish_reason="sk-secret",
                error="sk-secret",
                client="sk-secret",
                request_id="sk-secret",
                upstream_path="/sk-secret",
                attempts=[Attempt("sk-secret", "sk-secret", 100.0, 101.0, None, "sk-secret")],
            )
        )
        assert b"secret" not in render(scope.registry).lower()


class TestState:
    def test_targets_are_read_at_each_look(self, scope: Scope) -> None:
        reading = TargetReading("shop", "all", "openai", host="shop.test", share=0.25)
        scope.reading = Reading(
            3, 2, (reading, replace(reading, provider="local", share=0.75, state="ejected"))
        )
        assert scope.labels("pointsman_target_state", "provider") == {"openai": 0, "local": 2}
        assert scope.value("pointsman_target_share", **TARGET) == 0.25
        assert scope.value("pointsman_requests_open") == 3
        assert scope.value("pointsman_streams_open") == 2
        scope.reading = Reading(targets=(replace(reading, state="probing"),))
        assert scope.labels("pointsman_target_state", "provider") == {"openai": 1}
        assert scope.value("pointsman_requests_open") == 0

    def test_routes_of_one_name_are_told_apart_by_their_host(self) -> None:
        names = [RuleName("shop", host, "all") for host in ("a.test", "b.test")]
        scope = Scope(replace(RULES, rules=frozenset(names)))
        scope.reading = Reading(
            targets=tuple(TargetReading(**name._asdict(), provider="openai") for name in names)
        )
        for host in ("a.test", "b.test", "b.test"):
            scope.record(exchange(route_host=host))
        assert scope.labels("pointsman_target_share", "route_host") == {"a.test": 1, "b.test": 1}
        assert scope.labels("pointsman_requests_total", "route_host") == {"a.test": 1, "b.test": 2}

    def test_what_has_no_route_is_named_by_its_host(self, scope: Scope) -> None:
        scope.record(exchange(route=None, route_host="llm.test", rule="default"))
        scope.reading = Reading(targets=(TargetReading("llm.test", "default", "local"),))
        assert scope.labels("pointsman_requests_total", "route") == {"llm.test": 1}
        assert scope.labels("pointsman_target_share", "route") == {"llm.test": 1}

    def test_a_target_without_weight_is_not_told(self, scope: Scope) -> None:
        scope.reading = Reading(targets=(TargetReading("shop", "all", "openai", weight=0),))
        assert scope.labels("pointsman_target_state", "provider") == {}

    def test_a_provider_that_a_rule_has_twice_counts_once(self, scope: Scope) -> None:
        reading = TargetReading("shop", "all", "openai", host="shop.test", state="ejected")
        scope.reading = Reading(targets=(reading, replace(reading, share=0.0, state="healthy")))
        assert scope.value("pointsman_target_share", **TARGET) == 1
        assert scope.value("pointsman_target_state", **TARGET) == 2

    def test_copies_that_were_not_sent_are_counted_as_they_add_up(self, scope: Scope) -> None:
        name = "pointsman_mirrors_dropped_total"
        assert scope.labels(name, "rule") == {}
        scope.reading = Reading(mirrors_dropped={"all": 2, "gone": 1})
        assert scope.labels(name, "rule") == {"all": 2, "gone": 1}
        scope.reading = Reading(mirrors_dropped={"all": 5, "gone": 1})
        assert scope.labels(name, "rule") == {"all": 5, "gone": 1}
        scope.metrics.rules_live(RULES)
        assert scope.labels(name, "rule")["all"] == 5

    def test_reloads_are_counted_and_the_last_one_is_told(self, scope: Scope) -> None:
        assert scope.value("pointsman_last_reload_successful") == 1
        assert scope.value("pointsman_last_load_timestamp_seconds") == 1700000000
        scope.metrics.rules_refused()
        assert scope.value("pointsman_last_reload_successful") == 0
        assert scope.labels("pointsman_reloads_total", "result") == {"loaded": 1, "refused": 1}
        scope.metrics.rules_live(RULES)
        assert scope.value("pointsman_last_reload_successful") == 1

    def test_it_says_what_is_running(self, scope: Scope) -> None:
        assert scope.labels("pointsman_build_info", "version") == {pointsman.__version__: 1}

    def test_closed_it_is_no_longer_shown(self, scope: Scope) -> None:
        assert render(scope.registry)
        scope.metrics.close()
        assert render(scope.registry) == b""


def test_the_text_has_no_creation_times(scope: Scope) -> None:
    scope.record(exchange(usage=Usage(1, 1, 2), cost_usd=1.0))
    assert b"_created" not in render(scope.registry)


def test_many_times_are_observed_at_once_as_one_by_one() -> None:
    """What `observe_all` reaches into is private to prometheus-client."""
    chance = random.Random(3)
    times, now = ChunkTimes(0.0), 0.0
    each, at_once = (
        Histogram("h", "h", registry=CollectorRegistry(), buckets=SECOND_BUCKETS) for _ in range(2)
    )
    for number in range(1, 500):
        waited = chance.choice([0.005, 0.01, 0.5, 81.92, 100.0])
        now += waited
        times.came(now, number)
    # The clock's own rounding would put times that are just at a bound on its other side.
    for bucket, count in enumerate(times.counts):
        for _ in range(count):
            each.observe((*SECOND_BUCKETS, 100.0)[bucket])
    observe_all(at_once, times)
    assert sum(times.counts) == 499
    found = [
        [
            (s.name, s.labels, s.value)
            for m in h.collect()
            for s in m.samples
            if s.name == "h_bucket"
        ]
        for h in (each, at_once)
    ]
    assert found[0] == found[1]
    total = next(s.value for m in at_once.collect() for s in m.samples if s.name == "h_sum")
    assert total == pytest.approx(now)


def test_a_sink_that_fails_costs_no_request() -> None:
    sinks, scope = Sinks(), Scope()
    sinks.put("metrics", scope.metrics.record)
    broken = exchange(overhead="not a number")
    sinks.emit(broken)
    sinks.emit(exchange())
    assert scope.value("pointsman_overhead_seconds_count") == 1


def test_the_documentation_lists_what_there_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split(" | ")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    told = {row[0].strip("| `"): (row[1], re.findall(r"`(\w+)`", row[2])) for row in rows}
    there = {}
    for family in Families():
        (metric,) = family.metric.describe()
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        there[name] = (metric.type, list(family.labels))
    assert told == there
