"""What one running instance knows: the live table, the draws, the log. It imports no mitmproxy.

The table is replaced by one assignment; a request that has begun keeps the route it found.
"""

import logging
import random
import time
from dataclasses import dataclass, replace
from typing import Protocol

from pointsman.config.hosts import NO_HOSTS, Hosts
from pointsman.config.resources import normalise_host
from pointsman.config.table import Route, RoutingTable, Rule, Target
from pointsman.errors import NoRouteError, NoTargetError, RequestError
from pointsman.proxy.bodies import Bodies
from pointsman.proxy.faults import log_fault
from pointsman.proxy.keys import Keys, no_key
from pointsman.proxy.mirroring import Mirrors
from pointsman.proxy.own_keys import OwnKeys
from pointsman.proxy.reading import Reading
from pointsman.routing import matching
from pointsman.routing.balancing import DrawSequence, NoWeightError
from pointsman.routing.health import Health
from pointsman.routing.matching import match, reads_body
from pointsman.routing.planning import NoEndpointError, Plan, all_endpoints, endpoints, make_plan
from pointsman.routing.request import ClientRequest
from pointsman.routing.rewriting import patches_body
from pointsman.telemetry.content import Room
from pointsman.telemetry.exchange import Attempt, DecisionRecord, Exchange, RuleVerdict
from pointsman.telemetry.sinks import Sinks

logger = logging.getLogger(__name__)

DEFAULT_BODY_LIMIT = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes and by which rule; `observe` means that it only would.

    `draw` is the number that chose by weight; None where an affinity chose, or a person did
    (`by_hand`).
    """

    route: Route
    rule: Rule
    plan: Plan
    observe: bool
    draw: float | None = None
    by_hand: bool = False

    @property
    def target(self) -> Target:
        """The target that is tried first."""
        return self.plan.order[0]


class Open(Protocol):
    """A request under way."""

    @property
    def streaming(self) -> bool:
        """Whether its answer is a stream that has begun."""

    def abandon(self, error: RequestError | None = None) -> None:
        """Close its exchange: no more events will come. None: its client has gone."""


class Tracing(Protocol):
    """What makes spans of attempts."""

    def begin(self, exchange: Exchange, attempt: Attempt) -> dict[str, str]:
        """Begin an attempt's span; return the headers that pass the client's trace on."""

    def begin_copy(self, exchange: Exchange, copy: Exchange) -> dict[str, str]:
        """Begin the span of a copy of an exchange's request, likewise."""


class Router:
    """Decides, and remembers what decisions need."""

    def __init__(self) -> None:
        self.table = RoutingTable()
        self._passthrough = self._denied = NO_HOSTS
        self.body_limit = DEFAULT_BODY_LIMIT
        self.observe = False
        # A UI wants to show bodies; without one, streamed bodies are not kept.
        self.keep_bodies = False
        # A UI can replay what it shows; there is one where this is set.
        self.own_keys: OwnKeys | None = None
        # Which provider a person wants a flow to be replayed through, by the flow's id.
        self.wanted_by_hand: dict[str, str] = {}
        # In plain mitmdump no one sees what stands on a flow.
        self.shows = True
        # A UI and saved flows show the way of each request; the page shows its decision alone.
        self.keep_ways = False
        self.keep_decisions = False
        # Clients are asked to come again by another connection.
        self.draining = False
        self.workload: str | None = None
        self.namespace: str | None = None
        self.sinks = Sinks()
        self.tracing: Tracing | None = None
        self.capture: Room | None = None  # for prompts and answers, where spans are to have them
        self._open: dict[str, set[Open]] = {}
        self.health = Health()
        self.keys = Keys()
        self.mirrors = Mirrors()
        self.reading = Reading()
        self.bodies = Bodies()
        self._providers: dict[str, str] = {}  # by their hosts
        self._draws: dict[tuple[str, str], DrawSequence] = {}
        self._usage_refused: set[str] = set()
        self._usage_accepted: set[str] = set()
        self._unread: set[str] = set()

    def go_live(self, table: RoutingTable) -> None:
        """Replace the table; rules that stay go on in their sequence of draws."""
        routes = [*table.exact.values(), *(route for _, route in table.wildcards)]
        keys = {rule.key for route in routes for rule in route.rules}
        self._draws = {key: draws for key, draws in self._draws.items() if key[0] in keys}
        self._usage_refused.clear()
        self._usage_accepted.clear()
        self._unread.clear()
        self.keys.forget()
        self.table = replace(table, passthrough=self._passthrough, denied=self._denied)
        self._providers = {normalise_host(t.host): t.provider for t in table.targets()}
        self.endpoints_changed()

    def provider_at(self, host: str) -> str:
        """Return the name of the provider that has a host, or else the host."""
        return self._providers.get(normalise_host(host), host)

    def endpoints_changed(self) -> None:
        """Forget the health of what is no longer called."""
        self.health.keep(all_endpoints(self.table.targets()))

    def guard(self, *, passthrough: Hosts, denied: Hosts) -> None:
        """Set which hosts are exempt from the rules, and which are refused where none names them.

        It holds for this table and those that follow.
        """
        self._passthrough, self._denied = passthrough, denied
        self.table = replace(self.table, passthrough=passthrough, denied=denied)

    def decide(self, route: Route, request: ClientRequest) -> Decision:
        """Return the decision for a request to this route.

        Raises:
            NoRouteError: no rule matches.
            NoTargetError: none of the rule's targets can be called.
            KeyMissingError: likewise, as they have no key.
        """
        rule = match(route, request)
        if rule is None:
            raise NoRouteError(f"No rule of the route for {route.host} matches this request.")
        observe = self.observe or rule.observe
        drawn: list[float] = []

        def draw() -> float:
            drawn.append(self._draws_of(rule).draw())
            return drawn[0]

        try:
            now = time.monotonic()
            callable_now = rule if observe else self._with_keys(rule)
            plan = make_plan(callable_now, request, draw, self.health, now)
        except NoWeightError:
            raise NoTargetError(
                f"The rule {rule.name} of the route for {route.host} has no provider to choose: "
                + (rule.fault or "none has a weight and applies to this workload.")
            ) from None
        except NoEndpointError:
            raise NoTargetError(
                f"The rule {rule.name} of the route for {route.host} has no backend to call:"
                f" {_without_endpoints(rule)}."
            ) from None
        decision = Decision(route, rule, plan, observe, drawn[0] if drawn else None)
        if not decision.observe:
            # Now, not when it is sent: of requests that are decided together one alone may probe.
            self.health.begin(decision.target, now)
        return decision

    def decide_via(self, route: Route, request: ClientRequest, provider: str) -> Decision:
        """Return the decision for a request that a person sends to a provider of their choice.

        The provider is called as the request's own rule calls it, else as another rule does. The
        rule of the decision is the request's own; one without a name where none matches.

        Raises:
            NoTargetError: no rule names the provider, or it has no backend to call.
        """
        own = match(route, request) or Rule("", "", (), ())
        others = (rule for one in self.table.exact.values() for rule in one.rules)
        for rule in (own, *route.rules, *others):
            for target in rule.targets:
                if provider in {target.provider, target.host}:
                    called = next(endpoints(target), None)
                    if called is None:
                        raise NoTargetError(f"The provider {provider} has no backend to call.")
                    only = replace(own, targets=(target,), mirror=None)
                    plan = Plan((called,), (), attempts=1)
                    return Decision(route, only, plan, observe=False, by_hand=True)
        raise NoTargetError(f"No rule names the provider {provider}.")

    def decide_unread(self, route: Route, request: ClientRequest) -> Decision | None:
        """Return the decision for a request whose body is too large to be read.

        None: the decision, or the rewriting, needs the body. What is only accounted for or observed
        never does.

        Raises:
            NoRouteError, NoTargetError: as `decide`.
        """
        if any(reads_body(rule) for rule in route.rules) and not self.observe:
            return None
        decision = self.decide(route, request)
        if patches_body(decision.target, request) and not decision.observe:
            # The probe that it may have been is free again.
            self.health.abandoned(decision.target, time.monotonic())
            return None
        return decision

    def _with_keys(self, rule: Rule) -> Rule:
        """Leave out the targets that have no key now.

        Raises:
            KeyMissingError: no other is left.
        """
        left = tuple(filter(self.keys.available, rule.targets))
        if len(left) == len(rule.targets):
            return rule
        wanted = [target.provider for target in rule.targets if target.weight > 0]
        if wanted and not any(target.weight > 0 for target in left):
            raise no_key(rule.name, wanted)
        return replace(rule, targets=left)

    def mirrors_now(self, rule: Rule) -> bool:
        """Tell whether this request of the rule's is one of those that are copied."""
        if rule.mirror is None:
            return False
        return self._draws_of(rule, "mirror").draw() * 100 < rule.mirror.percent

    def _draws_of(self, rule: Rule, purpose: str = "") -> DrawSequence:
        key = (rule.key, purpose)
        if key not in self._draws:
            # Instances must not march in step; this start is no secret.
            self._draws[key] = DrawSequence(random.random())  # noqa: S311
        return self._draws[key]

    def record(
        self, route: Route, request: ClientRequest, decision: Decision | None
    ) -> DecisionRecord | None:
        """Return how a decision (None: there is none) came about, where something shows it."""
        if not (self.keep_decisions or self.keep_ways):
            return None
        rules = tuple(
            RuleVerdict(verdict.rule.name, verdict.matched, verdict.reason)
            for verdict in matching.explain(route, request)
        )
        if decision is None:
            return DecisionRecord(rules)
        order, skipped = decision.plan.order, decision.plan.skipped
        return DecisionRecord(
            rules,
            decision.draw,
            tuple(target.provider for target in order),
            tuple(target.provider for target in skipped),
            by_hand=decision.by_hand,
        )

    # Requests under way, by their client's connection: each must end in one log line.

    def opened(self, client: str, request: Open) -> None:
        """Remember a request of this client."""
        self._open.setdefault(client, set()).add(request)

    def closed(self, client: str, request: Open) -> None:
        """Forget it: its exchange is closed."""
        if requests := self._open.get(client):
            requests.discard(request)
            if not requests:
                del self._open[client]

    def client_gone(self, client: str) -> None:
        """Close what a client's connection has left open."""
        for request in tuple(self._open.get(client, ())):
            request.abandon()

    @property
    def under_way(self) -> int:
        """How many requests are under way."""
        return sum(map(len, self._open.values()))

    @property
    def requests_under_way(self) -> tuple[Open, ...]:
        """Those that are under way now; it may be looked at from another thread."""
        return tuple(request for each in tuple(self._open.values()) for request in tuple(each))

    def stop(self, error: RequestError) -> None:
        """Close everything that is open, for this reason."""
        for request in self.requests_under_way:
            request.abandon(error)
        self.mirrors.stop(error)

    # Asking a stream for its usage: some providers refuse the parameter.

    def asks_usage(self, target: Target) -> bool:
        """Tell whether this provider may be asked for usage on our own account."""
        return target.host not in self._usage_refused

    def suspects_usage(self, target: Target) -> bool:
        """Tell whether a 400 may be about the parameter: it has never been accepted here."""
        return target.host not in self._usage_accepted

    def usage_accepted(self, target: Target) -> None:
        """Remember that the provider takes the parameter."""
        self._usage_accepted.add(target.host)

    def usage_refused(self, target: Target) -> None:
        """Remember, until the next reload, that the provider does not take it; tell it once."""
        if target.host not in self._usage_refused:
            self._usage_refused.add(target.host)
            logger.warning(
                "the provider %s refuses to be asked for the usage of streams: until the rules are"
                " loaded again it is not asked, and what it does not tell by itself stays unknown",
                target.provider,
            )

    def tell_fault(self, host: str, fault: Exception) -> None:
        """Log that answers of this provider can't be read in full: once, until the next reload."""
        if host not in self._unread:
            self._unread.add(host)
            log_fault(logger, f"an answer of {host} could not be read in full", fault)


def _without_endpoints(rule: Rule) -> str:
    """Say why each backend of a rule has no endpoint."""
    told = {
        target.provider: target.endpoints.fault or "no pod is ready"
        for target in rule.targets
        if target.endpoints is not None
    }
    return "; ".join(f"{name}: {why}" for name, why in told.items())
