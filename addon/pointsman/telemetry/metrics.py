"""Prometheus metrics: a sink for exchanges, and what is read anew for each look.

What this module keeps to:
- Recording an exchange is a few look-ups: what its labels come to is found out once.
- No label holds a key, a prompt, an answer or a path, and the number of series is bounded. Routes,
  rules and providers are those of the rules. A model that no rule names has its own label only if a
  call with it went well, and only while there are few; then all others are `other`.
- A mirrored request is none of a client's: it has families of its own.
- Series of rules that are gone go with the next reload. Where processes share their values in files
  (see `exposition`) they stay, but no longer grow.

docs/metrics.md lists every family.
"""

import platform
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from threading import Lock
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

import pointsman
from pointsman.config.resources import normalise_host
from pointsman.protocols.usage import Usage
from pointsman.telemetry.chunks import ChunkTimes
from pointsman.telemetry.conventions import (
    FIRST_ERROR,
    error_type,
    operation_name,
    provider_name,
    status_label,
)
from pointsman.telemetry.exchange import Attempt, Exchange
from pointsman.telemetry.exposition import (
    CONTENT_TYPE,
    REGISTRY,
    WITHDRAWN,
    render,
    shared,
    worker_gone,
)
from pointsman.telemetry.families import Families, Family, Labels
from pointsman.telemetry.labels import NONE, OTHER, Names, clean, outcome
from pointsman.telemetry.reading import Reading, RulesReading

__all__ = ["CONTENT_TYPE", "REGISTRY", "Metrics", "render", "worker_gone"]

_MOST_MODELS = 100  # that no rule names; asked for and answered with, each
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


class _Series:
    """Where exchanges with the same labels are counted; what they do not need is not made."""

    def __init__(self, families: Families, requests: Labels, duration: Labels | None) -> None:
        self._families = families
        self._duration = duration
        self._call = (duration or ())[:-1]
        self._payer = (requests[2], requests[3])
        self.requests = families.requests(*requests)

    def call(self, exchange: Exchange) -> None:
        """Count a call of a model; nothing happens where it was none."""
        if self._duration is None or exchange.ended is None:
            return
        self.duration.observe(exchange.ended - exchange.started)
        if exchange.first_token is not None:
            self.first_chunk.observe(exchange.first_token - exchange.started)
        if exchange.chunk_times is not None and exchange.chunk_times.events:
            _observe_all(self.chunks, exchange.chunk_times)
        usage = exchange.usage
        if usage is not None and usage.prompt_tokens is not None:
            self.input.observe(usage.prompt_tokens)
        if usage is not None and usage.completion_tokens is not None:
            self.output.observe(usage.completion_tokens)

    @cached_property
    def duration(self) -> Histogram:
        return self._families.duration(*(self._duration or ()))

    @cached_property
    def first_chunk(self) -> Histogram:
        return self._families.first_chunk(*self._call)

    @cached_property
    def chunks(self) -> Histogram:
        return self._families.chunks(*self._call)

    @cached_property
    def input(self) -> Histogram:
        return self._families.tokens(*self._call, "input")

    @cached_property
    def output(self) -> Histogram:
        return self._families.tokens(*self._call, "output")

    @cached_property
    def cost(self) -> Counter:
        return self._families.cost(*self._payer)


def _observe_all(histogram: Histogram, times: ChunkTimes) -> None:
    """Observe all times of a stream at once: one by one, a long one would take a second.

    There is no public way; a test compares this with `observe`.
    """
    histogram._sum.inc(times.total)  # noqa: SLF001
    for bucket, count in zip(histogram._buckets, times.counts, strict=True):  # noqa: SLF001
        if count:
            bucket.inc(count)


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
        self._asked, self._answered = Names(_MOST_MODELS), Names(_MOST_MODELS)
        self._rules = self._former = RulesReading()
        self._providers: frozenset[str] = frozenset()
        self._series: dict[Hashable, _Series] = {}
        self._attempts: dict[Hashable, Counter] = {}
        self._changing = Lock()  # the text may be made in another thread than records come from
        self._families.build(*_build()).set(1)
        registry.register(self)

    def close(self) -> None:
        """Take it out of its registry."""
        self._registry.unregister(self)

    # --- the rules --------------------------------------------------------------------------------

    def rules_live(self, rules: RulesReading) -> None:
        """Take in rules that have become live; series of those that are gone are removed."""
        self._former, self._rules = self._rules, rules
        # What is under way still goes by the former ones.
        self._providers = frozenset(rules.providers.values()) | frozenset(
            self._former.providers.values()
        )
        self._asked.know(rules.models)
        self._answered.know(rules.models)
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
        rules = {(clean(route), clean(rule)) for route, rule in self._rules.rules}
        rules |= {(route, NONE) for route, _ in rules} | {(NONE, NONE)}  # where no rule matches
        providers = {clean(name) for name in self._rules.providers.values()} | {NONE, OTHER}
        hosts = {clean(host) for host in self._rules.providers} | {NONE, OTHER}

        def keep(labels: Mapping[str, str]) -> bool:
            rule = (labels.get("route", NONE), labels.get("rule", NONE))
            provider = labels.get("provider", NONE)
            host = labels.get("server_address", NONE)
            return rule in rules and provider in providers and host in hosts

        for family in self._families:
            family.prune(keep)

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
        for attempt in exchange.attempts:
            self._attempt(attempt).inc()

    def _admit(self, exchange: Exchange, key: Hashable) -> _Series:
        """Find out what the labels of an exchange are; keep them at hand where they are its own."""
        families = self._families
        asked, answered = self._models(exchange)
        where = self._where(exchange)
        how = (_status(exchange), ",".join(sorted(exchange.flags)) or NONE)
        requests = _bounded(
            families.requests,
            (*where, asked or answered or NONE, *how),
            (*where, OTHER, *how),
            self._limits.requests,
        )
        operation, duration = operation_name(exchange), None
        if operation is not None and exchange.provider is not None:
            host, provider = self._called(exchange)
            name, error = provider_name(host, provider), error_type(exchange) or ""
            duration = _bounded(
                families.duration,
                (operation, name, asked, answered, host, error),
                (operation, name, asked and OTHER, answered and OTHER, host, error),
                self._limits.calls,
            )
        series = _Series(families, requests, duration)
        if OTHER not in (asked, answered) and len(self._series) < _MOST_CACHED:
            self._series[key] = series
        return series

    def _models(self, exchange: Exchange) -> tuple[str, str]:
        """Return the labels of the model that was asked for and of the one that answered."""
        good = exchange.error is None and (exchange.status or FIRST_ERROR) < FIRST_ERROR
        asked = self._asked.label(exchange.request_model, admit=good)
        return asked, self._answered.label(exchange.response_model, admit=good)

    def _where(self, exchange: Exchange) -> tuple[str, str, str]:
        """Return the labels of the route, the rule and the provider."""
        return clean(exchange.route), clean(exchange.rule), self._provider(exchange.provider)

    def _called(self, exchange: Exchange) -> tuple[str, str]:
        """Return the labels of the host that was called and of the provider that has it.

        What is only observed goes where the client sent it: to a host that it may have made up.
        """
        host = normalise_host(_host(exchange) or "")
        provider = self._provider_at(host)
        return (clean(host), clean(provider)) if provider else (OTHER, OTHER)

    def _provider_at(self, host: str) -> str | None:
        """Return the provider that has a host by the rules."""
        return self._rules.providers.get(host) or self._former.providers.get(host)

    def _provider(self, name: str | None) -> str:
        """Return the label of a provider."""
        if not name:
            return NONE
        return clean(name) if name in self._providers else OTHER

    def _attempt(self, attempt: Attempt) -> Counter:
        key = (attempt.provider, attempt.status, attempt.error)
        if found := self._attempts.get(key):
            return found
        # One that is only observed has its host in the place of its provider.
        provider = self._provider_at(normalise_host(attempt.provider_host)) or attempt.provider
        counter = self._families.attempts(self._provider(provider), outcome(attempt))
        if len(self._attempts) < _MOST_CACHED:
            self._attempts[key] = counter
        return counter

    def _record_mirrored(self, exchange: Exchange) -> None:
        families = self._families
        asked, answered = self._models(exchange)
        where = self._where(exchange)
        model, status = asked or answered or NONE, _status(exchange)
        labels = _bounded(
            families.mirrored,
            (*where, model, status),
            (*where, OTHER, status),
            self._limits.requests,
        )
        families.mirrored(*labels).inc()
        payer = (labels[2], labels[3])
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
        shares: dict[Labels, float] = {}
        states: dict[Labels, float] = {}
        for target in reading.targets:
            labels = (clean(target.route), clean(target.rule), clean(target.provider))
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
        exchange.route,
        exchange.rule,
        exchange.provider,
        _host(exchange),
        operation_name(exchange),
        exchange.request_model,
        exchange.response_model,
        exchange.status,
        exchange.error is None,
        *exchange.flags,
    )


def _host(exchange: Exchange) -> str | None:
    """Return the host that was called last, else the one that would have been."""
    return exchange.attempts[-1].provider_host if exchange.attempts else exchange.provider_host


def _status(exchange: Exchange) -> str:
    return NONE if exchange.status is None else status_label(exchange.status)


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
