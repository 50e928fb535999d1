"""mitmweb in a real browser, with live traffic: what a person sees of each LLM call."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mitmproxy.utils.emoji import emoji
from playwright.sync_api import Locator, Page, expect

from pointsman.demo.openai_answers import Event
from pointsman.demo.provider import Provider, Reply
from pointsman.demo.server import ThreadedServer
from pointsman.proxy.showing import MARKERS
from tests.e2e.browser import screenshot
from tests.e2e.conftest import KEYS
from tests.e2e.harness import (
    Far,
    Json,
    llm_route,
    openai_config,
    write_rules,
)
from tests.e2e.mitmweb import Web

pytestmark = pytest.mark.e2e

URL = "http://api.openai.com/v1/chat/completions"
OWN = "sk-application-own-7d21"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city, now or at a time of the day.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "at": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CONVERSATION: list[Json] = [
    {"role": "system", "content": "You plan day trips.\nAnswer in two sentences, without lists."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Would you walk this path tomorrow?"},
            {
                "type": "image_url",
                "image_url": {"url": "data:image/jpeg;base64," + "/9j/4AAQSkZJRgABAQ" * 2000},
            },
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_7Hq",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Bergen"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_7Hq", "content": "12 °C, light rain from 14:00"},
]
ANSWER = "Yes, if you start early: it stays dry until two. Take boots, the stones get slippery."


def stream() -> Reply:
    """A stream of a model that reasons, then answers."""
    head = {"id": "chatcmpl-5f0", "object": "chat.completion.chunk", "model": "moonshot-v1-8k"}

    def chunk(**choice: object) -> Event:
        return Event(json.dumps({**head, "choices": [{"index": 0, **choice}]}))

    thought = "Rain comes at 14:00, so the morning is fine."
    pieces = [chunk(delta={"role": "assistant", "content": ""})]
    pieces += [chunk(delta={"reasoning_content": f"{word} "}) for word in thought.split()]
    pieces += [chunk(delta={"content": f"{word} "}) for word in ANSWER.split()]
    pieces.append(chunk(delta={}, finish_reason="stop"))
    usage = {"prompt_tokens": 412, "completion_tokens": 34, "total_tokens": 446}
    pieces.append(Event(json.dumps({**head, "choices": [], "usage": usage})))
    return Reply.stream([*pieces, Event("[DONE]")])


@pytest.fixture
def web(confdir: Path, tmp_path: Path, dashscope: Far, moonshot: Far) -> Iterator[Web]:
    """A mitmweb whose rules route, fail over, observe and refuse."""
    providers = [
        far.manifest(path=path, configs=openai_config(model=model, apiKey=f"${{{far.variable}}}"))
        for far, path, model in (
            (dashscope, "/compatible-mode/v1/chat/completions", "qwen-plus"),
            (moonshot, "/v1/chat/completions", "moonshot-v1-8k"),
        )
    ]
    trips = llm_route(
        "trip-planner",
        "api.openai.com",
        {
            "name": "research-team",
            "matches": [{"headers": {"x-team": {"exact": "research"}}}],
            "backendRefs": [{"providerHost": moonshot.provider.host}],
        },
        {
            "name": "everyone",
            "backendRefs": [
                {"providerHost": dashscope.provider.host},
                {"providerHost": moonshot.provider.host, "priority": 1},
            ],
        },
    )
    watched = llm_route(
        "watched",
        "localhost",
        {
            "name": "would-move",
            "mode": "observe",
            "backendRefs": [{"providerHost": moonshot.provider.host}],
        },
    )
    picky = llm_route(
        "picky",
        "llm.internal",
        {
            "name": "known-tenants",
            "matches": [{"headers": {"x-tenant": {"regex": "[a-z]+"}}}],
            "backendRefs": [{"providerHost": moonshot.provider.host}],
        },
    )
    rules = write_rules(tmp_path / "rules", *providers, trips, watched, picky)
    with Web(confdir, rules, env=KEYS) as web:
        yield web


@pytest.fixture
def traffic(web: Web, dashscope: Far, moonshot: Far) -> list[Json]:
    """The flows of some calls, of every outcome."""
    own = {"authorization": f"Bearer {OWN}"}
    asked: Json = {
        "model": "gpt-4o",
        "temperature": 0.3,
        "messages": CONVERSATION,
        "tools": [WEATHER],
    }
    hello = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello there"}]}
    with (
        ThreadedServer([Provider("own", chunk_delay=0)]) as local,
        web.proxy.client(headers=own) as app,
    ):
        assert app.post(URL, json=hello).status_code == 200
        assert app.post(URL, json=hello, headers={"x-team": "research"}).status_code == 200
        dashscope.provider.replies.append(Reply.json({"error": {"message": "busy"}}, status=503))
        moonshot.provider.replies.append(stream())
        assert app.post(URL, json={**asked, "stream": True}).status_code == 200
        mine = f"http://localhost:{local.port}/v1/chat/completions"
        assert app.post(mine, json=hello).status_code == 200
        assert app.post("http://llm.internal/", json=hello).status_code == 404
    return web.flows(5)


@pytest.fixture
def ui(web: Web, traffic: list[Json], page: Page) -> Page:
    """The page of mitmweb, with the list of flows on it."""
    page.goto(web.url)
    expect(page.locator(".flow-table td.col-path")).to_have_count(len(traffic))
    return page


def body(ui: Page) -> Locator:
    """What the view shows of a body; its name stands before it."""
    expect(ui.locator(".contentview h5")).to_have_text("LLM")
    return ui.locator(".contentview pre")


def test_the_list_shows_each_decision_and_its_outcome(ui: Page) -> None:
    expect(ui.locator("td.col-comment")).to_contain_text(
        [
            re.compile("^dashscope · [0-9]+ tok · .*gpt-4o → qwen-plus · .* ← everyone"),
            re.compile("^moonshot · [0-9]+ tok · .* ← research-team"),
            re.compile("^moonshot · 446 tok · .*gpt-4o → moonshot-v1-8k .* ← everyone"),
            re.compile("^moonshot · observed only · .*gpt-4o · .* ← would-move"),
            re.compile("^no_route"),
        ]
    )
    markers = [
        MARKERS[ended] for ended in ("routed", "routed", "failed-over", "observed", "refused")
    ]
    expect(ui.locator("td.col-path .marker")).to_have_text([emoji[name] for name in markers])
    screenshot(ui, "mitmweb-list", height=340)


def test_the_request_shows_its_way_and_its_conversation(ui: Page) -> None:
    ui.locator("td.col-comment").nth(2).click()
    shown = body(ui)
    for line in (
        "outcome: failed-over",
        '- ✗ research-team: "header x-team is absent (wanted: = research)"',
        "- ✓ everyone: it has no matches",
        "- 1 dashscope: status 503",
        "- 2 moonshot: status 200",
        "host: api.openai.com → api.moonshot.cn",
        "authorization: Bearer ...7d21 → Bearer ...88b2",
        "model: gpt-4o → moonshot-v1-8k",
        "get_weather(city, at?): The weather of a city",
        "Would you walk this path tomorrow?",
        "image: image/jpeg, 27.0 kB",
        'call get_weather (call_7Hq): {"city": "Bergen"}',
        "result of get_weather (call_7Hq): 12 °C, light rain from 14:00",
    ):
        expect(shown).to_contain_text(line)
    text = ui.content()
    assert not [key for key in (OWN, *KEYS.values()) if key in text]
    screenshot(ui, "mitmweb-route", height=1360)


def test_a_stream_is_shown_as_the_answer_that_it_is(ui: Page) -> None:
    ui.locator("td.col-comment").nth(2).click()
    ui.get_by_role("link", name="Response").click()
    shown = body(ui)
    for line in (
        "stream: 28 events",
        "reasoning: Rain comes at 14:00, so the morning is fine.",
        "Yes, if you start early: it stays dry until two.",
        "finish: stop",
        "prompt: 412",
    ):
        expect(shown).to_contain_text(line)
    screenshot(ui, "mitmweb-answer", height=720)


def test_a_call_without_a_body_shows_its_way(web: Web, ui: Page) -> None:
    with web.proxy.client() as app:
        assert app.get("http://llm.internal/v1/models").status_code == 404
    web.flows(6)
    ui.locator("td.col-path").nth(5).click()
    for tab in ("Request", "Response"):
        ui.get_by_role("link", name=tab).click()
        shown = ui.locator(".contentview pre")
        expect(shown).to_contain_text("outcome: refused · NR · no_route")
        expect(shown).to_contain_text("known-tenants")


def test_the_list_is_searched_by_the_decision(ui: Page) -> None:
    for wanted, count in (
        ("~comment moonshot", 3),
        ('~comment "observed only"', 1),
        ("~comment no_route", 1),
        ("~marker hook", 1),
        ("~marker arrow_right: & ~comment dashscope", 1),
    ):
        ui.get_by_placeholder("Search").fill(wanted)
        expect(ui.locator(".flow-table td.col-path")).to_have_count(count)


def test_a_commands_answer_is_a_table_in_the_event_log(ui: Page) -> None:
    ui.get_by_text("Options", exact=True).click()
    ui.get_by_text("Display Event Log").click()
    ui.get_by_text("Display Command Bar").click()
    asked, log = ui.get_by_placeholder("Enter command"), ui.locator(".eventlog pre")
    expect(log).to_contain_text("rules live")
    log.evaluate("log => log.scrollTop = log.scrollHeight")  # from then on it follows
    for command, line in (
        ("llm.routes", "localhost +would-move +everything +moonshot +1 +moonshot-v1-8k +healthy"),
        ("llm.explain '~comment no_route'", "rule known-tenants +header x-tenant is absent"),
    ):
        asked.fill(command)
        asked.press("Enter")
        expect(log).to_contain_text(re.compile(line))
