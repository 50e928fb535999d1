"""A request that a person holds in a UI, changes, kills or lets go."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import KEYS
from tests.e2e.harness import (
    DEADLINE,
    Far,
    Json,
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

FRONT = "http://front/v1/chat/completions"
ACCOUNTED = "https://accounted.example/v1/chat/completions"
OWN, TYPED = "sk-own-0123456789", "sk-typed-9876543210"


@pytest.fixture
def rules(tmp_path: Path, openai: Far, accounted: Far) -> Path:
    vip = to("accounted.example", name="vip", matches=[{"headers": {"user": {"exact": "vip"}}}])
    front = llm_route("front", "front", vip, to("api.openai.com", name="all"))
    manifests = openai.manifest(), accounted.manifest(path=None)
    return write_rules(tmp_path / "rules", *manifests, front)


@pytest.fixture
def web(confdir: Path, rules: Path) -> Iterator[Web]:
    with Web(confdir, rules, "--set", "intercept=~q", env=KEYS) as web:
        yield web


@contextmanager
def held(
    web: Web, answers: list[httpx.Response], url: str = FRONT, *, http2: bool = False
) -> Iterator[Json]:
    """Give a request that is held; afterwards what it was answered, if so, is in `answers`."""

    def call() -> None:
        own = {"authorization": f"Bearer {OWN}"}
        options = {"headers": own, "http2": http2}
        with web.proxy.client(**options) as client, suppress(httpx.RemoteProtocolError):
            answers.append(client.post(url, json=chat(model="m")))

    def intercepted() -> Json | None:
        flows: list[Json] = web.api.get("/flows").json()
        return next((flow for flow in flows if flow["intercepted"]), None)

    calling = threading.Thread(target=call)
    calling.start()
    flow = eventually(intercepted, what="an intercepted flow")
    assert flow is not None
    yield flow
    calling.join(DEADLINE)
    assert not calling.is_alive()


def test_an_edited_request_is_decided_anew(web: Web, accounted: Far) -> None:
    answers: list[httpx.Response] = []
    with held(web, answers) as flow:
        web.put(flow, request={"headers": [*flow["request"]["headers"], ["user", "vip"]]})
        web.post(f"/flows/{flow['id']}/resume")
    assert said(answers[0])
    accounted.calls(1)
    assert_entry(web.proxy.entry(), rule="vip", provider="accounted")
    (flow,) = web.flows(1)
    assert "header user = vip" in web.view(flow, "request")["text"]


def test_what_is_held_is_chosen_by_the_decision(confdir: Path, rules: Path) -> None:
    answers: list[httpx.Response] = []
    wanted = 'intercept=~meta "llm_rule: all"'
    with Web(confdir, rules, "--set", wanted, env=KEYS) as web:
        with web.proxy.client() as client:
            assert said(client.post(FRONT, json=chat(model="m"), headers={"user": "vip"}))
        with held(web, answers) as flow:
            web.post(f"/flows/{flow['id']}/resume")
        assert [entry["rule"] for entry in web.proxy.logged(2)] == ["vip", "all"]
    assert said(answers[0])


def test_what_a_person_has_made_of_it_is_logged(web: Web, openai: Far) -> None:
    answers: list[httpx.Response] = []
    with held(web, answers) as flow:
        web.put(flow, request={"method": "PUT", "path": "/v1/files?purpose=batch"})
        web.post(f"/flows/{flow['id']}/resume")
    assert answers
    (call,) = openai.calls(1)
    assert (call.method, call.path.partition("?")[0]) == ("PUT", "/v1/files")
    entry = web.proxy.entry()
    assert_entry(entry, method="PUT", path="/v1/files", upstream_path="/v1/files")
    assert web.matching("~meta llm_api") == []  # it has been one, as long as it was held


@pytest.mark.parametrize("key", [OWN, TYPED])
def test_a_key_that_is_typed_is_sent_and_masked(web: Web, accounted: Far, key: str) -> None:
    answers: list[httpx.Response] = []
    with held(web, answers, ACCOUNTED) as flow:
        if key == TYPED:
            kept = [field for field in flow["request"]["headers"] if field[0] != "authorization"]
            web.put(flow, request={"headers": [*kept, ["authorization", f"Bearer {key}"]]})
        web.post(f"/flows/{flow['id']}/resume")
    assert said(answers[0])
    (call,) = accounted.calls(1)
    assert call.header("authorization") == f"Bearer {key}"
    web.proxy.entry()
    web.flows(1)
    assert key not in web.api.get("/flows").text
    assert key.encode() not in web.dump()


def test_an_untouched_request_keeps_its_decision(web: Web, openai: Far) -> None:
    answers: list[httpx.Response] = []
    with held(web, answers) as flow:
        web.post(f"/flows/{flow['id']}/resume")
    assert said(answers[0])
    openai.calls(1)
    assert_entry(web.proxy.entry(), rule="all", provider="openai")


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_a_killed_request_ends_for_its_client_at_once(web: Web, openai: Far, http2: bool) -> None:
    answers: list[httpx.Response] = []
    with held(web, answers, "https://api.openai.com/v1/chat/completions", http2=http2) as flow:
        web.post(f"/flows/{flow['id']}/kill")
    assert not answers
    openai.calls(0)
    assert_entry(web.proxy.entry(), status=None, flags=[], error="killed", attempts=[])
