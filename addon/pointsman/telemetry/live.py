"""What the page shows: the last minutes in slots, sums since the start, the last exchanges.

A snapshot is plain data for JSON, and snapshots of several processes merge into one: what is
counted is added up, and durations are kept as counts in buckets, of which quantiles can be read.
Everything is bounded: what a client can choose is cut, and past a limit counted as `other`.
"""

import math
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from pointsman.protocols.usage import Usage
from pointsman.telemetry.exchange import Exchange, access_log_entry, milliseconds
from pointsman.telemetry.naming import RuleName, name_of_decided
from pointsman.telemetry.reading import Reading, TargetReading
from pointsman.telemetry.verdicts import called, chosen, has_answered, is_error

SLOT_SECONDS = 2
SLOTS = 150
LAST_EXCHANGES = 200
_MAX_MODELS = 50  # of each provider
_MAX_PROVIDERS = 100  # that no rule names
_MAX_NAMES = 1000  # rows of rules that are not live
_MAX_CURSOR = 256  # processes
_MOST = 2**53  # what a browser counts exactly up to
_MAX_IN_SLOT = 100
_MAX_TEXT = 256
OTHER = "other"
# A bucket's upper bound is 2^(1/4) times that of the one before: a quantile is right within 19 %.
PER_DOUBLING = 4


def bucket(value: float) -> int:
    """Return the number of the bucket that a duration in milliseconds falls in."""
    return math.ceil(PER_DOUBLING * math.log2(max(value, 0.001)))


def quantile(buckets: dict[str, int], q: float) -> float | None:
    """Return the upper bound of the bucket that the quantile falls in; None without any value."""
    wanted = q * sum(buckets.values())
    seen = 0
    for number in sorted(buckets, key=int):
        seen += buckets[number]
        if seen >= wanted:
            return float(2 ** (int(number) / PER_DOUBLING))
    return None


@dataclass(slots=True)
class _Slot:
    start: int  # seconds since 1970, a multiple of the slot's length
    providers: dict[str, int] = field(default_factory=dict)
    time_to_first_token: dict[str, int] = field(default_factory=dict)
    overhead: dict[str, int] = field(default_factory=dict)


type _Sums = dict[str, float]
type _RuleRow = tuple[RuleName, str]  # and its provider; see ROWS
# How many exchanges of each process someone has seen, by the name of its `Live`.
type Cursor = Mapping[str, int]

# What names a row of each list.
ROWS: Mapping[str, tuple[str, ...]] = {
    "slots": ("start",),
    "rules": ("route", "host", "rule", "provider"),
    "models": ("provider", "model"),
    "targets": ("route", "host", "rule", "provider"),
}
# From the best to the worst.
_STATES = ("healthy", "probing", "ejected")


_NOTHING = Reading()


class Live:
    """Collects exchanges. `clock` gives seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._name = secrets.token_hex(4)
        self._clock = clock
        self._since = clock()
        self._recorded = 0
        self._slots: deque[_Slot] = deque(maxlen=SLOTS)
        self._exchanges: deque[tuple[float, Exchange]] = deque(maxlen=LAST_EXCHANGES)
        self._rules: dict[_RuleRow, _Sums] = {}
        # The targets of each live rule; None: no one has told.
        self._shares: dict[RuleName, set[tuple[str, int, int]]] | None = None
        self._hosts: frozenset[str] = frozenset()  # of the live routes
        self._providers: frozenset[str] = frozenset()  # that live rules name
        self._models: dict[str, dict[str, _Sums]] = {}  # by provider
        self._totals: _Sums = {}

    def record(self, exchange: Exchange) -> None:
        """Take in an exchange that has ended. It must not change any more."""
        now = self._clock()
        self._recorded += 1
        self._exchanges.append((now, _kept(exchange)))
        counted = _counted(exchange)
        _add(self._totals, counted)
        provider = exchange.provider or ""
        model = _cut(exchange.response_model or exchange.request_model or "")
        payer = _cut(called(exchange.provider, exchange.tried) or "")
        _add(self._model_sums(payer, model), counted)
        if exchange.mirror:
            return
        self._record_rule(exchange, provider, counted)
        slot = self._slot(now)
        providers = slot.providers
        name = provider if provider in providers or len(providers) < _MAX_IN_SLOT else OTHER
        providers[name] = providers.get(name, 0) + 1
        first = milliseconds(exchange.started, exchange.first_token)
        if first is not None:
            _count(slot.time_to_first_token, first)
        _count(slot.overhead, exchange.overhead * 1000)

    def _slot(self, now: float) -> _Slot:
        start = int(now) // SLOT_SECONDS * SLOT_SECONDS
        if self._slots and self._slots[-1].start > start + SLOT_SECONDS:
            # The clock was set back. What lies ahead would take in everything until it is there.
            before = [slot for slot in self._slots if slot.start <= start]
            self._slots = deque(before, maxlen=SLOTS)
        if not self._slots or self._slots[-1].start < start:
            self._slots.append(_Slot(start))
        return self._slots[-1]

    def _record_rule(self, exchange: Exchange, provider: str, counted: _Sums) -> None:
        """Count a request where it ended, and where its rule wanted it first (`chosen`)."""
        name = name_of_decided(exchange)
        if (row := self._row(name, provider)) is not None:
            _add(self._rule_sums(row), counted)
        first = chosen(exchange.provider, exchange.tried, observed=exchange.observed)
        if name.rule and first and not exchange.replay and (row := self._row(name, first)):
            _add(self._rule_sums(row), {"requests": 0, "chosen": 1})

    def _row(self, name: RuleName, provider: str) -> _RuleRow | None:
        """Return the row of the rules that counts this; None: its rule is gone."""
        if name.rule and self._shares is not None:
            targets = self._shares.get(name, ())
            if not targets or (provider and all(provider != one for one, *_ in targets)):
                return None
        return name, provider

    def _rule_sums(self, row: _RuleRow) -> _Sums:
        name, _ = row
        lives = self._shares is not None and (
            name.rule or name.host in self._hosts or not name.route
        )
        if row not in self._rules and not lives and len(self._rules) >= _MAX_NAMES:
            row = (RuleName(OTHER, OTHER, OTHER), OTHER)
        return self._rules.setdefault(row, {})

    def _model_sums(self, provider: str, model: str) -> _Sums:
        """Return the sums of a model, in whose favour the least used one may have to give way."""
        known = provider in self._models or provider in self._providers or not provider
        if not known and len(self._models) >= _MAX_PROVIDERS:
            provider = OTHER
        models = self._models.setdefault(provider, {})
        if model in models:
            models[model] = models.pop(model)  # the latest at the end
        elif model != OTHER and len(models) >= _MAX_MODELS:
            candidates = (name for name in models if name != OTHER)
            least = min(candidates, key=lambda name: models[name]["requests"])
            _add(models.setdefault(OTHER, {}), models.pop(least))
        return models.setdefault(model, {})

    def rules_live(self, targets: Iterable[TargetReading]) -> None:
        """Begin anew to count what goes where under rules whose targets have changed.

        Without it the actual split would be that of the old shares, beside the new ones.
        """
        shares: dict[RuleName, set[tuple[str, int, int]]] = {}
        found = tuple(targets)
        for target in found:
            share = (target.provider, target.weight, target.priority)
            shares.setdefault(target.name, set()).add(share)
        known, self._shares = self._shares or {}, shares
        self._hosts = frozenset(target.host for target in found)
        self._providers = frozenset(target.provider for target in found)
        self._rules = {
            (name, provider): sums
            for (name, provider), sums in self._rules.items()
            if known.get(name) == shares.get(name)
        }

    def snapshot(self, after: Cursor | None = None, look: Reading = _NOTHING) -> dict[str, Any]:
        """Return the state as plain data.

        `exchanges` come newest first, those that ended after the `cursor` of an earlier snapshot:
        the fields of the access log, `timestamp`, and `decision` (see `DecisionRecord`; None where
        decisions are not kept). `slots` come oldest first; slots without any request are left out.
        The keys of durations are bucket numbers, as strings.
        """
        now = self._clock()
        oldest = now - SLOTS * SLOT_SECONDS
        return {
            "time": now,
            "since": self._since,
            "processes": 1,
            "cursor": {self._name: self._recorded},
            "requests_open": look.requests,
            "streams_open": look.streams,
            "targets": [asdict(target) for target in look.targets],
            "config_versions": [],
            "slot_seconds": SLOT_SECONDS,
            "slots": [_plain(slot) for slot in self._slots if slot.start > oldest],
            "rules": [
                {**name._asdict(), "provider": provider, **sums}
                for (name, provider), sums in self._rules.items()
            ],
            "models": [
                {"provider": provider, "model": model, **sums}
                for provider, models in self._models.items()
                for model, sums in models.items()
            ],
            "totals": dict(self._totals),
            "exchanges": [_shown(ended, one) for ended, one in self._newest(after or {})],
        }

    def _newest(self, after: Cursor) -> Iterator[tuple[float, Exchange]]:
        new = self._recorded - after.get(self._name, 0)
        # A number that this one never gave asks for all.
        return islice(reversed(self._exchanges), new if new >= 0 else None)


def _plain(slot: _Slot) -> dict[str, Any]:
    return {
        "start": slot.start,
        "providers": dict(slot.providers),
        "time_to_first_token": dict(slot.time_to_first_token),
        "overhead": dict(slot.overhead),
    }


def show_cursor(cursor: Cursor) -> str:
    """Return a cursor as text, for a query."""
    return ",".join(f"{name}:{seen}" for name, seen in cursor.items())


def read_cursor(text: str) -> Cursor:
    """Return the cursor of a text.

    Raises:
        ValueError: it is none.
    """
    pairs = [pair.rpartition(":") for pair in text.split(",") if pair]
    if len(pairs) > _MAX_CURSOR:
        raise ValueError("too many names")
    for _, _, seen in pairs:
        if not re.fullmatch(r"[0-9]{1,18}", seen):
            raise ValueError(f"{seen[:20]!r} is no count")
    return {name: int(seen) for name, _, seen in pairs}


def merge(snapshots: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the snapshot of all; that of nothing if there are none."""
    if not snapshots:
        return {**Live().snapshot(), "processes": 0, "cursor": {}}
    slots: dict[int, dict[str, Any]] = {}
    for slot in (slot for snapshot in snapshots for slot in snapshot["slots"]):
        into = slots.setdefault(slot["start"], {"start": slot["start"]})
        for name in ("providers", "time_to_first_token", "overhead"):
            _add(into.setdefault(name, {}), slot[name])
    exchanges = sorted(
        (one for snapshot in snapshots for one in snapshot["exchanges"]),
        key=lambda one: one["timestamp"],
        reverse=True,
    )
    totals: _Sums = {}
    for snapshot in snapshots:
        _add(totals, snapshot["totals"])
    return {
        "time": max(snapshot["time"] for snapshot in snapshots),
        "since": min(snapshot["since"] for snapshot in snapshots),
        "processes": sum(snapshot["processes"] for snapshot in snapshots),
        "cursor": {name: seen for one in snapshots for name, seen in one["cursor"].items()},
        "requests_open": sum(snapshot["requests_open"] for snapshot in snapshots),
        "streams_open": sum(snapshot["streams_open"] for snapshot in snapshots),
        "targets": _worst(snapshots),
        # Who has others of these than before asks for /config again.
        "config_versions": sorted({v for one in snapshots for v in one["config_versions"]}),
        "slot_seconds": SLOT_SECONDS,
        "slots": [slots[start] for start in sorted(slots)][-SLOTS:],
        "rules": _merged(snapshots, "rules"),
        "models": _merged(snapshots, "models"),
        "totals": totals,
        "exchanges": exchanges[:LAST_EXCHANGES],
    }


def _worst(snapshots: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each target in the worst of its states: each process has its own view of it."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for target in (target for snapshot in snapshots for target in snapshot["targets"]):
        key = tuple(target[name] for name in ROWS["targets"])
        found[key] = max(found.setdefault(key, target), target, key=_badness)
    return list(found.values())


def _badness(target: dict[str, Any]) -> tuple[int, int]:
    return _STATES.index(target["state"]), target["ejected_endpoints"]


def _merged(snapshots: Iterable[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    names = ROWS[what]
    found: dict[tuple[str, ...], _Sums] = {}
    for row in (row for snapshot in snapshots for row in snapshot[what]):
        key = tuple(row[name] for name in names)
        sums = {name: value for name, value in row.items() if name not in names}
        _add(found.setdefault(key, {}), sums)
    return [dict(zip(names, key, strict=True)) | sums for key, sums in found.items()]


def _counted(exchange: Exchange) -> _Sums:
    """Return what one exchange adds to the sums. A mirrored copy is no request of a client's."""
    usage = exchange.usage or Usage()
    model = exchange.response_model or exchange.request_model
    answered = has_answered(exchange.status, model)
    counted = usage.prompt_tokens is not None
    return {
        "requests": 0 if exchange.mirror else 1,
        "mirrored": 1 if exchange.mirror else 0,
        "errors": 0 if exchange.mirror else int(is_error(exchange.status, exchange.error)),
        "prompt_tokens": usage.prompt_tokens or 0,
        "completion_tokens": usage.completion_tokens or 0,
        "cost_usd": exchange.cost_usd or 0.0,
        # How many told, and how many answers did not.
        "with_prompt_tokens": int(counted),
        "with_completion_tokens": int(usage.completion_tokens is not None),
        "with_cost": int(exchange.cost_usd is not None),
        "without_usage": int(answered and not counted),
        "without_price": int(counted and exchange.cost_usd is None),
    }


def _add(into: dict[str, Any], values: dict[str, Any]) -> None:
    """Add up what is a number in reason: an infinite one comes out of JSON as null."""
    for name, value in values.items():
        some = value if isinstance(value, int | float) and abs(value) <= _MOST else 0
        into[name] = into.get(name, 0) + some


def _count(buckets: dict[str, int], value: float) -> None:
    number = str(bucket(value))
    buckets[number] = buckets.get(number, 0) + 1


def _kept(exchange: Exchange) -> Exchange:
    """Return the exchange without what is too long to be kept 200 times; mostly itself."""
    if max(len(exchange.path), len(exchange.host)) <= _MAX_TEXT:
        return exchange
    upstream = exchange.upstream_path
    return replace(
        exchange,
        path=_cut(exchange.path),
        host=_cut(exchange.host),
        upstream_path=upstream and _cut(upstream),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def _shown(ended: float, exchange: Exchange) -> dict[str, Any]:
    timestamp = datetime.fromtimestamp(ended, UTC).isoformat(timespec="microseconds")
    entry = access_log_entry(exchange)
    texts = {name: _cut(value) for name, value in entry.items() if isinstance(value, str)}
    decision = asdict(exchange.decision) if exchange.decision else None
    return {"timestamp": timestamp, **entry, **texts, "decision": decision}
