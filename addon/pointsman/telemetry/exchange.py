"""The exchange: the one record of a request, its decision, its attempts, its usage, its timings.

Every log line, metric, trace and page reads it. The proxy fills it while the request is under way
and closes it once. It holds no prompt, no answer and no key (but see `content`). What has been
emitted (see `sinks`) is well-formed: every encoder takes its texts.

Times are readings of one monotonic clock in seconds, given by the caller; durations in the access
log are milliseconds.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from pointsman.protocols.usage import Usage
from pointsman.telemetry.amounts import short_dollars, some
from pointsman.telemetry.chunks import ChunkTimes
from pointsman.telemetry.content import Content
from pointsman.wellformed import well_formed

UsageSource = Literal["response", "partial"]

_MAX_NAME = 256


def name_of(sent: str | None) -> str | None:
    """Return a name that someone sent (a model's) as a record keeps it: cut where it is no name."""
    if sent is None:
        return None
    return well_formed(sent if len(sent) <= _MAX_NAME else f"{sent[:_MAX_NAME]}…")


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """One rule that was looked at, and why it did or did not match, in words."""

    rule: str
    matched: bool
    reason: str


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """How the decision came about.

    `rules` are those looked at, in order. `draw` is the number in [0, 1) that chose by weight; None
    where an affinity chose, a person did (`by_hand`), or nothing was chosen. `targets` are the
    plan's providers in order, `skipped` those left out as ejected.
    """

    rules: tuple[RuleVerdict, ...]
    draw: float | None = None
    targets: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    by_hand: bool = False

    def well_formed(self) -> "DecisionRecord":
        """Return it with reasons that every encoder takes: they may quote a request."""
        if all(rule.reason.isascii() for rule in self.rules):
            return self
        rules = (replace(rule, reason=well_formed(rule.reason)) for rule in self.rules)
        return replace(self, rules=tuple(rules))


@dataclass(slots=True)
class Attempt:
    """One try on one target. `error` is a short phrase, never a provider's own bytes."""

    provider: str
    provider_host: str
    started: float
    ended: float | None = None
    status: int | None = None
    error: str | None = None
    port: int | None = None

    def end(self, now: float, *, status: int | None = None, error: str | None = None) -> None:
        """Close the attempt; a second call changes nothing."""
        if self.ended is None:
            self.ended, self.error = now, error
            self.status = status if status is not None else self.status


@dataclass(slots=True)
class Exchange:
    """What is known of one request. Unknown is None, never 0."""

    request_id: str
    host: str
    method: str  # "" (null in the log): a connection that was refused before it was read
    path: str  # without its query, which may carry a key; "" as above
    client: str | None
    started: float
    workload: str | None = None
    namespace: str | None = None
    # The decision.
    route: str | None = None
    route_host: str | None = None  # of several routes of one name; not in the log
    rule: str | None = None
    provider: str | None = None
    provider_host: str | None = None
    upstream_path: str | None = None
    decision: DecisionRecord | None = None  # only where something shows it: a UI, the page
    api: str | None = None  # what is spoken, by the path (see protocols.api)
    client_model: str | None = None
    request_model: str | None = None
    stream: bool | None = None
    mirror: bool = False  # a copy that the client never sees
    replay: bool = False  # sent again by a person
    mirrored_to: str | None = None  # the provider that got a copy; not in the log
    # The outcome.
    attempts: list[Attempt] = field(default_factory=list)
    status: int | None = None
    flags: list[str] = field(default_factory=list)
    error: str | None = None
    response_model: str | None = None
    usage: Usage | None = None
    usage_source: UsageSource | None = None
    finish_reason: str | None = None
    cost_usd: float | None = None
    first_token: float | None = None
    chunk_times: ChunkTimes | None = None  # of a stream, after its first token
    ended: float | None = None
    overhead: float = 0.0  # seconds in our own code
    request_bytes: int = 0
    response_bytes: int = 0
    # Where traces are made: the client's trace headers, the spans, and what was said, if that is
    # asked for: it is there for the sinks alone, which must not keep it.
    trace_context: dict[str, str] | None = None
    spans: object = None
    content: Content | None = None

    @property
    def observed(self) -> bool:
        """Whether it was only decided, and went where the client sent it."""
        return "OB" in self.flags

    @property
    def tried(self) -> list[str]:
        """The providers of its attempts; of an observed one, who was called."""
        return [attempt.provider for attempt in self.attempts]

    def copied(self, now: float, provider: str) -> "Exchange":
        """Return the record of a mirrored copy of this request, to another provider."""
        return Exchange(
            request_id=self.request_id,
            host=self.host,
            method=self.method,
            path=self.path,
            client=self.client,
            started=now,
            workload=self.workload,
            namespace=self.namespace,
            route=self.route,
            route_host=self.route_host,
            rule=self.rule,
            provider=provider,
            client_model=self.client_model,
            mirror=True,
            replay=self.replay,
            request_bytes=self.request_bytes,
        )

    def flag(self, name: str) -> None:
        """Add a response flag once; the empty name is none."""
        if name and name not in self.flags:
            self.flags.append(name)

    def make_well_formed(self) -> None:
        """Replace in all texts what no encoder takes, such as the bytes of a path that are none."""
        for record in (self, *self.attempts):
            for name in _TEXTS[type(record)]:
                text = getattr(record, name)
                if text and not text.isascii():
                    setattr(record, name, well_formed(text))
        if self.decision is not None:
            self.decision = self.decision.well_formed()


_TEXTS: dict[type, tuple[str, ...]] = {
    record: tuple(each.name for each in fields(record) if each.type in {str, str | None})
    for record in (Exchange, Attempt)
}


def access_log_entry(exchange: Exchange) -> dict[str, Any]:
    """Return the fields of the access log, in their order, without `event` and `timestamp`."""
    usage = exchange.usage or Usage()
    ended = exchange.ended
    entry = {
        "request_id": exchange.request_id,
        "host": exchange.host,
        "method": exchange.method or None,
        "path": exchange.path or None,
        "client": exchange.client,
        "workload": exchange.workload,
        "namespace": exchange.namespace,
        "route": exchange.route,
        "rule": exchange.rule,
        "provider": exchange.provider,
        "provider_host": exchange.provider_host,
        "upstream_path": exchange.upstream_path,
        "status": exchange.status,
        "flags": exchange.flags,
        "error": exchange.error,
        "client_model": exchange.client_model,
        "request_model": exchange.request_model,
        "response_model": exchange.response_model,
        "stream": exchange.stream,
        "request_prompt_tokens": usage.prompt_tokens,
        "request_completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "usage_source": exchange.usage_source,
        "finish_reason": exchange.finish_reason,
        "cost_usd": exchange.cost_usd,
        "duration_ms": milliseconds(exchange.started, ended),
        "time_to_first_token_ms": milliseconds(exchange.started, exchange.first_token),
        "overhead_ms": round(exchange.overhead * 1000, 3),
        "request_bytes": exchange.request_bytes,
        "response_bytes": exchange.response_bytes,
        "attempts": [
            {
                "provider": attempt.provider,
                "status": attempt.status,
                "error": attempt.error,
                "duration_ms": milliseconds(attempt.started, attempt.ended),
            }
            for attempt in exchange.attempts
        ],
    }
    # Only lines that they are true of have these fields.
    marks = {"mirror": exchange.mirror, "replay": exchange.replay}
    return entry | {name: True for name, said in marks.items() if said}


def milliseconds(start: float, end: float | None) -> float | None:
    """Return a duration in milliseconds, rounded to a microsecond; None where there is no end."""
    return None if end is None else round((end - start) * 1000, 3)


def summary(exchange: Exchange) -> str:
    """Return the exchange in a line, as a person at a list of flows wants to read it.

    What answered and what it used come first, and are short: mitmweb's column has room for some
    fifteen letters.
    """
    parts = [
        exchange.provider,
        exchange.error,
        "observed only" if exchange.observed else None,
        _tokens(exchange.usage or Usage()),
        None if exchange.cost_usd is None else short_dollars(exchange.cost_usd),
        _models(exchange),
        None if exchange.ended is None else _took(exchange.ended - exchange.started),
    ]
    told = " · ".join(part for part in parts if part)
    return f"{told} ← {exchange.rule}".lstrip() if exchange.rule else told


def _tokens(usage: Usage) -> str | None:
    counts = (usage.prompt_tokens, usage.completion_tokens)
    known = [count for count in counts if count is not None]
    total = sum(known) if usage.total_tokens is None else usage.total_tokens
    if not known and usage.total_tokens is None:
        return None
    return f"{some(str(total), known=True, more=usage.total_tokens is None)} tok"


def _models(exchange: Exchange) -> str | None:
    asked, called = exchange.client_model, exchange.request_model or exchange.response_model
    return f"{asked} → {called}" if asked and called and asked != called else called


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
