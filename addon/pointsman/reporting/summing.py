"""An access log, line by line, into sums: by route, rule and provider, by model, over time.

Memory does not grow with the log: durations are counted in buckets, each 2 % wide, and time is kept
in at most `TIMELINE` steps.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pointsman.config.table import RoutingTable
from pointsman.telemetry.naming import RuleName
from pointsman.telemetry.verdicts import called, chosen, has_answered, is_error, is_failed_over

TIMELINE = 120
_WIDTH = math.log(1.02)
_FIRST_STEP = 1  # second
_MAX_ROWS = 2000  # of each kind
OTHER = "(other)"
NONE = "(none)"
_DURATIONS = ("duration", "time_to_first_token", "overhead")
_NUMBERS = (
    "request_prompt_tokens",
    "request_completion_tokens",
    "cached_tokens",
    "cost_usd",
    "duration_ms",
    "time_to_first_token_ms",
    "overhead_ms",
)
_MOST = 2.0**53


class Durations:
    """Milliseconds, of which quantiles can be had to within 2 %."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: object) -> None:
        """Take in a duration; what is no number is none."""
        if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
            self._counts[math.ceil(math.log(max(value, 0.001)) / _WIDTH)] += 1

    def quantile(self, q: float) -> float | None:
        """Return the quantile in milliseconds; None where there is no value."""
        wanted, seen = q * self._counts.total(), 0
        for number in sorted(self._counts):
            seen += self._counts[number]
            if seen >= wanted:
                return float(f"{math.exp(number * _WIDTH):.3g}")
        return None

    def quantiles(self) -> dict[str, float | None]:
        """Return the median and the tail."""
        return {"p50": self.quantile(0.5), "p95": self.quantile(0.95), "p99": self.quantile(0.99)}


@dataclass
class Sums:
    """What is summed up of some requests."""

    requests: int = 0
    mirrored: int = 0
    observed: int = 0
    errors: int = 0
    failed_over: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    with_prompt_tokens: int = 0
    with_completion_tokens: int = 0
    with_cost: int = 0
    without_usage: int = 0  # answers of models whose tokens are unknown
    without_price: int = 0  # those with tokens and no known list price
    duration: Durations = field(default_factory=Durations)
    time_to_first_token: Durations = field(default_factory=Durations)
    overhead: Durations = field(default_factory=Durations)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take in one line. A mirrored copy costs, and is no request of a client's."""
        counted = entry.get("request_prompt_tokens") is not None
        self.prompt_tokens += _count(entry.get("request_prompt_tokens"))
        self.completion_tokens += _count(entry.get("request_completion_tokens"))
        self.cached_tokens += _count(entry.get("cached_tokens"))
        cost = entry.get("cost_usd")
        if isinstance(cost, int | float):
            self.cost_usd += cost
        self.with_prompt_tokens += counted
        self.with_completion_tokens += entry.get("request_completion_tokens") is not None
        self.with_cost += cost is not None
        self.without_usage += has_answered(_status(entry), _model(entry)) and not counted
        self.without_price += counted and cost is None
        if entry.get("mirror"):
            self.mirrored += 1
            return
        self.requests += 1
        self.observed += "OB" in _flags(entry)
        self.errors += is_error(_status(entry), entry.get("error"))
        self.failed_over += is_failed_over(map(_provider, _attempts(entry)))
        self.duration.add(entry.get("duration_ms"))
        self.time_to_first_token.add(entry.get("time_to_first_token_ms"))
        self.overhead.add(entry.get("overhead_ms"))

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; durations in milliseconds."""
        return {
            **{name: value for name, value in vars(self).items() if name not in _DURATIONS},
            **{f"{name}_ms": getattr(self, name).quantiles() for name in _DURATIONS},
        }


class Timeline:
    """Requests by provider in steps of time, which double when there would be too many."""

    def __init__(self) -> None:
        self.step = _FIRST_STEP  # seconds
        self.steps: dict[int, Counter[str]] = {}  # by their start, seconds since 1970

    def add(self, moment: datetime, provider: str) -> None:
        """Count a request."""
        start = int(moment.timestamp()) // self.step * self.step
        self.steps.setdefault(start, Counter())[provider] += 1
        while len(self.steps) > 1 and max(self.steps) - min(self.steps) >= TIMELINE * self.step:
            self._double()

    def _double(self) -> None:
        self.step *= 2
        wider: dict[int, Counter[str]] = {}
        for start, counts in self.steps.items():
            wider.setdefault(start // self.step * self.step, Counter()).update(counts)
        self.steps = wider


type RuleKey = tuple[RuleName, str]  # and the provider


class Report:
    """The sums of a log.

    Args:
        table: the rules, by which routes of one name are told apart; the log does not tell.
    """

    def __init__(self, table: RoutingTable | None = None) -> None:
        self._table = table or RoutingTable()
        # What rules name, and what clients do: these take no place from those.
        self._named: set[RuleKey] = set()
        self._unnamed: set[RuleKey] = set()
        self.total = Sums()
        self.rules: dict[RuleKey, Sums] = {}
        self.models: dict[tuple[str, str], Sums] = {}
        # How often each provider of a rule was chosen first, wherever the request ended.
        self.chosen: Counter[RuleKey] = Counter()
        self.statuses: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.timeline = Timeline()
        self.first: datetime | None = None
        self.last: datetime | None = None
        self.unread = 0  # lines that look like ours and can't be read

    def read(self, lines: Iterable[str]) -> None:
        """Take in lines. Those of others (a pod's log has them) are passed over."""
        for line in lines:
            if '"llm_request"' not in line:
                continue
            try:
                entry = json.loads(line[max(line.find("{"), 0) :])
                if entry["event"] != "llm_request":
                    continue
                _check(entry)
                moment = datetime.fromisoformat(entry["timestamp"])
                moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
                self.add(entry, moment)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                self.unread += 1

    def add(self, entry: Mapping[str, Any], moment: datetime) -> None:
        """Take in one request."""
        self.first = min(self.first or moment, moment)
        self.last = max(self.last or moment, moment)
        self.total.add(entry)
        name, provider = self._name(entry), str(entry.get("provider") or NONE)
        model = _model(entry) or NONE
        tried = list(map(_provider, _attempts(entry)))
        _row(self.models, (called(provider, tried) or NONE, model)).add(entry)
        self.rules.setdefault(self._key(name, provider), Sums()).add(entry)
        if entry.get("mirror"):
            return
        if not entry.get("replay"):
            first = chosen(provider, tried, observed="OB" in _flags(entry)) or NONE
            self.chosen[self._key(name, first)] += 1
        self.statuses[str(entry.get("status") or NONE)] += 1
        self.flags.update(map(str, _flags(entry)))
        self.timeline.add(moment, provider)

    def _name(self, entry: Mapping[str, Any]) -> RuleName:
        """Return what names the rule of a line, as `name_of_rule` does."""
        route, host = entry.get("route"), str(entry.get("host") or NONE)
        known = self._table.lookup(host)
        its_host = known.host if known and known.name == route else ""
        if not route:
            host = its_host or host
            return RuleName(host, host, str(entry.get("rule") or ""))
        return RuleName(str(route), its_host, str(entry.get("rule") or ""))

    def _key(self, name: RuleName, provider: str) -> RuleKey:
        """Return the key, or that of all others where there are too many of its kind."""
        key, known = (name, provider), self._named if name.rule else self._unnamed
        if key not in known and len(known) >= _MAX_ROWS:
            return RuleName(OTHER, OTHER, OTHER), OTHER
        known.add(key)
        return key

    def share(self, key: RuleKey) -> float | None:
        """Return the share of a rule's requests for which this provider was chosen first."""
        all_of_it = sum(n for (name, _), n in self.chosen.items() if name == key[0])
        return self.chosen[key] / all_of_it if all_of_it else None


def _check(entry: Mapping[str, Any]) -> None:
    """Raise ValueError for a line that no log of ours has: one number can spoil all sums."""
    for name in _NUMBERS:
        value = entry.get(name)
        if value is None:
            continue
        if type(value) not in {int, float} or not 0 <= value <= _MOST:
            raise ValueError(name)
    for name in ("route", "host", "rule", "provider", "response_model", "request_model"):
        str(entry.get(name)).encode()  # a lone surrogate is no text


def _status(entry: Mapping[str, Any]) -> int | None:
    status = entry.get("status")
    return status if isinstance(status, int) else None


def _model(entry: Mapping[str, Any]) -> str | None:
    model = entry.get("response_model") or entry.get("request_model")
    return str(model) if model else None


def _provider(attempt: Mapping[str, Any]) -> str:
    return str(attempt.get("provider") or NONE)


def _row[K: tuple[str, ...]](rows: dict[K, Sums], key: K) -> Sums:
    if key not in rows and len(rows) >= _MAX_ROWS:
        key = (OTHER,) * len(key)  # type: ignore[assignment]
    return rows.setdefault(key, Sums())


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _flags(entry: Mapping[str, Any]) -> list[Any]:
    flags = entry.get("flags")
    return flags if isinstance(flags, list) else []


def _attempts(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    attempts = entry.get("attempts")
    return [a for a in attempts if isinstance(a, dict)] if isinstance(attempts, list) else []
