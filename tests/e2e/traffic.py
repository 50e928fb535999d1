"""Traffic of every kind through one proxy: what metrics and queries need."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from pointsman.demo.openai_answers import dump
from pointsman.demo.provider import Reply
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Far,
    Json,
    Proxy,
    chat,
    closed_port,
    eventually,
    llm_provider,
    llm_route,
    openai_config,
    to,
    write_rules,
)

HOST = "http://shop.test"
CHAT = f"{HOST}/v1/chat/completions"
GEMINI = {
    "candidates": [{"content": {"parts": [{"text": "Green."}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2},
    "modelVersion": "gemini-2.5-pro-001",
}
BUSY = {"error": {"message": "busy", "type": "server_error"}}


def manifests(openai: Far, moonshot: Far, accounted: Far) -> list[Json]:
    """Return rules: a split, a failover, one that can't work, a mirror, and hosts without a route.

    The providers' hosts are real ones: their list prices are known.
    """
    dead = f"{LOOPBACK}:{closed_port()}"
    by = {"headers": {"x-rule": {"exact": "failover"}}}
    never = {"headers": {"x-rule": {"exact": "never"}}}
    patient = {"consecutiveFailures": 100_000}
    return [
        openai.manifest(
            configs=openai_config(apiKey="${OPENAI_API_KEY}"), outlierDetection=patient
        ),
        moonshot.manifest(
            configs=openai_config(apiKey="${MOONSHOT_API_KEY}", model="moonshot-v1-8k"),
            outlierDetection=patient,
        ),
        accounted.manifest(path=None),
        llm_provider(
            "dead",
            "dead.example",
            path="/v1/chat/completions",
            address=dead,
            scheme="http",
            configs=openai_config(model="m"),
            outlierDetection={"consecutiveFailures": 1, "baseEjection": "300s"},
        ),
        llm_route(
            "shop",
            "shop.test",
            {
                "name": "failover",
                "matches": [by],
                "backendRefs": [
                    {"providerHost": "dead.example", "priority": 0},
                    {"providerHost": "api.openai.com", "priority": 1},
                ],
            },
            {
                "name": "split",
                "backendRefs": [
                    {"providerHost": "api.openai.com", "weight": 75},
                    {"providerHost": "api.moonshot.cn", "weight": 25},
                ],
            },
        ),
        llm_route("lost", "lost.test", to("dead.example", name="lost")),
        llm_route("picky", "picky.test", to("api.openai.com", name="never", matches=[never])),
        llm_route(
            "copied",
            "copied.test",
            to("api.openai.com", name="copied", mirror={"providerHost": "api.moonshot.cn"}),
        ),
    ]


@dataclass
class Traffic:
    """A running proxy, and what can be sent through it."""

    proxy: Proxy
    rules: Path
    openai: Far
    moonshot: Far
    accounted: Far

    @classmethod
    @contextmanager
    def running(
        cls, confdir: Path, folder: Path, far: dict[str, Far], env: dict[str, str]
    ) -> Iterator["Traffic"]:
        """Start the proxy."""
        openai, moonshot, accounted = far["openai"], far["moonshot"], far["accounted"]
        for each in (openai, moonshot, accounted):
            each.provider.replies.clear()
            each.provider.script = None
            each.provider.chunk_delay = 0.0
        rules = write_rules(folder / "rules", *manifests(openai, moonshot, accounted))
        with Proxy(confdir, rules, "--set", "llm_admin=127.0.0.1:0", env=env) as proxy:
            yield cls(proxy, rules, openai, moonshot, accounted)

    def metrics(self) -> str:
        """Return what Prometheus would scrape."""
        answer = httpx.get(f"http://{self.proxy.admin}/metrics", trust_env=False, timeout=DEADLINE)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return answer.text

    def send(self) -> list[Json]:
        """Send requests of every kind; return their entries in the access log."""
        self.accounted.provider.replies.clear()
        with self.proxy.client() as client:
            count = sum(self._plain(client)) + sum(self._odd(client))
        self._leave()
        return self.proxy.logged(count + 1)

    def _plain(self, client: httpx.Client) -> Iterator[int]:
        """Ask as applications do; yield how many lines each request has in the log."""
        for number in range(6):
            model = ("gpt-4o-mini", "gpt-4o", "gpt-4.1")[number % 3]
            for stream in (False, True):
                body = chat("two words", model=model, stream=stream)
                assert client.post(CHAT, json=body).status_code == 200
                yield 1
        embeds = {"model": "text-embedding-3-small", "input": "one"}
        for path, asked in (("embeddings", embeds), ("responses", {"model": "m", "input": "x"})):
            assert client.post(f"https://api.openai.com/v1/{path}", json=asked).status_code == 200
            yield 1
        assert client.get("https://api.openai.com/v1/models").status_code == 200
        yield 1
        self.accounted.provider.replies.append(Reply.json(GEMINI))
        url = f"https://{self.accounted.provider.host}/v1beta/models/gemini-2.5-pro:generateContent"
        assert client.post(url, json={"contents": []}).status_code == 200
        yield 1
        asked = chat("copy this", model="gpt-4o-mini")
        assert client.post("http://copied.test/", json=asked).status_code == 200
        yield 2

    def _odd(self, client: httpx.Client) -> Iterator[int]:
        """Ask what fails in one way or the other."""
        asked = chat(model="gpt-4o-mini")
        answer = client.post(CHAT, json=asked, headers={"x-rule": "failover"})
        assert answer.status_code == 200
        for url, content, status in (
            ("http://lost.test/", dump(asked), 502),
            ("http://picky.test/", dump(asked), 404),
            (CHAT, "{", 400),
            ("https://api.openai.com/v1/unknown", "{}", 404),
        ):
            assert client.post(url, content=content).status_code == status
        for status in (429, 503):
            self.openai.provider.replies.append(Reply.json(BUSY, status))
            url = "https://api.openai.com/v1/chat/completions"
            assert client.post(url, json=asked).status_code == status
        yield 7

    def _leave(self) -> None:
        """Begin a stream, and go in the middle of it."""
        with self.stream():
            pass

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Keep a stream open that does not end by itself."""
        held = threading.Event()

        def pieces() -> Iterator[bytes]:
            delta = {"model": "m", "choices": [{"index": 0, "delta": {"content": "x"}}]}
            event = b"data: " + dump(delta).encode() + b"\n\n"
            for _ in range(int(DEADLINE * 20)):
                yield event
                if held.wait(0.05):
                    return

        kind = [("content-type", "text/event-stream")]
        self.accounted.provider.replies.append(Reply(200, kind, pieces()))
        url = f"https://{self.accounted.provider.host}/v1/chat/completions"
        body = chat(model="gpt-4o-mini", stream=True)
        try:
            with self.proxy.client() as client, client.stream("POST", url, json=body) as answer:
                chunks = answer.iter_raw()  # kept: without it, the answer is closed
                assert next(chunks)
                yield
        finally:
            held.set()

    def break_rules(self) -> None:
        """Write rules that are refused, and wait until they are."""
        (self.rules / "broken.yaml").write_text("kind: [", encoding="utf-8")
        self.proxy.expect_error("the rules were not reloaded")
        gauge = "pointsman_last_reload_successful 0.0"
        eventually(lambda: gauge in self.metrics(), what="a refused reload in the metrics")

    def mend_rules(self) -> None:
        """Take them back."""
        (self.rules / "broken.yaml").unlink()
        gauge = "pointsman_last_reload_successful 1.0"
        eventually(lambda: gauge in self.metrics(), what="a good reload in the metrics")
