"""A collection that is kept up to date, whatever the API server does."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest
from aiohttp import web

from pointsman.kubernetes import watching
from pointsman.kubernetes.api import ANY, Api, AwayError, Collection, Object
from pointsman.kubernetes.watching import Watched
from tests.kubernetes.cluster import DEADLINE, Cluster, pod
from tests.kubernetes.conftest import beside, until

PODS = Collection("v1", "pods", "default")


def address(value: Object) -> str | None:
    status = value.get("status")
    return status.get("podIP") if isinstance(status, dict) else None


@pytest.fixture(autouse=True)
def promptly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pauses that no test has to wait for."""
    monkeypatch.setattr(watching, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(watching, "_LONGEST_PAUSE", 0.05)
    return iter([None])


def watch(work: Callable[[Watched[str]], Awaitable[None]], where: Collection = PODS) -> int:
    """Do something beside a watch; return how often it told of a change."""
    told = []

    async def whole() -> None:
        api = Api()
        watched = Watched(api, where, address, lambda: told.append(1))
        try:
            await beside(watched.run(), lambda: work(watched))
        finally:
            await api.close()

    asyncio.run(whole())
    return len(told)


def ips(watched: Watched[str]) -> list[str]:
    return sorted(watched.items.values())


def lists_of(cluster: Cluster) -> list[str]:
    """Return the paths of the lists that the cluster was asked for."""
    return [path for _, path in cluster.seen if "/pods?" in path and "watch" not in path]


async def do(cluster: Cluster, name: str, *arguments: object) -> None:
    await asyncio.to_thread(getattr(cluster, name), *arguments)


def test_what_is_there_and_what_changes_is_known(cluster: Cluster) -> None:
    cluster.apply(pod("a", "10.0.0.1"))

    async def work(watched: Watched[str]) -> None:
        await until(lambda: ips(watched) == ["10.0.0.1"])
        await do(cluster, "apply", pod("b", "10.0.0.2"))
        await until(lambda: ips(watched) == ["10.0.0.1", "10.0.0.2"])
        await do(cluster, "apply", pod("a", "10.0.0.9"))
        await until(lambda: ips(watched) == ["10.0.0.2", "10.0.0.9"])
        await do(cluster, "delete", "Pod", "b")
        await until(lambda: ips(watched) == ["10.0.0.9"])

    assert watch(work) == 4


def test_an_empty_collection_is_known_too(cluster: Cluster) -> None:
    async def work(watched: Watched[str]) -> None:
        await until(lambda: watched.known)
        assert watched.items == {}

    assert watch(work) == 1


def test_what_is_not_looked_at_is_no_change(cluster: Cluster) -> None:
    cluster.apply(pod("a", "10.0.0.1"))

    async def work(watched: Watched[str]) -> None:
        await until(lambda: watched.known)
        await do(cluster, "apply", pod("a", "10.0.0.1", app="other"))
        await do(cluster, "apply", pod("b", "10.0.0.2"))
        await until(lambda: len(watched.items) == 2)

    assert watch(work) == 2


def test_a_broken_watch_goes_on_where_it_broke_off(cluster: Cluster) -> None:
    """What happened meanwhile comes by the watch; nothing is listed again."""
    cluster.apply(pod("a", "10.0.0.1"), pod("b", "10.0.0.2"))

    def has(watched: Watched[str], wanted: str) -> bool:
        return wanted in ips(watched)

    async def work(watched: Watched[str]) -> None:
        for n in range(3, 6):
            await until(lambda: cluster.watching)
            await do(cluster, "cut")
            await do(cluster, "apply", pod("a", f"10.0.0.{n}"))
            await until(partial(has, watched, f"10.0.0.{n}"))
        await do(cluster, "cut")
        await do(cluster, "delete", "Pod", "b")
        await until(lambda: ips(watched) == ["10.0.0.5"])

    watch(work)
    assert len(lists_of(cluster)) == 1


def test_after_410_everything_is_listed_again(cluster: Cluster) -> None:
    cluster.apply(pod("a", "10.0.0.1"), pod("b", "10.0.0.2"))

    async def work(watched: Watched[str]) -> None:
        await until(lambda: cluster.watching)
        await do(cluster, "stop")
        cluster.compact()
        await do(cluster, "start")
        await do(cluster, "delete", "Pod", "b")
        await until(lambda: ips(watched) == ["10.0.0.1"])

    watch(work)


def test_a_server_that_is_silent_and_gone_is_away(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.kubernetes.api._SILENT_SECONDS", 0.2)
    monkeypatch.setattr("pointsman.kubernetes.api._ANSWER_SECONDS", 0.2)
    cluster.apply(pod("a", "10.0.0.1"))

    async def work(watched: Watched[str]) -> None:
        await until(lambda: cluster.watching)
        cluster.hold()
        await until(lambda: watched.fault and "does not answer in time" in watched.fault.text)
        assert ips(watched) == ["10.0.0.1"]

    watch(work)


def test_a_server_without_bookmarks_is_not_taken_for_one_that_is_away(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its watches go on where they were, and nothing is listed again."""
    monkeypatch.setattr("pointsman.kubernetes.api._SILENT_SECONDS", 0.05)
    cluster.apply(pod("a", "10.0.0.1"))

    async def work(watched: Watched[str]) -> None:
        begun = "watch=true"
        await until(lambda: len([path for _, path in cluster.seen if begun in path]) > 4)
        await do(cluster, "apply", pod("a", "10.0.0.2"))
        await until(lambda: ips(watched) == ["10.0.0.2"])
        assert watched.fault is None

    watch(work)
    assert len(lists_of(cluster)) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_list_after_410_does_not_go_back_in_time(cluster: Cluster) -> None:
    """Though the API server that is asked lags, as lists from its memory may."""
    cluster.apply(pod("a", "10.0.0.1"))
    cluster.lag("Pod")

    async def work(watched: Watched[str]) -> None:
        await until(lambda: cluster.watching)
        await do(cluster, "apply", pod("a", "10.0.0.2"))
        await until(lambda: ips(watched) == ["10.0.0.2"])
        cluster.compact()
        await do(cluster, "cut")
        await until(lambda: len(lists_of(cluster)) == 2)
        await until(lambda: cluster.watching)
        assert ips(watched) == ["10.0.0.2"]

    assert watch(work) == 2  # the list has changed nothing


@pytest.mark.parametrize("version", ["1000000", "odd"])
def test_a_version_that_the_server_does_not_have_is_no_obstacle(
    cluster: Cluster, version: str
) -> None:
    cluster.apply(pod("a", "10.0.0.1"))

    async def whole() -> None:
        api = Api()
        watched = Watched(api, PODS, address, lambda: None, since=version)
        try:
            await watched.fetch()
            assert ips(watched) == ["10.0.0.1"]
            assert watched.version != version
        finally:
            await api.close()

    asyncio.run(whole())
    assert lists_of(cluster)[-1].endswith("resourceVersion=")


def test_a_server_that_was_restored_is_followed(cluster: Cluster) -> None:
    cluster.apply(pod("a", "10.0.0.1"))

    async def work(watched: Watched[str]) -> None:
        await until(lambda: cluster.watching)
        cluster.restore()
        cluster.refuse(410, path="watch=true")
        await do(cluster, "cut")
        await until(lambda: watched.fault and "410" in watched.fault.text)
        cluster.trouble(None)
        await until(lambda: cluster.watching)
        await do(cluster, "apply", pod("b", "10.0.0.2"))
        await until(lambda: ips(watched) == ["10.0.0.1", "10.0.0.2"])

    watch(work)


def test_while_the_server_is_away_what_is_known_stays(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.apply(pod("a", "10.0.0.1"))
    caplog.set_level(logging.INFO)

    async def work(watched: Watched[str]) -> None:
        await until(lambda: cluster.watching)
        await do(cluster, "stop")
        await until(lambda: watched.fault and "can't be reached" in watched.fault.text)
        assert ips(watched) == ["10.0.0.1"]
        await do(cluster, "start")
        await do(cluster, "apply", pod("a", "10.0.0.2"))
        await until(lambda: ips(watched) == ["10.0.0.2"] and not watched.fault)

    watch(work)
    told = [r.getMessage() for r in caplog.records if "can't be reached" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("the Kubernetes API can't be read (pods in default): ")
    assert told[0].endswith("; what is known stays in use")
    assert "the Kubernetes API can be read again: pods in default" in caplog.messages


@pytest.mark.parametrize(
    ("status", "mend"),
    [
        (403, "give the service account the roles of docs/rules-from-the-cluster.md"),
        (404, "pointsman crds | kubectl apply -f -"),
        (500, "it answers 500: as the test says"),
    ],
)
def test_a_refusal_says_how_to_mend_it_and_ends_when_it_is_mended(
    cluster: Cluster, status: int, mend: str
) -> None:
    cluster.refuse(status, path="pods")

    async def work(watched: Watched[str]) -> None:
        await until(lambda: watched.fault and mend in watched.fault.text)
        assert not watched.known
        cluster.trouble(None)
        await until(lambda: watched.known and not watched.fault)

    watch(work)


@pytest.mark.parametrize("body", ["<html>", '{"type": "ADDED", "object": 5}\n', "[]\n", "\x00"])
def test_nonsense_in_a_watch_leads_to_a_list(cluster: Cluster, body: str) -> None:
    cluster.apply(pod("a", "10.0.0.1"))
    cluster.refuse(200, path="watch=true", body=body)

    async def work(watched: Watched[str]) -> None:
        await until(lambda: watched.fault and "its answer is" in watched.fault.text)
        assert ips(watched) == ["10.0.0.1"]
        await do(cluster, "apply", pod("a", "10.0.0.2"))
        await until(lambda: ips(watched) == ["10.0.0.2"])
        cluster.trouble(None)
        await until(lambda: cluster.watching and not watched.fault)

    watch(work)


def test_objects_that_are_none_are_passed_over(cluster: Cluster) -> None:
    good = {"metadata": {"name": "a", "namespace": "default"}, "status": {"podIP": "10.0.0.1"}}
    items = [5, None, {}, {"metadata": 5}, {"metadata": {"name": ["x"], "namespace": "d"}}, good]
    answer = json.dumps({"metadata": {"resourceVersion": "5"}, "items": items})
    events = [
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}},
        {"type": "ADDED", "object": {}},
        {"type": "ODD", "object": {"metadata": {"name": "b", "namespace": 5}}},
        {"type": "MODIFIED", "object": {**good, "status": {"podIP": "10.0.0.2"}}},
    ]
    stream = "".join(json.dumps(event) + "\n\n" for event in events)

    def serve(request: web.BaseRequest) -> web.Response | None:
        if "/pods" not in request.path:
            return None
        return web.Response(text=stream if request.query.get("watch") else answer)

    cluster.trouble(serve)

    async def work(watched: Watched[str]) -> None:
        await until(lambda: ips(watched) == ["10.0.0.2"])
        await until(lambda: any("resourceVersion=9" in path for _, path in cluster.seen))

    watch(work)


def test_a_server_that_ends_each_watch_at_once_is_asked_ever_more_seldom(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = list[float]()
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real(0)

    monkeypatch.setattr(watching, "_LONGEST_PAUSE", 30.0)
    monkeypatch.setattr("pointsman.kubernetes.watching.asyncio.sleep", sleep)
    cluster.refuse(200, path="watch=true", body=" ")

    async def work(watched: Watched[str]) -> None:
        async with asyncio.timeout(20):
            while len(pauses) < 40:
                await real(0.01)

    watch(work)
    assert max(pauses[:3]) < 0.2
    assert min(pauses[20:]) >= 15
    assert max(pauses) <= 30


def test_a_watch_that_was_cancelled_ends_though_the_cancellation_was_swallowed() -> None:
    class Swallowing(Api):
        async def list(self, collection: Collection, since: str = ANY) -> tuple[list[Object], str]:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise AwayError("it can't be reached") from None
            raise AssertionError

    async def whole() -> bool:
        watched = Watched(Swallowing(), PODS, address, lambda: None)
        task = asyncio.ensure_future(watched.run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=DEADLINE)
        return task.cancelled()

    assert asyncio.run(whole())


def test_what_can_not_be_dealt_with_is_a_fault_and_no_end(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.apply(pod("a", "10.0.0.1"))
    odd = [1]

    def read(value: Object) -> str | None:
        if odd:
            raise TypeError("odd")
        return address(value)

    async def whole() -> None:
        api = Api()
        watched = Watched(api, PODS, read, lambda: None)

        async def work() -> None:
            await until(lambda: watched.fault and "can't be used (TypeError)" in watched.fault.text)
            odd.clear()
            await until(lambda: ips(watched) == ["10.0.0.1"] and not watched.fault)

        try:
            await beside(watched.run(), work)
        finally:
            await api.close()

    asyncio.run(whole())
    assert "what the Kubernetes API says can't be used" in caplog.text
