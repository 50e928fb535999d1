"""What the labels of an exchange are: names of the rules, and a bounded number of others.

No label holds a key, a prompt, an answer or a path. Routes, rules and providers are those of the
rules. A model that no rule names has its own label only if a call with it went well, and only while
there are few; then all others are `other`.
"""

from collections.abc import Callable, Mapping

from pointsman.config.resources import normalise_host
from pointsman.telemetry.conventions import status_label
from pointsman.telemetry.exchange import Attempt, Exchange
from pointsman.telemetry.families import RULE, Labels
from pointsman.telemetry.labels import NONE, OTHER, Names, clean
from pointsman.telemetry.naming import RuleName, name_of_decided
from pointsman.telemetry.reading import RulesReading
from pointsman.telemetry.verdicts import is_error

_MOST_MODELS = 100  # that no rule names; asked for and answered with, each


class Labelling:
    """The labels of exchanges, by the live rules and by those before, which some began under."""

    def __init__(self) -> None:
        self._rules = self._former = RulesReading()
        self._providers: frozenset[str] = frozenset()
        self._asked, self._answered = Names(_MOST_MODELS), Names(_MOST_MODELS)

    def rules_live(self, rules: RulesReading) -> None:
        """Take in rules that have become live."""
        self._former, self._rules = self._rules, rules
        self._providers = frozenset(rules.providers.values()) | frozenset(
            self._former.providers.values()
        )
        self._asked.know(rules.models)
        self._answered.know(rules.models)

    def named_by_rules(self) -> Callable[[Mapping[str, str]], bool]:
        """Return what tells whether a series with these labels is one of the live rules."""
        rules = {rule_labels(rule) for rule in self._rules.rules}
        where_none_matches = {(*rule[:2], NONE) for rule in rules} | {(NONE,) * len(RULE)}
        without_route = {(NONE, NONE, rule[-1]) for rule in rules}
        known = rules | where_none_matches | without_route
        providers = {clean(name) for name in self._rules.providers.values()} | {NONE, OTHER}
        hosts = {clean(host) for host in self._rules.providers} | {NONE, OTHER}

        def tell(labels: Mapping[str, str]) -> bool:
            rule = tuple(labels.get(name, NONE) for name in RULE)
            provider = labels.get("provider", NONE)
            host = labels.get("server_address", NONE)
            return rule in known and provider in providers and host in hosts

        return tell

    def target(self, exchange: Exchange) -> Labels:
        """Return the labels of the rule and of the provider that was tried last."""
        return (*rule_labels(name_of_decided(exchange)), self.provider(exchange.provider))

    def models(self, exchange: Exchange) -> tuple[str, str]:
        """Return the labels of the model that was asked for and of the one that answered."""
        good = not is_error(exchange.status, exchange.error)
        asked = self._asked.label(exchange.request_model, admit=good)
        return asked, self._answered.label(exchange.response_model, admit=good)

    def called(self, exchange: Exchange) -> tuple[str, str]:
        """Return the labels of the host that was called and of the provider that has it.

        What is only observed goes where the client sent it: to a host that it may have made up.
        """
        host = normalise_host(host_called(exchange) or "")
        provider = self._provider_at(host)
        return (clean(host), clean(provider)) if provider else (OTHER, OTHER)

    def provider(self, name: str | None) -> str:
        """Return the label of a provider."""
        if not name:
            return NONE
        return clean(name) if name in self._providers else OTHER

    def payer(self, exchange: Exchange) -> str:
        """Return the label of the provider that has the cost: who was called."""
        if exchange.observed and exchange.attempts:
            return self.tried(exchange.attempts[-1])
        return self.provider(exchange.provider)

    def tried(self, attempt: Attempt) -> str:
        """Return the label of the provider of an attempt."""
        # One that is only observed may have a host in the place of its provider.
        found = self._provider_at(normalise_host(attempt.provider_host))
        return self.provider(found or attempt.provider)

    def _provider_at(self, host: str) -> str | None:
        """Return the provider that has a host by the rules."""
        return self._rules.providers.get(host) or self._former.providers.get(host)


def rule_labels(name: RuleName) -> Labels:
    """Return the labels of a rule."""
    return tuple(map(clean, name))


def host_called(exchange: Exchange) -> str | None:
    """Return the host that was called last, else the one that would have been."""
    return exchange.attempts[-1].provider_host if exchange.attempts else exchange.provider_host


def outcome_labels(exchange: Exchange) -> Labels:
    """Return the labels of what became of a request: its status, its flags."""
    return status_of(exchange), ",".join(sorted(exchange.flags)) or NONE


def status_of(exchange: Exchange) -> str:
    """Return the label of the status that a client got."""
    return NONE if exchange.status is None else status_label(exchange.status)
