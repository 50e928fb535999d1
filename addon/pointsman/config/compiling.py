"""Valid resources in, the routing table of this instance out.

What does not apply to this workload (its labels) or is not served here (gateways) is left out; a
rule keeps its place even when nothing is left of its backends, so that no later rule takes over
what it matches. A mirror that does not apply is left out too.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import re2

from pointsman.config.backends import CHAT_PATH, DEFAULT_SERVICE_PORT, Backend, Backends
from pointsman.config.calls import Provider
from pointsman.config.credentials import CREDENTIAL_HEADERS, Allowed
from pointsman.config.problems import Location, Problem, shown_value
from pointsman.config.references import (
    DEFAULT_NAMESPACE,
    Manifest,
    kubernetes_forms,
    namespace_of,
    rule_name,
    selector_labels,
)
from pointsman.config.resources import (
    BackendRef,
    LLMRoute,
    Match,
    Mirror,
    OutlierDetection,
    Retry,
    RouteRule,
    StringMatch,
    Timeouts,
    WorkloadSelector,
)
from pointsman.config.table import (
    DEFAULT_BACKOFF,
    DEFAULT_CONNECT_TIMEOUT,
    RETRY_BY_DEFAULT,
    CompiledMatch,
    Condition,
    Ejection,
    MirrorTarget,
    RetryPolicy,
    Route,
    RoutingTable,
    Rule,
    Target,
    TimeLimits,
)

MESH = "mesh"

type _Kind = Literal["header", "path", "method", "model"]


@dataclass(frozen=True, slots=True)
class Instance:
    """Who asks: the labels of this workload, and the gateway names that this instance serves.

    `namespace` is the workload's own, `backends` who reads the cluster; None: no one does.
    `allowed` is where objects of the cluster may take keys from.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    gateways: frozenset[str] = frozenset({MESH})
    namespace: str = DEFAULT_NAMESPACE
    backends: Backends | None = None
    allowed: Allowed = field(default_factory=Allowed)

    def selected(self, selector: WorkloadSelector | None) -> bool:
        """Tell whether a resource applies to this workload."""
        return self.has(selector_labels(selector))

    def has(self, labels: Mapping[str, str]) -> bool:
        """Tell whether this workload has all of the labels."""
        return labels.items() <= self.labels.items()

    def serves(self, gateways: Sequence[str]) -> bool:
        """Tell whether one of the gateways is served here; none named means the sidecar."""
        return not self.gateways.isdisjoint(gateways or (MESH,))


def compile_table(
    providers: Sequence[Provider],
    routes: Sequence[Manifest[LLMRoute]],
    instance: Instance,
    *,
    shared: bool = False,
) -> tuple[RoutingTable, list[Problem]]:
    """Compile what applies to this instance.

    Args:
        providers: those that apply to this workload.
        routes: all of them.
        instance: the workload and the gateways.
        shared: the routes are of many namespaces, so that a host without dots is a name only in the
            namespace of its route.

    Returns:
        The table, and a warning for each backend and each mirror that had to be left out.
    """
    by_host = {provider.spec.host: provider for provider in providers}
    warnings: list[Problem] = []
    written: dict[str, Route] = {}
    derived: dict[str, Route] = {}
    for manifest in routes:
        spec = manifest.resource.spec
        if not (instance.selected(spec.workload_selector) and instance.serves(spec.gateways)):
            continue
        compiler = _RouteCompiler(manifest, by_host, instance)
        route, forms = compiler.route(), kubernetes_forms(manifest.resource)
        if not (shared and forms) or namespace_of(manifest.resource) == instance.namespace:
            written[spec.host] = route
        derived |= dict.fromkeys(forms, route)
        warnings += compiler.warnings
    return _table(providers, written, derived), warnings


def _table(
    providers: Sequence[Provider], written: Mapping[str, Route], derived: Mapping[str, Route]
) -> RoutingTable:
    wildcards = {host[1:]: route for host, route in written.items() if host.startswith("*.")}
    exact = {host: route for host, route in written.items() if not host.startswith("*.")}
    table = RoutingTable({**derived, **exact}, _longest_first(wildcards))
    # An operator's route covers the providers' own hosts as well: by a wildcard, or by one of the
    # forms of its name.
    own = {p.spec.host: _own_route(p) for p in providers if table.lookup(p.spec.host) is None}
    return replace(table, exact={**table.exact, **own})


def with_closed(table: RoutingTable, hosts: Mapping[str, str]) -> RoutingTable:
    """Return a table that answers for more hosts, with 503 and for the reason given with each.

    Hosts that the table has already stay as they are.
    """
    exact, wildcards = dict(table.exact), dict(table.wildcards)
    for host, why in hosts.items():
        rule = Rule("refused", f"refused/{host}", (), (), fault=why)
        if host.startswith("*."):
            wildcards.setdefault(host[1:], Route(None, host, (rule,)))
        else:
            exact.setdefault(host, Route(None, host, (rule,)))
    return RoutingTable(exact, _longest_first(wildcards))


def _longest_first(wildcards: Mapping[str, Route]) -> tuple[tuple[str, Route], ...]:
    return tuple(sorted(wildcards.items(), key=lambda item: (-len(item[0]), item[0])))


def _own_route(provider: Provider) -> Route:
    """Make the route of a provider that no route stands before."""
    host = provider.spec.host
    rule = Rule("default", f"provider/{host}", (), (_target(provider, None),))
    return Route(None, host, (rule,))


class _RouteCompiler:
    """Compiles one route, and collects what had to be left out of it."""

    def __init__(
        self, manifest: Manifest[LLMRoute], providers: Mapping[str, Provider], instance: Instance
    ) -> None:
        self.warnings: list[Problem] = []
        self._document = manifest.document
        self._resource = manifest.resource
        self._providers = providers
        self._instance = instance

    def route(self) -> Route:
        """Return the compiled route."""
        spec = self._resource.spec
        rules = tuple(self._rule(index, rule) for index, rule in enumerate(spec.rules))
        return Route(self._resource.metadata.name, spec.host, rules)

    def _rule(self, index: int, rule: RouteRule) -> Rule:
        name = rule_name(self._resource, index)
        return Rule(
            name=name,
            key=f"{namespace_of(self._resource)}/{self._resource.metadata.name}/{name}",
            matches=tuple(_match(match, self._instance) for match in rule.matches),
            targets=tuple(sorted(self._targets(index, rule), key=lambda target: target.priority)),
            affinity=rule.affinity,
            observe=rule.mode == "observe",
            retry=_retry(rule.retry),
            mirror=self._mirror(index, rule, rule.mirror),
        )

    def _targets(self, index: int, rule: RouteRule) -> Iterator[Target]:
        refs = rule.backend_refs
        for position, (ref, weight) in enumerate(zip(refs, _weights(refs), strict=True)):
            if ref.backend_ref is not None:
                backend = Backend.of(ref.backend_ref, namespace_of(self._resource))
                yield self._cluster_target(backend, weight, ref.priority)
                continue
            location = ("spec", "rules", index, "backendRefs", position, "providerHost")
            if provider := self._provider(ref.provider_host, location, "this backend"):
                yield _target(provider, rule.name, weight, ref.priority)

    def _cluster_target(self, backend: Backend, weight: int, priority: int) -> Target:
        backends = self._instance.backends
        return Target(
            provider=backend.label,
            host=backend.host,
            scheme="http",
            port=backend.port or DEFAULT_SERVICE_PORT,
            weight=weight,
            priority=priority,
            endpoints=backends.endpoints(backend) if backends else None,
            root_path=CHAT_PATH,
        )

    def _mirror(self, index: int, rule: RouteRule, mirror: Mirror | None) -> MirrorTarget | None:
        if mirror is None:
            return None
        location = ("spec", "rules", index, "mirror", "providerHost")
        provider = self._provider(mirror.provider_host, location, "this mirror")
        return MirrorTarget(_target(provider, rule.name), mirror.percent) if provider else None

    def _provider(self, host: str | None, location: Location, what: str) -> Provider | None:
        """Return the provider of a host, or warn that what refers to it is left out."""
        if provider := self._providers.get(host or ""):
            return provider
        name = "this provider" if shown_value(host) == "this" else f"the provider {host}"
        message = (
            f"{name} does not apply to this workload (see its workloadSelector), so"
            f" {what} is left out here"
        )
        self.warnings.append(self._document.problem(location, message))
        return None


def _weights(refs: Sequence[BackendRef]) -> Iterator[int]:
    """Yield the weight of each backend among those of its priority.

    One that stands alone there takes all of it; where none has a weight, they share evenly. (In a
    rule with one priority the resource does not allow that.)
    """
    tiers: dict[int, list[int]] = defaultdict(list)
    for ref in refs:
        tiers[ref.priority].append(ref.weight or 0)
    for ref in refs:
        tier = tiers[ref.priority]
        yield (ref.weight or 0) if len(tier) > 1 and any(tier) else 1


def _target(provider: Provider, rule: str | None, weight: int = 1, priority: int = 0) -> Target:
    spec = provider.spec
    member, config = provider.config_for(rule)
    return Target(
        provider=provider.name,
        host=spec.host,
        path=spec.path,
        scheme=spec.scheme,
        port=spec.port,
        address=spec.address,
        tls=provider.tls,
        config=config,
        stream_usage=spec.stream_usage or ("inject" if member == "openAIConfig" else "asIs"),
        weight=weight,
        priority=priority,
        limits=_limits(spec.timeouts),
        ejection=_ejection(spec.outlier_detection),
    )


def _limits(timeouts: Timeouts | None) -> TimeLimits:
    if timeouts is None:
        return TimeLimits()
    connect = DEFAULT_CONNECT_TIMEOUT if timeouts.connect is None else timeouts.connect
    return TimeLimits(connect, timeouts.first_byte, timeouts.idle)


def _ejection(detection: OutlierDetection | None) -> Ejection:
    if detection is None:
        return Ejection()
    return Ejection(
        consecutive_failures=detection.consecutive_failures,
        base=detection.base_ejection,
        most=detection.max_ejection,
    )


def _retry(retry: Retry | None) -> RetryPolicy:
    if retry is None:
        return RetryPolicy()
    return RetryPolicy(
        attempts=retry.attempts,
        on=frozenset(retry.retry_on) or RETRY_BY_DEFAULT,
        per_try_timeout=retry.per_try_timeout,
        backoff=DEFAULT_BACKOFF if retry.backoff is None else retry.backoff,
    )


def _match(match: Match, instance: Instance) -> CompiledMatch:
    conditions = [_condition("header", name, value) for name, value in match.headers.items()]
    if match.path:
        conditions.append(_condition("path", "", match.path))
    if match.method:
        conditions.append(_condition("method", "", match.method))
    if match.model:
        conditions.append(_condition("model", "", match.model))
    return CompiledMatch(tuple(conditions), _excluded(match, instance))


def _excluded(match: Match, instance: Instance) -> str | None:
    """Say why a match can't apply in this instance, whatever the request."""
    for label, value in match.source_labels.items():
        mine = instance.labels.get(label)
        if mine != value:
            found = f"{label}={mine}" if mine is not None else f"no label {label}"
            return f"it wants the label {label}={value}, and this workload has {found}"
    if match.gateways and not instance.serves(match.gateways):
        wanted, served = ", ".join(match.gateways), ", ".join(sorted(instance.gateways))
        return f"it wants the gateway {wanted}, and this instance serves {served}"
    return None


# Whose values may be keys.
_SECRET_HEADERS = CREDENTIAL_HEADERS | {"cookie"}


def _condition(kind: _Kind, name: str, match: StringMatch) -> Condition:
    secret = kind == "header" and name.lower() in _SECRET_HEADERS

    def made(test: Callable[[str], bool], met: str, unmet: str, wanted: str) -> Condition:
        shown = "a value that is not shown" if secret else wanted
        return Condition(kind, name, test, f"{met} {shown}", f"{unmet} {shown}")

    if match.exact is not None:
        return made(match.exact.__eq__, "=", "is not", match.exact)
    if match.prefix is not None:
        prefix = match.prefix
        return made(lambda v: v.startswith(prefix), "starts with", "does not start with", prefix)
    if match.regex is not None:
        return made(_full_match(match.regex), "matches", "does not match", match.regex)
    return Condition(kind, name, lambda _: True, "present")


def _full_match(pattern: str) -> Callable[[str], bool]:
    compiled = re2.compile(pattern)

    def test(value: str) -> bool:
        # A header may hold bytes that are no text; they must not make the match fail loudly.
        return compiled.fullmatch(value.encode("utf-8", "replace")) is not None

    return test
