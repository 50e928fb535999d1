"""The access log: exactly one line for each request, whatever becomes of it."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import httpx
import pytest

from pointsman.demo.provider import Reply
from tests.e2e.conftest import StartProxy
from tests.e2e.harness import (
    LOOPBACK,
    Far,
    Json,
    Proxy,
    assert_entry,
    chat,
    closed_port,
    eventually,
    llm_provider,
    openai_config,
    write_rules,
)

pytestmark = pytest.mark.e2e

CHAT = "https://api.openai.com/v1/chat/completions"
REQUESTS: list[tuple[str, Json | bytes, int]] = [
    (CHAT, chat(model="m"), 200),
    (CHAT, chat(model="m", stream=True), 200),
    ("http://api.openai.com/", chat("three words here", model="m"), 200),
    (CHAT, chat(), 400),
    (CHAT, b"{", 400),
    ("https://dead.example/v1/chat/completions", chat(model="m"), 502),
    ("https://api.openai.com/v1/unknown", chat(model="m"), 404),
    ("https://api.openai.com/v1/embeddings", {"model": "m", "input": "one"}, 200),
]
TOTAL = 100


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_each_of_many_requests_at_once_has_one_line(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, http2: bool
) -> None:
    address = f"{LOOPBACK}:{closed_port()}"
    config = openai_config(model="m")
    dead = llm_provider("dead", "dead.example", address=address, scheme="http", configs=config)
    log = tmp_path / "access.log"
    rules = write_rules(tmp_path / "rules", openai.manifest(), dead)
    proxy = start_proxy(rules, "--set", f"llm_access_log={log}")

    async def ask(client: httpx.AsyncClient, number: int) -> tuple[str, int]:
        url, body, _ = REQUESTS[number % len(REQUESTS)]
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await client.post(url, content=content, headers={"x-request-id": f"n-{number}"})
        return f"n-{number}", answer.status_code

    async def ask_all() -> dict[str, int]:
        # With a limit, httpx closes connections of HTTP/2 that it has only just asked for.
        limits = httpx.Limits() if http2 else httpx.Limits(max_connections=16)
        async with proxy.async_client(http2=http2, limits=limits) as client:
            return dict(await asyncio.gather(*(ask(client, n) for n in range(TOTAL))))

    got = asyncio.run(ask_all())

    assert got == {f"n-{n}": REQUESTS[n % len(REQUESTS)][2] for n in range(TOTAL)}
    eventually(lambda: len(log.read_bytes().splitlines()) >= TOTAL, what="the last line")
    proxy.stop()
    lines = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert len(lines) == TOTAL
    assert {line["request_id"]: line["status"] for line in lines} == got
    assert len({tuple(line) for line in lines}) == 1, "each line has the same fields in one order"
    flags = Counter(flag for line in lines for flag in line["flags"])
    assert flags["UF"] == list(got.values()).count(502)
    counted = [line for line in lines if line["status"] == 200]
    assert {line["usage_source"] for line in counted} == {"response"}
    assert sum(line["total_tokens"] is not None for line in lines) == len(counted)
    assert "llm_request" not in proxy.out.text()
    openai.calls(sum(line["attempts"] != [] and line["provider"] == "openai" for line in lines))


def test_the_log_can_be_switched_off(start_proxy: StartProxy, openai: Far, tmp_path: Path) -> None:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    proxy = start_proxy(rules, "--set", "llm_access_log=off")
    with proxy.client() as client:
        assert client.post(CHAT, json=chat(model="m")).status_code == 200
    proxy.stop()
    assert "llm_request" not in proxy.printed


def test_a_request_under_way_at_the_end_has_its_line(
    start_proxy: StartProxy, openai: Far, tmp_path: Path
) -> None:
    openai.provider.chunk_delay = 1.0
    log = tmp_path / "access.log"
    rules = write_rules(tmp_path / "rules", openai.manifest())
    proxy = start_proxy(rules, "--set", f"llm_access_log={log}")
    with (
        proxy.client() as client,
        client.stream("POST", CHAT, json=chat(model="m", stream=True)) as answer,
    ):
        next(answer.iter_raw())
        proxy.stop()
    (line,) = log.read_bytes().splitlines()
    assert json.loads(line)["status"] == 200


@pytest.mark.parametrize(
    ("verb", "sse"), [("generateContent", False), ("streamGenerateContent", True)]
)
def test_geminis_model_and_stream_are_read_from_its_path(
    pointsman: Proxy, accounted: Far, verb: str, sse: bool
) -> None:
    answer = {
        "candidates": [{"content": {"parts": [{"text": "Green."}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2},
        "modelVersion": "gemini-2.5-pro-001",
    }
    data = json.dumps(answer).encode()
    kind = "text/event-stream" if sse else "application/json"
    reply = Reply(200, [("content-type", kind)], b"data: %b\n\n" % data if sse else data)
    accounted.provider.replies.append(reply)
    path = f"/v1beta/models/gemini-2.5-pro:{verb}"
    with pointsman.client() as client:
        url = f"https://{accounted.provider.host}{path}{'?alt=sse' if sse else ''}"
        assert client.post(url, json={"contents": []}).status_code == 200
    assert_entry(
        pointsman.entry(),
        path=path,
        client_model="gemini-2.5-pro",
        request_model="gemini-2.5-pro",
        response_model="gemini-2.5-pro-001",
        stream=sse,
        request_prompt_tokens=3,
    )


def test_labels_name_the_workload(start_proxy: StartProxy, openai: Far, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.write_text('app="shop"\ntier="web"\n', encoding="utf-8")
    rules = write_rules(tmp_path / "rules", openai.manifest())
    env = {"POD_NAMESPACE": "prod"}
    proxy = start_proxy(rules, "--set", f"llm_labels={labels}", env=env)
    with proxy.client() as client:
        assert client.post(CHAT, json=chat(model="m")).status_code == 200
    entry = proxy.entry()
    assert (entry["workload"], entry["namespace"]) == ("shop", "prod")


def test_a_model_that_is_no_name_does_not_fill_the_log(
    start_proxy: StartProxy, openai: Far, tmp_path: Path
) -> None:
    proxy = start_proxy(write_rules(tmp_path / "rules", openai.manifest()))
    with proxy.client() as client:
        client.post(CHAT, json=chat(model="m" * 1_000_000))
    (call,) = openai.calls(1)
    assert len(json.loads(call.body)["model"]) == 1_000_000
    entry = proxy.entry()
    assert entry["client_model"] == entry["request_model"] == "m" * 256 + "…"


def test_a_file_that_was_rotated_away_is_opened_anew_and_no_line_is_lost(
    start_proxy: StartProxy, openai: Far, tmp_path: Path
) -> None:
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"
    rules = write_rules(tmp_path / "rules", openai.manifest())
    proxy = start_proxy(rules, "--set", f"llm_access_log={log}")
    asked = 0

    def lines() -> int:
        files = (one for one in (old, log) if one.exists())
        return sum(len(one.read_text(encoding="utf-8").splitlines()) for one in files)

    with proxy.client() as client:

        def ask() -> bool:
            nonlocal asked
            asked += 1
            return client.post(CHAT, json=chat(model="m")).status_code == 200

        assert ask()
        eventually(lambda: lines() == 1, what="the first line")
        log.rename(old)
        eventually(lambda: ask() and log.exists(), what="a new file")
    eventually(lambda: lines() == asked, what="a line for each request")
    openai.calls(asked)
