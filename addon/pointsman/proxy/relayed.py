"""Connections that are relayed undecrypted although the rules have come to name their host.

Whether a TLS connection is decrypted is decided at its beginning, and it may live for hours. When
new rules name its host it is closed, so that its client comes again and is routed: as soon as
nothing moves on it, so that no answer under way is cut.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

from mitmproxy.connection import Client
from mitmproxy.master import Master

from pointsman.config.table import RoutingTable

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 2.0
_LOOK_EVERY = 0.25


class Relayed:
    """What is relayed now, by the ids of the clients' connections."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[str, ...]] = {}
        self._closing: asyncio.Task[None] | None = None

    def note(self, client: Client, names: Iterable[str]) -> None:
        """A connection is left undecrypted; these are the names that it goes by."""
        self._names[client.id] = tuple(names)

    def forget(self, client: Client) -> None:
        """A connection is over."""
        self._names.pop(client.id, None)

    def rules_live(self, master: Master, table: RoutingTable) -> None:
        """Close what these rules would have decrypted, each when it is idle."""
        self.stop()
        if due := {key for key, names in self._names.items() if _covers(table, names)}:
            logger.info(
                "connections to hosts that the rules name now: %d; each is closed when it is idle,"
                " to be routed when its client comes again",
                len(due),
            )
            work = self._close(master, due)
            self._closing = asyncio.get_running_loop().create_task(work)

    def stop(self) -> None:
        """Close no more: other rules are live, or the process ends."""
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    async def _close(self, master: Master, due: set[str]) -> None:
        while due := due & self._names.keys():
            for key in due:
                handler = master.addons.get("proxyserver").connections.get(key)
                moved = handler.timeout_watchdog.last_activity if handler is not None else 0.0
                if handler is not None and time.time() - moved >= _IDLE_SECONDS:
                    client = handler.transports.get(handler.client)
                    if client is not None and client.handler is not None:
                        client.handler.cancel("routed from now on")
            await asyncio.sleep(_LOOK_EVERY)


def _covers(table: RoutingTable, names: tuple[str, ...]) -> bool:
    return any(table.lookup(name) is not None for name in names)
