"""The routing table: resources compiled for this instance, frozen, live by one assignment.

References are resolved, configs merged, expressions compiled; nothing is validated per request.
What does not apply to this workload (its labels, its gateway names) has been left out.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pointsman.config.backends import Endpoints
from pointsman.config.credentials import Credential
from pointsman.config.hosts import NO_HOSTS, Hosts
from pointsman.config.resources import Affinity, normalise_host

StreamUsage = Literal["inject", "asIs"]
RetryCondition = Literal["connect-failure", "reset", "429", "5xx", "first-byte-timeout"]
RETRY_BY_DEFAULT: frozenset[RetryCondition] = frozenset(
    {"connect-failure", "reset", "429", "5xx", "first-byte-timeout"}
)
DEFAULT_CONNECT_TIMEOUT = 10.0
DEFAULT_BACKOFF = 0.025


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS towards a provider where it differs from the default: system roots, SNI = host."""

    ca_file: str | None = None
    sni: str | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Bounds for one attempt, in seconds; None: no bound of ours.

    `first_byte` runs from the sent request to the first content that the client could be given.
    """

    connect: float = DEFAULT_CONNECT_TIMEOUT
    first_byte: float | None = None
    idle: float | None = None


@dataclass(frozen=True, slots=True)
class Ejection:
    """When a target is set aside, and for how long (seconds, doubled each time up to the most)."""

    consecutive_failures: int = 5
    base: float = 30.0
    most: float = 300.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and on what a request is tried again.

    `attempts` counts the first one; None: each target of the plan once. `backoff` is the first
    pause in seconds between two attempts on the same target.
    """

    attempts: int | None = None
    on: frozenset[RetryCondition] = RETRY_BY_DEFAULT
    per_try_timeout: float | None = None
    backoff: float = DEFAULT_BACKOFF


@dataclass(frozen=True, slots=True)
class CallConfig:
    """How a target is called: the provider's default config with the rule's own merged over it."""

    model: str | None = None
    stream: bool | None = None
    credential: Credential | None = None
    model_mapping: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    params_set: Mapping[str, Any] = field(default_factory=dict)
    params_default: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """A provider with the config that one rule gives it.

    `scheme`, `port` and `address` are None where the manifest does not set them. `config` is None
    for a provider without `configs`: its traffic is accounted for and not rewritten.

    A server in the cluster is a target too. Its `endpoints`, if the cluster is read, give the
    address for each attempt; `root_path` is where a POST to `/` goes, while all other paths stay.
    """

    provider: str
    host: str
    path: str | None = None
    scheme: Literal["http", "https"] | None = None
    port: int | None = None
    address: tuple[str, int] | None = None
    tls: TlsSettings = TlsSettings()
    config: CallConfig | None = None
    stream_usage: StreamUsage = "asIs"
    weight: int = 1
    priority: int = 0
    limits: TimeLimits = TimeLimits()
    ejection: Ejection = Ejection()
    endpoints: Endpoints | None = None
    root_path: str | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """One ANDed part of a match.

    `kind` says what is looked at, `name` which one (of headers); `test` takes the value. Present
    means that the value exists. `text` is the condition as a reader wants it, `= subscriber`, and
    `unmet` what is said of another value, `is not subscriber`.
    """

    kind: Literal["header", "path", "method", "model"]
    name: str
    test: Callable[[str], bool]
    text: str
    unmet: str = ""


@dataclass(frozen=True, slots=True)
class CompiledMatch:
    """What stands inside one match. `excluded` says why it can't match in this instance."""

    conditions: tuple[Condition, ...]
    excluded: str | None = None


@dataclass(frozen=True, slots=True)
class MirrorTarget:
    """Where a share of a rule's requests is copied to; `percent` is 0 to 100."""

    target: Target
    percent: float


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a route.

    No matches: catch-all. No targets: none applies to this workload. The targets are in the order
    of their priorities, within one as written; a weight counts within its priority. `fault` says
    why nothing can be chosen, where that is not for the workload's labels.
    """

    name: str
    key: str
    matches: tuple[CompiledMatch, ...]
    targets: tuple[Target, ...]
    affinity: Affinity | None = None
    observe: bool = False
    retry: RetryPolicy = RetryPolicy()
    mirror: MirrorTarget | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """What answers for a host. `name` is None where a provider answers without a route."""

    name: str | None
    host: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """Every host that is ours. `wildcards` are suffixes with their dot, longest first.

    Hosts that are exempt (`passthrough`) are not ours, whatever the rules say. Those that are
    `denied` are refused unless they are ours or exempt.
    """

    exact: Mapping[str, Route] = field(default_factory=dict)
    wildcards: tuple[tuple[str, Route], ...] = ()
    passthrough: Hosts = NO_HOSTS
    denied: Hosts = NO_HOSTS

    def routes(self) -> Iterator[Route]:
        """Yield each route once; one answers for several forms of its host."""
        found = (*self.exact.values(), *(route for _, route in self.wildcards))
        yield from {id(route): route for route in found}.values()

    def rules(self) -> Iterator[tuple[Route, Rule]]:
        """Yield each rule once, with its route."""
        for route in self.routes():
            for rule in route.rules:
                yield route, rule

    def targets(self) -> Iterator[Target]:
        """Yield each target of each rule."""
        for _, rule in self.rules():
            yield from rule.targets

    def lookup(self, host: str | None) -> Route | None:
        """Return the route that answers for a host name (any case, no port), or None."""
        if not host or (self.passthrough and host in self.passthrough):
            return None
        host = normalise_host(host)
        if found := self.exact.get(host):
            return found
        for suffix, route in self.wildcards:
            if host.endswith(suffix) and len(host) > len(suffix):
                return route
        return None

    def refuses(self, host: str | None) -> bool:
        """Tell whether requests to a host name are refused: it is denied, not ours, not exempt."""
        if not self.denied or host not in self.denied:
            return False
        return host not in self.passthrough and self.lookup(host) is None
