"""The API server as it is asked: lists, watches, and what its troubles are called."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pointsman.config.documents import is_too_deep
from pointsman.kubernetes.api import Api, ApiError, AwayError, Collection, Event, shallow
from tests.kubernetes.cluster import DEADLINE, Cluster, pod, service

PODS = Collection("v1", "pods", "default")


def ask[T](work: Callable[[Api], Any]) -> Any:
    """Do something with an API, and close it."""

    async def whole() -> Any:
        api = Api()
        try:
            async with asyncio.timeout(DEADLINE):
                return await work(api)
        finally:
            await api.close()

    return asyncio.run(whole())


def names(values: list[Any]) -> list[str]:
    return [value["metadata"]["name"] for value in values]


def test_a_list_has_what_the_collection_selects(cluster: Cluster) -> None:
    cluster.apply(pod("a", "10.0.0.1", app="vllm"), pod("b", "10.0.0.2", app="other"))
    cluster.apply(pod("c", "10.0.0.3", app="vllm"), namespace="elsewhere")

    async def lists(api: Api) -> list[list[str]]:
        wanted = [
            PODS,
            Collection("v1", "pods"),
            Collection("v1", "pods", labels="app=vllm"),
            Collection("v1", "pods", "default", name="b"),
        ]
        return [names((await api.list(one))[0]) for one in wanted]

    assert ask(lists) == [["a", "b"], ["a", "b", "c"], ["a", "c"], ["b"]]


def paged(*pages: list[Any]) -> Callable[[web.BaseRequest], web.Response | None]:
    """Return what answers a list of pods in pages."""

    def answer(request: web.BaseRequest) -> web.Response | None:
        if "/pods" not in request.path:
            return None
        at = int(request.query.get("continue", "0"))
        if "continue" in request.query and "resourceVersion" in request.query:
            return web.json_response({"message": "not allowed with continue"}, status=400)
        metadata = {"resourceVersion": str(7 + at)}
        if at + 1 < len(pages):
            metadata["continue"] = str(at + 1)
        return web.json_response({"metadata": metadata, "items": pages[at]})

    return answer


def test_a_list_in_pages_is_read_to_its_end(cluster: Cluster) -> None:
    pods = [pod(name, "10.0.0.1") for name in "abc"]
    cluster.trouble(paged(pods[:2], [], pods[2:]))
    values, version = ask(lambda api: api.list(Collection("v1", "pods", labels="app=x")))
    assert (names(values), version) == (["a", "b", "c"], "7")
    asked = [path for _, path in cluster.seen if "/pods" in path]
    assert all("labelSelector=app" in path for path in asked)
    assert len(asked) == 3


def test_a_list_whose_next_page_has_expired_is_begun_anew(cluster: Cluster) -> None:
    whole = paged([pod("a", "10.0.0.1")])
    expired = list[str]()

    def answer(request: web.BaseRequest) -> web.Response | None:
        if "continue" in request.query:
            expired.append(request.path)
            return web.json_response({"code": 410}, status=410)
        return (whole if expired else paged([], []))(request)

    cluster.trouble(answer)
    assert names(ask(lambda api: api.list(PODS))[0]) == ["a"]
    assert len(expired) == 1


def test_a_list_without_an_end_is_an_error(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.kubernetes.api._MOST_PAGES", 3)
    cluster.trouble(paged(*[[pod("a", "10.0.0.1")]] * 5))
    with pytest.raises(ApiError, match="its list has more than 3 pages"):
        ask(lambda api: api.list(PODS))


def test_pages_are_no_way_past_the_bound(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    page = [pod("a", "10.0.0.1")]
    monkeypatch.setattr("pointsman.kubernetes.api._MAX_LIST", 2 * len(json.dumps(page)))
    cluster.trouble(paged(page, page, page))
    with pytest.raises(ApiError, match="its answer is larger than"):
        ask(lambda api: api.list(PODS))


def test_a_watch_goes_on_from_a_list(cluster: Cluster) -> None:
    cluster.apply(pod("a", "10.0.0.1"))

    async def events(api: Api) -> list[tuple[str, str]]:
        _, version = await api.list(PODS)
        seen = []
        async for event in api.watch(PODS, version):
            if event.kind == "OPEN":
                changes = (
                    lambda: cluster.apply(pod("b", "10.0.0.2")),
                    lambda: cluster.apply(pod("a", "10.0.0.9")),
                    lambda: cluster.delete("Pod", "b"),
                )
                for change in changes:
                    await asyncio.to_thread(change)
                continue
            assert event.version
            seen.append((event.kind, event.value["metadata"]["name"]))
            if len(seen) == 3:
                break
        return seen

    assert ask(events) == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]


async def first_events(api: Api, version: str = "1") -> list[Event]:
    return [event async for event in api.watch(PODS, version)]


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_a_refusal_has_its_status_and_the_servers_words(cluster: Cluster, status: int) -> None:
    cluster.refuse(status, path="pods")
    for work in (lambda api: api.list(PODS), first_events):
        with pytest.raises(ApiError, match=f"it answers {status}: as the test says") as refused:
            ask(work)
        assert refused.value.status == status
        assert not isinstance(refused.value, AwayError)
    assert len([path for _, path in cluster.seen if "pods" in path]) == 2  # not asked again


def test_an_expired_token_is_renewed(cluster: Cluster, tmp_path: Path) -> None:
    def answer(request: web.BaseRequest) -> web.Response | None:
        if request.headers["authorization"] == "Bearer fresh":
            return None
        config = cluster.kubeconfig.read_text(encoding="utf-8")
        cluster.kubeconfig.write_text(config.replace("t0ken", "fresh"), encoding="utf-8")
        return None if "version" in request.path else web.json_response({}, status=401)

    cluster.apply(pod("a", "10.0.0.1"))
    cluster.trouble(answer)
    values, _ = ask(lambda api: api.list(PODS))
    assert names(values) == ["a"]


def test_a_token_that_stays_refused_is_told(cluster: Cluster) -> None:
    cluster.refuse(401, path="pods")
    with pytest.raises(ApiError) as refused:
        ask(lambda api: api.list(PODS))
    assert refused.value.status == 401


@pytest.mark.parametrize(
    "body",
    ["", "<html>", "[]", "{}", '{"items": {}}', '{"items": [], "metadata": {}}', '"text"', "\x80"],
)
def test_nonsense_is_an_error_and_nothing_else(cluster: Cluster, body: str) -> None:
    cluster.refuse(200, path="pods", body=body or " ")
    with pytest.raises(ApiError) as nonsense:
        ask(lambda api: api.list(PODS))
    assert not isinstance(nonsense.value, AwayError)


@pytest.mark.parametrize("body", ["<html>", "[]\n", '{"type": 5}\n', '{"type": "ADDED"}\n'])
def test_nonsense_in_a_watch_is_an_error_too(cluster: Cluster, body: str) -> None:
    cluster.refuse(200, path="pods", body=body)
    with pytest.raises(ApiError) as nonsense:
        ask(first_events)
    assert not isinstance(nonsense.value, AwayError)


def test_a_version_that_is_too_old_is_410(cluster: Cluster) -> None:
    cluster.apply(pod("a", "10.0.0.1"))
    cluster.compact()
    with pytest.raises(ApiError, match="too old resource version") as gone:
        ask(first_events)
    assert gone.value.status == 410


def test_a_server_that_is_away_is_away(cluster: Cluster) -> None:
    cluster.stop()
    with pytest.raises(AwayError, match="can't be reached"):
        ask(lambda api: api.list(PODS))


def test_a_broken_watch_is_away_too(cluster: Cluster) -> None:
    async def broken(api: Api) -> None:
        async for event in api.watch(PODS, "1"):
            assert event.kind == "OPEN"
            await asyncio.to_thread(cluster.cut)

    with pytest.raises(AwayError, match="has closed the connection"):
        ask(broken)


def test_without_credentials_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ApiError, match="neither a kubeconfig nor a service account"):
        ask(lambda api: api.list(PODS))


def test_a_status_is_merged_and_a_conflict_told(cluster: Cluster) -> None:
    cluster.apply(service("s", "10.0.0.1", http=80))
    where = Collection("v1", "services", "default", "s")
    before = cluster.get("Service", "s")["metadata"]
    ask(lambda api: api.patch_status(where, {"status": {"a": 1}, "spec": {"ports": []}}))
    after = cluster.get("Service", "s")
    assert after["status"] == {"a": 1}
    assert after["spec"]["ports"]
    assert after["metadata"]["generation"] == before["generation"]
    old = {"metadata": {"resourceVersion": before["resourceVersion"]}, "status": {"a": 2}}
    with pytest.raises(ApiError) as conflict:
        ask(lambda api: api.patch_status(where, old))
    assert conflict.value.status == 409


def test_a_server_that_does_not_answer_at_first_is_away(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.kubernetes.api._FIND_SECONDS", 0.2)
    cluster.hold()
    with pytest.raises(AwayError, match="does not answer in time"):
        ask(lambda api: api.list(PODS))


def test_a_watch_that_never_begins_is_away(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.kubernetes.api._ANSWER_SECONDS", 0.2)

    async def work(api: Api) -> None:
        await api.list(PODS)
        cluster.hold()
        await first_events(api)

    with pytest.raises(AwayError, match="does not answer in time"):
        ask(work)


def test_a_watch_that_says_nothing_for_long_ends(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end is that of any watch: the server may still be there."""
    monkeypatch.setattr("pointsman.kubernetes.api._SILENT_SECONDS", 0.2)
    assert [event.kind for event in ask(first_events)] == ["OPEN"]


def test_an_event_that_never_came_whole_is_no_nonsense(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.kubernetes.api._SILENT_SECONDS", 0.2)
    event = json.dumps({"type": "ADDED", "object": pod("a", "10.0.0.1")}).encode()

    async def half() -> AsyncIterator[bytes]:
        yield event + b"\n" + event[:20]
        await asyncio.sleep(1)

    cluster.trouble(lambda r: web.Response(body=half()) if "/pods" in r.path else None)
    assert [event.kind for event in ask(first_events)] == ["OPEN", "ADDED"]


@pytest.mark.parametrize("depth", [5000, 50_000])
def test_one_object_that_is_too_deep_keeps_no_other_from_being_read(
    cluster: Cluster, depth: int
) -> None:
    deep = '{"metadata": {"name": "deep"}, "spec": ' + "[" * depth + "]" * depth + ', "n": 1}'
    good = '{"metadata": {"name": "good"}, "spec": {"x": "]}"}}'
    cluster.refuse(
        200,
        path="pods",
        body='{"metadata": {"resourceVersion": "1"}, "items": [' + deep + ", " + good + "]}",
    )
    (first, second), version = ask(lambda api: api.list(PODS))
    assert (second, version) == (json.loads(good), "1")
    assert (first["metadata"], first["n"]) == ({"name": "deep"}, 1)
    assert is_too_deep(first["spec"])
    # A watch tells of it alone.
    cluster.refuse(200, path="pods", body='{"type": "ADDED", "object": ' + deep + "}\n")
    event = ask(first_events)[-1]
    assert event.value["metadata"] == {"name": "deep"}


@pytest.mark.parametrize(
    "text",
    [
        rb'{"a": ["\"]}{", "\\", {"b": {}}], "c": [[]]}',
        b"[]",
        b"5",
        rb'"\""',
        b'{"a": "\n]"}',
    ],
)
def test_what_is_not_too_deep_stays_as_it_is(text: bytes) -> None:
    assert shallow(text) == text


def test_what_is_too_deep_becomes_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.kubernetes.api._DEPTH", 2)
    assert shallow(b'{"a": [[1, {"b": "]"}], {}, 2, "]"], "c": {"d": [[]]}}') == (
        b'{"a": [null, null, 2, "]"], "c": {"d": null}}'
    )


def test_a_cancellation_that_was_swallowed_is_heeded(cluster: Cluster) -> None:
    """As anyio swallows it now and then while it connects."""

    async def swallowing(api: Api) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await api.list(PODS)

    async def work(api: Api) -> bool:
        task = asyncio.ensure_future(swallowing(api))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert ask(work)
