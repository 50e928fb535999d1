"""What no document can tell alone: hosts and names that clash, references that lead nowhere.

A document that failed its own validation still counts for what others say about it (its name, its
host, its rules' names are read leniently), so that one fault is reported once.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pointsman.config.backends import INFERENCE_POOL, Backend
from pointsman.config.documents import Document
from pointsman.config.problems import Location, Problem, did_you_mean, shown_value
from pointsman.config.resources import LLMProvider, LLMRoute, WorkloadSelector, host_name
from pointsman.config.validation import Resource

DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Manifest[R: (LLMProvider, LLMRoute)]:
    """A document of one of our kinds, and the valid resource in it."""

    document: Document
    resource: R


@dataclass(frozen=True, slots=True)
class Manifests:
    """Everything of ours that was read.

    `documents` are all of ours, the invalid ones too; `complete` is False when some part of the
    files could not be read at all, so that what is missing may well stand there.
    """

    documents: Sequence[Document]
    providers: Sequence[Manifest[LLMProvider]]
    routes: Sequence[Manifest[LLMRoute]]
    complete: bool


def check(manifests: Manifests, *, shared: bool = False) -> Iterator[Problem]:
    """Yield each contradiction between documents.

    `shared`: they are of many namespaces, so that hosts without dots clash only within one.
    """
    same_name = list(_same_names(manifests.documents))
    for later, earlier in same_name:
        message = (
            f"an {later.kind} of this name stands at {earlier.place()} too; rename one of them"
        )
        yield later.problem(("metadata", "name"), message)
    told = {(id(later), id(earlier)) for later, earlier in same_name}
    yield from _same_hosts(manifests.providers, told, shared=shared)
    yield from _same_hosts(manifests.routes, told, shared=shared)
    for route in manifests.routes:
        yield from _rule_names(route)
        for index in range(len(route.resource.spec.rules)):
            yield from _repeated_backends(route, index)


def warn(manifests: Manifests) -> Iterator[Problem]:
    """Yield what is allowed, but can hardly be meant."""
    if not manifests.complete:
        return
    names = set(_all_rule_names(manifests.documents))
    for provider in manifests.providers:
        configs = provider.resource.spec.configs
        for name in configs.route_specific_configs if configs else ():
            if name not in names:
                hint = did_you_mean(name, names) or "; name a rule so, or remove this"
                location = ("spec", "configs", "routeSpecificConfigs", name)
                yield provider.document.problem(location, f"no LLMRoute has such a rule{hint}")
    for route in manifests.routes:
        yield from _unreached_rules(route)


def namespace_of(resource: Resource) -> str:
    """Return the namespace, as Kubernetes fills it in."""
    return resource.metadata.namespace or DEFAULT_NAMESPACE


def rule_name(route: LLMRoute, index: int) -> str:
    """Return the name of a rule, made from its place where it has none."""
    return route.spec.rules[index].name or f"rules[{index}]"


def kubernetes_forms(route: LLMRoute) -> tuple[str, ...]:
    """Return the other names of a host without dots: those of the Service in its namespace."""
    return forms(route.spec.host, namespace_of(route))


def forms(host: str, namespace: str) -> tuple[str, ...]:
    """Return the other names of a route's host without dots, in a namespace."""
    namespace = namespace.lower()
    if "." in host or ":" in host:
        return ()
    short = f"{host}.{namespace}"
    return (short, f"{short}.svc", f"{short}.svc.cluster.local")


def selector_labels(selector: WorkloadSelector | None) -> Mapping[str, str]:
    """Return the labels that a workload must have."""
    return selector.labels if selector else {}


def _same_names(documents: Iterable[Document]) -> Iterator[tuple[Document, Document]]:
    seen: dict[tuple[str, str, str], Document] = {}
    for document in documents:
        name = document.text("metadata", "name")
        namespace = document.text("metadata", "namespace") or DEFAULT_NAMESPACE
        if not name:
            continue
        first = seen.setdefault((document.kind, namespace, name), document)
        if first is not document:
            yield document, first


def _same_hosts(
    manifests: Sequence[Manifest[LLMProvider]] | Sequence[Manifest[LLMRoute]],
    told: set[tuple[int, int]],
    *,
    shared: bool,
) -> Iterator[Problem]:
    by_host: dict[str, list[Manifest[LLMProvider] | Manifest[LLMRoute]]] = defaultdict(list)
    for manifest in manifests:
        resource, document = manifest.resource, manifest.document
        forms = kubernetes_forms(resource) if isinstance(resource, LLMRoute) else ()
        hosts = forms if shared and forms else (resource.spec.host, *forms)
        clash = next((e for host in hosts for e in by_host[host] if _may_meet(manifest, e)), None)
        for host in hosts:
            by_host[host].append(manifest)
        if clash and (id(document), id(clash.document)) not in told:
            other = clash.resource.spec.host
            name = other if other == resource.spec.host else f"{other} (the same name)"
            message = (
                f"the {document.kind} {clash.resource.metadata.name} at {clash.document.place()}"
                f" has the host {name} too; join them, or give each a workloadSelector that the"
                " other's excludes"
            )
            yield document.problem(("spec", "host"), message)


def _may_meet(
    one: Manifest[LLMProvider] | Manifest[LLMRoute],
    other: Manifest[LLMProvider] | Manifest[LLMRoute],
) -> bool:
    """Tell whether there may be a workload that both apply to."""
    mine = selector_labels(one.resource.spec.workload_selector)
    others = selector_labels(other.resource.spec.workload_selector)
    return all(others.get(label, value) == value for label, value in mine.items())


def _rule_names(route: Manifest[LLMRoute]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index in range(len(route.resource.spec.rules)):
        name = rule_name(route.resource, index)
        first = seen.setdefault(name, index)
        if first != index:
            place = route.document.spot(("spec", "rules", first))
            message = f"the rule in {place} has this name too; rename one of them"
            yield route.document.problem(("spec", "rules", index, "name"), message)


def _unreached_rules(route: Manifest[LLMRoute]) -> Iterator[Problem]:
    rules = route.resource.spec.rules
    first = next((index for index, rule in enumerate(rules) if rule.takes_all), len(rules))
    for index in range(first + 1, len(rules)):
        message = (
            f"never reached: the rule {rule_name(route.resource, first)} before it takes every"
            " request; put this one before it, or remove one of them"
        )
        yield route.document.problem(("spec", "rules", index), message)


def _repeated_backends(route: Manifest[LLMRoute], rule: int) -> Iterator[Problem]:
    refs = route.resource.spec.rules[rule].backend_refs
    seen: Counter[str | Backend] = Counter()
    for index, ref in enumerate(refs):
        backend: str | Backend = ref.provider_host or ""
        if ref.backend_ref is not None:
            backend = Backend.of(ref.backend_ref, namespace_of(route.resource))
        seen[backend] += 1
        if seen[backend] > 1:
            what, field = (
                ("backend", "backendRef") if ref.backend_ref else ("provider", "providerHost")
            )
            message = f"this rule has that {what} already; keep one of them and add up the weights"
            location = ("spec", "rules", rule, "backendRefs", index, field)
            yield route.document.problem(location, message)


def pools(manifests: Manifests) -> Iterator[Problem]:
    """Yield each reference to an InferencePool as what an instance without a cluster can't have."""
    for route, location, backend in cluster_backends(manifests.routes):
        if backend.kind == INFERENCE_POOL:
            message = (
                "the pods of an InferencePool are read from the Kubernetes API, and this instance"
                " reads none; set llm_kubernetes=true, or name the Service of the pool"
            )
            yield route.document.problem(location, message)


def cluster_backends(
    routes: Iterable[Manifest[LLMRoute]],
) -> Iterator[tuple[Manifest[LLMRoute], Location, Backend]]:
    """Yield each backend in the cluster, and where which route names it."""
    for route in routes:
        for index, rule in enumerate(route.resource.spec.rules):
            for position, ref in enumerate(rule.backend_refs):
                if ref.backend_ref is not None:
                    place = ("spec", "rules", index, "backendRefs", position, "backendRef")
                    yield route, place, Backend.of(ref.backend_ref, namespace_of(route.resource))


def unknown_providers(manifests: Manifests) -> Iterator[Problem]:
    """Yield each reference to a provider that does not exist."""
    if not manifests.complete:
        return
    try:
        # A misspelt kind may be a provider too.
        candidates = [d for d in manifests.documents if d.kind != "LLMRoute"]
        hosts = {host_name(d.text("spec", "host") or "") for d in candidates}
    except ValueError:
        return  # a host that can't be read may be the one that is looked for
    for route in manifests.routes:
        for host, location in _provider_hosts(route.resource):
            if host not in hosts:
                hint = did_you_mean(host, hosts) or "; add one with that spec.host"
                message = f"no LLMProvider has {_named(host)}{hint}"
                yield route.document.problem(location, message)


def _named(host: str) -> str:
    return "this host" if shown_value(host) == "this" else f"the host {host}"


def _provider_hosts(route: LLMRoute) -> Iterator[tuple[str, Location]]:
    """Yield each host of a provider that a route names, and where it does."""
    for index, rule in enumerate(route.spec.rules):
        place = ("spec", "rules", index)
        for position, ref in enumerate(rule.backend_refs):
            if ref.provider_host is not None:
                yield ref.provider_host, (*place, "backendRefs", position, "providerHost")
        if rule.mirror:
            yield rule.mirror.provider_host, (*place, "mirror", "providerHost")


def _all_rule_names(documents: Iterable[Document]) -> Iterator[str]:
    for document in documents:
        rules = document.at("spec", "rules")
        for index in range(len(rules) if isinstance(rules, list) else 0):
            if name := document.text("spec", "rules", index, "name"):
                yield name
