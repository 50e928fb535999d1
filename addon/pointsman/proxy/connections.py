"""Connections to providers: asked for under a name, with the provider's own TLS settings."""

from dataclasses import dataclass, field

from mitmproxy.connection import Connection, Server
from mitmproxy.proxy.layers.http import GetHttpConnection

from pointsman.config.table import TlsSettings


class ProviderConnection(Server):
    """A connection to a provider: mitmproxy's `Server`, and the TLS settings it was made with."""

    settings: TlsSettings


@dataclass(eq=False)
class GetProviderConnection(GetHttpConnection):
    """Get a connection to an address under a name: Host and SNI are not what is connected to."""

    sni: str = ""
    settings: TlsSettings = field(default_factory=TlsSettings)
    fresh: bool = False

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
