"""Rules tried on saved requests: what would be routed, where to, and what other rules did with it.

Nothing is sent. The decisions are `explaining`'s, which are the proxy's.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pointsman.config.resources import authority, normalise_host
from pointsman.config.table import RoutingTable
from pointsman.explaining import Explanation, explain
from pointsman.routing.matching import reads_body
from pointsman.routing.request import ClientRequest
from pointsman.routing.rewriting import patches_body

Outcome = Literal["untouched", "observed", "routed", "re-routed", "refused", "unknown"]
MEANING: dict[Outcome, str] = {
    "untouched": "the host is in no rule",
    "observed": "decided, and left as it is (mode observe)",
    "routed": "to the host that was called",
    "re-routed": "to another host",
    "refused": "answered with an error",
    "unknown": "its body decides, and was not saved",
}
Change = Literal["same", "rewritten otherwise", "moved", "newly refused", "no longer refused"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a request. `detail` are the targets with their shares, or the error."""

    outcome: Outcome
    rule: str = ""
    detail: str = ""
    rewrite: object = None  # the requests that would leave, for comparing


@dataclass(frozen=True, slots=True)
class Line:
    """Requests of one kind that fare alike; `before` is None where nothing is compared."""

    request: str
    after: Verdict
    before: Verdict | None
    change: Change | None


def judge(table: RoutingTable, request: ClientRequest, names: Sequence[str]) -> Verdict:
    """Return what would become of a request."""
    name = next((name for name in names if table.lookup(name)), None)
    route = table.lookup(name)
    if name is None or route is None:
        return Verdict("untouched")
    request = replace(request, host=name)
    if request.body.streamed and any(
        reads_body(rule) or any(patches_body(target, request) for target in rule.targets)
        for rule in route.rules
    ):
        return Verdict("unknown")
    return _verdict(explain(table, request), name)


def _verdict(explanation: Explanation, host: str) -> Verdict:
    matched = next((step.rule for step in explanation.rules if step.matched), "")
    rule = f"{explanation.route}/{matched}" if matched else explanation.route or ""
    if explanation.observe:
        return Verdict("observed", rule, _targets(explanation))
    if explanation.error:
        return Verdict("refused", rule, explanation.error)
    own = normalise_host(host)
    stays = all(normalise_host(target.host) == own for target in explanation.targets)
    outcome: Outcome = "routed" if stays else "re-routed"
    rewrites = tuple((t.headers, t.dropped_headers, t.body_changes) for t in explanation.targets)
    return Verdict(outcome, rule, _targets(explanation), rewrites)


def _targets(explanation: Explanation) -> str:
    parts = []
    for target in explanation.targets:
        tier = f" as priority {target.priority}" if target.priority else ""
        parts.append(f"{target.provider} {target.share:.0%}{tier} ({target.url.partition('?')[0]})")
    return ", ".join(parts)


def compare(before: Verdict, after: Verdict) -> Change:
    """Tell what other rules change for a request."""
    if after.outcome == "refused" and before.outcome != "refused":
        return "newly refused"
    if before.outcome == "refused" and after.outcome != "refused":
        return "no longer refused"
    if (before.outcome, before.detail) != (after.outcome, after.detail):
        return "moved"
    return "same" if before.rewrite == after.rewrite else "rewritten otherwise"


class Replay:
    """Tries requests on rules, and on others (`against`) to compare."""

    def __init__(self, table: RoutingTable, against: RoutingTable | None = None) -> None:
        self._table = table
        self._against = against
        self.lines: Counter[Line] = Counter()
        self.outcomes: Counter[Outcome] = Counter()
        self.changes: Counter[Change] = Counter()

    def take(self, request: ClientRequest, names: Sequence[str]) -> None:
        """Try one request."""
        after = judge(self._table, request, names)
        before = judge(self._against, request, names) if self._against else None
        change = compare(before, after) if before else None
        self.outcomes[after.outcome] += 1
        if change:
            self.changes[change] += 1
        what = f"{request.method} {request.scheme}://{authority(names[0])}{request.bare_path}"
        slim = (replace(after, rewrite=None), before and replace(before, rewrite=None))
        self.lines[Line(what, *slim, change)] += 1

    @property
    def total(self) -> int:
        """How many requests were tried."""
        return self.outcomes.total()

    def told(self) -> list[tuple[Line, int]]:
        """Return the lines worth telling, the most frequent first.

        Without a comparison, what does not stay at its host; with one, what changes.
        """
        return [
            (line, count)
            for line, count in self.lines.most_common()
            if (
                line.change != "same"
                if line.change
                else line.after.outcome not in {"untouched", "routed"}
            )
        ]
