"""One worker of the sidecar: mitmdump on sockets that it inherits, with its log as JSON.

Started by `pointsman.sidecar`, as `python -m pointsman.proxy.worker` with mitmdump's arguments.
"""

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any, override

from mitmproxy.options import Options
from mitmproxy.proxy.mode_servers import AsyncioServerInstance
from mitmproxy.tools import cmdline, dump
from mitmproxy.tools.main import run

from pointsman.proxy import tuning
from pointsman.proxy.run import command_line
from pointsman.sidecar import handover
from pointsman.sidecar.listening import QUEUE
from pointsman.sidecar.output import json_handler, log_crashes
from pointsman.telemetry.json_log import json_formatter

# How many connections one worker takes at a time: the rest is for the others.
_AT_ONCE = 8


class Listeners:
    """The inherited sockets, which mitmproxy serves in the place of any that it would open.

    It would accept before it has loaded its scripts: what waits in the queue would pass unrouted.
    So nothing is accepted before `start`.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []

    def install(self) -> None:
        """Take the place of mitmproxy's own way to listen."""
        listeners = self

        async def listen(
            self: AsyncioServerInstance[Any], _host: str, _port: int
        ) -> list[asyncio.Server]:
            return await listeners.listen(self)

        AsyncioServerInstance.listen = listen  # type: ignore[method-assign,assignment]

    async def listen(self, instance: AsyncioServerInstance[Any]) -> list[asyncio.Server]:
        """Make the servers of one mode."""
        mode = instance.mode
        if mode.transport_protocol == "udp":
            raise ValueError(f"mode {mode.full_spec} is over UDP, which a sidecar can't serve")
        for each in self._sockets:
            # asyncio takes one number for both: how many it accepts at a time, and the queue.
            server = await asyncio.start_server(
                instance.handle_stream, sock=each, backlog=_AT_ONCE, start_serving=False
            )
            self._servers.append(server)
        return list(self._servers)

    async def start(self) -> bool:
        """Begin to accept; return False if a drain has begun, which has closed the sockets."""
        for server, each in zip(self._servers, self._sockets, strict=True):
            if server.sockets:
                await server.start_serving()
            if not server.sockets:  # asked again: the loop has run
                return False
            each.listen(QUEUE)
        return True


def end_with(line: socket.socket) -> None:
    """End at once when the supervisor is gone: nothing may serve that no one watches."""

    def watch() -> None:
        # Blocking, in a thread: it must work when the event loop does not.
        line.setblocking(True)
        try:
            while line.recv(64):
                pass
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


class _Master(dump.DumpMaster):
    """mitmdump's, which logs JSON and tells the supervisor when it serves."""

    line: socket.socket
    listeners: Listeners

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if self._termlog_addon is not None:
            self._termlog_addon.logger.setFormatter(json_formatter())

    @override
    async def running(self) -> None:
        await super().running()
        await self.addons.get("errorcheck").shutdown_if_errored()
        # What is loaded later is not compiled: the confdir may be full by then (runtime.bytecode).
        sys.dont_write_bytecode = True
        if await self.listeners.start():
            self.line.sendall(handover.READY)


def _is_no_cancelled_connection(record: logging.LogRecord) -> bool:
    """Leave out a fault of asyncio's own, at the end of a process whose clients are connected.

    A callback of it (Python 3.12.1) asks the cancelled task of a connection for its exception.
    """
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not (cancelled and "StreamReaderProtocol.connection_made" in record.getMessage())


def main() -> None:
    """Run the worker; ends with mitmdump's exit status."""
    log_crashes(json_handler())
    logging.captureWarnings(capture=True)
    # When mitmproxy has taken its own handlers away, at the very end.
    logging.lastResort = json_handler(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_is_no_cancelled_connection)
    tuning.write_log_lines_at_once()
    sockets, _Master.line = handover.take()
    end_with(_Master.line)
    _Master.listeners = Listeners(sockets)
    _Master.listeners.install()
    run(_Master, cmdline.mitmdump, command_line(None, sys.argv[1:]))


if __name__ == "__main__":
    main()
