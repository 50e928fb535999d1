import json
from typing import Any

import pytest

from pointsman.protocols.usage import Usage
from pointsman.telemetry.exchange import (
    Attempt,
    Exchange,
    access_log_entry,
    milliseconds,
    name_of,
    summary,
)

# What users' queries and dashboards rely on, in the documented order.
FIELDS = [
    "request_id",
    "host",
    "method",
    "path",
    "client",
    "workload",
    "namespace",
    "route",
    "rule",
    "provider",
    "provider_host",
    "upstream_path",
    "status",
    "flags",
    "error",
    "client_model",
    "request_model",
    "response_model",
    "stream",
    "request_prompt_tokens",
    "request_completion_tokens",
    "total_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "usage_source",
    "finish_reason",
    "cost_usd",
    "duration_ms",
    "time_to_first_token_ms",
    "overhead_ms",
    "request_bytes",
    "response_bytes",
    "attempts",
]


def exchange(**fields: Any) -> Exchange:
    begun = {
        "request_id": "r1",
        "host": "llm.test",
        "method": "POST",
        "path": "/v1/chat/completions",
        "client": "10.0.0.1:5000",
        "started": 100.0,
    }
    return Exchange(**{**begun, **fields})


def test_the_log_has_the_documented_fields_in_their_order() -> None:
    assert list(access_log_entry(exchange())) == FIELDS
    full = exchange(usage=Usage(1, 2, 3, 4, 5, 6), ended=101.0, attempts=[Attempt("p", "h", 1.0)])
    entry = access_log_entry(full)
    assert list(entry) == FIELDS
    assert list(entry["attempts"][0]) == ["provider", "status", "error", "duration_ms"]


def test_what_is_not_known_is_null_and_not_zero() -> None:
    entry = access_log_entry(exchange())
    known = {"request_id", "host", "method", "path", "client"}
    counted = {"flags": [], "attempts": [], "overhead_ms": 0, "request_bytes": 0}
    assert {k: v for k, v in entry.items() if v is not None and k not in known} == {
        **counted,
        "response_bytes": 0,
    }


def test_token_counts_have_the_documented_names() -> None:
    entry = access_log_entry(exchange(usage=Usage(10, 5, 15, 4, 3, 2)))
    assert entry["request_prompt_tokens"] == 10
    assert entry["request_completion_tokens"] == 5
    assert entry["total_tokens"] == 15
    assert entry["cached_tokens"] == 4
    assert entry["cache_write_tokens"] == 3
    assert entry["reasoning_tokens"] == 2


def test_a_count_of_zero_is_known() -> None:
    assert (
        access_log_entry(exchange(usage=Usage(completion_tokens=0)))["request_completion_tokens"]
        == 0
    )


def test_durations_are_milliseconds() -> None:
    attempts = [Attempt("a", "a.test", 100.1), Attempt("b", "b.test", 100.5)]
    attempts[0].end(100.35, error="reset")
    done = exchange(ended=101.5, first_token=100.25, overhead=0.0012345, attempts=attempts)
    entry = access_log_entry(done)
    assert entry["duration_ms"] == 1500
    assert entry["time_to_first_token_ms"] == 250
    assert entry["overhead_ms"] == pytest.approx(1.234, abs=0.001)
    assert entry["attempts"] == [
        {"provider": "a", "status": None, "error": "reset", "duration_ms": 250},
        {"provider": "b", "status": None, "error": None, "duration_ms": None},
    ]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(1.0, None, None), (1.0, 1.0, 0), (1.0, 2.5, 1500), (0.0, 0.0000014, 0.001)],
)
def test_milliseconds_are_rounded_to_a_microsecond(
    start: float, end: float | None, expected: float | None
) -> None:
    assert milliseconds(start, end) == expected


def test_an_attempt_ends_once() -> None:
    attempt = Attempt("p", "h", 1.0, status=200)
    attempt.end(2.0, error="reset")
    attempt.end(3.0, status=500, error="other")
    assert (attempt.ended, attempt.status, attempt.error) == (2.0, 200, "reset")


def test_a_flag_stands_once_and_an_empty_one_not_at_all() -> None:
    done = exchange()
    for flag in ("UF", "", "DC", "UF"):
        done.flag(flag)
    assert done.flags == ["UF", "DC"]


class TestSummary:
    def test_it_tells_what_became_of_the_request(self) -> None:
        done = exchange(
            rule="vip",
            provider="dashscope",
            client_model="gpt-4o",
            request_model="qwen-max",
            response_model="qwen-max-2025",
            usage=Usage(12, 34, 46),
            cost_usd=0.00123,
            ended=101.2345,
        )
        assert summary(done) == ("dashscope · 46 tok · $0.0012 · gpt-4o → qwen-max · 1.2 s ← vip")

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, ""),
            ({"error": "no_route", "ended": 100.001}, "no_route · 1 ms"),
            ({"rule": "r"}, "← r"),
            ({"provider": "p", "error": "reset", "rule": "r"}, "p · reset ← r"),
            ({"client_model": "m", "request_model": "m"}, "m"),
            ({"response_model": "m"}, "m"),
            ({"flags": ["OB"], "rule": "r", "provider": "p"}, "p · observed only ← r"),
            ({"usage": Usage(prompt_tokens=3)}, "3+ tok"),
            ({"usage": Usage(completion_tokens=3)}, "3+ tok"),
            ({"usage": Usage(total_tokens=5)}, "5 tok"),
            ({"usage": Usage(cached_tokens=5)}, ""),
            ({"cost_usd": 0.0}, "$0"),
        ],
    )
    def test_it_leaves_out_what_is_not_known(self, fields: dict[str, Any], expected: str) -> None:
        assert summary(exchange(**fields)) == expected

    def test_it_shows_neither_addresses_nor_paths_nor_ids(self) -> None:
        secret = "sk-0123456789abcdef"
        done = exchange(
            request_id=secret,
            path=f"/{secret}",
            upstream_path=f"/{secret}",
            client=secret,
            rule="r",
        )
        assert summary(done) == "← r"


def test_there_is_no_field_for_a_header_a_query_or_a_body() -> None:
    held = set(Exchange.__slots__) | set(Attempt.__slots__)
    assert held.isdisjoint({"headers", "query", "body", "prompt", "answer", "key", "credential"})
    assert json.loads(json.dumps(access_log_entry(exchange()))) == access_log_entry(exchange())


def test_a_name_that_is_none_is_cut() -> None:
    assert name_of(None) is None
    assert name_of("gpt-4o") == "gpt-4o"
    assert name_of("x" * 1_000_000) == "x" * 256 + "…"
