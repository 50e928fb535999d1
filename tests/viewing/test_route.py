"""The section "Route": the way of a request as data that can be saved, and in words."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy.io import tnetstring

from pointsman.protocols import Usage
from pointsman.routing.changes import BodyChange, Change
from pointsman.telemetry.exchange import Attempt, DecisionRecord, Exchange, RuleVerdict
from pointsman.viewing.outline import outline
from pointsman.viewing.route import Outcome, outcome, read, section, way_of


def exchange(**fields: object) -> Exchange:
    made = Exchange("id-1", "llm.test", "POST", "/", "127.0.0.1:1", 10.0)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def attempt(provider: str, *, status: int | None = 200, error: str | None = None) -> Attempt:
    return Attempt(provider, f"{provider}.test", 10.0, 10.5, status, error)


FULL = exchange(
    ended=11.0,
    route="r",
    rule="all",
    provider="b",
    decision=DecisionRecord(
        (RuleVerdict("vip", False, "header x-user is absent"), RuleVerdict("all", True, "any")),
        0.25,
        ("a", "b"),
        ("c",),
    ),
    attempts=[attempt("a", status=503, error="status 503"), attempt("b")],
    usage=Usage(3, 4, 7),
    first_token=10.75,
    overhead=0.0015,
)
SHARES = [("a", 0.5, 0), ("b", 0.5, 0), ("d", 1.0, 1)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ended": None, "attempts": [attempt("a")]}, None),
        ({"attempts": [attempt("a")]}, "routed"),
        ({"attempts": [attempt("a", status=400)]}, "routed"),
        ({"attempts": [attempt("a"), attempt("a")]}, "routed"),
        ({"attempts": [attempt("a"), attempt("b")]}, "failed-over"),
        ({"attempts": [attempt("a"), attempt("b")], "error": "upstream_failure"}, "failed"),
        ({"attempts": [attempt("a")], "flags": ["OB"]}, "observed"),
        ({"ended": None, "flags": ["OB"]}, "observed"),
        ({"error": "no_route", "flags": ["NR"]}, "refused"),
        ({}, None),  # answered by another addon
    ],
)
def test_each_outcome_has_a_word(fields: dict[str, object], expected: Outcome | None) -> None:
    assert outcome(exchange(**{"ended": 11.0, **fields})) == expected


def test_a_client_that_left_before_any_attempt_was_not_refused() -> None:
    left = exchange(ended=11.0, flags=["DC"], error="client disconnected")
    assert outcome(left) == "failed"


def test_what_a_person_chose_was_no_affinity() -> None:
    by_hand = DecisionRecord((), targets=("b",), by_hand=True)
    way = read(way_of(exchange(ended=11.0, decision=by_hand, attempts=[attempt("b")])))
    assert way
    assert section(way)["draw"] == "none, the provider was chosen by hand"


def test_a_way_survives_saving_and_json() -> None:
    way = way_of(FULL, SHARES, place=[Change("host", "x", "y")], body=[BodyChange("m", None, "1")])
    assert tnetstring.loads(tnetstring.dumps(way)) == way
    assert read(json.loads(json.dumps(way))) == read(way)


def test_the_section_tells_everything_in_words() -> None:
    way = way_of(
        FULL,
        SHARES,
        place=[Change("scheme", "http", "https"), Change("host", "llm.test", "b.test")],
        headers=[
            Change("authorization", "Bearer ...cafe", "Bearer ...f00d"),
            Change("x", None, "1"),
        ],
        body=[BodyChange("model", '"gpt-4o"', '"qwen"'), BodyChange("stream_options", "{}", None)],
    )
    found = read(way)
    assert found is not None
    assert yaml.safe_load(outline(section(found))) == {
        "outcome": "failed-over",
        "route": "r",
        "rules": [{"✗ vip": "header x-user is absent"}, {"✓ all": "any"}],
        "draw": "0.2500 among a 50%, b 50%, d 100% at priority 1",
        "order": "a, then b",
        "skipped": "c (ejected)",
        "attempts": [
            {"1 a": "status 503, 500 ms (a.test)"},
            {"2 b": "status 200, 500 ms (b.test)"},
        ],
        "rewritten": {
            "scheme": "http → https",
            "host": "llm.test → b.test",
            "headers": {"authorization": "Bearer ...cafe → Bearer ...f00d", "x": "(absent) → 1"},
            "body": {"model": "gpt-4o → qwen", "stream_options": "{} → (removed)"},
        },
        "first token": "after 750 ms",
        "overhead": "1.5 ms in Pointsman",
        "request id": "id-1",
    }


def told(made: Exchange) -> dict[str, object]:
    found = read(way_of(made))
    assert found is not None
    said: dict[str, object] = yaml.safe_load(outline(section(found)))
    return said


def test_a_copy_is_told() -> None:
    said = told(exchange(ended=11.0, attempts=[attempt("a")], mirrored_to="c"))
    assert str(said["mirrored"]).startswith("a copy went to c")


def test_what_is_refused_under_way_or_observed_is_told() -> None:
    assert told(exchange(ended=11.0, error="no_route", flags=["NR"]))["outcome"] == (
        "refused · NR · no_route"
    )
    assert told(exchange(attempts=[Attempt("a", "a.test", 10.0)]))["attempts"] == [
        {"1 a": "under way (a.test)"}
    ]
    observed = told(exchange(ended=11.0, flags=["OB"], attempts=[attempt("a")]))
    assert str(observed["outcome"]).startswith("observed (decided and logged")
    assert observed["rewritten"] == "nothing"


@pytest.mark.parametrize("data", [None, "x", [], {"rules": 1}, {"attempts": [{"provider": 3}]}])
def test_data_of_another_shape_is_nothing(data: object) -> None:
    assert read(data) is None


STRANGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NAMES = sorted(way_of(FULL, SHARES))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), STRANGE))
def test_a_file_of_anyone_is_shown_or_left_out(changes: dict[str, object]) -> None:
    found = read({**way_of(FULL, SHARES), **changes})
    if found is not None:
        yaml.safe_load(outline(section(found)))
