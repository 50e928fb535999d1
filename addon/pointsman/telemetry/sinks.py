"""Everything that wants to know of each exchange: the log, the metrics, the traces, the page.

What a sink does wrong costs neither a request nor another sink anything. They all get texts that
can be encoded: what clients send is made so here, once.
"""

import logging
from collections.abc import Callable

from pointsman.telemetry.exchange import Exchange

_logger = logging.getLogger(__name__)

type Sink = Callable[[Exchange], None]


class Sinks:
    """The sinks by their names, called in the order in which they came."""

    def __init__(self) -> None:
        self._sinks: dict[str, Sink] = {}
        self._failing: set[str] = set()

    def put(self, name: str, sink: Sink) -> None:
        """Add a sink, or put it in the place of the one of that name."""
        self._sinks[name] = sink
        self._failing.discard(name)

    def remove(self, name: str) -> None:
        """Remove a sink, if there is one of that name."""
        self._sinks.pop(name, None)

    def emit(self, exchange: Exchange) -> None:
        """Give the exchange to each. That one fails is told once, until it works again."""
        exchange.make_well_formed()
        for name, sink in tuple(self._sinks.items()):
            try:
                sink(exchange)
            except Exception:
                if name not in self._failing:
                    self._failing.add(name)
                    _logger.exception("%s: an exchange could not be recorded", name)
            else:
                self._failing.discard(name)
