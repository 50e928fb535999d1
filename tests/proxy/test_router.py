import json
import time
from collections import Counter
from dataclasses import replace

import pytest

from pointsman.config.backends import Backend, Endpoints
from pointsman.config.compiling import with_closed
from pointsman.config.table import (
    CallConfig,
    CompiledMatch,
    Condition,
    Ejection,
    Route,
    RoutingTable,
    Rule,
    Target,
)
from pointsman.errors import (
    BodyTooLargeError,
    InternalError,
    MalformedBodyError,
    ModelMissingError,
    NoRouteError,
    NoTargetError,
    RequestError,
    StoppedError,
    UnsupportedEncodingError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamResetError,
)
from pointsman.protocols import detect
from pointsman.protocols.errors import error_body
from pointsman.proxy.router import Router
from pointsman.routing.request import Body, ClientRequest, StreamedBody

CHAT = ClientRequest(
    "POST", "https", "llm.test", 443, "/", (), Body(b"", limit=100), ("192.0.2.1", 443)
)
A, B = Target("a", "a.test"), Target("b", "b.test")
HALVES = Rule("halves", "ns/r/halves", (), (A, B))
NEVER = CompiledMatch((Condition("header", "x-user", "vip".__eq__, "= vip"),))


def route(*rules: Rule, host: str = "llm.test") -> Route:
    return Route("r", host, rules)


def table(*routes: Route) -> RoutingTable:
    return RoutingTable({one.host: one for one in routes})


@pytest.fixture
def router() -> Router:
    return Router()


class TestDecide:
    def test_the_first_matching_rule_and_one_of_its_targets_is_the_decision(
        self, router: Router
    ) -> None:
        vip = Rule("vip", "ns/r/vip", (NEVER,), (B,))
        rest = Rule("rest", "ns/r/rest", (), (A,))
        found = route(vip, rest)
        decision = router.decide(found, CHAT)
        assert (decision.route, decision.rule, decision.target) == (found, rest, A)
        sent = replace(CHAT, headers=((b"X-User", b"vip"),))
        assert router.decide(found, sent).target is B

    def test_backends_without_an_endpoint_are_503_and_the_answer_says_why(
        self, router: Router
    ) -> None:
        endpoints = Endpoints(Backend("v1", "Service", "ns", "vllm"))
        rule = Rule("r", "k", (), (replace(A, provider="service/ns/vllm", endpoints=endpoints),))
        endpoints.replace([], "there is no such Service")
        with pytest.raises(NoTargetError, match="service/ns/vllm: there is no such Service") as no:
            router.decide(route(rule), CHAT)
        assert (no.value.status, no.value.flag) == (503, "UH")
        endpoints.replace([("10.0.0.1", 80)])
        assert router.decide(route(rule), CHAT).target.address == ("10.0.0.1", 80)

    def test_a_host_that_is_closed_is_503_and_the_answer_says_why(self, router: Router) -> None:
        (found,) = with_closed(table(), {"llm.test": "LLMRoute a/r is at fault"}).exact.values()
        with pytest.raises(NoTargetError, match="LLMRoute a/r is at fault"):
            router.decide(found, CHAT)

    def test_the_health_of_a_pod_that_is_gone_is_forgotten(self, router: Router) -> None:
        endpoints = Endpoints(Backend("v1", "Service", "ns", "vllm"))
        pod, more = ("10.0.0.1", 80), ("10.0.0.2", 80)
        endpoints.replace([pod, more])
        target = replace(A, endpoints=endpoints, ejection=Ejection(consecutive_failures=1))
        router.go_live(table(route(Rule("r", "k", (), (target,)))))
        called = replace(target, address=pod)
        router.health.failed(called, time.monotonic())
        router.endpoints_changed()
        assert router.health.state(called, time.monotonic()) == "ejected"
        endpoints.replace([more])
        router.endpoints_changed()
        assert router.health.state(called, time.monotonic()) == "healthy"

    def test_no_matching_rule_is_404(self, router: Router) -> None:
        with pytest.raises(NoRouteError, match=r"llm\.test") as caught:
            router.decide(route(Rule("vip", "ns/r/vip", (NEVER,), (A,))), CHAT)
        assert (caught.value.status, caught.value.flag) == (404, "NR")

    @pytest.mark.parametrize("targets", [(), (replace(A, weight=0),)])
    def test_a_rule_without_a_target_is_503_and_hides_the_rules_after_it(
        self, router: Router, targets: tuple[Target, ...]
    ) -> None:
        empty, rest = Rule("empty", "ns/r/empty", (), targets), Rule("rest", "k", (), (A,))
        with pytest.raises(NoTargetError, match=r"rule empty .* llm\.test") as caught:
            router.decide(route(empty, rest), CHAT)
        assert (caught.value.status, caught.value.flag) == (503, "UH")

    @pytest.mark.parametrize(
        ("everywhere", "here", "expected"),
        [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
    )
    def test_the_instance_or_the_rule_may_only_observe(
        self, router: Router, everywhere: bool, here: bool, expected: bool
    ) -> None:
        router.observe = everywhere
        rule = replace(HALVES, observe=here)
        assert router.decide(route(rule), CHAT).observe is expected

    def test_targets_take_turns_by_their_weight(self, router: Router) -> None:
        counts = Counter(router.decide(route(HALVES), CHAT).target.host for _ in range(10))
        assert abs(counts["a.test"] - counts["b.test"]) <= 2

    def test_rules_take_turns_apart_from_each_other(self, router: Router) -> None:
        # With one sequence for both, rules called in turn would each see every second draw only.
        first, second = route(HALVES), route(replace(HALVES, key="ns/other/halves"))
        counts: Counter[str] = Counter()
        for _ in range(10):
            counts[router.decide(first, CHAT).target.host] += 1
            router.decide(second, CHAT)
        assert abs(counts["a.test"] - counts["b.test"]) <= 2


class TestRecord:
    VIP = Rule("vip", "ns/r/vip", (NEVER,), (B,))

    def test_it_tells_each_rule_the_draw_and_the_plan(self, router: Router) -> None:
        router.keep_decisions = True
        found = route(self.VIP, HALVES)
        decision = router.decide(found, CHAT)
        record = router.record(found, CHAT, decision)
        assert record is not None
        assert [(v.rule, v.matched) for v in record.rules] == [("vip", False), ("halves", True)]
        assert record.draw is not None
        assert 0 <= record.draw < 1
        assert record.targets == tuple(t.provider for t in decision.plan.order)
        assert record.skipped == ()

    def test_a_request_that_no_rule_takes_has_the_rules_alone(self, router: Router) -> None:
        router.keep_decisions = True
        record = router.record(route(self.VIP), CHAT, None)
        assert record is not None
        assert "x-user is absent" in record.rules[0].reason
        assert (record.draw, record.targets) == (None, ())

    def test_nothing_is_recorded_where_nothing_shows_it(self, router: Router) -> None:
        found = route(HALVES)
        assert router.record(found, CHAT, router.decide(found, CHAT)) is None


class TestDecideUnread:
    chat = replace(CHAT, path="/v1/chat/completions", body=StreamedBody())
    upload = replace(chat, path="/v1/files")
    configured = replace(A, config=CallConfig(model="m"))
    by_model = CompiledMatch((Condition("model", "", "m".__eq__, "= m"),))

    def test_what_neither_matches_nor_rewrites_by_the_body_is_decided(self, router: Router) -> None:
        for request, target in ((self.upload, self.configured), (self.chat, A)):
            rule = Rule("r", "k", (), (target,))
            decision = router.decide_unread(route(rule), request)
            assert decision is not None
            assert decision.target is target

    @pytest.mark.parametrize("observing", [True, False])
    def test_a_chat_that_would_be_rewritten_is_decided_only_to_observe(
        self, router: Router, observing: bool
    ) -> None:
        rule = Rule("r", "k", (), (self.configured,), observe=observing)
        assert (router.decide_unread(route(rule), self.chat) is not None) is observing

    @pytest.mark.parametrize("observing", [True, False])
    def test_a_rule_that_reads_the_body_is_decided_only_to_observe(
        self, router: Router, observing: bool
    ) -> None:
        router.observe = observing
        first, rest = Rule("m", "k1", (self.by_model,), (A,)), Rule("rest", "k2", (), (A,))
        decision = router.decide_unread(route(first, rest), self.upload)
        assert (decision is not None) is observing

    def test_no_matching_rule_is_an_error_here_too(self, router: Router) -> None:
        with pytest.raises(NoRouteError):
            router.decide_unread(route(Rule("vip", "k", (NEVER,), (A,))), self.upload)


class TestGoLive:
    @pytest.fixture
    def starts(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The start of each sequence of draws that is begun."""
        begun: list[float] = []

        def start() -> float:
            begun.append(0.25)
            return 0.25

        monkeypatch.setattr("pointsman.proxy.router.random.random", start)
        return begun

    def test_a_rule_that_stays_goes_on_in_its_draws(
        self, router: Router, starts: list[float]
    ) -> None:
        drawn = []
        for _ in range(20):
            router.go_live(table(route(replace(HALVES))))
            found = router.table.lookup("llm.test")
            assert found is not None
            drawn.append(router.decide(found, CHAT).target.host)
        assert len(starts) == 1
        counts = Counter(drawn)
        assert abs(counts["a.test"] - counts["b.test"]) <= 2

    def test_a_rule_of_a_wildcard_route_goes_on_too(
        self, router: Router, starts: list[float]
    ) -> None:
        wild = RoutingTable(wildcards=((".test", route(HALVES, host="*.test")),))
        for _ in range(2):
            router.go_live(wild)
            router.decide(route(HALVES), CHAT)
        assert len(starts) == 1

    def test_the_draws_of_a_rule_that_goes_are_dropped(
        self, router: Router, starts: list[float]
    ) -> None:
        router.go_live(table(route(HALVES)))
        router.decide(route(HALVES), CHAT)
        router.go_live(table(route(replace(HALVES, key="ns/r/other"))))
        router.go_live(table(route(HALVES)))
        router.decide(route(HALVES), CHAT)
        assert len(starts) == 2

    def test_a_request_under_way_keeps_the_route_it_found(self, router: Router) -> None:
        router.go_live(table(route(HALVES)))
        found = router.table.lookup("llm.test")
        assert found is not None
        router.go_live(RoutingTable())
        assert router.table.lookup("llm.test") is None
        assert router.decide(found, CHAT).rule is HALVES


class TestUsage:
    def test_a_provider_is_asked_until_it_refuses(self, router: Router) -> None:
        assert router.asks_usage(A)
        router.usage_refused(A)
        assert not router.asks_usage(A)
        assert not router.asks_usage(replace(A, path="/other", weight=7))
        assert router.asks_usage(B)

    def test_the_log_tells_once_that_it_refuses(
        self, router: Router, caplog: pytest.LogCaptureFixture
    ) -> None:
        for refusing in (A, A, B):
            router.usage_refused(refusing)
        first, second = caplog.messages
        assert first.startswith("the provider a refuses to be asked for the usage")
        assert second.startswith("the provider b ")

    def test_a_reload_asks_again(self, router: Router) -> None:
        router.usage_refused(A)
        router.go_live(RoutingTable())
        assert router.asks_usage(A)

    def test_a_provider_that_once_accepted_is_not_suspected(self, router: Router) -> None:
        assert router.suspects_usage(A)
        router.usage_accepted(A)
        assert not router.suspects_usage(A)
        assert router.suspects_usage(B)


def test_an_answer_that_can_not_be_read_in_full_is_told_once_and_not_quoted(
    router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    for host in ("a.test", "a.test", "b.test"):
        router.tell_fault(host, KeyError("a prompt"))
    assert [message.partition(" could")[0] for message in caplog.messages] == [
        "an answer of a.test",
        "an answer of b.test",
    ]
    assert "KeyError" in caplog.text
    assert "a prompt" not in caplog.text
    router.go_live(RoutingTable())
    router.tell_fault("a.test", KeyError())
    assert len(caplog.messages) == 3


class Request:
    """A request under way that closes itself, as real ones do."""

    streaming = False

    def __init__(self, router: Router, client: str) -> None:
        self.router, self.client, self.abandoned = router, client, 0
        router.opened(client, self)

    def abandon(self, error: RequestError | None = None) -> None:
        self.abandoned += 1
        self.router.closed(self.client, self)


class TestOpen:
    def test_a_client_that_goes_abandons_its_own_requests_once(self, router: Router) -> None:
        mine = [Request(router, "me") for _ in range(3)]
        other = Request(router, "other")
        router.closed("me", mine[0])
        router.client_gone("me")
        router.client_gone("me")
        assert [one.abandoned for one in mine] == [0, 1, 1]
        assert not other.abandoned

    def test_stopping_abandons_all(self, router: Router) -> None:
        requests = [Request(router, client) for client in ("a", "b", "b")]
        router.stop(StoppedError("stopped"))
        assert [one.abandoned for one in requests] == [1, 1, 1]
        assert not router._open

    def test_closing_what_is_not_open_is_nothing(self, router: Router) -> None:
        request = Request(router, "me")
        for _ in range(2):
            router.closed("me", request)
        router.closed("nobody", request)
        assert not router._open


# --- what the client is told ----------------------------------------------------------------------

ERRORS: list[tuple[type[RequestError], int, str]] = [
    (NoRouteError, 404, "NR"),
    (NoTargetError, 503, "UH"),
    (MalformedBodyError, 400, "DPE"),
    (ModelMissingError, 400, ""),
    (BodyTooLargeError, 413, "DPE"),
    (UnsupportedEncodingError, 415, "DPE"),
    (UpstreamError, 502, "UF"),
    (UpstreamResetError, 502, "UC"),
    (UpstreamProtocolError, 502, "UPE"),
    (InternalError, 502, "IE"),
    (StoppedError, 503, "LR"),
]
each_error = pytest.mark.parametrize(("error", "status", "flag"), ERRORS)


def body_of(error: type[RequestError], path: str) -> dict[str, object]:
    api = detect("POST", path)
    raw = error_body(error('Say "é".'), api.name if api else None)
    decoded: dict[str, object] = json.loads(raw)
    return decoded


class TestErrors:
    @each_error
    def test_each_has_its_status_and_flag(
        self, error: type[RequestError], status: int, flag: str
    ) -> None:
        assert (error.status, error.flag) == (status, flag)
        expected = "server_error" if status >= 500 else "invalid_request_error"
        assert error.kind == expected

    def test_each_has_a_code_of_its_own_that_fits_in_a_header(self) -> None:
        codes = [error.code for error, _, _ in ERRORS]
        assert len(set(codes)) == len(codes)
        assert all(code.replace("_", "").isalpha() for code in codes)

    @each_error
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/unknown"])
    def test_openais_shape_is_for_openais_apis_and_unknown_ones(
        self, error: type[RequestError], status: int, flag: str, path: str
    ) -> None:
        assert body_of(error, path) == {
            "error": {
                "message": 'Say "é".',
                "type": error.kind,
                "param": error.param,
                "code": error.code,
            }
        }

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (MalformedBodyError, "invalid_request_error"),
            (NoRouteError, "not_found_error"),
            (BodyTooLargeError, "request_too_large"),
            (NoTargetError, "overloaded_error"),
            (UpstreamError, "api_error"),
        ],
    )
    def test_anthropics_shape(self, error: type[RequestError], kind: str) -> None:
        assert body_of(error, "/v1/messages") == {
            "type": "error",
            "error": {"type": kind, "message": 'Say "é".'},
        }

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (MalformedBodyError, "INVALID_ARGUMENT"),
            (NoRouteError, "NOT_FOUND"),
            (BodyTooLargeError, "INVALID_ARGUMENT"),
            (UnsupportedEncodingError, "INVALID_ARGUMENT"),
            (NoTargetError, "UNAVAILABLE"),
            (UpstreamError, "INTERNAL"),
        ],
    )
    def test_googles_shape(self, error: type[RequestError], status: str) -> None:
        assert body_of(error, "/v1beta/models/gemini-2.5-flash:generateContent") == {
            "error": {"code": error.status, "message": 'Say "é".', "status": status}
        }
