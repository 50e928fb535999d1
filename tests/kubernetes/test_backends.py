"""The addresses of Services and InferencePools, as the cluster has them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pointsman.config.backends import Backend
from pointsman.config.table import Route, RoutingTable, Rule, Target
from pointsman.kubernetes.backends import (
    ClusterBackends,
    pool_selector,
    ready_address,
    service_address,
)
from tests.kubernetes.cluster import Cluster, pod, pool, service
from tests.kubernetes.conftest import until

SERVICE = Backend("v1", "Service", "default", "vllm")
POOL = Backend("inference.networking.k8s.io/v1", "InferencePool", "default", "vllm")


# --- what objects say -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "port", "wanted"),
    [
        ({"clusterIP": "10.1.2.3", "ports": [{"port": 8000}]}, None, ("10.1.2.3", 8000)),
        ({"clusterIP": "10.1.2.3", "ports": [{"port": 8000}]}, 8000, ("10.1.2.3", 8000)),
        ({"clusterIP": "fd00::1", "ports": [{"port": 80}]}, None, ("fd00::1", 80)),
        (
            {
                "clusterIP": "10.1.2.3",
                "ports": [{"name": "grpc", "port": 9000}, {"name": "http", "port": 80}],
            },
            None,
            ("10.1.2.3", 80),
        ),
        (
            {"clusterIP": "None", "ports": [{"port": 8000}]},
            None,
            ("vllm.default.svc.cluster.local", 8000),
        ),
        ({"clusterIP": [], "ports": [{"port": 1}]}, 1, ("vllm.default.svc.cluster.local", 1)),
        ({"ports": [{"port": 1}]}, None, ("vllm.default.svc.cluster.local", 1)),
        ({"type": "ExternalName", "externalName": "llm.example"}, 80, ("llm.example", 80)),
    ],
)
def test_the_address_of_a_service(
    spec: dict[str, object], port: int | None, wanted: tuple[str, int]
) -> None:
    assert service_address(spec, Backend("v1", "Service", "default", "vllm", port)) == wanted


@pytest.mark.parametrize(
    ("spec", "port", "gist"),
    [
        ({"ports": [{"port": 80}]}, 8000, "has no port 8000; it has the ports 80"),
        ({"ports": [{"port": 1}, {"port": 2}]}, None, "has the ports 1, 2, and none is named http"),
        ({}, None, "has no ports, and none is named http; write port in the backendRef"),
        ({"ports": [{"port": "80"}]}, None, "has a port that can't be"),
        ({"ports": 7}, None, "has no ports, and none is named http"),
        ({"type": "ExternalName", "externalName": {}}, 80, "has no externalName"),
        ({"ports": [{"port": 99999}]}, None, "has a port that can't be"),
    ],
)
def test_a_service_that_can_not_be_called(
    spec: dict[str, object], port: int | None, gist: str
) -> None:
    with pytest.raises(ValueError, match=gist):
        service_address(spec, Backend("v1", "Service", "default", "vllm", port))


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (
            {"selector": {"matchLabels": {"b": "2", "a": "1"}}, "targetPorts": [{"number": 8000}]},
            ("a=1,b=2", (8000,)),
        ),
        ({"selector": {"app": "vllm"}, "targetPortNumber": 8000}, ("app=vllm", (8000,))),
        (
            {"selector": {"app": "x"}, "targetPorts": [{"number": 1}, {"number": 2}]},
            ("app=x", (1, 2)),
        ),
    ],
)
def test_both_versions_of_a_pool_are_read(
    spec: dict[str, object], wanted: tuple[str, tuple[int, ...]]
) -> None:
    assert pool_selector(spec) == wanted


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"selector": {}, "targetPortNumber": 1},
        {"selector": {"matchLabels": {}}, "targetPortNumber": 1},
        {"selector": {"a": "b"}},
        {"selector": {"a": "b"}, "targetPortNumber": 0},
        {"selector": "a=b", "targetPorts": [5]},
        {"selector": {"a": "b"}, "targetPorts": 7},
        {"selector": {"a": ["b"]}, "targetPortNumber": 1},
        {"selector": {"matchLabels": 5}, "targetPortNumber": 1},
    ],
)
def test_a_pool_that_says_too_little_selects_nothing(spec: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="the InferencePool"):
        pool_selector(spec)


def test_only_a_ready_pod_is_called() -> None:
    assert ready_address(pod("a", "10.0.0.1")) == "10.0.0.1"
    assert ready_address(pod("a", "10.0.0.1", ready=False)) is None
    ending = pod("a", "10.0.0.1")
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert ready_address(ending) is None
    for odd in ({}, {"metadata": {}, "status": {"conditions": [5], "podIP": "x"}}, pod("a", "")):
        assert ready_address(odd) is None


# --- as they change -------------------------------------------------------------------------------


def table(backends: ClusterBackends, *named: Backend) -> RoutingTable:
    targets = tuple(Target(b.label, b.host, endpoints=backends.endpoints(b)) for b in named)
    return RoutingTable({"llm.test": Route("r", "llm.test", (Rule("r", "k", (), targets),))})


def follow(
    work: Callable[[ClusterBackends], Awaitable[None]], *named: Backend
) -> tuple[ClusterBackends, int]:
    """Do something while the backends are watched; return how often they told of a change."""
    told = []
    backends = ClusterBackends(lambda: told.append(1))

    async def whole() -> None:
        await backends.prepare(table(backends, *named))
        try:
            await work(backends)
        finally:
            backends.stop()

    asyncio.run(whole())
    return backends, len(told)


def test_a_service_is_known_when_the_rules_go_live_and_followed_then(cluster: Cluster) -> None:
    cluster.apply(service("vllm", "10.0.0.1", http=8000), service("other", "10.0.0.9", http=1))

    async def work(backends: ClusterBackends) -> None:
        endpoints = backends.endpoints(SERVICE)
        assert endpoints.addresses == (("10.0.0.1", 8000),)
        await asyncio.to_thread(cluster.apply, service("vllm", "10.0.0.2", http=8000))
        await until(lambda: endpoints.addresses == (("10.0.0.2", 8000),))
        await asyncio.to_thread(cluster.delete, "Service", "vllm")
        await until(lambda: endpoints.fault == "there is no Service default/vllm")
        assert (backends.fault(SERVICE), backends.doubt(SERVICE)) == (endpoints.fault, None)
        assert not endpoints.by_load()

    assert follow(work, SERVICE)[1] == 3


def test_a_pool_has_its_ready_pods(cluster: Cluster) -> None:
    cluster.apply(pool("vllm", 8000, app="vllm"))
    cluster.apply(
        pod("a", "10.0.0.1", app="vllm"),
        pod("b", "10.0.0.2", app="vllm", ready=False),
        pod("c", "10.0.0.3", app="other"),
    )

    async def work(backends: ClusterBackends) -> None:
        endpoints = backends.endpoints(POOL)

        def now(*last: int) -> Callable[[], bool]:
            wanted = {(f"10.0.0.{n}", 8000) for n in last}
            return lambda: set(endpoints.addresses) == wanted

        await until(now(1))
        await asyncio.to_thread(cluster.apply, pod("b", "10.0.0.2", app="vllm"))
        await until(now(1, 2))
        await asyncio.to_thread(cluster.delete, "Pod", "a")
        await until(now(2))
        await asyncio.to_thread(cluster.apply, pool("vllm", 9000, app="other"))
        await until(lambda: set(endpoints.addresses) == {("10.0.0.3", 9000)})
        await asyncio.to_thread(cluster.delete, "InferencePool", "vllm")
        await until(lambda: endpoints.fault == "there is no InferencePool default/vllm")
        assert endpoints.addresses == ()
        await asyncio.to_thread(cluster.apply, pool("vllm", 8000, app="vllm"))
        await until(now(2))
        assert endpoints.fault is None

    follow(work, POOL)


def test_what_the_rules_no_longer_name_is_no_longer_watched(cluster: Cluster) -> None:
    cluster.apply(service("vllm", "10.0.0.1", http=8000), pool("vllm", 1, app="vllm"))

    async def work(backends: ClusterBackends) -> None:
        await until(lambda: len(cluster.watching) == 3)
        first = backends.endpoints(SERVICE)
        backends.keep(table(backends, SERVICE))
        await until(lambda: [p.rpartition("/")[2] for p in cluster.watching] == ["services"])
        await backends.prepare(table(backends, SERVICE))
        assert backends.endpoints(SERVICE) is first
        assert len([p for _, p in cluster.seen if "services?" in p]) == 2

    follow(work, SERVICE, POOL)


def test_a_cluster_that_does_not_answer_holds_rules_up_for_a_moment_only(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.kubernetes.backends._PREPARE_SECONDS", 0.1)
    cluster.refuse(500, path="services")

    async def work(backends: ClusterBackends) -> None:
        assert backends.endpoints(SERVICE).fault is None
        said = "it can't be read: it answers 500: as the test says"
        await until(lambda: backends.doubt(SERVICE) == said)
        cluster.trouble(None)
        await asyncio.to_thread(cluster.apply, service("vllm", "10.0.0.1", http=8000))
        await until(lambda: backends.doubt(SERVICE) is None)
        assert backends.endpoints(SERVICE).addresses == (("10.0.0.1", 8000),)

    follow(work, SERVICE)


def test_what_can_not_be_read_leaves_no_one_waiting(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.kubernetes.backends._PREPARE_SECONDS", 0.05)
    cluster.refuse(403, path="services")

    async def work() -> None:
        backends = ClusterBackends()
        await backends.prepare(table(backends, SERVICE))
        backends.stop()
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    asyncio.run(work())


def test_backends_are_read_once_before_there_is_a_loop(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.apply(pool("vllm", 8000, app="vllm"), pod("a", "10.0.0.1", app="vllm"))
    backends = ClusterBackends()
    backends.read_once(table(backends, POOL, SERVICE), 10)
    assert backends.endpoints(POOL).addresses == (("10.0.0.1", 8000),)
    assert backends.endpoints(SERVICE).fault == "there is no Service default/vllm"
    (told,) = caplog.messages
    assert told == "Service default/vllm can't be called: there is no Service default/vllm"


def test_at_the_start_what_can_not_be_read_is_left_for_later(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.stop()
    backends = ClusterBackends()
    backends.read_once(table(backends, SERVICE), 10)
    assert "the backends of the rules could not be read yet: it can't be reached" in caplog.text
    # As a proxy without the API calls it.
    assert backends.endpoints(SERVICE).addresses == (("vllm.default.svc.cluster.local", 80),)
    assert backends.endpoints(POOL).addresses == ()


def test_one_namespace_does_not_take_the_watches_of_the_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pointsman.kubernetes.backends._MOST_WATCHES", 5)
    greedy = [Backend("v1", "Service", "a", f"s{n:03}", 8000) for n in range(101)]
    many_pools = [Backend(POOL.api, POOL.kind, "b", name) for name in ("p1", "p2")]
    cluster.apply(service("vllm", "10.0.0.1", http=8000))

    async def work(backends: ClusterBackends) -> None:
        live = table(backends, *greedy, *many_pools, SERVICE)
        backends.keep(live)
        await until(lambda: backends.endpoints(SERVICE).addresses == (("10.0.0.1", 8000),))
        left = backends.endpoints(greedy[-1])
        assert (left.addresses, left.fault) == ((("s100.a.svc.cluster.local", 8000),), None)
        assert backends.doubt(greedy[-1]) is None
        assert backends.fault(many_pools[1]) is None
        assert backends.doubt(many_pools[1]) == (
            "not read: the rules name too many servers in the cluster"
        )
        assert "100 of them are not watched" in backends.faults[-1].text
        assert backends.faults[-1].kind == "outdated"
        await until(lambda: len(cluster.watching) == 4)
        backends.keep(table(backends, SERVICE))
        assert backends.faults == ()
        await until(lambda: len(cluster.watching) == 1)

    follow(work, *greedy, *many_pools, SERVICE)
    assert len([m for m in caplog.messages if "are not watched" in m]) == 1


def test_the_pods_of_another_selector_are_no_longer_called(cluster: Cluster) -> None:
    cluster.apply(pool("vllm", 8000, app="vllm"), pod("a", "10.0.0.1", app="vllm"))

    async def work(backends: ClusterBackends) -> None:
        endpoints = backends.endpoints(POOL)
        await until(lambda: endpoints.addresses == (("10.0.0.1", 8000),))
        cluster.refuse(403, path="app%3Dnew")
        await asyncio.to_thread(cluster.apply, pool("vllm", 8000, app="new"))
        await until(lambda: endpoints.addresses == ())
        assert endpoints.fault
        assert endpoints.fault.startswith("its pods can't be read: it answers 403")
        assert backends.fault(POOL) is None
        assert backends.doubt(POOL) == endpoints.fault
        (told,) = backends.faults
        assert told.text.startswith("InferencePool default/vllm: it answers 403")
        assert told.kind == "outdated"
        cluster.trouble(None)
        await asyncio.to_thread(cluster.apply, pod("b", "10.0.0.2", app="new"))
        await until(lambda: endpoints.addresses == (("10.0.0.2", 8000),) and not backends.faults)

    follow(work, POOL)


def test_one_backend_that_is_refused_at_the_start_does_not_keep_the_others(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.apply(service("vllm", "10.0.0.1", http=8000))
    cluster.refuse(403, path="inferencepools")
    backends = ClusterBackends()
    backends.read_once(table(backends, POOL, SERVICE), 10)
    assert backends.endpoints(SERVICE).addresses == (("10.0.0.1", 8000),)
    assert "the InferencePool default/vllm could not be read yet: it answers 403" in caplog.text
