"""What is read of a running instance that no exchange tells: values of one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pointsman.telemetry.naming import RuleName


@dataclass(frozen=True, slots=True)
class TargetReading:
    """A target of a rule, as it is now.

    Attributes:
        route: the route's name, or the host of a provider that answers without one.
        host: the route's, which tells routes of one name in several namespaces apart.
        share: the part of the rule's requests that the weight gives it while all targets are
            healthy, 0 to 1.
        state: of several endpoints that of the best; `ejected` where there is none, too.
        endpoints: how many addresses it has as a backend in the cluster; None: it is none.
        ejected_endpoints: how many of these are ejected.
    """

    route: str
    rule: str
    provider: str
    weight: int = 1
    priority: int = 0
    share: float = 1.0
    state: Literal["healthy", "probing", "ejected"] = "healthy"
    host: str = ""
    endpoints: int | None = None
    ejected_endpoints: int = 0

    @property
    def name(self) -> RuleName:
        """The rule's name."""
        return RuleName(self.route, self.host, self.rule)


@dataclass(frozen=True, slots=True)
class RulesReading:
    """The live rules: their names, the provider of each host, the models that they name."""

    rules: frozenset[RuleName] = frozenset()
    providers: Mapping[str, str] = field(default_factory=dict)
    models: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reading:
    """What is under way, how targets are, and how many copies each rule could not send so far."""

    requests: int = 0
    streams: int = 0
    targets: tuple[TargetReading, ...] = ()
    mirrors_dropped: Mapping[str, int] = field(default_factory=dict)
