"""The commands: in mitmweb's command bar, which posts them to its own API."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pointsman.demo.provider import Reply
from tests.e2e.conftest import KEYS
from tests.e2e.harness import (
    LOOPBACK,
    Far,
    assert_entry,
    chat,
    eventually,
    llm_route,
    said,
    to,
    write_rules,
)
from tests.e2e.mitmweb import Web

pytestmark = pytest.mark.e2e

URL = "https://api.openai.com/v1/chat/completions"


@pytest.fixture
def rules(tmp_path: Path, openai: Far, moonshot: Far) -> Path:
    vip = to("api.moonshot.cn", name="vip", matches=[{"headers": {"user": {"exact": "vip"}}}])
    both = to("api.openai.com", "api.moonshot.cn", name="both")
    front = llm_route("front", "front", vip, both)
    return write_rules(tmp_path / "rules", openai.manifest(), moonshot.manifest(), front)


@pytest.fixture
def web(confdir: Path, rules: Path) -> Iterator[Web]:
    with Web(confdir, rules, env=KEYS) as web:
        yield web


def run(web: Web, command: str, *arguments: str) -> Any:
    answer = web.api.post(f"/commands/{command}", json={"arguments": list(arguments)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows(web: Web, command: str, *arguments: str) -> list[list[str]]:
    found = run(web, command, *arguments)
    assert "value" in found, found
    value: list[list[str]] = found["value"]
    return value


def test_a_flow_is_named_by_the_mark_that_a_person_gave_it(web: Web) -> None:
    with web.proxy.client() as client:
        for user in ("vip", "ann"):
            assert said(client.post("http://front/", json=chat(model="m"), headers={"user": user}))
    web.put(web.flows(2)[0], marked=":red_circle:")
    told = rows(web, "llm.explain", "~marker red_circle")
    assert ["✓ rule vip", "header user = vip"] in told


def test_explain_tells_the_rules_and_what_would_leave(web: Web, openai: Far, moonshot: Far) -> None:
    with web.proxy.client(
        headers={"user": "vip", "authorization": "Bearer sk-own-12345"}
    ) as client:
        assert said(client.post("http://front/", json=chat(model="m")))
    moonshot.calls(1)
    web.flows(1)
    told = rows(web, "llm.explain", "@all")
    assert ["route", "front"] in told
    assert ["✓ rule vip", "header user = vip"] in told
    assert ["→ moonshot", "100%"] in told
    assert any(row[0] == "  request" and "api.moonshot.cn" in row[1] for row in told)
    assert KEYS["MOONSHOT_API_KEY"] not in str(told)
    assert "sk-own" not in str(told)


def test_replay_sends_the_same_request_through_another_provider_and_compares(
    web: Web, openai: Far, moonshot: Far
) -> None:
    with web.proxy.client(headers={"authorization": "Bearer sk-own-12345"}) as client:
        assert said(client.post(URL, json=chat("one two three", model="m")))
    openai.calls(1)
    (original,) = web.flows(1)
    first = web.proxy.entry()
    assert rows(web, "llm.replay", "@all", "moonshot")[0][0] == "replaying"
    second = web.proxy.entry()
    (call,) = moonshot.calls(1)
    assert call.header("authorization") == f"Bearer {KEYS['MOONSHOT_API_KEY']}"
    assert (first["provider"], second["provider"]) == ("openai", "moonshot")
    flows = web.flows(2)
    (copy,) = (flow for flow in flows if flow["id"] != original["id"])

    def compared() -> str:
        shown: str = web.view(copy, "response", "LLM")["text"]
        return shown if "compared with the original" in shown else ""

    shown = eventually(compared, what="the comparison")
    assert "provider: openai → moonshot" in shown
    before = f"{first['request_prompt_tokens']}+{first['request_completion_tokens']}"
    after = f"{second['request_prompt_tokens']}+{second['request_completion_tokens']}"
    assert f"tokens: {before} → {after}" in shown
    assert "original:" in shown
    assert "this one:" in shown
    web.proxy.says("replayed through moonshot")
    assert KEYS["MOONSHOT_API_KEY"] not in web.api.get("/flows").text
    assert "compared" not in web.view(original, "response", "LLM")["text"]


@pytest.fixture
def told(confdir: Path, rules: Path) -> Iterator[Web]:
    """A mitmweb with the admin endpoint."""
    with Web(confdir, rules, "--set", f"llm_admin={LOOPBACK}:0", env=KEYS) as web:
        yield web


def test_a_replay_by_hand_is_told_as_one(told: Web, openai: Far, moonshot: Far) -> None:
    """It is of the request's own rule, marked in the log, in no split, and leaves no trace."""
    web = told
    with web.proxy.client(headers={"user": "vip"}) as client:
        assert said(client.post("http://front/", json=chat(model="m")))
    moonshot.calls(1)
    web.flows(1)
    first = web.proxy.entry()
    rows(web, "llm.replay", "@all", "openai")
    second = web.proxy.entry()
    openai.calls(1)
    assert (second["rule"], second["provider"], second["replay"]) == ("vip", "openai", True)
    assert "replay" not in first
    assert first["request_id"] != second["request_id"]
    (copy,) = (flow for flow in web.flows(2) if "openai" in flow["comment"])
    shown = web.view(copy, "request", "LLM")["text"]
    assert "chosen by hand" in shown
    assert "affinity" not in shown
    assert second["request_id"] in shown
    split = {
        row["provider"]: row.get("chosen", 0)
        for row in httpx.get(f"http://{web.proxy.admin}/api/live", trust_env=False).json()["rules"]
        if row["rule"] == "vip"
    }
    assert split == {"moonshot": 1}

    web.post(f"/flows/{copy['id']}/replay")
    third = web.proxy.entry()
    moonshot.calls(1)  # by the rule again: nothing pins it
    assert (third["rule"], third["provider"], third["replay"]) == ("vip", "moonshot", True)
    assert third["request_id"] != second["request_id"]


def test_a_replay_by_hand_of_what_no_rule_matches_has_none(
    web: Web, rules: Path, openai: Far, moonshot: Far
) -> None:
    vip = to("api.moonshot.cn", name="vip", matches=[{"headers": {"user": {"exact": "vip"}}}])
    front = llm_route("front", "front", vip)
    write_rules(rules, openai.manifest(), moonshot.manifest(), front)
    assert rows(web, "llm.reload")[0][0] == "live"
    with web.proxy.client() as client:
        assert client.post("http://front/", json=chat(model="m")).status_code == 404
    web.flows(1)
    web.proxy.entry()
    rows(web, "llm.replay", "@all", "openai")
    assert_entry(web.proxy.entry(), rule=None, provider="openai", status=200, flags=[])
    openai.calls(1)


def test_a_replay_that_cannot_be_says_why(web: Web, openai: Far) -> None:
    with web.proxy.client() as client:
        assert said(client.post(URL, json=chat(model="m")))
    openai.calls(1)
    web.flows(1)
    found = run(web, "llm.replay", "@all", "monshot")
    assert 'names the provider monshot; did you mean "moonshot"? There are: ' in found["error"]
    openai.calls(0)


def test_routes_lists_the_live_rules_and_how_their_targets_fare(web: Web) -> None:
    head, *told = rows(web, "llm.routes")
    assert head[:4] == ["host", "rule", "matches", "provider"]
    assert ["front", "vip", "header user = vip", "moonshot", "1", "healthy"] in [
        [*row[:5], row[6]] for row in told
    ]
    assert sum(row[:2] == ["front", "both"] for row in told) == 2


def test_usage_is_that_of_the_log(web: Web, openai: Far) -> None:
    with web.proxy.client() as client:
        for _ in range(3):
            assert said(client.post(URL, json=chat(model="m")))
    openai.calls(3)
    entries = web.proxy.logged(3)
    _, row = rows(web, "llm.usage")
    prompt = sum(entry["request_prompt_tokens"] for entry in entries)
    completion = sum(entry["request_completion_tokens"] for entry in entries)
    assert row[:5] == ["openai", entries[0]["response_model"], "3", str(prompt), str(completion)]


def test_usage_that_is_not_known_is_no_zero(web: Web, openai: Far) -> None:
    openai.provider.replies.append(Reply.json({"error": {"message": "no"}}, status=404))
    with web.proxy.client() as client:
        assert client.post(URL, json=chat(model="m")).status_code == 404
    web.proxy.entry()
    _, row = rows(web, "llm.usage")
    assert row == ["openai", "m", "1", "\u2013", "\u2013", "\u2013"]


def test_a_table_is_fit_for_a_terminal(web: Web, openai: Far) -> None:
    openai.provider.replies.append(Reply.json({"error": {"message": "no"}}, status=404))
    with web.proxy.client() as client:
        client.post(URL, json=chat(model="m\x1b[31m\n"))
    web.proxy.entry()
    _, row = rows(web, "llm.usage")
    assert row[1].startswith("m")
    assert row[1].isprintable()


def test_reload_takes_new_rules_over_or_says_what_is_wrong(web: Web, rules: Path) -> None:
    assert rows(web, "llm.reload")[0][0] == "live"
    (rules / "broken.yaml").write_text("kind: [")
    web.proxy.expect_any_error()  # the watcher finds it too
    found = run(web, "llm.reload")
    assert "the last good rules stay live" in found["error"]
    assert "broken.yaml" in found["error"]
    assert len(rows(web, "llm.routes")) > 3
