"""The metrics of one instance: its router feeds them while they are on.

What is read of a router for them is what the page shows, too.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

from pointsman.config.resources import normalise_host
from pointsman.config.table import Route, RoutingTable, Rule, Target
from pointsman.proxy.router import Router
from pointsman.routing.planning import best, endpoint_states, split
from pointsman.telemetry.exposition import shared
from pointsman.telemetry.metrics import Metrics
from pointsman.telemetry.naming import name_of_rule
from pointsman.telemetry.reading import Reading, RulesReading, TargetReading

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 1.0


class Measuring:
    """Switches metrics on and off, and tells them of the rules."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._metrics: Metrics | None = None
        self._refreshing: asyncio.Task[None] | None = None

    def switch(self, *, on: bool) -> None:
        """Begin to count, or stop and forget."""
        if on is (self._metrics is not None):
            return
        self.close()
        if not on:
            return
        try:
            self._metrics = Metrics(lambda: read(self._router))
        except OSError as error:
            logger.warning("there are no metrics: their files can't be made (%s)", error)
            return
        self._router.sinks.put("metrics", self._metrics.record)
        if self._router.table.exact or self._router.table.wildcards:
            self.rules_live()

    def running(self) -> None:
        """Write down now and then what exchanges do not tell, where others render it."""
        if self._metrics is not None and shared():
            self._refreshing = asyncio.get_running_loop().create_task(_refresh(self._metrics))

    def rules_live(self) -> None:
        """Tell of the router's table, which is new."""
        self._tell(lambda metrics: metrics.rules_live(read_rules(self._router.table)))

    def rules_refused(self) -> None:
        """Tell that rules could not be loaded."""
        self._tell(Metrics.rules_refused)

    def _tell(self, what: Callable[[Metrics], None]) -> None:
        if self._metrics is None:
            return
        try:
            what(self._metrics)
        except Exception:
            logger.exception("the metrics do not know of the rules")

    def close(self) -> None:
        """Stop counting."""
        self._router.sinks.remove("metrics")
        if self._refreshing is not None:
            self._refreshing.cancel()
        if self._metrics is not None:
            self._metrics.close()
        self._metrics = self._refreshing = None


async def _refresh(metrics: Metrics) -> None:
    failing = False
    while True:
        await asyncio.sleep(_EVERY_SECONDS)
        try:
            metrics.refresh()
        except Exception:
            if not failing:
                logger.exception("the metrics could not be brought up to date")
            failing = True
        else:
            failing = False


def read(router: Router) -> Reading:
    """Read what is under way in a router, and how its targets are."""
    now = time.monotonic()
    under_way = router.requests_under_way
    return Reading(
        requests=len(under_way),
        streams=sum(request.streaming for request in under_way),
        targets=tuple(
            reading
            for route, rule in router.table.rules()
            for reading in _read_targets(router, route, rule, now)
        ),
        mirrors_dropped=dict(router.mirrors.dropped),
    )


def _read_targets(router: Router, route: Route, rule: Rule, now: float) -> Iterator[TargetReading]:
    for target, share in split(rule.targets):
        states = [state for _, state in endpoint_states(target, router.health, now)]
        yield TargetReading(
            **name_of_rule(route, rule)._asdict(),
            provider=target.provider,
            weight=target.weight,
            priority=target.priority,
            share=share,
            state=best(states),
            endpoints=None if target.endpoints is None else len(states),
            ejected_endpoints=states.count("ejected"),
        )


def read_rules(table: RoutingTable) -> RulesReading:
    """Read what a table's rules name."""
    rules = list(table.rules())
    targets = [target for _, rule in rules for target in _targets(rule)]
    return RulesReading(
        rules=frozenset(name_of_rule(route, rule) for route, rule in rules),
        providers={normalise_host(target.host): target.provider for target in targets},
        models=frozenset(model for target in targets for model in _models(target)),
    )


def _targets(rule: Rule) -> Iterator[Target]:
    yield from rule.targets
    if rule.mirror is not None:
        yield rule.mirror.target


def _models(target: Target) -> Iterator[str]:
    if target.config is not None:
        if target.config.model is not None:
            yield target.config.model
        yield from target.config.model_mapping.values()
