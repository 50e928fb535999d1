"""A UI's Replay button: a replayed request is routed, keyed and accounted for as a client's own."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.utils.emoji import emoji

from pointsman.demo.provider import Provider
from pointsman.demo.server import ThreadedServer
from pointsman.proxy.showing import MARKERS
from tests.e2e.conftest import KEYS
from tests.e2e.harness import (
    LOOPBACK,
    Far,
    Json,
    assert_entry,
    chat,
    closed_port,
    eventually,
    llm_provider,
    openai_config,
    said,
    write_rules,
)
from tests.e2e.mitmweb import Web

pytestmark = pytest.mark.e2e

URL = "https://api.openai.com/v1/chat/completions"
OWN = "sk-own-0123456789"


def replay(web: Web, flow: str) -> Json:
    """Replay a flow and return it when it has ended."""
    web.post(f"/flows/{flow}/replay")

    def ended() -> Any:
        (shown,) = (one for one in web.api.get("/flows").json() if one["id"] == flow)
        over = (shown.get("response") or {}).get("timestamp_end") or shown.get("error")
        return shown if over and " ms" in shown["comment"] else None

    found: Json = eventually(ended, what="the replay has ended")
    return found


@pytest.fixture
def rules(tmp_path: Path, openai: Far, accounted: Far) -> Path:
    broken = llm_provider(
        "broken",
        "broken.example",
        address=f"{LOOPBACK}:{closed_port()}",
        configs=openai_config(model="m"),
    )
    return write_rules(tmp_path / "rules", openai.manifest(), accounted.manifest(path=None), broken)


@pytest.fixture
def web(confdir: Path, rules: Path) -> Iterator[Web]:
    with Web(confdir, rules, env=KEYS) as web:
        yield web


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_a_replay_is_routed_with_the_providers_key(
    web: Web, openai: Far, http2: bool, stream: bool
) -> None:
    with web.proxy.client(http2=http2, headers={"authorization": f"Bearer {OWN}"}) as client:
        assert client.post(URL, json=chat(model="m", stream=stream)).status_code == 200
    openai.calls(1)
    first = web.proxy.entry()
    (flow,) = web.flows(1)
    again = replay(web, flow["id"])
    assert again["response"]["status_code"] == 200
    (call,) = openai.calls(1)
    assert call.header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
    same = ("provider", "rule", "status", "stream", "request_model", "total_tokens")
    second = web.proxy.entry()
    assert_entry(second, **{name: first[name] for name in same}, replay=True)
    assert second["request_id"] != first["request_id"]
    assert "replay" not in first
    for secret in (OWN, KEYS["OPENAI_API_KEY"]):
        assert secret not in web.api.get("/flows").text
        assert secret.encode() not in web.api.get("/flows/dump").content


def test_a_replay_to_a_provider_that_takes_the_clients_key_has_it_again(
    web: Web, accounted: Far
) -> None:
    url = f"https://accounted.example/v1/chat/completions?key={OWN}"
    with web.proxy.client(headers={"authorization": f"Bearer {OWN}"}) as client:
        assert said(client.post(url, json=chat(model="m")))
    accounted.calls(1)
    (flow,) = web.flows(1)
    assert OWN not in str(flow)
    replay(web, flow["id"])
    web.post(f"/flows/{flow['id']}/duplicate")
    (copy,) = (one for one in web.flows(2) if one["id"] != flow["id"])
    replay(web, copy["id"])
    for call in accounted.calls(2):
        assert call.header("authorization") == f"Bearer {OWN}"
        assert call.path.endswith(f"?key={OWN}")
    assert OWN not in web.api.get("/flows").text
    web.proxy.logged(3)


def test_what_is_edited_before_a_replay_counts(web: Web, openai: Far) -> None:
    with web.proxy.client() as client:
        assert said(client.post(URL, json=chat("first", model="m")))
    openai.calls(1)
    (flow,) = web.flows(1)
    web.put(flow, request={"content": '{"model": "other", "messages": []}'})
    replay(web, flow["id"])
    (call,) = openai.calls(1)
    assert b'"other"' in call.body
    assert [entry["request_model"] for entry in web.proxy.logged(2)] == ["m", "other"]


def test_a_replay_that_fails_or_is_refused_does_not_hold_up_the_next(
    web: Web, openai: Far, rules: Path
) -> None:
    broken = "https://broken.example/v1/chat/completions"
    with web.proxy.client() as client:
        assert client.post(broken, json=chat()).status_code == 502
        assert client.post(URL, content=b"{").status_code == 400
        assert said(client.post(URL, json=chat(model="m")))
    openai.calls(1)
    flows = {flow["response"]["status_code"]: flow["id"] for flow in web.flows(3)}
    for status in (502, 400, 200):
        assert replay(web, flows[status])["response"]["status_code"] == status
    openai.calls(1)
    assert [entry["status"] for entry in web.proxy.logged(6)] == [502, 400, 200] * 2


def test_a_replay_shows_its_own_outcome(web: Web, openai: Far) -> None:
    with web.proxy.client() as client:
        assert client.post(URL, content=b"{").status_code == 400
    (flow,) = web.flows(1)
    assert flow["marked"] == emoji[MARKERS["refused"]]
    web.post(f"/flows/{flow['id']}/duplicate")
    (copy,) = (one for one in web.flows(2) if one["id"] != flow["id"])
    for one in (flow, copy):
        web.put(one, request={"content": '{"model": "other", "messages": []}'})
        again = replay(web, one["id"])
        assert again["marked"] == emoji[MARKERS["routed"]]
        assert re.match("openai · [0-9]+ tok · other", again["comment"])
        assert "malformed" not in again["comment"]
    openai.calls(2)
    web.put(flow, comment="mine", marked=":grapes:")
    web.put(flow, request={"content": "{"})
    web.post(f"/flows/{flow['id']}/replay")
    web.proxy.logged(4)
    (again,) = (one for one in web.flows(2) if one["id"] == flow["id"])
    assert (again["comment"], again["marked"]) == ("mine", emoji[":grapes:"])


def test_other_hosts_are_replayed_as_mitmproxy_does(web: Web) -> None:
    other = Provider("other", chunk_delay=0)
    with ThreadedServer([other]) as server, web.proxy.client() as client:
        url = f"http://{LOOPBACK}:{server.port}/v1/chat/completions"
        assert said(client.post(url, json=chat(model="m")))
        other.calls.clear()
        (flow,) = web.flows(1)
        # It passed unread; mitmproxy replays only what has a body.
        web.put(flow, request={"content": json.dumps(chat(model="m"))})
        web.post(f"/flows/{flow['id']}/replay")
        eventually(lambda: other.calls or None, what="the replayed call")
    web.proxy.assert_no_more_entries()
