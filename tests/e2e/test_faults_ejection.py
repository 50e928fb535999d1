"""Providers that keep failing are set aside, probed once, and never leave a request with no one."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from pointsman.demo.provider import Reply
from tests.e2e.conftest import StartFar, StartProxy
from tests.e2e.harness import (
    Far,
    Json,
    Proxy,
    chat,
    eventually,
    llm_route,
    openai_config,
    said,
    write_rules,
)

pytestmark = pytest.mark.e2e

EJECTION = 0.8
BUSY = Reply.json({"error": {"message": "busy"}}, 503)
REFS: list[Json] = [
    {"providerHost": "first.example"},
    {"providerHost": "second.example", "priority": 1},
]

type Stage = tuple[Proxy, Far, Far]


@pytest.fixture
def start(start_far: StartFar, start_proxy: StartProxy, tmp_path: Path) -> Callable[..., Stage]:
    first, second = (
        start_far(name, f"{name}.example", "OPENAI_API_KEY") for name in ("first", "second")
    )

    def begin(refs: list[Json] = REFS, **rule: Json) -> Stage:
        write(tmp_path / "rules", first, second, {"backendRefs": refs, **rule})
        return start_proxy(tmp_path / "rules"), first, second

    return begin


def write(folder: Path, first: Far, second: Far, rule: Json, **route: Json) -> None:
    detection = {"consecutiveFailures": 2, "baseEjection": f"{EJECTION}s", "maxEjection": "1m"}
    configs = openai_config(apiKey="${OPENAI_API_KEY}")
    resources = [
        far.manifest(configs=configs, outlierDetection=detection) for far in (first, second)
    ]
    write_rules(folder, *resources, llm_route("only", "only.test", rule, **route))


def ask(proxy: Proxy) -> httpx.Response:
    with proxy.client() as client:
        return client.post("http://only.test/v1/chat/completions", json=chat(model="m"))


def tried(proxy: Proxy) -> str:
    attempts = proxy.entry()["attempts"]
    return " ".join(f"{attempt['provider']}={attempt['status']}" for attempt in attempts)


def test_a_failing_provider_is_not_called_until_its_time_is_over(
    start: Callable[..., Stage],
) -> None:
    proxy, first, second = start()
    first.provider.script = lambda _: BUSY
    for _ in range(2):
        said(ask(proxy))
        assert tried(proxy) == "first=503 second=200"
    ejected = time.monotonic()
    for _ in range(5):
        said(ask(proxy))
        assert tried(proxy) == "second=200"
    assert time.monotonic() - ejected < EJECTION
    first.calls(2)
    second.calls(7)

    time.sleep(EJECTION)
    said(ask(proxy))  # the probe, which fails: set aside for twice as long
    assert tried(proxy) == "first=503 second=200"
    time.sleep(EJECTION)
    said(ask(proxy))
    assert tried(proxy) == "second=200"

    first.provider.script = None
    time.sleep(EJECTION)
    for _ in range(3):
        said(ask(proxy))
        assert tried(proxy) == "first=200"


def test_a_provider_whose_good_answers_are_errors_is_set_aside(start: Callable[..., Stage]) -> None:
    proxy, first, second = start()
    first.provider.script = lambda _: Reply.json({"error": {"message": "overloaded"}})
    for _ in range(2):
        assert ask(proxy).json() == {"error": {"message": "overloaded"}}
        entry = proxy.entry()
        assert (entry["status"], entry["flags"]) == (200, ["UE"])
        assert entry["error"] == entry["attempts"][0]["error"] == "error in the answer"
    said(ask(proxy))
    assert tried(proxy) == "second=200"
    first.calls(2)
    second.calls(1)


def test_one_request_probes_at_a_time(start: Callable[..., Stage]) -> None:
    proxy, first, _ = start()
    first.provider.script = lambda _: BUSY
    for _ in range(2):
        said(ask(proxy))
    first.calls(2)
    slow = Reply(status=503, body=b"{}", delay=0.4)
    first.provider.script = lambda _: slow
    time.sleep(EJECTION)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, proxy) for _ in range(8)]
        for answer in answers:
            said(answer.result())
    first.calls(1)
    entries = proxy.logged(10)[2:]
    assert sorted(len(entry["attempts"]) for entry in entries) == [1] * 7 + [2]


def test_the_last_one_standing_is_called(start: Callable[..., Stage]) -> None:
    proxy, first, _ = start(REFS[:1])
    first.provider.script = lambda _: BUSY
    for _ in range(6):
        assert ask(proxy).status_code == 503
        assert tried(proxy) == "first=503"
    first.calls(6)
    first.provider.script = None
    said(ask(proxy))
    assert tried(proxy) == "first=200"


def test_when_all_are_set_aside_all_are_called(start: Callable[..., Stage]) -> None:
    proxy, first, second = start()
    for far in (first, second):
        far.provider.script = lambda _: BUSY
    for _ in range(4):
        assert ask(proxy).status_code == 503
        assert tried(proxy) == "first=503 second=503"


def test_what_is_set_aside_stays_so_over_a_reload(
    start: Callable[..., Stage], tmp_path: Path
) -> None:
    proxy, first, second = start()
    first.provider.script = lambda _: Reply.json({}, 429, [("retry-after", "30")])
    said(ask(proxy))
    assert tried(proxy) == "first=429 second=200"
    lives = proxy.out.text().count("rules live")
    write(tmp_path / "rules", first, second, {"backendRefs": REFS, "name": "renamed"})
    eventually(lambda: proxy.out.text().count("rules live") > lives, what="a reload")
    said(ask(proxy))
    assert tried(proxy) == "second=200"
    first.calls(1)


@pytest.mark.parametrize("attempts", [1, 2])
def test_retry_after_sets_aside_whatever_the_rule_retries(
    start: Callable[..., Stage], attempts: int
) -> None:
    proxy, first, _ = start(retry={"attempts": attempts})
    first.provider.script = lambda _: Reply.json({}, 429, [("retry-after", "30")])
    assert ask(proxy).status_code == (429 if attempts == 1 else 200)
    said(ask(proxy))
    first.calls(1)
    proxy.logged(2)
