"""What the page shows: the last minutes in slots, sums since the start, the last exchanges.

A snapshot is plain data for JSON, and snapshots of several processes merge into one: what is
counted is added up, and durations are kept as counts in buckets, of which quantiles can be read.
Everything is bounded: what a client can choose is cut, and past a limit counted as `other`.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from pointsman.telemetry.exchange import Exchange, access_log_entry, milliseconds

SLOT_SECONDS = 2
SLOTS = 150
LAST_EXCHANGES = 200
_MAX_MODELS = 100
_MAX_NAMES = 1000
_MAX_TEXT = 256
OTHER = "other"
_FIRST_ERROR = 400
# A bucket's upper bound is 2^(1/4) times that of the one before: a quantile is right within 19 %.
_PER_DOUBLING = 4


def bucket(value: float) -> int:
    """Return the number of the bucket that a duration in milliseconds falls in."""
    return math.ceil(_PER_DOUBLING * math.log2(max(value, 0.001)))


def quantile(buckets: dict[str, int], q: float) -> float | None:
    """Return the upper bound of the bucket that the quantile falls in; None without any value."""
    wanted = q * sum(buckets.values())
    seen = 0
    for number in sorted(buckets, key=int):
        seen += buckets[number]
        if seen >= wanted:
            return float(2 ** (int(number) / _PER_DOUBLING))
    return None


@dataclass(slots=True)
class _Slot:
    start: int  # seconds since 1970, a multiple of the slot's length
    providers: dict[str, int] = field(default_factory=dict)
    time_to_first_token: dict[str, int] = field(default_factory=dict)
    overhead: dict[str, int] = field(default_factory=dict)


type _Sums = dict[str, float]


class Live:
    """Collects exchanges. `clock` gives seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._since = clock()
        self._slots: deque[_Slot] = deque(maxlen=SLOTS)
        self._exchanges: deque[tuple[float, Exchange]] = deque(maxlen=LAST_EXCHANGES)
        self._rules: dict[tuple[str, str, str], _Sums] = {}
        self._models: dict[tuple[str, str], _Sums] = {}
        self._totals: _Sums = {}

    def record(self, exchange: Exchange) -> None:
        """Take in an exchange that has ended. It must not change any more."""
        now = self._clock()
        self._exchanges.append((now, exchange))
        counted = _counted(exchange)
        _add(self._totals, counted)
        provider = exchange.provider or ""
        models = (provider, _cut(exchange.response_model or exchange.request_model or ""))
        _add(_sums_of(self._models, models, _MAX_MODELS), counted)
        if exchange.mirror:
            return
        rule = (exchange.route or exchange.host, exchange.rule or "", provider)
        _add(_sums_of(self._rules, rule, _MAX_NAMES), counted)
        slot = self._slot(now)
        slot.providers[provider] = slot.providers.get(provider, 0) + 1
        first = milliseconds(exchange.started, exchange.first_token)
        if first is not None:
            _count(slot.time_to_first_token, first)
        _count(slot.overhead, exchange.overhead * 1000)

    def _slot(self, now: float) -> _Slot:
        start = int(now) // SLOT_SECONDS * SLOT_SECONDS
        if not self._slots or self._slots[-1].start < start:
            self._slots.append(_Slot(start))
        return self._slots[-1]

    def snapshot(self) -> dict[str, Any]:
        """Return the state as plain data.

        `exchanges` come newest first: the fields of the access log, `timestamp`, and `decision`
        (see `DecisionRecord`; None where decisions are not kept). `slots` come oldest first; slots
        without any request are left out. The keys of durations are bucket numbers, as strings.
        """
        oldest = self._clock() - SLOTS * SLOT_SECONDS
        return {
            "time": self._clock(),
            "since": self._since,
            "processes": 1,
            "slot_seconds": SLOT_SECONDS,
            "slots": [asdict(slot) for slot in self._slots if slot.start > oldest],
            "rules": [
                {"route": route, "rule": rule, "provider": provider, **sums}
                for (route, rule, provider), sums in self._rules.items()
            ],
            "models": [
                {"provider": provider, "model": model, **sums}
                for (provider, model), sums in self._models.items()
            ],
            "totals": dict(self._totals),
            "exchanges": [_shown(ended, one) for ended, one in reversed(self._exchanges)],
        }


def merge(snapshots: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the snapshot of all; that of nothing if there are none."""
    if not snapshots:
        return Live().snapshot() | {"processes": 0}
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
        "slot_seconds": SLOT_SECONDS,
        "slots": [slots[start] for start in sorted(slots)][-SLOTS:],
        "rules": _merged(snapshots, "rules", ("route", "rule", "provider")),
        "models": _merged(snapshots, "models", ("provider", "model")),
        "totals": totals,
        "exchanges": exchanges[:LAST_EXCHANGES],
    }


def _merged(
    snapshots: Iterable[dict[str, Any]], what: str, names: tuple[str, ...]
) -> list[dict[str, Any]]:
    found: dict[tuple[str, ...], _Sums] = {}
    for row in (row for snapshot in snapshots for row in snapshot[what]):
        key = tuple(row[name] for name in names)
        sums = {name: value for name, value in row.items() if name not in names}
        _add(found.setdefault(key, {}), sums)
    return [dict(zip(names, key, strict=True)) | sums for key, sums in found.items()]


def _counted(exchange: Exchange) -> _Sums:
    """Return what one exchange adds to the sums. A mirrored copy is no request of a client's."""
    usage = exchange.usage
    return {
        "requests": 0 if exchange.mirror else 1,
        "mirrored": 1 if exchange.mirror else 0,
        "errors": 0 if exchange.mirror else int(_is_error(exchange)),
        "prompt_tokens": (usage and usage.prompt_tokens) or 0,
        "completion_tokens": (usage and usage.completion_tokens) or 0,
        "cost_usd": exchange.cost_usd or 0.0,
        "without_usage": int(usage is None),
        "without_price": int(exchange.cost_usd is None),
    }


def _is_error(exchange: Exchange) -> bool:
    return exchange.status is None or exchange.status >= _FIRST_ERROR or exchange.error is not None


def _sums_of[K: tuple[str, ...]](sums: dict[K, _Sums], key: K, limit: int) -> _Sums:
    if key not in sums and len(sums) >= limit:
        key = (*key[:-1], OTHER) if len(sums) < 2 * limit else (OTHER,) * len(key)  # type: ignore[assignment]
    return sums.setdefault(key, {})


def _add(into: dict[str, Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        into[name] = into.get(name, 0) + value


def _count(buckets: dict[str, int], value: float) -> None:
    number = str(bucket(value))
    buckets[number] = buckets.get(number, 0) + 1


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def _shown(ended: float, exchange: Exchange) -> dict[str, Any]:
    timestamp = datetime.fromtimestamp(ended, UTC).isoformat(timespec="microseconds")
    entry = access_log_entry(exchange)
    texts = {name: _cut(value) for name, value in entry.items() if isinstance(value, str)}
    decision = asdict(exchange.decision) if exchange.decision else None
    return {"timestamp": timestamp, **entry, **texts, "decision": decision}
