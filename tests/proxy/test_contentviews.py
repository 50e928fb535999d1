"""When the view "LLM" is chosen, and what it makes of flows from anywhere."""

import gzip
import json
import logging
from dataclasses import dataclass

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard
from mitmproxy import contentviews, http
from mitmproxy.contentviews._registry import ContentviewRegistry
from mitmproxy.contentviews._utils import get_data
from mitmproxy.net.http.headers import parse_content_type
from mitmproxy.test import tflow, tutils

from pointsman.proxy import contentviews as ours
from pointsman.proxy.showing import CUT, WAY
from tests.viewing.conftest import ALL, Case

REQUEST = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}).encode()
ANSWER = json.dumps({"choices": [{"message": {"role": "assistant", "content": "Yo"}}]}).encode()
VIEWS = ContentviewRegistry()
for known in (*contentviews._views, ours.LLMContentview()):
    VIEWS.register(known)
STREAM = (
    b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"lo"}}]}\n\ndata: [DONE]\n\n'
)


@dataclass(frozen=True)
class Result:
    view: str
    text: str


def shown(message: http.Message | None, flow: http.HTTPFlow, name: str = "auto") -> Result:
    """Show a body as mitmproxy's `prettify_message` does, which needs a running program."""
    assert message is not None
    data, _ = get_data(message)
    assert data is not None
    found = parse_content_type(message.headers.get("content-type", ""))
    kind = f"{found[0]}/{found[1]}" if found else None
    metadata = contentviews.Metadata(flow=flow, content_type=kind, http_message=message)
    view = VIEWS.get_view(data, metadata, name)
    ours_or_none = view.name == "LLM" or name != "auto"
    return Result(view.name, view.prettify(data, metadata) if ours_or_none else "")


def flow_of(
    request: bytes = REQUEST,
    response: bytes = ANSWER,
    *,
    path: str = "/v1/chat/completions",
    kind: str = "application/json",
    coding: str = "",
    metadata: dict[str, object] | None = None,
) -> http.HTTPFlow:
    headers = http.Headers([(b"content-type", kind.encode())])
    if coding:
        headers["content-encoding"] = coding
    flow = tflow.tflow(
        req=tutils.treq(
            method=b"POST",
            path=path.encode(),
            content=request,
            headers=http.Headers([(b"content-type", b"application/json")]),
        ),
        resp=tutils.tresp(content=response, headers=headers),
    )
    flow.metadata.update(metadata or {})
    return flow


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_bodies_of_each_api_are_chosen_without_any_metadata(case: Case) -> None:
    kind = "text/event-stream" if case.event_stream else "application/json"
    flow = flow_of(case.request, case.response, path=case.path, kind=kind)
    for message, text in (
        (flow.request, case.show_request()),
        (flow.response, case.show_answer()),
    ):
        result = shown(message, flow)
        assert result == Result("LLM", text)


@pytest.mark.parametrize(
    "flow",
    [
        flow_of(path="/"),
        flow_of(path="/v1/models"),
        flow_of(b'{"name":"x"}', b'{"choice":1}'),
        flow_of(b"", b"", path="/v1/chat/completions"),
        flow_of(b"<html>", b"<html>", kind="text/html"),
        flow_of(b'{"query":"{\\n a }"}', b"data: x", kind="text/event-stream", path="/graphql"),
        flow_of(b"hello", b"there", path="/v1/files", metadata={"llm_provider": "p"}),
    ],
)
def test_other_bodies_are_left_to_other_views(flow: http.HTTPFlow) -> None:
    for message in (flow.request, flow.response):
        assert shown(message, flow).view != "LLM"


def test_what_came_by_another_path_is_chosen_where_it_is_ours() -> None:
    flow = flow_of(path="/", metadata={"llm_api": "openai-chat", "llm_provider": "p"})
    assert "user: Hi" in shown(flow.request, flow).text
    assert "assistant: Yo" in shown(flow.response, flow).text
    refused = flow_of(
        response=b'{"error":{"message":"none"}}', path="/", metadata={"llm_flags": "NR"}
    )
    assert refused.response
    refused.response.headers["x-pointsman-error"] = "no_route"
    assert "user: Hi" in shown(refused.request, refused).text
    assert "message: none" in shown(refused.response, refused).text


@pytest.mark.parametrize("kept", [b"", None], ids=["no-body", "body-not-kept"])
def test_a_call_without_a_body_shows_its_way(kept: bytes | None) -> None:
    """In its request where there is a view of it, and in its answer, for UIs that have none."""
    way = {"summary": "in a line", "outcome": "routed", "route": "front"}
    flow = flow_of(b"", path="/v1/models", metadata={WAY: way})
    flow.request.method = "GET"
    assert shown(flow.request, flow) == Result(
        "LLM", "route:\n  outcome: routed\n  route: front\nbody: (empty)\n"
    )
    flow.request.raw_content = kept
    assert "  route: front\n" in shown(flow.response, flow, "llm").text
    flow.request.raw_content = REQUEST
    assert "route: in a line\n" in shown(flow.response, flow, "llm").text


def test_an_empty_body_of_others_is_left_to_other_views() -> None:
    flow = flow_of(b"", metadata={"llm_provider": "p"})
    assert shown(flow.request, flow).view != "LLM"


def test_a_broken_body_of_ours_is_still_chosen() -> None:
    flow = flow_of(REQUEST[:-9], ANSWER[:-9], metadata={"llm_provider": "p"})
    for message in (flow.request, flow.response):
        result = shown(message, flow)
        assert result.view == "LLM"
        assert "not whole JSON" in result.text


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_coded_bodies_are_read_also_when_they_are_cut(coding: str) -> None:
    code = {
        "gzip": gzip.compress,
        "br": brotli.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }[coding]
    whole = flow_of(response=code(STREAM), coding=coding, kind="text/event-stream")
    assert "assistant: Hello" in shown(whole.response, whole).text
    long = b"".join(STREAM[:58].replace(b"Hel", b"%d " % n) for n in range(50_000))
    cut = code(long)[:-20]
    part = flow_of(response=cut, coding=coding, kind="text/event-stream", metadata={CUT: 9_000_000})
    result = shown(part.response, part)
    assert result.view == "LLM"
    assert "of 9.0 MB were kept" in result.text


@pytest.mark.parametrize("way", [{"rules": 1}, "text", 3, ["x"], {"summary": "all → p"}])
def test_metadata_of_anyone_is_shown_or_left_out(way: object) -> None:
    flow = flow_of(metadata={WAY: way, CUT: "x", "llm_api": ["x"]})
    for message in (flow.request, flow.response):
        assert shown(message, flow, "llm").view == "LLM"


def test_without_a_flow_or_a_message_nothing_is_chosen_and_a_text_still_made() -> None:
    view = ours.LLMContentview()
    bare = contentviews.Metadata()
    assert view.render_priority(REQUEST, bare) < 0
    assert "user: Hi" in view.prettify(REQUEST, bare)


def test_a_fault_of_the_view_costs_nothing_and_quotes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError(secret)

    secret = "sk-quoted"
    monkeypatch.setattr(ours, "show_request", fail)
    monkeypatch.setattr(ours, "_api", fail)
    view, flow = ours.LLMContentview(), flow_of()
    metadata = contentviews.Metadata(flow=flow, http_message=flow.request)
    with caplog.at_level(logging.ERROR):
        assert "choose another" in view.prettify(REQUEST, metadata)
        assert view.render_priority(REQUEST, metadata) < 0
    assert "ValueError" in caplog.text
    assert secret not in caplog.text


def test_the_view_is_registered_once() -> None:
    ours.register()
    ours.register()
    assert contentviews.registry.available_views().count("llm") == 1
    assert contentviews.registry["LLM"].syntax_highlight == "yaml"
