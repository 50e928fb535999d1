"""One worker of the sidecar: mitmdump on sockets that it inherits, with its log as JSON.

Started by `pointsman.sidecar`, as `python -m pointsman.proxy.worker` with mitmdump's arguments.
"""

import argparse
import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, override

from mitmproxy import exceptions
from mitmproxy.options import Options
from mitmproxy.proxy.mode_servers import AsyncioServerInstance
from mitmproxy.tools import cmdline, dump
from mitmproxy.tools.main import run

from pointsman.config.problems import did_you_mean
from pointsman.proxy import tuning
from pointsman.proxy.run import command_line
from pointsman.sidecar import handover
from pointsman.sidecar.listening import QUEUE
from pointsman.sidecar.output import json_handler, log_crashes
from pointsman.telemetry.json_log import json_formatter

_logger = logging.getLogger(__name__)

type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# How many connections one worker takes at a time: the rest is for the others.
_AT_ONCE = 8


class Listener:
    """One of the inherited sockets, as mitmproxy uses a server of asyncio's.

    Nothing is accepted before `start`: mitmproxy would accept before it has loaded its scripts, and
    what waits in the queue would pass unrouted.
    """

    def __init__(self, listening: socket.socket, serve: Serve) -> None:
        self._listening = listening
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._accepting = False
        self._taken: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Make the server."""
        # asyncio takes one number for both: how many it accepts at a time, and the queue.
        self._server = await asyncio.start_server(
            self._serve, sock=self._listening, backlog=_AT_ONCE, start_serving=False
        )

    @property
    def sockets(self) -> Sequence[Any]:
        """The socket, until it is closed."""
        return self._server.sockets if self._server else ()

    async def start(self) -> bool:
        """Begin to accept; return False if a drain has begun, which has closed the socket."""
        if self._server and self.sockets:
            await self._server.start_serving()
        if not self.sockets:  # asked again: the loop has run
            return False
        self._listening.listen(QUEUE)
        self._accepting = True
        return True

    def close(self) -> None:
        """Accept no more than what is in the queue.

        Its clients are connected as far as they can see: to close a socket is to reset them.
        """
        waiting = list(_queue(self._listening)) if self._accepting and self.sockets else []
        if self._server:
            self._server.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
            self._taken.add(task)
            task.add_done_callback(self._taken.discard)

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._serve)


def _queue(listening: socket.socket) -> Iterator[socket.socket]:
    """Accept what waits; not for ever, should more come all the time."""
    with suppress(OSError):
        for _ in range(2 * QUEUE):
            connection, _ = listening.accept()
            connection.setblocking(False)
            yield connection


class Listeners:
    """The inherited sockets, which mitmproxy serves in the place of any that it would open."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        self._all: list[Listener] = []

    def install(self) -> None:
        """Take the place of mitmproxy's own way to listen."""
        listeners = self

        async def listen(
            self: AsyncioServerInstance[Any], _host: str, _port: int
        ) -> list[Listener]:
            return await listeners.listen(self)

        AsyncioServerInstance.listen = listen  # type: ignore[method-assign,assignment]

    async def listen(self, instance: AsyncioServerInstance[Any]) -> list[Listener]:
        """Make the listeners of one mode."""
        mode = instance.mode
        if mode.transport_protocol == "udp":
            raise ValueError(f"mode {mode.full_spec} is over UDP, which a sidecar can't serve")
        made = [Listener(each, instance.handle_stream) for each in self._sockets]
        for listener in made:
            await listener.open()
        self._all += made
        return made

    async def start(self) -> bool:
        """Begin to accept; return False if a drain has begun, which has closed the sockets."""
        return all([await listener.start() for listener in self._all])


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
    settings: Collection[str] = ()

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if self._termlog_addon is not None:
            self._termlog_addon.logger.setFormatter(json_formatter())

    @override
    async def running(self) -> None:
        await super().running()
        refuse_unknown(self.settings, self.options)
        await self.addons.get("errorcheck").shutdown_if_errored()
        # What is loaded later is not compiled: the confdir may be full by then (runtime.bytecode).
        sys.dont_write_bytecode = True
        if await self.listeners.start():
            self.line.sendall(handover.READY)


def take_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Note what `--set` names, and refuse words that mitmdump takes for a filter: no one sees any.

    Raises:
        OptionsError: there are such words.
    """
    if words := arguments.filter_args:
        raise exceptions.OptionsError(
            f"{words[0]!r} is no option, and a sidecar takes no filter; did you mean"
            f" --set {words[0]}?"
        )
    _Master.settings = [setting.partition("=")[0] for setting in arguments.setoptions]
    return {}


def refuse_unknown(names: Iterable[str], options: Options) -> None:
    """Tell of options that no one knows: mitmproxy ignores a misspelt `--set` in silence.

    The addon itself tells of those that look like its own.
    """
    for name in dict.fromkeys(names):
        if name in options.deferred and not name.startswith("llm"):
            meant = did_you_mean(name, options.keys())
            _logger.error("unknown option %s%s", name, meant)


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
    run(_Master, cmdline.mitmdump, command_line(None, sys.argv[1:]), take_settings)


if __name__ == "__main__":
    main()
