"""What is read of a running instance that no exchange tells: values of one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class TargetReading:
    """A target of a rule.

    `share` is the part of the rule's requests that its weight gives it while all targets are
    healthy, 0 to 1.
    """

    route: str | None
    rule: str
    provider: str
    share: float
    state: Literal["healthy", "probing", "ejected"] = "healthy"


@dataclass(frozen=True, slots=True)
class RulesReading:
    """The live rules: their names, the provider of each host, the models that they name."""

    rules: frozenset[tuple[str | None, str]] = frozenset()
    providers: Mapping[str, str] = field(default_factory=dict)
    models: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reading:
    """What is under way, and how the targets are."""

    requests: int = 0
    streams: int = 0
    targets: tuple[TargetReading, ...] = ()
