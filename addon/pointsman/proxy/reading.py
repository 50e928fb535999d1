"""Who is read from: a connection whose bytes can't go on is left to wait, and TCP slows its sender.

mitmproxy reads on for as long as the other side's sockets take what it writes. But what waits for
an HTTP/2 client's window, or for a provider that is still being connected to, is written to none.
"""

import asyncio

from mitmproxy.connection import Client, Connection
from mitmproxy.master import Master


class _Reader:
    """A `StreamReader` that reads only while it may."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.may_read = asyncio.Event()
        self.may_read.set()

    async def read(self, n: int = -1) -> bytes:
        """Read, as `StreamReader.read` does."""
        await self.may_read.wait()
        return await self._reader.read(n)


class Reading:
    """The connections of all clients and providers that can be left to wait."""

    def __init__(self) -> None:
        self._readers: dict[str, _Reader] = {}

    def attach(self, master: Master, client: Client, connection: Connection) -> None:
        """Take hold of a connection, before anything is read from it."""
        handler = master.addons.get("proxyserver").connections.get(client.id)
        found = handler.transports.get(connection) if handler is not None else None
        if found is not None and isinstance(found.reader, asyncio.StreamReader):
            found.reader = self._readers[connection.id] = _Reader(found.reader, found.writer)

    def forget(self, connection: Connection) -> None:
        """Let go of one that is over."""
        self._readers.pop(connection.id, None)

    def hold(self, connection: Connection, *, held: bool) -> None:
        """Read no more from a connection, or go on to."""
        if reader := self._readers.get(connection.id):
            (reader.may_read.clear if held else reader.may_read.set)()

    def is_slow(self, connection: Connection) -> bool:
        """Tell whether bytes wait to be written to a connection."""
        reader = self._readers.get(connection.id)
        return reader is not None and reader.writer.transport.get_write_buffer_size() > 0
