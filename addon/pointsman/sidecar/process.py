"""One worker process, from its start to its end."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pointsman.sidecar import handover, runtime
from pointsman.sidecar.output import LONGEST_LINE, forward
from pointsman.telemetry.line_writer import LineWriter

# How long the last lines of a worker that has ended are waited for, if something holds its pipes.
_LAST_LINES = 1.0


@dataclass(frozen=True)
class Plan:
    """What every worker is started with.

    Attributes:
        arguments: mitmdump's.
        listening: the sockets that it serves.
        env: environment variables beside the supervisor's own.
        folder: that of this run, in the confdir; the workers' own admin sockets are there.
        output: where what they print goes.
    """

    arguments: Sequence[str]
    listening: Sequence[socket.socket]
    env: Mapping[str, str]
    folder: Path
    output: LineWriter

    def admin(self, index: int) -> Path:
        """Return where a worker's admin endpoint listens."""
        return self.folder / f"{index}.sock"


class Process:
    """A worker process.

    Attributes:
        pid: its process id.
        ready: set once it serves.
    """

    def __init__(
        self,
        index: int,
        process: asyncio.subprocess.Process,
        line: socket.socket,
        output: LineWriter,
    ) -> None:
        self.pid = process.pid
        self.ready = asyncio.Event()
        self._process = process
        self._line = line
        about = {"worker": index, "pid": process.pid}
        streams = [
            (process.stdout, logging.getLogger("pointsman.worker.stdout")),
            (process.stderr, logging.getLogger("pointsman.worker.stderr")),
        ]
        self._tasks = [asyncio.create_task(self._notice())]
        for stream, logger in streams:
            if stream is not None:
                self._tasks.append(asyncio.create_task(forward(stream, output, logger, **about)))

    @classmethod
    async def start(cls, index: int, plan: Plan) -> "Process":
        """Start a worker. It ends when this process does.

        Raises:
            OSError: the system has no room for it.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                env: dict[str, str | None] = {
                    **os.environ,
                    **plan.env,
                    **runtime.bytecode(plan.folder.parent),
                    **handover.environment(plan.listening, theirs),
                }
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "pointsman.proxy.worker"),
                    *("--set", f"llm_admin=unix:{plan.admin(index)}", *plan.arguments),
                    env={name: value for name, value in env.items() if value is not None},
                    pass_fds=[each.fileno() for each in (*plan.listening, theirs)],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    limit=LONGEST_LINE,
                    # What a terminal sends (^C, its end) comes to the supervisor alone.
                    start_new_session=True,
                )
        except OSError:
            ours.close()
            raise
        return cls(index, process, ours, plan.output)

    async def wait(self) -> int:
        """Wait until it has ended and all that it printed is written.

        Returns its exit status; a signal that killed it as a negative number.
        """
        status = await self._process.wait()
        _, late = await asyncio.wait(self._tasks, timeout=_LAST_LINES)
        for task in late:
            task.cancel()
        self._line.close()
        return status

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _notice(self) -> None:
        """Wait for its word that it serves."""
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            if await loop.sock_recv(self._line, 1) == handover.READY:
                self.ready.set()
