"""Which providers are tried, in what order, how often and when; what comes if all fail."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Provider, Reply
from pointsman.demo.server import ThreadedServer
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Far,
    Json,
    Proxy,
    assert_entry,
    assert_refused,
    chat,
    closed_port,
    llm_provider,
    llm_route,
    openai_config,
    said,
    write_rules,
)

pytestmark = pytest.mark.e2e

NAMES = ("a", "b", "c")
KEYS = {f"KEY_{name.upper()}": f"sk-{name}-9b71e2" for name in NAMES}
BACKOFF = 0.2
EVERYTHING = ["connect-failure", "reset", "429", "5xx", "first-byte-timeout"]


def refs(*tiers: str) -> list[Json]:
    """`refs("ab", "c")`: a and b evenly, then c."""
    return [
        {"providerHost": f"{name}.example", "weight": 1, "priority": priority}
        for priority, tier in enumerate(tiers)
        for name in tier
    ]


ROUTES: dict[str, Json] = {
    "tiers.test": {"backendRefs": refs("a", "b", "c")},
    "even.test": {"backendRefs": refs("ab", "c")},
    "once.test": {"backendRefs": refs("a", "b"), "retry": {"attempts": 1}},
    "round.test": {
        "backendRefs": refs("a", "b"),
        "retry": {"attempts": 5, "backoff": f"{BACKOFF}s"},
    },
    "again.test": {"backendRefs": refs("a"), "retry": {"attempts": 3, "backoff": f"{BACKOFF}s"}},
    "429.test": {"backendRefs": refs("a", "b"), "retry": {"retryOn": ["429"]}},
    "short.test": {"backendRefs": refs("a", "b"), "retry": {"perTryTimeout": "300ms"}},
    "dead.test": {"backendRefs": [{"providerHost": "dead.example"}, *refs("", "a")]},
    "dead-last.test": {
        "backendRefs": [*refs("a"), {"providerHost": "dead.example", "priority": 1}]
    },
    "all-dead.test": {
        "backendRefs": [
            {"providerHost": "dead.example"},
            {"providerHost": "deader.example", "priority": 1},
        ]
    },
    "keyless.test": {"backendRefs": [{"providerHost": "keyless.example"}, *refs("", "a")]},
}


class Stage:
    """One proxy and three providers, which do as a test tells them."""

    def __init__(self, proxy: Proxy, fars: dict[str, Far], key_file: Path) -> None:
        self.proxy = proxy
        self.fars = fars
        self.key_file = key_file

    def fail(self, name: str, *replies: Reply) -> None:
        """Let this provider's next answers be these; after them it is well."""
        self.fars[name].provider.replies.extend(replies)

    def always(self, name: str, reply: Reply) -> None:
        """Let this provider give no other answer."""
        self.fars[name].provider.script = lambda _: reply

    def counts(self) -> str:
        """Return who was called how often, as `a2 b1`."""
        called = {name: len(far.provider.calls) for name, far in self.fars.items()}
        return " ".join(f"{name}{count}" for name, count in called.items() if count)

    def ask(self, host: str, **options: Any) -> httpx.Response:
        """Ask over HTTP/1.1."""
        with self.proxy.client() as client:
            return client.post(f"http://{host}/v1/chat/completions", json=chat("Hi", model="m"))

    def tried(self) -> list[str]:
        """Return the attempts of the one next log line, as `a 503`."""
        return [
            f"{attempt['provider']} {attempt['status'] or attempt['error']}"
            for attempt in self.proxy.entry()["attempts"]
        ]


def failing(status: int = 503, *headers: tuple[str, str], says: str = "it failed") -> Reply:
    return Reply.json({"error": {"message": says}}, status, headers)


RESET = Reply(drop="before_status")


@pytest.fixture(scope="module")
def running(
    confdir: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("order")
    key_file = folder / "key"
    key_file.write_text("sk-file")
    patient = {
        "consecutiveFailures": 100_000,
        "baseEjection": "1ms",
        "maxEjection": "1ms",
    }
    with ExitStack() as stack:
        fars: dict[str, Far] = {}
        for name in NAMES:
            host, variable = f"{name}.example", f"KEY_{name.upper()}"
            provider = Provider(name, host, key=KEYS[variable], chunk_delay=0)
            server = ThreadedServer([provider], tls=authority.issue(host))
            fars[name] = Far(provider, stack.enter_context(server), authority, variable)
        dead = f"{LOOPBACK}:{closed_port()}"
        rules = write_rules(
            folder / "rules",
            *(
                far.manifest(
                    configs=openai_config(apiKey=f"${{{far.variable}}}"), outlierDetection=patient
                )
                for far in fars.values()
            ),
            *(
                llm_provider(
                    name, f"{name}.example", address=dead, scheme="http", configs=openai_config()
                )
                for name in ("dead", "deader")
            ),
            llm_provider(
                "keyless",
                "keyless.example",
                address=dead,
                scheme="http",
                configs=openai_config(apiKeyFrom={"file": str(key_file)}),
            ),
            *(llm_route(host.partition(".")[0], host, rule) for host, rule in ROUTES.items()),
        )
        with Proxy(confdir, rules, env=KEYS) as proxy:
            yield Stage(proxy, fars, key_file)


@pytest.fixture
def stage(running: Stage) -> Iterator[Stage]:
    running.proxy.forget()
    for far in running.fars.values():
        far.provider.calls.clear()
        far.provider.replies.clear()
        far.provider.script = None
    yield running
    running.proxy.assert_no_more_entries()


# --- order ----------------------------------------------------------------------------------------


def test_priorities_are_tried_in_their_order(stage: Stage) -> None:
    stage.fail("a", failing(503))
    stage.fail("b", RESET)
    assert said(stage.ask("tiers.test")).startswith("This is c with m.")
    assert stage.counts() == "a1 b1 c1"
    assert stage.tried() == ["a 503", "b upstream_reset", "c 200"]


def test_a_healthy_first_provider_is_the_only_one_called(stage: Stage) -> None:
    said(stage.ask("tiers.test"))
    assert stage.tried() == ["a 200"]
    assert stage.counts() == "a1"


def test_the_other_targets_of_a_priority_come_before_the_next_priority(stage: Stage) -> None:
    for name in "ab":
        stage.always(name, failing())
    for _ in range(8):
        said(stage.ask("even.test"))
    orders = Counter(
        " ".join(attempt["provider"] for attempt in entry["attempts"])
        for entry in stage.proxy.logged(8)
    )
    assert set(orders) == {"a b c", "b a c"}
    assert all(count >= 3 for count in orders.values())


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501])
def test_what_is_about_the_request_goes_to_the_client_at_once(stage: Stage, status: int) -> None:
    stage.fail("a", failing(status, ("x-own", "kept"), says="yours"))
    answered = stage.ask("tiers.test")
    assert answered.status_code == status
    assert answered.json() == {"error": {"message": "yours"}}
    assert answered.headers["x-own"] == "kept"
    assert "x-pointsman-error" not in answered.headers
    assert stage.counts() == "a1"
    assert stage.tried() == [f"a {status}"]


def test_one_attempt_switches_retries_off(stage: Stage) -> None:
    stage.fail("a", failing(503, says="no more"))
    answered = stage.ask("once.test")
    assert (answered.status_code, answered.json()["error"]["message"]) == (503, "no more")
    assert stage.counts() == "a1"
    assert stage.tried() == ["a 503"]


def test_only_the_named_conditions_are_tried_again(stage: Stage) -> None:
    stage.fail("a", failing(429))
    assert said(stage.ask("429.test")).startswith("This is b")
    assert stage.tried() == ["a 429", "b 200"]

    stage.fail("a", failing(503))
    assert stage.ask("429.test").status_code == 503
    assert stage.tried() == ["a 503"]

    stage.fail("a", RESET)
    assert_refused(stage.ask("429.test"), 502, "upstream_reset")
    assert stage.tried() == ["a upstream_reset"]


def test_the_time_for_each_try_is_bounded(stage: Stage) -> None:
    stage.fail("a", Reply(delay=DEADLINE))
    assert said(stage.ask("short.test")).startswith("This is b")
    assert stage.tried() == ["a no first byte in time", "b 200"]


# --- rounds ---------------------------------------------------------------------------------------


def test_the_plan_is_gone_through_again_after_a_pause(stage: Stage) -> None:
    """Five attempts on two providers: pauses before the third and, twice as long, the fifth."""
    stage.fail("a", failing(500), failing(504))
    stage.fail("b", RESET, failing(502))
    started = time.monotonic()
    assert said(stage.ask("round.test")).startswith("This is a")
    took = time.monotonic() - started
    assert stage.counts() == "a3 b2"
    tried = ["a 500", "b upstream_reset", "a 504", "b 502", "a 200"]
    assert stage.tried() == tried
    assert BACKOFF * 1.5 <= took < BACKOFF * 3 + 1, took
    first, second, third = (call.at for call in stage.fars["a"].provider.calls)
    assert second - first >= BACKOFF / 2
    assert third - second >= BACKOFF


def test_a_provider_alone_is_tried_again_after_a_pause(stage: Stage) -> None:
    stage.fail("a", failing(500), RESET)
    assert said(stage.ask("again.test"))
    assert stage.tried() == ["a 500", "a upstream_reset", "a 200"]
    first, second, third = (call.at for call in stage.fars["a"].provider.calls)
    assert BACKOFF / 2 <= second - first < BACKOFF + 0.3
    assert BACKOFF <= third - second < BACKOFF * 2 + 0.3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for_on_the_same_provider(stage: Stage, form: str) -> None:
    said_at = time.time()
    value = "1" if form == "seconds" else formatdate(int(said_at) + 2, usegmt=True)
    stage.fail("a", failing(429, ("retry-after", value)))
    assert said(stage.ask("again.test"))
    assert stage.tried() == ["a 429", "a 200"]
    first, second = (call.at for call in stage.fars["a"].provider.calls)
    assert 1 <= second - first + 0.05 < 2.5


@pytest.mark.parametrize("status", [429, 503])
def test_a_long_retry_after_goes_to_the_client(stage: Stage, status: int) -> None:
    stage.fail("a", failing(status, ("retry-after", "6"), says="later"))
    started = time.monotonic()
    answered = stage.ask("again.test")
    assert time.monotonic() - started < 2
    assert answered.status_code == status
    assert answered.headers["retry-after"] == "6"
    assert answered.json()["error"]["message"] == "later"
    assert stage.tried() == [f"a {status}"]


def test_another_provider_does_not_wait_for_retry_after(stage: Stage) -> None:
    stage.fail("a", failing(429, ("retry-after", "4")))
    started = time.monotonic()
    assert said(stage.ask("tiers.test")).startswith("This is b")
    assert time.monotonic() - started < 2
    assert stage.tried() == ["a 429", "b 200"]


def test_retry_after_holds_in_the_next_round_too(stage: Stage) -> None:
    """What a provider asked for is not forgotten while others were tried."""
    stage.fail("a", failing(429, ("retry-after", "1")))
    stage.fail("b", failing(500))
    assert said(stage.ask("round.test")).startswith("This is a")
    assert stage.tried() == ["a 429", "b 500", "a 200"]
    first, second = (call.at for call in stage.fars["a"].provider.calls)
    assert second - first >= 0.95


# --- when all fail --------------------------------------------------------------------------------


def test_the_last_answer_of_a_provider_is_the_clients(stage: Stage) -> None:
    for name, status in {"a": 500, "b": 429, "c": 503}.items():
        stage.fail(name, failing(status, ("x-by", name), says=f"by {name}"))
    answered = stage.ask("tiers.test")
    assert answered.status_code == 503
    assert answered.json()["error"]["message"] == "by c"
    assert answered.headers.get_list("x-by") == ["c"]
    assert stage.tried() == ["a 500", "b 429", "c 503"]


def test_an_answer_counts_more_than_a_later_failure_without_one(stage: Stage) -> None:
    stage.fail("a", failing(503, ("x-by", "a"), says="by a"))
    answered = stage.ask("dead-last.test")
    assert (answered.status_code, answered.headers["x-by"]) == (503, "a")
    assert answered.json()["error"]["message"] == "by a"
    entry = stage.proxy.entry()
    assert_entry(entry, status=503, response_bytes=len(answered.content))
    assert [attempt["status"] for attempt in entry["attempts"]] == [503, None]


def test_without_any_answer_the_attempts_are_listed_without_hosts(stage: Stage) -> None:
    answered = stage.ask("all-dead.test")
    assert_refused(answered, 502, "upstream_failure")
    message = answered.json()["error"]["message"]
    assert "1:" in message
    assert "2:" in message
    for secret in ("dead", LOOPBACK, "sk-"):
        assert secret not in answered.text
    assert_entry(stage.proxy.entry(), status=502, flags=["UF"], error="upstream_failure")


def test_time_outs_alone_are_a_504(stage: Stage) -> None:
    for name in "ab":
        stage.fail(name, Reply(delay=DEADLINE))
    answered = stage.ask("short.test")
    assert_refused(answered, 504, "upstream_timeout")
    assert "no first byte in time" in answered.json()["error"]["message"]
    assert_entry(stage.proxy.entry(), status=504, flags=["UT"])


def test_a_provider_whose_key_has_gone_is_passed_over(stage: Stage) -> None:
    stage.key_file.unlink()
    try:
        assert said(stage.ask("keyless.test")).startswith("This is a")
    finally:
        stage.key_file.write_text("sk-file")
    stage.proxy.expect_error("keyless")
    assert stage.tried() == ["a 200"]
