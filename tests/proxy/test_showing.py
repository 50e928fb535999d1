"""The decision on the flow."""

import pytest
from mitmproxy.http import HTTPFlow
from mitmproxy.test import tflow
from mitmproxy.utils.emoji import emoji

from pointsman.config.credentials import Literal
from pointsman.config.table import CallConfig, Route, Rule, Target
from pointsman.proxy.router import Decision
from pointsman.proxy.showing import COMMENT, CUT, MARKERS, WAY, Showing, is_ours, marked_by_person
from pointsman.routing.planning import Plan
from pointsman.routing.request import Body, ClientRequest
from pointsman.routing.rewriting import rewrite
from pointsman.telemetry.exchange import Attempt, Exchange
from pointsman.viewing.route import read

SECRET = "sk-provider-0123456789"
TARGET = Target("p", "p.test", config=CallConfig(model="m", credential=Literal(SECRET)))
RULE = Rule("all", "ns/r/all", (), (TARGET,))
DECISION = Decision(Route("r", "llm.test", (RULE,)), RULE, Plan((TARGET,), (), 1), observe=False)
REQUEST = ClientRequest(
    "POST", "https", "llm.test", 443, "/", (), Body(b'{"model":"x"}', limit=100), ("192.0.2.1", 443)
)


@pytest.fixture
def flow() -> HTTPFlow:
    return tflow.tflow()


def finished(**fields: object) -> Exchange:
    made = Exchange("id", "llm.test", "POST", "/", None, 1.0, route="r", rule="all", provider="p")
    made.attempts.append(Attempt("p", "p.test", 1.0, 2.0, 200))
    made.ended = 2.0
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_comment_marker_and_metadata_tell_the_decision(flow: HTTPFlow) -> None:
    exchange = finished(api="openai-chat", request_model="m", flags=["X", "Y"])
    Showing(flow, full=False).update(exchange, DECISION)
    assert flow.comment == "p · m · 1.0 s ← all"
    assert flow.marked == MARKERS["routed"]
    assert flow.metadata == {
        COMMENT: flow.comment,
        "llm_api": "openai-chat",
        "llm_outcome": "routed",
        "llm_route": "r",
        "llm_rule": "all",
        "llm_provider": "p",
        "llm_model": "m",
        "llm_flags": "X Y",
        "llm_attempts": "1",
    }
    assert is_ours(flow)
    assert not is_ours(tflow.tflow())


def test_markers_are_such_that_mitmproxy_knows_them() -> None:
    assert all(name in emoji for name in MARKERS.values())
    assert len(set(MARKERS.values())) == len(MARKERS)


def test_the_way_is_made_where_something_shows_it(flow: HTTPFlow) -> None:
    showing = Showing(flow, full=True)
    showing.rewritten(REQUEST, rewrite(TARGET, REQUEST))
    showing.update(finished(), DECISION)
    way = read(flow.metadata[WAY])
    assert way is not None
    assert [(one.what, one.after) for one in way.body] == [("model", '"m"')]
    assert [one.provider for one in way.shares] == ["p"]
    assert SECRET not in repr(flow.metadata)


def test_what_a_person_has_written_or_marked_stays(flow: HTTPFlow) -> None:
    showing = Showing(flow, full=False)
    under_way = finished(ended=None)
    showing.update(under_way, DECISION)
    assert (flow.comment, flow.marked) == ("p ← all", "")
    flow.comment, flow.marked = "look at this", ":grapes:"
    showing.update(finished(), DECISION)
    assert (flow.comment, flow.marked) == ("look at this", ":grapes:")
    assert marked_by_person(flow)
    flow.marked = MARKERS["routed"]
    assert not marked_by_person(flow)
    flow.marked = ""
    assert not marked_by_person(flow)


def replayed(flow: HTTPFlow) -> HTTPFlow:
    """Return the flow as a file gives it back, when it is sent once more."""
    loaded: HTTPFlow = flow.copy()
    loaded.set_state(flow.get_state())
    loaded.is_replay = "request"
    return loaded


def test_a_replay_shows_its_own_outcome(flow: HTTPFlow) -> None:
    Showing(flow, full=True).update(finished(error="no_route", flags=["NR"]), DECISION)
    again = replayed(flow)
    showing = Showing(again, full=True)
    assert (again.comment, again.marked, again.metadata) == ("", "", {})
    showing.update(finished(), DECISION)
    assert (again.comment, again.marked) == ("p · 1.0 s ← all", MARKERS["routed"])
    assert "llm_error" not in again.metadata


def test_what_a_person_has_written_or_marked_outlives_a_replay(flow: HTTPFlow) -> None:
    Showing(flow, full=False).update(finished(), DECISION)
    flow.comment, flow.marked = "look at this", ":grapes:"
    again = replayed(flow)
    Showing(again, full=False).update(finished(error="no_route"), DECISION)
    assert (again.comment, again.marked) == ("look at this", ":grapes:")
    assert again.metadata["llm_error"] == "no_route"


def test_values_of_a_client_are_cut_to_a_line(flow: HTTPFlow) -> None:
    exchange = finished(request_model="m\nllm_provider: forged " + "x" * 100_000)
    Showing(flow, full=True).update(exchange, DECISION)
    assert len(repr(flow.metadata)) < 4000
    assert len(flow.comment) < 500
    assert "\n" not in flow.comment + flow.metadata["llm_model"]


def test_a_fault_in_showing_fails_no_request(
    flow: HTTPFlow, caplog: pytest.LogCaptureFixture
) -> None:
    showing = Showing(flow, full=True)
    showing.rewritten(None, None)  # type: ignore[arg-type]
    showing.update(None, None)  # type: ignore[arg-type]
    assert caplog.text.count("could not be shown") == 2


def test_a_cut_body_is_told(flow: HTTPFlow) -> None:
    Showing(flow, full=False).cut(20)
    assert flow.metadata == {CUT: 20}
