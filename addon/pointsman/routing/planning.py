"""On which targets a request may be tried, in what order, how often, and what is worth a retry.

The rules that this module keeps:
- Tiers come in the order of their priority, 0 first. Within one, the targets come by weight, or by
  the hash of the affinity's value.
- A target without weight is never called. (What a tier without any weight means is decided when the
  table is compiled.)
- An ejected target is left out, a tier of ejected ones is passed over. But when no other is left,
  all are used as if they were healthy: the last one standing is never ejected.
- A target with endpoints is planned as up to `MOST_ENDPOINTS` of them, the least busy first, each
  with a health of its own. Without any it is passed over as an ejected one is, and never called.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from itertools import islice

from pointsman.config.table import RetryCondition, RetryPolicy, Rule, Target
from pointsman.routing.balancing import NoWeightError, affinity_value, place, rank_by_hash
from pointsman.routing.health import STATES, Health, State
from pointsman.routing.request import ClientRequest

LONGEST_BACKOFF = 5.0
# Of a pool so many are tried for one request: what fails on three may well be the request's fault.
MOST_ENDPOINTS = 3
_MOST_DOUBLINGS = 64  # past the longest backoff, and far from where floats end

_CLOUDFLARE_STATUS = frozenset({520, 521, 522, 523, 524})  # no good answer from what is behind it
_OVERLOADED = 529  # Anthropic's
# The provider's own trouble: it may pass, and another provider need not have it. (501 and 505 are
# about the request.)
RETRIABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504, _OVERLOADED}) | _CLOUDFLARE_STATUS

_SECONDS = re.compile(r"-?[0-9]+(?:\.[0-9]+)?\Z")
_HTTP_DATE = re.compile(r"[A-Z][a-z]+,? [0-9A-Za-z :-]+\Z")


class NoEndpointError(ValueError):
    """The targets are backends in the cluster that have no ready endpoint."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The targets that one request may be tried on: no target twice, the first to be tried first.

    `order` is never empty. `skipped` are those left out as ejected, in the order of their
    priorities. `attempts` counts the first one.
    """

    order: tuple[Target, ...]
    skipped: tuple[Target, ...]
    attempts: int

    def target(self, attempt: int) -> Target:
        """Return the target of an attempt, counted from 0; after the last comes the first."""
        return self.order[attempt % len(self.order)]


type _Tier = list[Target]


def make_plan(
    rule: Rule,
    request: ClientRequest,
    draw: Callable[[], float],
    health: Health,
    now: float,
) -> Plan:
    """Return the plan for a request.

    `draw` is the rule's sequence (`DrawSequence.draw`). It is called once, or not at all where an
    affinity decides: what one request takes for its fallbacks would be missing in the split of the
    others. `now` is the time for `health`, which is only read.

    Raises:
        NoWeightError: no target of the rule has a weight.
        NoEndpointError: those that have one are all backends without a ready endpoint.
    """
    tiers = _tiers(rule.targets)
    if not tiers:
        raise NoWeightError

    usable: list[_Tier] = []
    skipped: list[Target] = []
    for tier in tiers:
        left: _Tier = []
        for target in tier:
            (left if _is_available(target, health, now) else skipped).append(target)
        if left:
            usable.append(left)
    if not usable:
        usable = [left for tier in tiers if (left := [t for t in tier if any(endpoints(t))])]
        skipped = []
    if not usable:
        raise NoEndpointError
    value = affinity_value(rule.affinity, request)
    chosen = _drawn(usable, draw()) if value is None else _hashed(usable, value)
    order = tuple(e for target in chosen for e in _preferred(target, health, now))
    return Plan(order, tuple(skipped), rule.retry.attempts or len(order))


def order_of(targets: Sequence[Target], value: str) -> list[Target]:
    """Return the order in which an affinity's value has its targets while all are healthy."""
    return list(_hashed(_tiers(targets), value))


def shares(targets: Sequence[Target]) -> list[tuple[Target, float]]:
    """Return each target with its part of what its priority gets."""
    tiers = Counter[int]()
    for target in targets:
        tiers[target.priority] += target.weight
    return [(t, t.weight / (tiers[t.priority] or 1)) for t in targets]


def split(targets: Sequence[Target]) -> list[tuple[Target, float]]:
    """Return each target with the part of the requests that it gets while all are healthy."""
    first = min((target.priority for target in targets if target.weight), default=0)
    return [(t, share if t.priority == first else 0.0) for t, share in shares(targets)]


def _is_available(target: Target, health: Health, now: float) -> bool:
    if target.endpoints is None:
        return health.available(target, now)
    return any(health.available(endpoint, now) for endpoint in endpoints(target))


def endpoints(target: Target) -> Iterator[Target]:
    """Yield what is called in a target's stead, the least busy first: itself where it has none."""
    if target.endpoints is None:
        yield target
        return
    for address in target.endpoints.by_load():
        yield replace(target, address=address)


def all_endpoints(targets: Iterable[Target]) -> Iterator[Target]:
    """Yield all that may be called now in the stead of these targets."""
    for target in targets:
        yield from endpoints(target)


def endpoint_states(target: Target, health: Health, now: float) -> list[tuple[Target, State]]:
    """Return what is called in a target's stead, each with its state."""
    return [(endpoint, health.state(endpoint, now)) for endpoint in endpoints(target)]


def best(states: Iterable[State]) -> State:
    """Return the state of a target whose endpoints have these: plans use it by its best one.

    One without endpoints is passed over as an ejected one is, and so is called.
    """
    return min(states, key=STATES.index, default="ejected")


def state_of(target: Target, health: Health, now: float) -> State:
    """Return the state of a target."""
    return best(state for _, state in endpoint_states(target, health, now))


def _preferred(target: Target, health: Health, now: float) -> Iterable[Target]:
    """Return the few endpoints that one request tries: healthy ones, or any if there are none."""
    if target.endpoints is None:
        return (target,)
    healthy = (endpoint for endpoint in endpoints(target) if health.available(endpoint, now))
    return list(islice(healthy, MOST_ENDPOINTS)) or islice(endpoints(target), MOST_ENDPOINTS)


def _tiers(targets: Sequence[Target]) -> list[_Tier]:
    weighted = [target for target in targets if target.weight > 0]
    priorities = sorted({target.priority for target in weighted})
    return [[target for target in weighted if target.priority == p] for p in priorities]


def _drawn(tiers: Sequence[_Tier], r: float) -> Iterator[Target]:
    """Draw all targets by weight, without replacement, from one draw.

    What is left of `r` within the chosen interval, scaled up to [0, 1), is the draw for the next
    choice, and so on through the tiers. So each order of the targets has an interval of `r` of its
    own, as long as its probability: the sequence splits the second choices of those whose first
    choice fails as evenly as it does the first ones. A double has bits for the order of some 17
    equal targets; from there on the order is arbitrary, but still one of all.
    """
    for tier in tiers:
        rest = list(tier)
        while rest:
            index, r = place([target.weight for target in rest], r)
            yield rest.pop(index)


def _hashed(tiers: Sequence[_Tier], value: str) -> Iterator[Target]:
    for tier in tiers:
        yield from rank_by_hash(tier, value)


# --- between attempts -----------------------------------------------------------------------------


def condition(status: int) -> RetryCondition | None:
    """Return the condition under which a status is tried again, or None for one that never is.

    408, the provider's own time limit, is none of these by its number and counts as 5xx.
    """
    if status not in RETRIABLE_STATUS:
        return None
    match status:
        case 429:
            return "429"
        case _:
            return "5xx"


def backoff(policy: RetryPolicy, round: int, jitter: float) -> float:  # noqa: A002 (its name)
    """Return the pause in seconds before a target is tried once more.

    It doubles with each round, up to `LONGEST_BACKOFF`; `round` is 0 for the first pause. `jitter`,
    a number in [0, 1), takes off up to a half, also at the longest, so that requests that failed
    together do not come back together.
    """
    pause = policy.backoff * 2.0 ** min(round, _MOST_DOUBLINGS)
    return min(pause, LONGEST_BACKOFF) * (0.5 + jitter / 2)


def retry_after(value: str | None, now_epoch: float) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3), 0 for the past.

    Fractions of a second are taken too: providers send them. `now_epoch` is in seconds since 1970.
    None: there is no header, or it can't be read.
    """
    value = (value or "").strip()
    if _SECONDS.match(value):
        seconds = float(value)
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    if not _HTTP_DATE.match(value):
        return None
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    # HTTP dates are in GMT, which the oldest of their three forms does not say.
    when = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(when.timestamp() - now_epoch, 0.0)
