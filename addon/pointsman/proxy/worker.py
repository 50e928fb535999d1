"""One worker of the sidecar: mitmdump on sockets that it inherits, with its log as JSON.

Started by `pointsman.sidecar`, as `python -m pointsman.proxy.worker` with mitmdump's arguments.
"""

import asyncio
import io
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

from pointsman.sidecar import handover, listening
from pointsman.sidecar.output import log_crash
from pointsman.telemetry.json_log import json_formatter

# How many connections one worker takes at a time: the rest is for the others.
_AT_ONCE = 8


def serve_inherited(sockets: Sequence[socket.socket]) -> None:
    """Make mitmproxy serve these sockets in the place of any that it would open."""

    async def listen(self: AsyncioServerInstance[Any], *_: object) -> list[asyncio.Server]:
        if self.mode.transport_protocol == "udp":
            raise ValueError(f"mode {self.mode.full_spec} is over UDP, which the sidecar can't serve")
        servers = []
        for each in sockets:
            # asyncio takes one number for both: how many it accepts at a time, and the queue.
            servers.append(await asyncio.start_server(self.handle_stream, sock=each, backlog=_AT_ONCE))
            each.listen(listening.QUEUE)
        return servers

    AsyncioServerInstance.listen = listen  # type: ignore[method-assign,assignment]


def end_with(line: socket.socket) -> None:
    """End at once when the supervisor is gone: nothing may serve that no one watches."""

    def watch() -> None:
        # Blocking, in a thread: it must work when the event loop does not.
        line.setblocking(True)
        while line.recv(64):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


def main() -> None:
    """Run the worker; ends with mitmdump's exit status."""
    sys.excepthook = log_crash
    sockets, line = handover.take()
    end_with(line)
    serve_inherited(sockets)
    logging.captureWarnings(capture=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)

    class Master(dump.DumpMaster):
        def __init__(self, options: Options) -> None:
            super().__init__(options)
            termlog = self._termlog_addon
            if termlog is not None:
                termlog.logger.setFormatter(json_formatter())

        @override
        async def running(self) -> None:
            await super().running()
            await self.addons.get("errorcheck").shutdown_if_errored()
            line.sendall(handover.READY)

    run(Master, cmdline.mitmdump, None)


if __name__ == "__main__":
    main()
