"""What the demo plays, and what each scene must have shown in the end.

For every request three witnesses are heard: the client (the answer), the provider (the call as it
came in) and the proxy (its access log line).
"""

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pointsman.demo.play_clients import Answer, OnPiece
from pointsman.demo.play_processes import Json, StageError
from pointsman.demo.play_rules import RuleSet
from pointsman.demo.play_show import Show, Taken, mask
from pointsman.demo.play_stage import (
    DASHSCOPE,
    KEY_VARIABLES,
    MOONSHOT,
    PROVIDERS,
    Stage,
)

WITNESS_SECONDS = 5.0
PAUSE_SECONDS = 0.05
SPLIT_REQUESTS = 20
# The draws are spread evenly, not at random: whatever they start with, 20 are not further off.
SPLIT_TOLERANCE = 1

QUESTION = "Please introduce yourself."
PLACEHOLDER_KEY = "sk-placeholder"

ALONE = RuleSet("traffic-split", provider=DASHSCOPE)
SUBSCRIBER = RuleSet("subscriber")
SPLIT = RuleSet("traffic-split")


@dataclass(frozen=True)
class Target:
    """Where a request should have gone."""

    host: str
    path: str
    model: str

    @property
    def text(self) -> str:
        """What the provider answers there."""
        return f"This is {PROVIDERS[self.host]} with {self.model}. You said: {QUESTION}"


QWEN = Target(DASHSCOPE, "/compatible-mode/v1/chat/completions", "qwen1.5-72b-chat")
QWEN_TURBO = Target(DASHSCOPE, "/compatible-mode/v1/chat/completions", "qwen-turbo")
KIMI = Target(MOONSHOT, "/v1/chat/completions", "moonshot-v1-8k")


@dataclass
class Check:
    """Something that the demo shows, and everything that spoke against it."""

    claim: str
    problems: list[str] = field(default_factory=list)

    def equal(self, what: str, got: object, expected: object) -> None:
        """Hold `got` against what was expected."""
        if got != expected:
            self.problems.append(f"{what}: expected {expected}, got {got}")

    def true(self, what: str, *, holds: bool) -> None:
        """Hold a statement to be true."""
        if not holds:
            self.problems.append(f"not so: {what}")


@dataclass(frozen=True)
class Said:
    """A chat answer, whole or streamed, as far as the checks go."""

    model: str | None
    text: str
    usage: Json | None
    ended: bool


@dataclass(frozen=True)
class Take:
    """One request, as its three witnesses saw it."""

    answer: Answer
    call: Json
    entry: Json

    def header(self, name: str) -> str:
        """Return a header of the call, "" if there is none."""
        return next((v for n, v in self.call["headers"] if n.lower() == name), "")

    @property
    def key(self) -> str:
        """The API key that the provider got."""
        return self.header("authorization").removeprefix("Bearer ")

    @property
    def taken(self) -> Taken:
        """The take as it is shown."""
        return Taken(
            url=f"https://{self.header('host')}{self.call['path']}",
            model=_model(self.call) or "no model",
            key=self.key,
            status=self.answer.status,
            prompt_tokens=self.entry["request_prompt_tokens"],
            completion_tokens=self.entry["request_completion_tokens"],
            cost_usd=self.entry["cost_usd"],
            duration_ms=self.entry["duration_ms"],
            overhead_ms=self.entry["overhead_ms"],
        )


class Performance:
    """One run of the demo: asks, shows, and collects what it saw."""

    def __init__(self, stage: Stage, show: Show) -> None:
        self.stage = stage
        self.show = show
        self.takes: list[Take] = []
        self.sent = 0

    def change_rules(self, rules: RuleSet) -> None:
        """Change the rules under the running proxy."""
        began = time.perf_counter()
        written = self.stage.change_rules(rules)
        seconds = time.perf_counter() - began
        self.show.rules(written.example, written.manifests, live_after=seconds)

    def ask(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        on_piece: OnPiece | None = None,
        **fields: Any,
    ) -> Take:
        """Ask the question without a key and a model, and hear the witnesses.

        Raises:
            StageError: one of them has nothing to say.
        """
        body = json.dumps({"messages": [{"role": "user", "content": QUESTION}], **fields})
        seen = len(self.stage.providers.lines)
        self.sent += 1
        answer = self.stage.client.post(
            url,
            headers={"Content-Type": "application/json", **(headers or {})},
            body=body.encode(),
            on_piece=on_piece or (lambda _: None),
        )
        entry = self.stage.log.next(timeout=WITNESS_SECONDS)
        call = self.stage.call_after(seen, timeout=WITNESS_SECONDS if answer.status < 400 else 0)  # noqa: PLR2004
        got = f"the client got {answer.status}: {answer.body[:300].decode('utf-8', 'replace')}"
        if call is None:
            raise StageError(f"POST {url}: no provider was called; {got}")
        if entry is None:
            raise StageError(f"POST {url}: nothing came in the access log; {got}")
        take = Take(answer, call, entry)
        self.takes.append(take)
        return take

    def verify(self, check: Check, take: Take, target: Target) -> None:
        """Hold what the witnesses say against where the request should have gone."""
        said = parse(take.answer)
        check.equal("the client's status", take.answer.status, 200)
        check.equal("the client's answer, its model", said.model, target.model)
        check.equal("the client's answer, its text", said.text, target.text)

        check.equal("the provider's call, its Host", take.header("host"), target.host)
        check.equal("the provider's call, its path", take.call["path"], target.path)
        check.equal("the provider's call, its model", _model(take.call), target.model)
        expected_key = self.stage.keys[target.host]
        if take.header("authorization") != f"Bearer {expected_key}":
            check.equal("the provider's call, its key", mask(take.key), mask(expected_key))
        check.true(
            "the provider saw no credential of the client's",
            holds=PLACEHOLDER_KEY not in json.dumps(take.call),
        )

        entry = take.entry
        check.equal("the access log, provider_host", entry["provider_host"], target.host)
        check.equal("the access log, request_model", entry["request_model"], target.model)
        check.equal("the access log, status", entry["status"], 200)
        check.equal("the access log, attempts", len(entry["attempts"]), 1)
        tokens = (entry["request_prompt_tokens"], entry["request_completion_tokens"])
        # The embedded providers count words.
        expected = (len(QUESTION.split()), len(target.text.split()))
        check.equal("the access log, prompt and completion tokens", tokens, expected)
        if said.usage:
            usage = (said.usage["prompt_tokens"], said.usage["completion_tokens"])
            check.equal("the access log, tokens as the client was told", tokens, usage)


def _model(call: Json) -> str | None:
    try:
        model = json.loads(call["body"]).get("model")
    except ValueError:
        return None
    return model if isinstance(model, str) else None


def parse(answer: Answer) -> Said:
    """Read a chat answer; what can't be read says nothing."""
    reader = StreamReader()
    if answer.content_type.startswith("text/event-stream"):
        text = "".join(reader.feed(answer.body))
        return Said(reader.model, text, reader.usage, reader.ended)
    try:
        value = json.loads(answer.body)
        text = value["choices"][0]["message"]["content"]
        return Said(value["model"], text, value.get("usage"), ended=True)
    except (ValueError, LookupError, TypeError):
        return Said(None, answer.body[:200].decode("utf-8", "replace"), None, ended=False)


class StreamReader:
    """Reads a chat stream as a simple client does."""

    def __init__(self) -> None:
        self._partial = b""
        self.model: str | None = None
        self.usage: Json | None = None
        self.ended = False

    def feed(self, piece: bytes) -> list[str]:
        """Return the words that are complete with this piece."""
        *events, self._partial = (self._partial + piece).split(b"\n\n")
        return [word for event in events if (word := self._event(event))]

    def _event(self, event: bytes) -> str:
        data = event.removeprefix(b"data: ")
        if data == b"[DONE]":
            self.ended = True
            return ""
        try:
            chunk = json.loads(data)
        except ValueError:
            return ""
        self.model = chunk.get("model", self.model)
        self.usage = chunk.get("usage") or self.usage
        choices = chunk.get("choices") or [{}]
        return choices[0].get("delta", {}).get("content") or ""


# --- the scenes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """One scene: what it is called, what it shows, and how it is played."""

    title: str
    claim: str
    play: Callable[[Performance, Check], None]


def alone(performance: Performance, check: Check) -> None:
    """Call a provider that no route mentions, without a model, a path or a key."""
    written = performance.stage.rules.written
    performance.show.rules(written.example, written.manifests)
    url = f"http://{DASHSCOPE}"
    performance.show.request(url)
    take = performance.ask(url)
    performance.show.taken(take.taken, parse(take.answer).text)
    performance.verify(check, take, QWEN)


def subscriber(performance: Performance, check: Check) -> None:
    """Call the same URL twice, once as a subscriber."""
    performance.change_rules(SUBSCRIBER)
    url = f"http://{DASHSCOPE}"
    calls: list[tuple[dict[str, str], Target]] = [
        ({}, QWEN),
        ({"user-type": "subscriber"}, QWEN_TURBO),
    ]
    for headers, target in calls:
        performance.show.request(url, headers)
        take = performance.ask(url, headers)
        performance.show.taken(take.taken, parse(take.answer).text)
        performance.verify(check, take, target)


def split(performance: Performance, check: Check) -> None:
    """Call a name that does not exist, often."""
    performance.change_rules(SPLIT)
    url = "http://demo-llm-server"
    performance.show.request(url, times=SPLIT_REQUESTS)
    targets = {target.host: target for target in (QWEN, KIMI)}
    with performance.show.shares(list(targets), SPLIT_REQUESTS) as shares:
        for _ in range(SPLIT_REQUESTS):
            take = performance.ask(url)
            host = take.header("host")
            shares.add(host, take.taken)
            performance.show.pause(PAUSE_SECONDS)
            performance.verify(check, take, targets.get(host, QWEN))
    counts = Counter(take.header("host") for take in performance.takes[-SPLIT_REQUESTS:])
    qwen, kimi = (counts[host] for host in targets)
    check.true(
        f"each gets {SPLIT_REQUESTS // 2} of {SPLIT_REQUESTS}, give or take {SPLIT_TOLERANCE}"
        f" ({DASHSCOPE} got {qwen}, {MOONSHOT} {kimi})",
        holds=abs(qwen - SPLIT_REQUESTS // 2) <= SPLIT_TOLERANCE and qwen + kimi == SPLIT_REQUESTS,
    )
    cost = [take.entry["cost_usd"] for take in performance.takes if take.header("host") == MOONSHOT]
    check.true(f"{MOONSHOT} has a list price", holds=all(cost))
    if not check.problems:
        check.claim = f"a name of your own, split 50/50: {qwen} and {kimi} of {SPLIT_REQUESTS}"


def stream(performance: Performance, check: Check) -> None:
    """Ask for a stream, and not for its usage."""
    url = f"http://{DASHSCOPE}"
    performance.show.request(url, body='"stream": true')
    reader, began = StreamReader(), time.perf_counter()
    times: list[float] = []

    def hear(piece: bytes) -> None:
        for word in reader.feed(piece):
            times.append(time.perf_counter() - began)
            performance.show.word(word)

    take = performance.ask(url, on_piece=hear, stream=True)
    whole = time.perf_counter() - began
    performance.show.stream_ended(take.taken, first_token=times[0] if times else None, whole=whole)
    performance.verify(check, take, QWEN)
    check.true("the stream ends with [DONE]", holds=reader.ended)
    check.true(
        "words come one by one, as the provider sends them",
        holds=len(times) > 1 and times[0] < times[-1] / 2,
    )
    check.equal("usage in the client's stream, which it did not ask for", reader.usage, None)
    options = json.loads(take.call["body"]).get("stream_options")
    check.equal("stream_options that the provider got", options, {"include_usage": True})


def https(performance: Performance, check: Check) -> None:
    """Call over HTTPS, as an SDK does: with the full path and a key that is none."""
    url = f"https://{DASHSCOPE}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {PLACEHOLDER_KEY}"}
    performance.show.request(url, headers)
    take = performance.ask(url, headers)
    performance.show.taken(take.taken, parse(take.answer).text)
    performance.verify(check, take, QWEN)


SCENES: Sequence[Scene] = (
    Scene(
        "A provider alone",
        "plain HTTP in; HTTPS, path, model and key put in on the way",
        alone,
    ),
    Scene(
        "Another model for subscribers",
        f"subscribers get {QWEN_TURBO.model}, everyone else {QWEN.model}",
        subscriber,
    ),
    Scene("Half of the traffic to each", "a name of your own, split 50/50", split),
    Scene(
        "A stream",
        "streamed word by word; its tokens are logged, the client's stream is unchanged",
        stream,
    ),
    Scene(
        "The same over HTTPS, client unchanged",
        "HTTPS decrypted and routed; the SDK's placeholder key replaced",
        https,
    ),
)


def play_scene(scene: Scene, performance: Performance) -> Check:
    """Play a scene and tell how it went; a stage that breaks down is told as a problem."""
    check = Check(scene.claim)
    try:
        scene.play(performance, check)
    except StageError as error:
        check.problems.append(str(error))
    return check


def check_accounts(performance: Performance) -> Check:
    """Check what holds for all requests together."""
    check = Check("every request was sent once and logged once; no key and no prompt in any log")
    stage, sent = performance.stage, performance.sent
    check.equal("requests that the providers got", stage.calls(), sent)
    log = stage.log.path.read_text(encoding="utf-8")
    check.equal("lines in the access log", len(log.splitlines()), sent)
    output = "\n".join([log, *stage.proxy.lines.all()])
    secrets = {KEY_VARIABLES[host]: key for host, key in stage.keys.items()}
    secrets |= {"the client's placeholder key": PLACEHOLDER_KEY, "the prompt": QUESTION}
    for name, secret in secrets.items():
        check.true(f"{name} is in no log", holds=secret not in output)
    return check


@dataclass(frozen=True)
class Totals:
    """What all requests together came to; `priced` is the number that `cost_usd` stands for."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    priced: int
    median_overhead_ms: float


def totals(takes: Sequence[Take]) -> Totals:
    """Add up what the access log says."""
    entries = [take.entry for take in takes]
    costs = [entry["cost_usd"] for entry in entries if entry["cost_usd"] is not None]
    return Totals(
        requests=len(entries),
        prompt_tokens=sum(entry["request_prompt_tokens"] or 0 for entry in entries),
        completion_tokens=sum(entry["request_completion_tokens"] or 0 for entry in entries),
        cost_usd=sum(costs),
        priced=len(costs),
        median_overhead_ms=statistics.median(e["overhead_ms"] for e in entries) if entries else 0,
    )
