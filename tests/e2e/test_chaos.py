"""A provider that fails at random among others that do not: nothing is lost or repeated."""

import asyncio
import json
import random
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Call, Provider, Reply
from pointsman.demo.server import ThreadedServer
from tests.e2e.conftest import StartProxy
from tests.e2e.harness import Far, chat, eventually, llm_route, openai_config, to, write_rules

pytestmark = pytest.mark.e2e

REQUESTS = 2000
CONNECTIONS = 16
FAILING = 0.3
URL = "chaos.test/v1/chat/completions"
NAMES = ("one", "two", "three")
MARK = "from-the-failed"
FAILURES = [
    Reply.json({"error": {"message": MARK}}, 500, [("x-failed", MARK)]),
    Reply.json({"error": {"message": MARK}}, 429, [("x-failed", MARK)]),
    Reply(drop="before_status"),
    Reply(
        headers=[("content-type", "text/event-stream"), ("x-failed", MARK)],
        body=[b'data: {"error":{"message":"' + MARK.encode() + b'"}}\n\n'],
    ),
]


class Flaky:
    """Decides by its own sequence, and counts."""

    def __init__(self) -> None:
        self._draw = random.Random(20)
        self._lock = threading.Lock()
        self.failed = 0

    def __call__(self, call: Call) -> Reply | None:
        with self._lock:
            if self._draw.random() >= FAILING:
                return None
            self.failed += 1
            # An error event is none in a plain answer.
            return self._draw.choice(FAILURES if call.json().get("stream") else FAILURES[:3])


def check(answer: httpx.Response, number: int, streamed: bool) -> str:
    """Assert that the answer is whole and right; return whose it is."""
    assert answer.status_code == 200, answer.text
    assert MARK not in answer.text + str(answer.headers)
    if streamed:
        assert answer.content.endswith(b"data: [DONE]\n\n")
        events = [json.loads(part[6:]) for part in answer.text.split("\n\n")[:-2]]
        text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        text = answer.json()["choices"][0]["message"]["content"]
    who = text.split()[2]
    assert text == f"This is {who} with m. You said: {number}"
    return who


def test_nothing_is_lost_and_nothing_repeated(
    start_proxy: StartProxy, authority: Authority, tmp_path: Path
) -> None:
    flaky = Flaky()
    with ExitStack() as stack:
        fars = []
        for name in NAMES:
            provider = Provider(name, f"{name}.example", chunk_delay=0)
            tls = authority.issue(f"{name}.example") if name == "one" else None
            server = stack.enter_context(ThreadedServer([provider], tls=tls))
            fars.append(Far(provider, server, authority))
        fars[0].provider.script = flaky
        patient = {"consecutiveFailures": 100_000}
        configs = openai_config()
        rules = write_rules(
            tmp_path / "rules",
            *(
                far.manifest(
                    configs=configs,
                    outlierDetection=patient,
                    **({} if far is fars[0] else {"scheme": "http", "tls": None}),
                )
                for far in fars
            ),
            llm_route("chaos", "chaos.test", to(*(far.provider.host for far in fars))),
        )
        proxy = start_proxy(rules)
        numbers = iter(range(REQUESTS))

        async def worker(which: int) -> Counter[str]:
            answered: Counter[str] = Counter()
            scheme = "https" if which % 4 == 0 else "http"
            async with proxy.async_client(http2=which % 8 == 0) as client:
                for number in numbers:
                    streamed = number % 2 == 0
                    body = chat(str(number), model="m", **({"stream": True} if streamed else {}))
                    headers = {"x-request-id": f"chaos-{number}"}
                    answer = await client.post(f"{scheme}://{URL}", json=body, headers=headers)
                    answered[check(answer, number, streamed)] += 1
            return answered

        async def run() -> Counter[str]:
            return sum(
                await asyncio.gather(*(worker(which) for which in range(CONNECTIONS))), Counter()
            )

        started = time.monotonic()
        answered = asyncio.run(run())
        assert time.monotonic() - started < 60

        entries = proxy.logged(REQUESTS)
        assert Counter(entry["request_id"] for entry in entries) == {
            f"chaos-{number}": 1 for number in range(REQUESTS)
        }
        attempts: Counter[str] = Counter()
        for entry in entries:
            assert entry["status"] == 200
            assert entry["flags"] == []
            assert entry["request_prompt_tokens"] == 1
            assert entry["usage_source"] == "response"
            *failed, succeeded = entry["attempts"]
            assert (succeeded["provider"], succeeded["status"]) == (entry["provider"], 200)
            assert succeeded["error"] is None
            assert all(attempt["provider"] == "one" for attempt in failed)
            # Twice only where the first was on a connection that had been used before.
            assert [attempt["error"] for attempt in failed[:-1]] in ([], ["stale connection"])
            attempts.update(attempt["provider"] for attempt in entry["attempts"])
        assert sum(answered.values()) == REQUESTS
        assert Counter(entry["provider"] for entry in entries) == answered
        called = {far.provider.name: len(far.provider.calls) for far in fars}
        assert attempts == called
        assert attempts.total() == REQUESTS + flaky.failed
        assert flaky.failed > 0
        ids: Counter[str | None] = Counter()
        for far in fars:
            ids.update(call.header("x-request-id") for call in far.provider.calls)
            eventually(
                lambda far=far: all(call.outcome != "open" for call in far.provider.calls),  # type: ignore[misc]
                what="the end of all calls",
            )
        assert max(ids.values()) <= 3
