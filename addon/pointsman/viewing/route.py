"""The way of one request: what was decided and why, what was tried, what was changed.

It is built from the exchange's record when the request ends (and on the way), and kept on the flow
as plain data, so that it survives saving and loading. A file may come from anyone: data of another
shape is shown as nothing. It holds no key, no prompt and no answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import msgspec

from pointsman.protocols.usage import Usage
from pointsman.routing.changes import BodyChange, Change
from pointsman.telemetry.exchange import Attempt, Exchange, milliseconds, summary
from pointsman.telemetry.verdicts import is_failed_over
from pointsman.viewing.outline import Node
from pointsman.viewing.texts import line

Outcome = Literal["routed", "failed-over", "observed", "refused", "failed"]

_MOST = 100
_MAX_SUMMARY = 400


class Rule(msgspec.Struct, frozen=True):
    """A rule that was looked at."""

    rule: str
    matched: bool
    reason: str


class Share(msgspec.Struct, frozen=True):
    """A target, and its part of what its priority gets."""

    provider: str
    share: float
    priority: int = 0


class Try(msgspec.Struct, frozen=True):
    """An attempt. `ms` is its duration."""

    provider: str
    host: str
    status: int | None = None
    error: str | None = None
    ms: float | None = None


class Difference(msgspec.Struct, frozen=True):
    """Something that the rewriting has changed; None where it is not there."""

    what: str
    before: str | None
    after: str | None


class Way(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that the section shows."""

    summary: str = ""
    request_id: str = ""
    outcome: str = ""
    route: str | None = None
    rule: str | None = None
    observed: bool = False
    flags: list[str] = []
    error: str | None = None
    rules: list[Rule] = []
    draw: float | None = None
    by_hand: bool = False
    shares: list[Share] = []
    order: list[str] = []
    skipped: list[str] = []
    attempts: list[Try] = []
    mirrored_to: str | None = None
    place: list[Difference] = []
    headers: list[Difference] = []
    body: list[Difference] = []
    finish_reason: str | None = None
    usage: dict[str, int] = {}
    cost_usd: float | None = None
    first_token_ms: float | None = None
    overhead_ms: float | None = None


def outcome(exchange: Exchange) -> Outcome | None:
    """Return how a request ended, in a word; None as long as it has not, or where nobody was asked.

    A provider's own answer, whatever its status, counts as routed.
    """
    if "OB" in exchange.flags:
        return "observed"
    if exchange.ended is None:
        return None
    left = "DC" in exchange.flags  # the client has, or a person has killed its flow
    if not exchange.attempts and not left:
        return "refused" if exchange.error else None
    if exchange.error:
        return "failed"
    moved = is_failed_over(attempt.provider for attempt in exchange.attempts)
    return "failed-over" if moved else "routed"


def way_of(
    exchange: Exchange,
    shares: Iterable[tuple[str, float, int]] = (),
    *,
    place: Sequence[Change] = (),
    headers: Sequence[Change] = (),
    body: Sequence[BodyChange] = (),
) -> dict[str, Any]:
    """Return an exchange's way as plain data: strings, numbers, lists and dictionaries."""
    decision = exchange.decision
    way = Way(
        summary=line(summary(exchange), _MAX_SUMMARY),
        request_id=exchange.request_id,
        outcome=outcome(exchange) or "",
        route=exchange.route,
        rule=exchange.rule,
        observed="OB" in exchange.flags,
        flags=list(exchange.flags),
        error=exchange.error,
        rules=[Rule(v.rule, v.matched, v.reason) for v in decision.rules] if decision else [],
        draw=decision.draw if decision else None,
        by_hand=bool(decision and decision.by_hand),
        shares=[Share(*one) for one in shares],
        order=list(decision.targets) if decision else [],
        skipped=list(decision.skipped) if decision else [],
        attempts=[_try(attempt) for attempt in exchange.attempts],
        mirrored_to=exchange.mirrored_to,
        place=[Difference(c.what, c.before, c.after) for c in place],
        headers=[Difference(c.what, c.before, c.after) for c in headers],
        body=[Difference(c.field, c.before, c.after) for c in body],
        finish_reason=exchange.finish_reason,
        usage=counts(exchange.usage) if exchange.usage else {},
        cost_usd=exchange.cost_usd,
        first_token_ms=milliseconds(exchange.started, exchange.first_token),
        overhead_ms=round(exchange.overhead * 1000, 3),
    )
    data: dict[str, Any] = msgspec.to_builtins(way)
    return data


def counts(usage: Usage) -> dict[str, int]:
    """Return the token counts that are known, by their names without `_tokens`."""
    return {
        name.removesuffix("_tokens").replace("_", " "): count
        for name, count in asdict(usage).items()
        if count is not None
    }


def _try(attempt: Attempt) -> Try:
    ms = milliseconds(attempt.started, attempt.ended)
    return Try(attempt.provider, attempt.provider_host, attempt.status, attempt.error, ms)


def read(data: object) -> Way | None:
    """Return what `way_of` gave; None if it is something else."""
    if not isinstance(data, dict):
        return None
    try:
        return msgspec.convert(data, Way)
    except (msgspec.ValidationError, RecursionError):
        return None


# --- in words -------------------------------------------------------------------------------------


def section(way: Way) -> dict[str, Node]:
    """Return the section "Route" for an outline."""
    told: dict[str, Node] = {"outcome": _outcome(way)}
    told["route"] = line(way.route or "none: the provider answers for its own host")
    told["rules"] = [
        {f"{'✓' if rule.matched else '✗'} {rule.rule}": line(rule.reason)}
        for rule in way.rules[:_MOST]
    ]
    told["draw"] = _draw(way)
    told["order"] = line(", then ".join(way.order)) if len(way.order) > 1 else ""
    told["skipped"] = line(", ".join(f"{name} (ejected)" for name in way.skipped))
    told["attempts"] = [_attempt(n, one) for n, one in enumerate(way.attempts[:_MOST], 1)]
    copied = f"a copy went to {way.mirrored_to}; it has a line of its own in the log"
    told["mirrored"] = line(copied) if way.mirrored_to else ""
    told["rewritten"] = _rewritten(way)
    told["first token"] = "" if way.first_token_ms is None else f"after {way.first_token_ms:.0f} ms"
    told["overhead"] = "" if way.overhead_ms is None else f"{way.overhead_ms:.1f} ms in Pointsman"
    told["request id"] = line(way.request_id)
    return {name: node for name, node in told.items() if node not in ("", [], {})}


def _outcome(way: Way) -> str:
    said = way.outcome or ("observed" if way.observed else "under way")
    if way.observed:
        said += " (decided and logged, sent where it was going)"
    return line(" · ".join(part for part in (said, " ".join(way.flags), way.error) if part))


def _draw(way: Way) -> str:
    if way.by_hand:
        return "none, the provider was chosen by hand"
    shares = [
        f"{one.provider} {one.share:.0%}" + (f" at priority {one.priority}" * bool(one.priority))
        for one in way.shares
    ]
    if way.draw is None:
        return line(f"none, an affinity chose; {', '.join(shares)}") if way.order else ""
    if all(one.share == 1 for one in way.shares):
        return ""  # there was nothing to choose
    return line(f"{way.draw:.4f} among {', '.join(shares)}")


def _attempt(number: int, one: Try) -> Node:
    took = "" if one.ms is None else f"{one.ms:.0f} ms"
    status = "" if one.status is None else f"status {one.status}"
    error = one.error if one.error != status else ""
    said = ", ".join(part for part in (status, error, took) if part) or "under way"
    return {f"{number} {one.provider}": line(f"{said} ({one.host})")}


def _rewritten(way: Way) -> Node:
    told: dict[str, Node] = {one.what: arrow(one) for one in way.place}
    if way.headers:
        told["headers"] = {line(one.what): arrow(one) for one in way.headers}
    if way.body:
        told["body"] = {line(one.what): arrow(one) for one in way.body}
    if told or not way.attempts:
        return told
    return "nothing"


def arrow(one: Difference) -> str:
    """Return a difference as before → after; JSON strings lose their quotes."""
    before = "(absent)" if one.before is None else _bare(one.before)
    after = "(removed)" if one.after is None else _bare(one.after)
    return line(f"{before} → {after}")


def _bare(said: str) -> str:
    if len(said) > 1 and said[0] == said[-1] == '"':
        try:
            return str(msgspec.json.decode(said))
        except (msgspec.DecodeError, ValueError):
            return said
    return said
