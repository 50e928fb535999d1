"""The rules from the cluster: read at the start, followed, kept, and told."""

import asyncio
import json
import logging
import stat
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pointsman.config.loading import Instance, Loaded, LoadError
from pointsman.kubernetes import rules as module
from pointsman.kubernetes.backends import ClusterBackends
from pointsman.kubernetes.rules import ClusterRules, Copy, own_namespace
from tests.config.test_objects import provider, route
from tests.kubernetes.cluster import Cluster, service
from tests.kubernetes.conftest import beside, until

type Json = dict[str, Any]

BAD = {"providerHost": "p.test", "wait": 5}


@pytest.fixture(autouse=True)
def promptly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pauses that no test has to wait for."""
    monkeypatch.setattr("pointsman.kubernetes.watching._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("pointsman.kubernetes.watching._LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(module, "_DEBOUNCE_SECONDS", 0.01)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 600.0)  # at the start, the first failure counts
    return iter([None])


class Live:
    """What has gone live."""

    def __init__(self) -> None:
        self.tables: list[Loaded] = []

    async def go(self, loaded: Loaded) -> None:
        self.tables.append(loaded)

    def providers(self, host: str) -> list[str] | None:
        """Return what serves a host now; None: nothing has it."""
        found = self.tables[-1].table.lookup(host) if self.tables else None
        return [t.provider for t in found.rules[0].targets] if found else None


def follow(rules: ClusterRules, work: Callable[[Live], Awaitable[None]]) -> Live:
    """Do something while the rules are watched."""
    live = Live()
    asyncio.run(beside(rules.watch(live.go), partial(work, live)))
    return live


def of(namespace: str | None = None, **more: Any) -> ClusterRules:
    backends = ClusterBackends()
    instance = Instance(namespace="a", backends=backends)
    return ClusterRules(namespace, instance, backends=backends, **more)


def told(rules: ClusterRules) -> list[tuple[str, str]]:
    return [(fault.kind, fault.text) for fault in rules.faults]


async def do(cluster: Cluster, *values: Json) -> None:
    await asyncio.to_thread(cluster.apply, *values)


# --- at the start ---------------------------------------------------------------------------------


def test_they_are_read_at_the_start(cluster: Cluster) -> None:
    cluster.apply(provider("p"), route("r", "llm.test"), provider("q", at="b"))
    assert of().load().providers == ("p", "q")
    assert of("a").load().providers == ("p",)
    assert of("none").load().providers == ()


def test_without_a_server_and_a_copy_the_start_fails_and_says_so(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.stop()
    with pytest.raises(LoadError) as failed:
        of("a", copy=tmp_path / "copy.json").load()
    (problem,) = failed.value.problems
    assert str(problem).startswith("kubernetes:a: the Kubernetes API can't be read: it can't be")
    assert f"there is no copy ({tmp_path}/copy.json) of rules" in problem.message


def test_without_permission_the_start_fails_with_the_servers_words(cluster: Cluster) -> None:
    cluster.refuse(403, path="llmproviders")
    with pytest.raises(LoadError, match="it answers 403: as the test says"):
        of().load()


def test_a_start_waits_for_a_server_that_comes_up(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.apply(provider("p"))
    asked = []

    def answer(request: web.BaseRequest) -> web.Response | None:
        asked.append(1)
        return web.Response(status=503) if len(asked) < 4 else None

    cluster.trouble(answer)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    assert of().load().providers == ("p",)


def test_a_server_that_never_answers_does_not_hold_the_start_up(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.json"
    cluster.apply(provider("p"))
    of(copy=copy).load()
    monkeypatch.setattr(module, "_START_SECONDS_WITH_COPY", 0.2)
    cluster.hold()
    assert of(copy=copy).load().providers == ("p",)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kr8s.asyncio", None)
    with pytest.raises(LoadError, match="pip install kr8s"):
        of().load()


# --- the copy -------------------------------------------------------------------------------------


def test_a_start_without_the_server_uses_the_copy(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "confdir" / "copy.json"
    cluster.apply(provider("p"), route("r", "llm.test"))
    of(copy=copy).load()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert [file.name for file in copy.parent.iterdir()] == ["copy.json"]
    cluster.stop()
    loaded = of(copy=copy).load()
    assert (loaded.providers, loaded.routes) == (("p",), ("r",))
    assert "the rules that were last good are used" in caplog.text
    with pytest.raises(LoadError):
        of("a", copy=copy).load()  # other rules than those


def test_what_was_good_before_a_restart_is_good_after_it(cluster: Cluster, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    cluster.apply(provider("p"), route("r", "llm.test"))
    of(copy=copy).load()
    cluster.apply(route("r", "llm.test", BAD))
    found = of(copy=copy).load().table.lookup("llm.test")
    assert found
    assert [target.provider for target in found.rules[0].targets] == ["p"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "5", '{"source": "kubernetes:", "objects": 5}', '{"source": "kubernetes:"}',
     '{"source": "kubernetes:", "objects": [{"kind": "x"}]}', "\x00" * 10],
)  # fmt: skip
def test_a_copy_that_is_none_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "copy.json").write_text(text, encoding="utf-8")
    assert Copy(tmp_path / "copy.json", "kubernetes:").read() is None


def test_a_copy_that_can_not_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    copy = Copy(tmp_path / "file" / "copy.json", "kubernetes:")
    for name in ("p", "q"):
        copy.write({name: provider(name)}, {})
    assert len(caplog.messages) == 1
    assert "give the proxy a confdir that it can write to" in caplog.text


def test_a_damaged_copy_is_none(tmp_path: Path) -> None:
    file = tmp_path / "copy.json"
    copy = Copy(file, "kubernetes:")
    copy.write({"LLMProvider a/p": provider("p"), "LLMRoute a/r": route("r", "llm.test")}, {})
    whole = json.loads(file.read_text(encoding="utf-8"))
    assert list(copy.read() or ()) == ["LLMProvider a/p", "LLMRoute a/r"]
    damaged: list[Any] = [[], None, {}, 0, [5], whole["objects"][:1], [*whole["objects"], 5]]
    damaged.append([{**whole["objects"][0], "spec": {}}, whole["objects"][1]])
    for objects in damaged:
        file.write_text(json.dumps({**whole, "objects": objects}), encoding="utf-8")
        assert copy.read() is None


def test_a_start_with_a_damaged_copy_fails_as_without_one(cluster: Cluster, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    cluster.apply(provider("p"))
    of(copy=copy).load()
    cluster.stop()
    text = copy.read_text(encoding="utf-8")
    copy.write_text(text.replace("p.test", "q.test"), encoding="utf-8")
    with pytest.raises(LoadError, match="there is no copy"):
        of(copy=copy).load()


def test_a_copy_that_can_not_be_made_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Copy(tmp_path / "copy.json", "kubernetes:")
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    copy.write({"p": {"spec": deep}}, {})
    assert list(tmp_path.iterdir()) == []
    assert "the copy of the rules can't be written" in caplog.text


@pytest.mark.parametrize("depth", [100, 900, 9000])
def test_an_object_that_is_too_deep_is_refused_alone(
    cluster: Cluster, tmp_path: Path, depth: int
) -> None:
    values = {"set": {"x": "DEEP"}}
    odd = provider("odd", configs={"defaultConfig": {"openAIConfig": {"params": values}}})
    listed = json.dumps({"metadata": {"resourceVersion": "5"}, "items": [odd, provider("p")]})
    deep = "[" * depth + "]" * depth
    cluster.refuse(200, path="llmproviders", body=listed.replace('"DEEP"', deep))
    rules = of(copy=tmp_path / "copy.json")
    loaded = rules.load()
    assert loaded.providers == ("p",)
    closed = loaded.table.lookup("odd.test")
    assert closed
    assert closed.rules[0].fault
    assert told(rules) == [
        ("refused", "LLMProvider a/odd: spec: it is nested deeper than 64 levels; flatten it")
    ]
    assert "LLMProvider a/p" in (Copy(tmp_path / "copy.json", "kubernetes:").read() or {})


def test_a_namespace_without_objects_is_told(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    rules = of("tpyo")
    rules.load()
    assert "kubernetes:tpyo: no LLMProvider or LLMRoute in it: nothing is routed" in caplog.text
    assert rules.faults == ()  # nothing was refused


def test_an_empty_cluster_is_a_copy_too(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy.json", "kubernetes:")
    copy.write({}, {})
    assert copy.read() == {}
    assert json.loads((tmp_path / "copy.json").read_text(encoding="utf-8"))["objects"] == []


@pytest.mark.parametrize("versions", [{"LLMRoute": "5"}, {}, {"LLMRoute": 5}, [], None, "x"])
def test_a_copy_has_the_versions_of_its_objects(tmp_path: Path, versions: Any) -> None:
    Copy(tmp_path / "copy.json", "kubernetes:").write({}, versions)
    copy = Copy(tmp_path / "copy.json", "kubernetes:")
    assert copy.read() == {}
    assert copy.versions == ({"LLMRoute": "5"} if versions == {"LLMRoute": "5"} else {})


def test_a_restart_does_not_go_back_in_time(cluster: Cluster, tmp_path: Path) -> None:
    """Though the API server that is asked lags, as lists from its memory may."""
    copy = tmp_path / "copy.json"
    cluster.apply(provider("p"), namespace="a")
    cluster.lag("LLMProvider", "a")
    rules = of("a", copy=copy)
    assert rules.load().providers == ("p",)
    cluster.apply(provider("q"), namespace="a")

    async def work(live: Live) -> None:
        await until(lambda: live.tables and live.tables[-1].providers == ("p", "q"))
        await until(lambda: '"q"' in copy.read_text(encoding="utf-8"))

    follow(rules, work)
    again = of("a", copy=copy)
    assert again.load().providers == ("p", "q")

    async def stays(live: Live) -> None:
        await until(lambda: len(cluster.watching) == 2)
        assert not live.tables

    follow(again, stays)


# --- as they change -------------------------------------------------------------------------------


def test_a_change_goes_live(cluster: Cluster) -> None:
    async def work(live: Live) -> None:
        await until(lambda: live.tables)
        await do(cluster, provider("p"), route("r", "llm.test"))
        await until(lambda: live.providers("llm.test") == ["p"])
        await do(cluster, route("r", "other.test"))
        await until(lambda: live.providers("other.test") == ["p"])
        assert live.providers("llm.test") is None
        await asyncio.to_thread(cluster.delete, "LLMRoute", "r", "a")
        await until(lambda: live.providers("other.test") is None)

    follow(of(), work)


def test_what_was_read_at_the_start_is_not_loaded_again(cluster: Cluster) -> None:
    cluster.apply(provider("p"))
    rules = of()
    rules.load()

    async def work(live: Live) -> None:
        await until(lambda: len(cluster.watching) == 2)
        await do(cluster, provider("q"))
        await until(lambda: live.tables)
        assert live.tables[0].providers == ("p", "q")

    assert len(follow(rules, work).tables) == 1


def test_a_bad_object_stays_as_it_was_and_the_others_change(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.apply(provider("p"), route("r", "llm.test"))
    rules = of()
    rules.load()

    async def work(live: Live) -> None:
        await do(cluster, route("r", "llm.test", BAD))
        await until(lambda: rules.faults)
        await do(cluster, route("s", "new.test"))
        await until(lambda: live.providers("new.test") == ["p"])
        assert live.providers("llm.test") == ["p"]
        await do(cluster, route("r", "mended.test"))
        await until(lambda: live.providers("mended.test") == ["p"] and not rules.faults)

    follow(rules, work)
    (said,) = [m for m in caplog.messages if m.startswith("LLMRoute a/r: spec.rules[0]")]
    assert 'unknown field "wait"' in said


def test_while_the_server_is_away_the_rules_stay(cluster: Cluster) -> None:
    cluster.apply(provider("p"), route("r", "llm.test"))
    rules = of()

    async def work(live: Live) -> None:
        await until(lambda: len(cluster.watching) == 2)
        await until(lambda: live.tables)
        await asyncio.to_thread(cluster.stop)
        await until(lambda: [kind for kind, _ in told(rules)] == ["outdated", "outdated"])
        assert live.providers("llm.test") == ["p"]
        await asyncio.to_thread(cluster.start)
        await do(cluster, route("r", "new.test"))
        await until(lambda: live.providers("new.test") == ["p"] and not rules.faults)

    follow(rules, work)


def test_one_kind_that_is_not_known_yet_holds_the_rules_back(cluster: Cluster) -> None:
    """With the routes alone, each would be without its providers for a moment."""
    cluster.apply(provider("p"), route("r", "llm.test"))
    cluster.refuse(500, path="llmproviders")

    async def work(live: Live) -> None:
        await until(lambda: any("llmroutes" in path for path in cluster.watching))
        await until(lambda: len([p for _, p in cluster.seen if "llmproviders" in p]) > 2)
        assert not live.tables
        cluster.trouble(None)
        await until(lambda: live.providers("llm.test") == ["p"])

    follow(of(), work)


@pytest.mark.parametrize(
    "gone", [("llmproviders",), ("llmroutes",), ("llmproviders", "llmroutes")], ids="+".join
)
def test_a_list_with_nothing_in_it_is_not_believed(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, gone: tuple[str, ...]
) -> None:
    """An API server that was restored, or is another one, must not make all pass unrouted.

    The two kinds are listed one after the other: what is gone of one waits for no other.
    """
    cluster.apply(provider("p"), route("r", "llm.test"))
    rules = of()
    rules.load()

    def nothing(request: web.BaseRequest) -> web.Response | None:
        if request.query.get("watch") == "true" or not request.path.endswith(gone):
            return None
        found = {"kind": "List", "metadata": {"resourceVersion": "0"}, "items": []}
        return web.json_response(found)

    def doubted() -> bool:
        kinds = {"llmproviders": "LLMProvider", "llmroutes": "LLMRoute"}
        named = " or ".join(kinds[name] for name in gone)
        return any(
            kind == "refused" and f"suddenly lists no {named};" in text
            for kind, text in told(rules)
        )

    async def work(live: Live) -> None:
        await until(lambda: len(cluster.watching) == 2)
        await do(cluster, route("r", "other.test"))
        await until(lambda: live.providers("other.test") == ["p"])
        before = len(live.tables)
        cluster.trouble(nothing)
        cluster.compact()
        await asyncio.to_thread(cluster.cut)
        await until(doubted)
        await asyncio.sleep(0.1)  # several pauses and debounces: nothing comes of it later either
        assert doubted()
        assert len(live.tables) == before
        cluster.trouble(None)
        await do(cluster, provider("p"), route("r", "new.test"))
        await until(lambda: live.providers("new.test") == ["p"] and not rules.faults)

    follow(rules, work)
    said = [message for message in caplog.messages if "suddenly lists no" in message]
    assert said
    assert all(one != next_ for one, next_ in pairwise(said))  # once, not with each look


def test_a_kind_that_is_gone_after_a_doubt_is_believed_once_it_was_there_again(
    cluster: Cluster,
) -> None:
    """Who means it, after all, creates one and deletes it."""
    cluster.apply(provider("p"), route("r", "llm.test"))
    rules = of()
    rules.load()

    async def work(live: Live) -> None:
        await until(lambda: len(cluster.watching) == 2)
        cluster.refuse(500, path="watch=true")
        await asyncio.to_thread(cluster.cut)
        await asyncio.to_thread(cluster.delete, "LLMRoute", "r", "a")
        cluster.compact()
        cluster.trouble(None)
        await until(lambda: any("suddenly lists no LLMRoute;" in text for _, text in told(rules)))
        await do(cluster, route("r", "new.test"))
        await until(lambda: live.providers("new.test") == ["p"] and not rules.faults)
        await asyncio.to_thread(cluster.delete, "LLMRoute", "r", "a")
        await until(lambda: live.providers("new.test") is None)
        assert live.providers("p.test") == ["p"]
        assert not rules.faults

    follow(rules, work)


def test_who_deletes_the_last_object_means_it(cluster: Cluster) -> None:
    cluster.apply(provider("p"))
    rules = of()
    rules.load()

    async def work(live: Live) -> None:
        await until(lambda: len(cluster.watching) == 2)
        await asyncio.to_thread(cluster.delete, "LLMProvider", "p", "a")
        await until(lambda: live.tables)
        assert live.tables[-1].providers == ()
        assert not rules.faults

    follow(rules, work)


def test_a_fault_keeps_the_time_of_its_coming(cluster: Cluster) -> None:
    cluster.apply(provider("p"), route("bad", "bad.test", BAD))
    rules = of()
    rules.load()
    (bad,) = rules.faults

    async def work(live: Live) -> None:
        await do(cluster, route("worse", "worse.test", BAD))
        await until(lambda: len(rules.faults) == 2)
        worse = next(fault for fault in rules.faults if fault != bad)
        assert worse.since > bad.since

    follow(rules, work)
    assert bad in rules.faults


def test_rules_that_could_not_go_live_are_tried_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is at fault then, it may be over; until it is, no object is told that it is used."""
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.05)
    cluster.apply(provider("p"))
    rules, refused, live = of(writes_status=True), list[int](), Live()
    failing = [True]

    async def go(loaded: Loaded) -> None:
        if failing[0]:
            raise RuntimeError
        await live.go(loaded)

    async def work() -> None:
        await until(lambda: len(refused) > 1)
        text = "kubernetes:: the rules could not be loaded (RuntimeError)"
        assert told(rules) == [("refused", text)]
        assert patches(cluster) == []
        failing[0] = False
        await until(lambda: live.providers("p.test") == ["p"] and not rules.faults)
        await until(lambda: statuses(cluster, "LLMProvider", "p") == GOOD)

    asyncio.run(beside(rules.watch(go, lambda: refused.append(1)), work))
    assert "the rules were not reloaded, the last good ones stay" in caplog.text
    assert len(live.tables) == 1


def test_doubted_rules_are_refused_once(cluster: Cluster) -> None:
    cluster.apply(provider("p"), route("r", "llm.test"))
    rules, refused = of(), list[int]()
    rules.load()

    async def work() -> None:
        await until(lambda: len(cluster.watching) == 2)
        nothing = {"metadata": {"resourceVersion": "0"}, "items": []}
        cluster.refuse(200, path="llmroutes?resourceVersion", body=json.dumps(nothing))
        cluster.compact()
        await asyncio.to_thread(cluster.cut)
        await until(lambda: rules.faults and rules.faults[-1].kind == "refused")
        for _ in range(3):
            rules.look_again()
            await asyncio.sleep(0.05)  # several debounces
        assert refused == [1]

    asyncio.run(beside(rules.watch(Live().go, lambda: refused.append(1)), work))


# --- what the objects are told --------------------------------------------------------------------


def statuses(cluster: Cluster, kind: str, name: str) -> dict[str, str]:
    return {t: c["status"] for t, c in cluster.conditions(kind, name, "a").items()}


def patches(cluster: Cluster) -> list[str]:
    return [path for method, path in cluster.seen if method == "PATCH" and "/status" in path]


GOOD = {"Accepted": "True", "ResolvedRefs": "True"}


def test_each_object_is_told_what_came_of_it(cluster: Cluster) -> None:
    cluster.apply(
        provider("p"),
        route("good", "good.test"),
        route("bad", "bad.test", BAD),
        route("lost", "lost.test", {"providerHost": "q.test"}),
    )

    async def work(live: Live) -> None:
        def status(kind: str, name: str) -> dict[str, str]:
            return statuses(cluster, kind, name)

        await until(lambda: status("LLMProvider", "p") == GOOD)
        await until(lambda: status("LLMRoute", "good") == GOOD)
        bad = {"Accepted": "False", "ResolvedRefs": "Unknown"}
        await until(lambda: status("LLMRoute", "bad") == bad)
        lost = {"Accepted": "True", "ResolvedRefs": "False"}
        await until(lambda: status("LLMRoute", "lost") == lost)
        await do(cluster, provider("q"))
        await until(lambda: status("LLMRoute", "lost") == GOOD)

    live = follow(of(writes_status=True), work)
    message = cluster.conditions("LLMRoute", "bad", "a")["Accepted"]["message"]
    assert 'spec.rules[0].backendRefs[0].wait: unknown field "wait"' in message
    assert len(live.tables) == 2  # a written status is no change of the rules
    assert len(patches(cluster)) == 6  # each once, and what has changed
    observed = cluster.get("LLMRoute", "bad", "a")
    assert {c["observedGeneration"] for c in observed["status"]["conditions"]} == {
        observed["metadata"]["generation"]
    }


def test_what_is_told_already_is_not_told_again(cluster: Cluster) -> None:
    cluster.apply(provider("p"), route("bad", "bad.test", BAD))

    async def work(live: Live) -> None:
        await until(lambda: statuses(cluster, "LLMRoute", "bad"))
        await until(lambda: statuses(cluster, "LLMProvider", "p"))

    follow(of(writes_status=True), work)

    async def again(live: Live) -> None:
        await do(cluster, provider("q"))
        await until(lambda: statuses(cluster, "LLMProvider", "q"))

    follow(of(writes_status=True), again)
    assert len(patches(cluster)) == 3


def test_a_proxy_that_is_not_asked_to_writes_nothing(cluster: Cluster) -> None:
    cluster.apply(provider("p"), route("bad", "bad.test", BAD))

    async def work(live: Live) -> None:
        await until(lambda: live.tables)
        await do(cluster, provider("q"))
        await until(lambda: live.tables[-1].providers == ("p", "q"))

    follow(of(), work)
    assert patches(cluster) == []


def follow_backends(work: Callable[[], Awaitable[None]]) -> None:
    """Do something while rules and the backends that they name are watched, and told."""

    def changed() -> None:
        rules.look_again()

    backends = ClusterBackends(changed)
    instance = Instance(namespace="a", backends=backends)
    rules = ClusterRules(None, instance, backends=backends, writes_status=True)

    class Prepared(Live):
        async def go(self, loaded: Loaded) -> None:
            await backends.prepare(loaded.table)
            await super().go(loaded)

    async def whole() -> None:
        try:
            await beside(rules.watch(Prepared().go), work)
        finally:
            backends.stop()

    asyncio.run(whole())


def resolved(cluster: Cluster) -> tuple[str, str]:
    found = cluster.conditions("LLMRoute", "r", "a").get("ResolvedRefs", {})
    return found.get("status", ""), found.get("message", "")


VLLM = "spec.rules[0].backendRefs[0].backendRef"


def test_a_backend_that_comes_is_told(cluster: Cluster) -> None:
    cluster.apply(route("r", "llm.test", {"backendRef": {"name": "vllm"}}))

    async def work() -> None:
        missing = ("False", f"{VLLM}: there is no Service a/vllm")
        await until(lambda: resolved(cluster) == missing)
        await asyncio.to_thread(cluster.apply, service("vllm", "10.0.0.1", http=80), namespace="a")
        await until(lambda: resolved(cluster)[0] == "True")

    follow_backends(work)


def test_a_backend_that_can_not_be_read_is_not_said_to_be_missing(cluster: Cluster) -> None:
    cluster.apply(route("r", "llm.test", {"backendRef": {"name": "vllm"}}))
    cluster.apply(service("vllm", "10.0.0.1", http=80), namespace="a")
    cluster.refuse(403, path="services?")

    async def work() -> None:
        await until(lambda: resolved(cluster)[0] == "Unknown")
        said = f"{VLLM}: it can't be read: it answers 403: as the test says; give the service"
        assert resolved(cluster)[1].startswith(said)
        cluster.trouble(None)
        await until(lambda: resolved(cluster)[0] == "True")

    follow_backends(work)


@pytest.mark.parametrize("status", [403, 404])
def test_a_status_that_can_not_be_written_holds_nothing_up(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    cluster.apply(provider("p"), route("r", "llm.test"))
    cluster.refuse(status, path="/status")

    async def work(live: Live) -> None:
        await until(lambda: patches(cluster))
        await do(cluster, provider("q"))
        await until(lambda: live.tables[-1].providers == ("p", "q"))
        await until(lambda: len(patches(cluster)) >= 2)

    follow(of(writes_status=True), work)
    said = [m for m in caplog.messages if "could not be written" in m]
    assert len(said) == 2, "once for each kind"


def test_one_refused_status_does_not_hold_up_the_others(cluster: Cluster) -> None:
    cluster.apply(provider("p"), provider("q"), route("r", "llm.test"))
    cluster.refuse(422, path="llmproviders/p/status")

    async def work(live: Live) -> None:
        await until(lambda: statuses(cluster, "LLMRoute", "r") == GOOD)
        await until(lambda: statuses(cluster, "LLMProvider", "q") == GOOD)

    follow(of(writes_status=True), work)
    assert statuses(cluster, "LLMProvider", "p") == {}


def test_who_was_faster_is_not_overwritten(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.apply(provider("p"))
    caplog.set_level(logging.INFO)
    refused = list[int]()

    def conflict(request: web.BaseRequest) -> web.Response | None:
        if request.path.endswith("/status") and not refused:
            refused.append(1)
            return web.json_response({"message": "changed"}, status=409)
        return None

    cluster.trouble(conflict)

    async def work(live: Live) -> None:
        await until(lambda: refused)
        assert statuses(cluster, "LLMProvider", "p") == {}
        await do(cluster, provider("p", path="/v2"))
        await until(lambda: statuses(cluster, "LLMProvider", "p") == GOOD)

    follow(of(writes_status=True), work)
    assert "could not be written" not in caplog.text


def test_the_namespace_of_this_process() -> None:
    assert own_namespace({"POD_NAMESPACE": "shop"}) == "shop"
    assert own_namespace({})
