"""Which rule a request comes under: the first that matches.

A rule's matches are ORed, what stands inside one match is ANDed, and a rule without matches takes
everything. The same evaluation serves the request and the explanation of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pointsman.config.problems import shown_field
from pointsman.config.table import CompiledMatch, Condition, Route, Rule
from pointsman.routing.request import ClientRequest


@dataclass(frozen=True, slots=True)
class Verdict:
    """One rule's answer to a request; `reason` tells why, in words."""

    rule: Rule
    matched: bool
    reason: str


def match(route: Route, request: ClientRequest) -> Rule | None:
    """Return the first rule of the route that matches, or None."""
    for rule in route.rules:
        if not rule.matches or any(_failure(one, request) is None for one in rule.matches):
            return rule
    return None


def explain(route: Route, request: ClientRequest) -> Iterator[Verdict]:
    """Yield the verdict of each rule in order, up to and with the one that matches."""
    for rule in route.rules:
        verdict = _verdict(rule, request)
        yield verdict
        if verdict.matched:
            return


def reads_body(rule: Rule) -> bool:
    """Tell whether the rule looks at the body: at its model, or for its affinity."""
    if rule.affinity is not None and rule.affinity.body_field is not None:
        return True
    return any(c.kind == "model" for one in rule.matches for c in one.conditions)


def _verdict(rule: Rule, request: ClientRequest) -> Verdict:
    if not rule.matches:
        return Verdict(rule, matched=True, reason="it has no matches, so it takes every request")
    failures = []
    for one in rule.matches:
        failure = _failure(one, request)
        if failure is None:
            said = " and ".join(_words(c) for c in one.conditions) or "an empty match takes all"
            return Verdict(rule, matched=True, reason=said)
        failures.append(failure)
    return Verdict(rule, matched=False, reason="; ".join(failures))


def _failure(one: CompiledMatch, request: ClientRequest) -> str | None:
    """Return why this match fails, or None when it holds."""
    if one.excluded is not None:
        return one.excluded
    for condition in one.conditions:
        value = _value(condition, request)
        if value is None:
            return f"{_subject(condition)} is absent (wanted: {condition.text})"
        if not condition.test(value):
            return f"{_subject(condition)} {condition.unmet}"
    return None


def _value(condition: Condition, request: ClientRequest) -> str | None:
    match condition.kind:
        case "header":
            return request.header_values.get(condition.name)
        case "path":
            return request.bare_path
        case "method":
            return request.method
        case "model":
            return request.model


def _subject(condition: Condition) -> str:
    return f"header {shown_field(condition.name)}" if condition.kind == "header" else condition.kind


def _words(condition: Condition) -> str:
    return f"{_subject(condition)} {condition.text}"
