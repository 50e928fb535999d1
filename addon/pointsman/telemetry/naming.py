"""What names a rule in the metrics, on the page and in a report: one key for all of them."""

from typing import NamedTuple

from pointsman.config.table import Route, Rule
from pointsman.telemetry.exchange import Exchange


class RuleName(NamedTuple):
    """A rule by its names, or what a route refused, where `rule` is empty; all empty: no route.

    Attributes:
        route: the route's name, or the host of a provider that answers without one.
        host: the route's, which tells routes of one name in several namespaces apart.
        rule: its name in the route.
    """

    route: str = ""
    host: str = ""
    rule: str = ""


def name_of_rule(route: Route, rule: Rule) -> RuleName:
    """Return what a rule of the table is called."""
    return RuleName(route.name or route.host, route.host, rule.name)


def name_of_decided(exchange: Exchange) -> RuleName:
    """Return the rule that a request came by."""
    host = exchange.route_host or ""
    return RuleName(exchange.route or host, host, exchange.rule or "")
