"""Backends in the cluster: what a reference names, and the addresses behind it."""

from collections.abc import Callable

import pytest

from pointsman.config.backends import Backend, Endpoints, UnreadBackends
from pointsman.config.loading import Instance, Loaded
from pointsman.config.resources import ObjectRef
from pointsman.config.table import Target
from tests.config.test_compiling import found, route

type Load = Callable[..., Loaded]

A, B, C = ("10.0.0.1", 8000), ("10.0.0.2", 8000), ("10.0.0.3", 8000)
POOL = Backend("inference.networking.k8s.io/v1", "InferencePool", "models", "vllm")


def to(ref: str, more: str = "") -> str:
    return f"  - backendRefs: [{{backendRef: {ref}{more}}}]"


def target(loaded: Loaded) -> Target:
    (rule,) = found(loaded, "llm.test").rules
    (only,) = rule.targets
    return only


# --- what a reference names -----------------------------------------------------------------------


def test_a_service_is_called_by_its_dns_name_over_plain_http(rules: Load) -> None:
    loaded = rules(route("r", "llm.test", to("{name: vllm}"), namespace="models"))
    service = target(loaded)
    assert (service.provider, service.host) == (
        "service/models/vllm",
        "vllm.models.svc.cluster.local",
    )
    assert (service.scheme, service.port, service.address) == ("http", 80, None)
    assert (service.config, service.endpoints) == (None, None)
    assert service.root_path == "/v1/chat/completions"


def test_a_reference_may_name_its_own_namespace_and_port(rules: Load) -> None:
    ref = "{group: core, kind: Service, name: vllm, namespace: gpu, port: 8000}"
    service = target(rules(route("r", "llm.test", to(ref), namespace="models")))
    assert (service.provider, service.port) == ("service/gpu/vllm", 8000)


def test_a_backend_takes_the_weight_and_priority_of_its_entry(rules: Load) -> None:
    refs = (
        "  - backendRefs:\n    - {backendRef: {name: a}, weight: 3}\n"
        "    - {backendRef: {name: b}, weight: 1}\n    - {backendRef: {name: c}, priority: 1}"
    )
    (rule,) = found(rules(route("r", "llm.test", refs)), "llm.test").rules
    assert [(t.provider, t.weight, t.priority) for t in rule.targets] == [
        ("service/default/a", 3, 0),
        ("service/default/b", 1, 0),
        ("service/default/c", 1, 1),
    ]


def test_where_the_cluster_is_read_it_gives_the_endpoints(rules: Load) -> None:
    class Cluster(UnreadBackends):
        def __init__(self) -> None:
            self.given: dict[Backend, Endpoints] = {}

        def endpoints(self, backend: Backend) -> Endpoints:
            return self.given.setdefault(backend, Endpoints(backend))

    cluster = Cluster()
    ref = "{group: inference.networking.x-k8s.io, kind: InferencePool, name: vllm}"
    text = route("r", "llm.test", to(ref), namespace="models")
    for _ in range(2):  # a reload goes on with the same
        pool = target(rules(text, instance=Instance(backends=cluster)))
        (endpoints,) = cluster.given.values()
        assert pool.endpoints is endpoints
    assert pool.provider == "inferencepool/models/vllm"
    assert endpoints.backend.api == "inference.networking.x-k8s.io/v1alpha2"
    assert endpoints.fault == "not read yet"


def test_group_core_is_no_group() -> None:
    refs = [ObjectRef(name="a"), ObjectRef(name="a", group="core", namespace="ns")]
    assert len({Backend.of(ref, "ns") for ref in refs}) == 1


def test_a_backend_needs_no_provider_and_is_portable(rules: Load) -> None:
    assert rules(route("r", "llm.test", to("{name: vllm}"))).extensions == ()
    (extension,) = rules(route("r", "llm.test", to("{name: vllm, port: 80}"))).extensions
    assert extension.field == "spec.rules[0].backendRefs[0].backendRef.port"


# --- the addresses --------------------------------------------------------------------------------


@pytest.fixture
def endpoints() -> Endpoints:
    endpoints = Endpoints(POOL)
    endpoints.replace([A, B, C])
    return endpoints


def test_the_one_with_the_fewest_requests_comes_first(endpoints: Endpoints) -> None:
    for address in (A, A, B, C, C):
        endpoints.begin(address)
    assert endpoints.by_load() == [B, A, C]
    endpoints.end(A)
    endpoints.end(A)
    assert endpoints.by_load()[0] == A
    assert endpoints.under_way(A) == 0


def test_those_with_as_few_take_turns(endpoints: Endpoints) -> None:
    used = []
    for _ in range(6):
        address = endpoints.by_load()[0]
        endpoints.begin(address)
        endpoints.end(address)
        used.append(address)
    assert used == [A, B, C, A, B, C]


def test_what_is_under_way_on_a_pod_that_is_gone_ends_as_it_does(endpoints: Endpoints) -> None:
    endpoints.begin(A)
    endpoints.replace([B, B])
    assert endpoints.by_load() == [B]
    endpoints.begin(A)  # a plan made before
    endpoints.end(A)
    endpoints.end(A)
    endpoints.end(A)
    assert endpoints.under_way(A) == 0
    endpoints.replace([A, B])
    assert endpoints.by_load() == [A, B]


def test_a_fault_is_known_until_the_next_word(endpoints: Endpoints) -> None:
    endpoints.replace([], "it does not exist")
    assert (endpoints.addresses, endpoints.fault) == ((), "it does not exist")
    endpoints.replace([A])
    assert endpoints.fault is None


def test_a_backend_is_named_as_people_do() -> None:
    assert str(POOL) == "InferencePool models/vllm"
    assert POOL.host == "vllm.models.inferencepool.cluster.local"
