"""When something breaks, in Pointsman or in an addon beside it, no original request gets out."""

from pathlib import Path

import pytest

from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import Far, Proxy, assert_entry, assert_refused, chat, said, sse, write_rules

pytestmark = pytest.mark.e2e

URL = "https://api.openai.com/v1/chat/completions"
OWN = {"authorization": "Bearer sk-own"}
BEFORE_THE_CALL = [
    "decide",
    "rewrite",
    "begin_call",
    "_begin_call",
    "wire_request",
    "_send_request",
    "_request_complete",
]
WITH_THE_ANSWER = ["begin_answer", "start_response_stream"]


@pytest.fixture
def faulty(start_proxy: StartProxy, openai: Far, tmp_path: Path) -> Proxy:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    return start_proxy(rules, scripts=["faults.py"])


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_a_fault_before_the_call_is_a_502_and_nothing_is_sent(
    faulty: Proxy, openai: Far, http2: bool
) -> None:
    with faulty.client(http2=http2, headers=OWN) as client:
        for fault in BEFORE_THE_CALL:
            for body in (chat(model="m"), chat(model="m", stream=True)):
                answer = client.post(URL, json=body, headers={"x-fault": fault})
                assert_refused(answer, 502, "internal_error")
                assert fault not in answer.text
                openai.calls(0)
                assert_entry(faulty.entry(), status=502, flags=["IE"], error="internal_error")
                faulty.expect_error("ZeroDivisionError")
        assert said(client.post(URL, json=chat(model="m"))), "other requests are served"
        faulty.entry()
    assert KEYS["OPENAI_API_KEY"] not in faulty.printed
    # A fault's own words may quote a request.
    assert not [fault for fault in BEFORE_THE_CALL if f"a fault in {fault}" in faulty.printed]
    faulty.expect_any_error()


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_a_fault_with_the_answer_is_a_502(faulty: Proxy, openai: Far, http2: bool) -> None:
    with faulty.client(http2=http2, headers=OWN) as client:
        for fault in WITH_THE_ANSWER:
            for body in (chat(model="m"), chat(model="m", stream=True)):
                answer = client.post(URL, json=body, headers={"x-fault": fault})
                assert_refused(answer, 502, "internal_error")
                assert_entry(faulty.entry(), status=502, flags=["IE"], error="internal_error")
        assert said(client.post(URL, json=chat(model="m")))
        faulty.entry()
    faulty.expect_any_error()


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_a_fault_while_an_answer_is_read_costs_its_usage_and_nothing_else(
    faulty: Proxy, openai: Far, http2: bool
) -> None:
    words = chat("make the reader fail", model="m")
    with faulty.client(http2=http2) as client:
        assert said(client.post(URL, json=words)).endswith("make the reader fail")
        assert_entry(faulty.entry(), status=200, flags=[], usage_source=None)
        assert sse(client.post(URL, json=chat(model="m", stream=True)).content)
        faulty.entry()
    faulty.expect_error("an answer could not be read; its usage is unknown")
    faulty.expect_any_error()


def test_an_addon_that_raises_leaks_nothing(
    start_proxy: StartProxy, openai: Far, tmp_path: Path
) -> None:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    proxy = start_proxy(rules, scripts=["raising.py"])
    with proxy.client(headers=OWN) as client:
        assert said(client.post(URL, json=chat(model="m")))
        call = openai.call()
        assert call.header("authorization") == f"Bearer {KEYS['OPENAI_API_KEY']}"
        assert_entry(proxy.entry(), status=200, request_model="m")
        assert_refused(client.post(URL, json=chat()), 400, "model_missing")
        openai.calls(0)
        proxy.entry()
    proxy.expect_error("an addon fails on purpose")
    proxy.expect_any_error()
