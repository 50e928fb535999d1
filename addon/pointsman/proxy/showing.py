"""The decision on the flow: its comment, its marker, metadata for filters, the way for the view.

What a person has written or marked there is never overwritten. What we have written is kept in the
metadata too, so that it is known as ours when the flow is replayed, copied, or loaded from a file.
None of this may fail a request.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from mitmproxy import flow, http

from pointsman.proxy.faults import log_fault
from pointsman.proxy.router import Decision
from pointsman.routing.changes import (
    BodyChange,
    Change,
    body_changes,
    header_changes,
    place_changes,
)
from pointsman.routing.planning import shares
from pointsman.routing.request import ClientRequest
from pointsman.routing.rewriting import Outgoing
from pointsman.telemetry.exchange import Exchange, summary
from pointsman.viewing.route import Outcome, outcome, way_of
from pointsman.viewing.texts import line

logger = logging.getLogger(__name__)

# mitmproxy's names of them, as filters want them: `~marker hook`. They are signs that any font and
# any terminal has, and none of the colours that mitmweb's own menu offers for marks.
MARKERS: dict[Outcome, str] = {
    "routed": ":arrow_right:",
    "failed-over": ":arrow_right_hook:",
    "observed": ":information_source:",
    "refused": ":heavy_multiplication_x:",
    "failed": ":warning:",
}
WAY = "llm_way"
CUT = "llm_cut"
COMPARED = "llm_compared"
COMMENT = "llm_comment"  # what we have written last
_FIELDS = (
    *("llm_api", "llm_outcome", "llm_route", "llm_rule", "llm_provider", "llm_model"),
    *("llm_flags", "llm_error", "llm_attempts"),
)
_MAX_VALUE = 200


@dataclass(frozen=True, slots=True)
class _Rewritten:
    place: Sequence[Change] = field(default=())
    headers: Sequence[Change] = field(default=())
    body: Sequence[BodyChange] = field(default=())


class Showing:
    """Keeps one flow's decision in view. `full` adds the way, which is work."""

    def __init__(self, flow: http.HTTPFlow, *, full: bool) -> None:
        self._flow = flow
        self.full = full
        self._comment, self._marker = "", ""
        if flow.is_replay:
            self._forget()
        self._rewritten = _Rewritten()

    def _forget(self) -> None:
        """Take what the call before has left off the flow."""
        shown = self._flow
        if shown.comment == shown.metadata.pop(COMMENT, ""):
            shown.comment = ""
        if not marked_by_person(shown):
            shown.marked = ""
        for name in (*_FIELDS, WAY, CUT, COMPARED):
            shown.metadata.pop(name, None)

    def rewritten(self, request: ClientRequest, outgoing: Outgoing) -> None:
        """Take in what the attempt under way has changed."""
        try:
            self._rewritten = _Rewritten(
                place_changes(request, outgoing),
                header_changes(request, outgoing),
                body_changes(request, outgoing),
            )
        except Exception as fault:  # noqa: BLE001
            log_fault(logger, "a rewrite could not be shown", fault)

    def cut(self, whole_size: int) -> None:
        """Say that of an answer of so many bytes only the first were kept."""
        self._flow.metadata[CUT] = whole_size

    def update(self, exchange: Exchange, decision: Decision | None) -> None:
        """Show what is known now."""
        try:
            self._update(exchange, decision)
        except Exception as fault:  # noqa: BLE001
            log_fault(logger, "a decision could not be shown", fault)

    def _update(self, exchange: Exchange, decision: Decision | None) -> None:
        shown, ended = self._flow, outcome(exchange)
        comment = line(summary(exchange), 2 * _MAX_VALUE)
        if shown.comment == self._comment:
            shown.comment = self._comment = shown.metadata[COMMENT] = comment
        if ended and shown.marked == self._marker:
            shown.marked = self._marker = MARKERS[ended]
        attempts = len(exchange.attempts)
        values = {
            "llm_api": exchange.api,
            "llm_outcome": ended,
            "llm_route": exchange.route,
            "llm_rule": exchange.rule,
            "llm_provider": exchange.provider,
            "llm_model": exchange.request_model,
            "llm_flags": " ".join(exchange.flags),
            "llm_error": exchange.error,
            "llm_attempts": str(attempts) if attempts else None,
        }
        for name, value in values.items():
            shown.metadata.pop(name, None)  # of a decision that was made before an edit
            if value:
                shown.metadata[name] = line(value, _MAX_VALUE)
        if self.full:
            rewritten = self._rewritten
            shown.metadata[WAY] = way_of(
                exchange,
                [(t.provider, s, t.priority) for t, s in shares(decision.rule.targets) if s]
                if decision
                else [],
                place=rewritten.place,
                headers=rewritten.headers,
                body=rewritten.body,
            )


def is_ours(flow: flow.Flow) -> bool:
    """Tell whether a flow has a decision of ours on it, now or when it was saved."""
    return any(name in flow.metadata for name in ("llm_provider", "llm_error", "llm_flags", WAY))


def marked_by_person(flow: flow.Flow) -> bool:
    """Tell whether a flow has another marker than the one of its outcome."""
    ended = flow.metadata.get("llm_outcome")
    return bool(flow.marked) and flow.marked != MARKERS.get(ended)  # type: ignore[arg-type]
