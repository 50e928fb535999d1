"""The rules say whether the provider streams, the client whether its answer does."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import openai as sdk
import pytest

from pointsman.demo.authority import Authority
from pointsman.demo.openai_answers import Answer, chat_events
from pointsman.demo.provider import Provider, Reply
from pointsman.demo.server import ThreadedServer
from tests.e2e.conftest import StartFar, StartProxy
from tests.e2e.harness import (
    DEADLINE,
    Far,
    Proxy,
    assert_entry,
    assert_refused,
    chat,
    llm_provider,
    llm_route,
    openai_config,
    said,
    sse,
    to,
    trusting,
    write_rules,
)

pytestmark = pytest.mark.e2e

SECONDS = 0.3  # see scripts/slow_shaper.py

KEYS = {"KEY": "sk-shape-60b7c3"}
TEXT = "This is shape with m. You said: Good day"


class Stage:
    def __init__(self, proxy: Proxy, far: Far, spare: Far) -> None:
        self.proxy = proxy
        self.far = far
        self.spare = spare

    def sdk(self, host: str, *, http2: bool) -> sdk.OpenAI:
        return sdk.OpenAI(
            api_key="client-key",
            base_url=f"https://{host}/v1",
            http_client=sdk.DefaultHttpxClient(
                proxy=self.proxy.url,
                verify=trusting(self.proxy.certificate),
                http2=http2,
                trust_env=False,
            ),
            max_retries=0,
        )


@pytest.fixture(scope="module")
def running(
    confdir: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    with ExitStack() as stack:

        def far(name: str) -> Far:
            provider = Provider(name, f"{name}.example", key=KEYS["KEY"], chunk_delay=0)
            server = ThreadedServer([provider], tls=authority.issue(f"{name}.example"))
            return Far(provider, stack.enter_context(server), authority, "KEY")

        shape, spare = far("shape"), far("spare")
        patient = {"consecutiveFailures": 100_000}
        own = {
            f"{word}-{kind}": {"openAIConfig": {"stream": stream}}
            for word, stream in (("streams", True), ("answers", False))
            for kind in ("alone", "backed")
        }
        default = openai_config(apiKey="${KEY}")
        spec = {"configs": {**default, "routeSpecificConfigs": own}, "outlierDetection": patient}
        slow = llm_provider(
            "slow",
            "slow.example",
            **{
                **shape.far_end(),
                "tls": {"caFile": str(authority.certificate), "sni": "shape.example"},
            },
            configs=openai_config(apiKey="${KEY}", stream=True),
            timeouts={"firstByte": "500ms", "idle": "500ms"},
            outlierDetection=patient,
        )
        routes = [
            llm_route(
                name,
                f"{name}.test",
                {
                    "name": name,
                    "backendRefs": [
                        {"providerHost": "shape.example"},
                        *(
                            [{"providerHost": "spare.example", "priority": 1}]
                            if name.endswith("backed")
                            else []
                        ),
                    ],
                },
            )
            for name in own
        ]
        rules = write_rules(
            tmp_path_factory.mktemp("shape"),
            shape.manifest(**spec),
            spare.manifest(configs=default, outlierDetection=patient),
            slow,
            llm_route("slow", "slow.test", to("slow.example")),
            *routes,
        )
        with Proxy(confdir, rules, env=KEYS) as proxy:
            yield Stage(proxy, shape, spare)


@pytest.fixture
def stage(running: Stage) -> Iterator[Stage]:
    running.proxy.forget()
    for far in (running.far, running.spare):
        far.provider.calls.clear()
        far.provider.replies.clear()
    yield running
    running.proxy.assert_no_more_entries()


@pytest.fixture(params=[False, True], ids=["http1", "http2"])
def http2(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_an_answer_is_whole_where_the_provider_streams(stage: Stage, http2: bool) -> None:
    with stage.sdk("streams-alone.test", http2=http2) as client:
        answer = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Good day"}]
        )
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (2, 11)
    assert stage.far.call().json()["stream"] is True
    assert_entry(
        stage.proxy.entry(),
        status=200,
        flags=[],
        stream=True,
        request_prompt_tokens=2,
        total_tokens=11,
        usage_source="response",
        finish_reason="stop",
    )


@pytest.mark.parametrize("asked", [False, True], ids=["usage-unasked", "usage-asked"])
def test_events_come_where_the_provider_answers_at_once(
    stage: Stage, http2: bool, asked: bool
) -> None:
    extra = {"stream_options": {"include_usage": True}} if asked else {}
    with stage.sdk("answers-alone.test", http2=http2) as client:
        stream = client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "Good day"}],
            stream=True,
            extra_body=extra,
        )
        with stream:
            chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[0].object == "chat.completion.chunk"
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert [usage.total_tokens for usage in usages] == ([11] if asked else [])
    sent = stage.far.call().json()
    assert not sent.get("stream")
    assert "stream_options" not in sent
    assert_entry(
        stage.proxy.entry(),
        status=200,
        flags=[],
        stream=False,
        request_prompt_tokens=2,
        total_tokens=11,
        usage_source="response",
    )


@pytest.mark.parametrize("host", ["streams-alone.test", "answers-alone.test"])
@pytest.mark.parametrize("streamed", [False, True])
def test_errors_stay_as_they_are(stage: Stage, host: str, streamed: bool) -> None:
    body = {"error": {"message": "no", "type": "invalid_request_error"}}
    stage.far.provider.script = lambda _: Reply.json(body, 400)
    with stage.proxy.client() as client:
        answer = client.post(
            f"http://{host}/v1/chat/completions", json=chat(model="m", stream=streamed)
        )
    assert (answer.status_code, answer.json()) == (400, body)
    assert answer.headers["content-type"] == "application/json"
    stage.far.provider.script = None
    # A first refusal may have been about our asking for usage, and is asked about once more.
    assert len(stage.far.provider.calls) in {1, 2}
    stage.far.provider.calls.clear()
    stage.proxy.entry()


def broken(*, error: bool) -> Reply:
    events = list(chat_events(Answer("x", 1, "m", "Half of it", 1), include_usage=False))
    pieces = [event.encode() for event in events[:3]]
    if error:
        pieces.append(b'data: {"error":{"message":"overloaded"}}\n\n')
    return Reply(
        headers=[("content-type", "text/event-stream")],
        body=pieces if error else b"".join(pieces),
        drop=None if error else "mid_body",
    )


@pytest.mark.parametrize("error", [False, True], ids=["cut-short", "error-event"])
def test_a_stream_that_fails_while_it_is_folded_fails_over(
    stage: Stage, http2: bool, error: bool
) -> None:
    """The client has seen nothing of it, so any failure up to its end can be made good."""
    stage.far.provider.replies.append(broken(error=error))
    with stage.proxy.client(http2=http2) as client:
        answer = client.post(
            "https://streams-backed.test/v1/chat/completions", json=chat("Good day", model="m")
        )
    assert said(answer) == TEXT.replace("shape", "spare")
    stage.far.calls(1)
    assert stage.spare.call().json().get("stream") is None
    entry = stage.proxy.entry()
    assert_entry(entry, flags=[], provider="spare", total_tokens=11, stream=False)
    assert [attempt["status"] for attempt in entry["attempts"]] == [200, 200]
    assert entry["attempts"][0]["error"]


@pytest.mark.parametrize("error", [False, True], ids=["cut-short", "error-event"])
def test_a_stream_that_fails_while_it_is_folded_is_a_502(
    stage: Stage, http2: bool, error: bool
) -> None:
    stage.far.provider.replies.append(broken(error=error))
    with stage.proxy.client(http2=http2) as client:
        answer = client.post(
            "https://streams-alone.test/v1/chat/completions", json=chat("Good day", model="m")
        )
    code = "upstream_protocol_error" if error else "upstream_reset"
    assert_refused(answer, 502, code)
    stage.far.calls(1)
    stage.proxy.entry()


def test_both_agree_on_a_stream(stage: Stage) -> None:
    with stage.proxy.client() as client:
        answer = client.post(
            "http://streams-alone.test/v1/chat/completions", json=chat(model="m", stream=True)
        )
    assert sse(answer.content)
    stage.far.calls(1)
    stage.proxy.entry()


def pieces(seconds: float) -> Reply:
    events = list(chat_events(Answer("x", 1, "m", TEXT, 2), include_usage=True))
    return Reply.stream(events, seconds)


def test_a_long_answer_that_comes_steadily_is_folded(stage: Stage) -> None:
    """It takes longer than `firstByte` and `idle`, but its chunks never keep one waiting."""
    stage.far.provider.replies.append(pieces(0.1))
    with stage.proxy.client() as client:
        answer = client.post(
            "http://slow.test/v1/chat/completions", json=chat("Good day", model="m")
        )
    assert said(answer) == TEXT
    assert_entry(stage.proxy.entry(), status=200, flags=[])


def test_an_answer_that_stops_while_it_is_folded_is_a_504(stage: Stage) -> None:
    stage.far.provider.replies.append(pieces(DEADLINE))
    with stage.proxy.client() as client:
        answer = client.post(
            "http://slow.test/v1/chat/completions", json=chat("Good day", model="m"), timeout=5
        )
    assert_refused(answer, 504, "upstream_timeout")
    assert_entry(stage.proxy.entry(), status=504, flags=["UT"])


def test_the_time_that_shaping_takes_is_ours(
    start_far: StartFar, start_proxy: StartProxy, tmp_path: Path
) -> None:
    far = start_far("openai", "api.openai.com", "OPENAI_API_KEY")
    provider = far.manifest(configs=openai_config(apiKey="${OPENAI_API_KEY}", stream=True))
    write_rules(tmp_path / "rules", provider)
    proxy = start_proxy(tmp_path / "rules", scripts=["slow_shaper.py"])
    with proxy.client() as client:
        said(client.post("http://api.openai.com/v1/chat/completions", json=chat(model="m")))
    assert proxy.entry()["overhead_ms"] >= SECONDS * 1000
    far.call()
