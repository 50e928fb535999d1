"""Connections to providers: asked for under a name, with the provider's own TLS settings."""

import asyncio
from dataclasses import dataclass, field

from mitmproxy.connection import Connection, Server
from mitmproxy.proxy.layers.http import GetHttpConnection

from pointsman.config.table import DEFAULT_CONNECT_TIMEOUT, TlsSettings


class ProviderConnection(Server):
    """A connection to a provider: mitmproxy's `Server`, and the TLS settings it was made with."""

    settings: TlsSettings
    connect_timeout: float
    timed_out = False


@dataclass(eq=False)
class GetProviderConnection(GetHttpConnection):
    """Get a connection to an address under a name: Host and SNI are not what is connected to."""

    sni: str = ""
    settings: TlsSettings = field(default_factory=TlsSettings)
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    fresh: bool = False
    server: ProviderConnection | None = None

    def __hash__(self) -> int:
        return id(self)

    def connection_spec_matches(self, connection: Connection) -> bool:
        """Tell whether an open connection serves: the same address, name and settings."""
        return (
            isinstance(connection, ProviderConnection)
            and super().connection_spec_matches(connection)
            and connection.sni == self.sni
            and connection.settings == self.settings
        )


class ConnectTimeouts:
    """Bounds how long a connection takes to be usable: TCP, and TLS where there is any.

    mitmproxy has no such bound: a host that answers nothing lasts as long as the kernel tries. The
    task that connects is the one that reads later, so ending it ends a handshake as well.
    """

    def __init__(self) -> None:
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def begin(self, server: Server) -> None:
        """Start the clock; called in the task that is about to connect."""
        task = asyncio.current_task()
        if not isinstance(server, ProviderConnection) or task is None:
            return

        def expire() -> None:
            server.timed_out = True
            task.cancel()

        loop = asyncio.get_running_loop()
        self._timers[server.id] = loop.call_later(server.connect_timeout, expire)

    def end(self, server: Server) -> None:
        """Stop the clock: the connection can be used, or has failed."""
        if timer := self._timers.pop(server.id, None):
            timer.cancel()
