"""Prometheus metrics: a sink for exchanges, and what is read anew for each look.

What this module keeps to:
- Recording an exchange is a few look-ups: what its labels come to (see `labelling`) is found out
  once.
- The number of series is bounded.
- A mirrored request is none of a client's: it has families of its own.
- Series of rules that are gone go with the next reload. Where processes share their values in files
  (see `exposition`) they stay, but no longer grow.

docs/metrics.md lists every family.
"""

import platform
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from threading import Lock
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

import pointsman
from pointsman.protocols.usage import Usage
from pointsman.telemetry.conventions import error_type, operation_name, provider_name
from pointsman.telemetry.exchange import Attempt, Exchange
from pointsman.telemetry.exposition import (
    CONTENT_TYPE,
    REGISTRY,
    WITHDRAWN,
    render,
    shared,
    worker_gone,
)
from pointsman.telemetry.families import PAYER, Families, Family, Labels
from pointsman.telemetry.labelling import (
    Labelling,
    host_called,
    outcome_labels,
    rule_labels,
    status_of,
)
from pointsman.telemetry.labels import NONE, OTHER, clean, outcome
from pointsman.telemetry.naming import name_of_decided
from pointsman.telemetry.reading import Reading, RulesReading
from pointsman.telemetry.series import Series
from pointsman.telemetry.verdicts import chosen

__all__ = ["CONTENT_TYPE", "REGISTRY", "Metrics", "render", "worker_gone"]

_MOST_CACHED = 2000  # exchanges whose labels are kept at hand
_MOST_TARGETS = 1000


@dataclass(frozen=True, slots=True)
class _Limits:
    """How many label sets there are: past these without models, past twice these without names."""

    calls: int
    requests: int


_LIMITS = _Limits(calls=150, requests=1000)
# A value in a file takes three times the room.
_LIMITS_IF_SHARED = _Limits(calls=40, requests=300)

_STATES: Final = {"healthy": 0, "probing": 1, "ejected": 2}


class Metrics(Collector):
    """What is counted of the exchanges of one instance.

    Args:
        read: tells what is under way, and how the targets are, at this moment.
        registry: where it can be found (see `render`), until it is closed.
        now: tells the Unix time.
    """

    def __init__(
        self,
        read: Callable[[], Reading] = Reading,
        registry: CollectorRegistry = REGISTRY,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._read = read
        self._registry = registry
        self._now = now
        self._limits = _LIMITS_IF_SHARED if shared() else _LIMITS
        self._families = Families()
        self._labelling = Labelling()
        self._series: dict[Hashable, Series] = {}
        self._attempts: dict[Hashable, Counter] = {}
        self._dropped: dict[str, int] = {}  # what has been counted of mirrored copies
        self._changing = Lock()  # the text may be made in another thread than records come from
        self._families.build(*_build()).set(1)
        registry.register(self)

    def close(self) -> None:
        """Take it out of its registry."""
        self._registry.unregister(self)

    # --- the rules --------------------------------------------------------------------------------

    def rules_live(self, rules: RulesReading) -> None:
        """Take in rules that have become live; series of those that are gone are removed."""
        self._labelling.rules_live(rules)
        self._series.clear()
        self._attempts.clear()
        with self._changing:
            if not shared():
                self._prune()
        families = self._families
        families.loads("loaded").inc()
        families.load_good().set(1)
        families.load_time().set(self._now())
        self.refresh()

    def rules_refused(self) -> None:
        """Take note that rules were refused: what was last good of them stays."""
        self._families.loads("refused").inc()
        self._families.load_good().set(0)

    def _prune(self) -> None:
        stays = self._labelling.named_by_rules()
        for family in self._families:
            family.prune(stays)

    # --- exchanges --------------------------------------------------------------------------------

    def record(self, exchange: Exchange) -> None:
        """Count a finished exchange: a sink (see `sinks`)."""
        if exchange.mirror:
            self._record_mirrored(exchange)
            return
        key = _key(exchange)
        series = self._series.get(key) or self._admit(exchange, key)
        series.requests.inc()
        series.call(exchange)
        if exchange.cost_usd:
            series.cost.inc(exchange.cost_usd)
        self._families.overhead().observe(exchange.overhead)
        self._choose(exchange)
        for attempt in exchange.attempts:
            self._attempt(attempt).inc()

    def _admit(self, exchange: Exchange, key: Hashable) -> Series:
        """Find out what the labels of an exchange are; keep them at hand where they are its own."""
        families, labelling = self._families, self._labelling
        asked, answered = labelling.models(exchange)
        target, how = labelling.target(exchange), outcome_labels(exchange)
        requests = _bounded(
            families.requests,
            (*target, asked or answered or NONE, *how),
            (*target, OTHER, *how),
            self._limits.requests,
        )
        operation, duration = operation_name(exchange), None
        if operation is not None and exchange.provider is not None:
            host, provider = labelling.called(exchange)
            name, error = provider_name(host, provider), error_type(exchange) or ""
            duration = _bounded(
                families.duration,
                (operation, name, asked, answered, host, error),
                (operation, name, asked and OTHER, answered and OTHER, host, error),
                self._limits.calls,
            )
        payer = labelling.payer(exchange), *requests[PAYER][1:]
        series = Series(families, requests, duration, payer)
        if OTHER not in (asked, answered) and len(self._series) < _MOST_CACHED:
            self._series[key] = series
        return series

    def _choose(self, exchange: Exchange) -> None:
        """Count whom its rule chose first, which is what the weights are about."""
        name = chosen(exchange.provider, exchange.tried, observed=exchange.observed)
        if exchange.rule is None or name is None or exchange.replay:
            return
        rule = rule_labels(name_of_decided(exchange))
        labels = (*rule, self._labelling.provider(name))
        family = self._families.chosen
        family(*_bounded(family, labels, (*rule, OTHER), _MOST_TARGETS)).inc()

    def _attempt(self, attempt: Attempt) -> Counter:
        key = (attempt.provider, attempt.status, attempt.error)
        if found := self._attempts.get(key):
            return found
        counter = self._families.attempts(self._labelling.tried(attempt), outcome(attempt))
        if len(self._attempts) < _MOST_CACHED:
            self._attempts[key] = counter
        return counter

    def _record_mirrored(self, exchange: Exchange) -> None:
        families = self._families
        asked, answered = self._labelling.models(exchange)
        target, status = self._labelling.target(exchange), status_of(exchange)
        labels = _bounded(
            families.mirrored,
            (*target, asked or answered or NONE, status),
            (*target, OTHER, status),
            self._limits.requests,
        )
        families.mirrored(*labels).inc()
        payer = labels[PAYER]
        usage = exchange.usage or Usage()
        for kind, count in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
            if count is not None:
                families.mirrored_tokens(*payer, kind).inc(count)
        if exchange.cost_usd:
            families.mirrored_cost(*payer).inc(exchange.cost_usd)

    # --- what is read at each look ----------------------------------------------------------------

    def refresh(self) -> None:
        """Read what no exchange tells. Where values go to files, call it now and then."""
        reading = self._read()
        with self._changing:
            self._take(reading)

    def _take(self, reading: Reading) -> None:
        families = self._families
        families.open().set(reading.requests)
        families.streams().set(reading.streams)
        for rule, dropped in reading.mirrors_dropped.items():
            families.mirrors_dropped(clean(rule)).inc(dropped - self._dropped.get(rule, 0))
        self._dropped = dict(reading.mirrors_dropped)
        shares: dict[Labels, float] = {}
        states: dict[Labels, float] = {}
        for target in reading.targets:
            if not target.weight:
                continue  # it is never called: its state would say nothing
            labels = (*rule_labels(target.name), clean(target.provider))
            # A rule may have a provider twice, under several priorities.
            shares[labels] = shares.get(labels, 0.0) + target.share
            states[labels] = max(states.get(labels, 0), _STATES[target.state])
        _put(families.share, shares)
        _put(families.state, states)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, for a registry."""
        self.refresh()
        for family in self._families:
            for metric in family.metric.collect():
                # When each series was made doubles their number and says nothing here.
                metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
                yield metric


def _key(exchange: Exchange) -> Hashable:
    """Return all that the labels of an exchange are made of."""
    return (
        *name_of_decided(exchange),
        exchange.provider,
        host_called(exchange),
        operation_name(exchange),
        exchange.request_model,
        exchange.response_model,
        exchange.status,
        exchange.error is None,
        *exchange.flags,
    )


def _bounded[M: (Counter, Gauge, Histogram)](
    family: Family[M], labels: Labels, without_models: Labels, most: int
) -> Labels:
    """Return these labels, or fewer where the family has too many series."""
    if labels in family:
        return labels
    if len(family) >= most:
        labels = without_models
    if len(family) >= 2 * most and labels not in family:
        labels = (OTHER,) * len(labels)
    return labels


def _put(family: Family[Gauge], values: Mapping[Labels, float]) -> None:
    """Let these be all the values of a gauge."""
    for labels, value in values.items():
        if labels in family or family.made < _MOST_TARGETS:
            family(*labels).set(value)
    for labels in set(family) - values.keys():
        family.remove(labels).set(WITHDRAWN)


def _build() -> Labels:
    return (pointsman.__version__, version("mitmproxy"), platform.python_version())
