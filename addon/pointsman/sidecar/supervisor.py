"""The supervisor: keeps the workers alive, and ends with them.

What it keeps to:
- The first worker starts alone. If it can't, nothing is served and nothing is tried again: the
  rules are bad, and a loop would hide that. The others start when it serves.
- A worker that dies later is started again, after a pause that grows (`backoff`).
- At SIGTERM (and SIGINT) every worker drains, and this process ends after the last of them. Where
  none serves, one that is starting comes up first, for the connections that wait. A second signal
  ends them at once, which they log; those that can't are killed. SIGHUP is ignored: rules and keys
  are read again when they change.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from pointsman.sidecar.backoff import Backoff
from pointsman.sidecar.process import Plan, Process

_logger = logging.getLogger(__name__)

_SIGNALLED = 128
# How long a worker that is to end at once has for it.
_LAST_SECONDS = 5.0


class Worker:
    """One of the workers, over all its lives.

    Attributes:
        index: its number, from 1.
        process: the one that lives now, if one does.
        lives: whether there is one, or one is being made.
        trouble: why it does not serve, as a phrase; None when it does.
        restarts: how often it was started again.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: Process | None = None
        self.lives = False
        self.trouble: str | None = "has not started"
        self.restarts = 0

    @property
    def serves(self) -> bool:
        """Whether it accepts connections."""
        return self.process is not None and self.process.ready.is_set()


class Supervisor:
    """Runs workers until it is told to end.

    Args:
        count: how many workers.
        gone: called with the process id of each worker that has ended.

    Attributes:
        workers: all of them.
        ending: set when they drain for the last time.
        greet: called with each worker that has begun to serve.
    """

    def __init__(self, count: int, gone: Callable[[int], None]) -> None:
        self.workers: Sequence[Worker] = [Worker(index) for index in range(1, count + 1)]
        self.ending = asyncio.Event()
        self.greet: Callable[[Worker], Awaitable[None]] | None = None
        self._gone = gone
        self._plan: Plan
        self._listening: Sequence[socket.socket] = ()
        self._serving = asyncio.Event()
        self._signalled_before = False
        self._awaited = False  # a worker that is to serve the queue before it ends
        self._status = 0

    def listen_to_signals(self) -> None:
        """Take over SIGTERM, SIGINT and SIGHUP: at once, as what comes before `run` takes time."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, self._ignored)

    async def run(self, plan: Plan) -> int:
        """Run the workers by a plan, to the end; return the exit status for this process."""
        self._plan, self._listening = plan, plan.listening
        async with asyncio.TaskGroup() as tasks:
            first, *others = self.workers
            tasks.create_task(self._keep(first))
            await _either(self._serving, self.ending)
            if not self.ending.is_set():
                for worker in others:
                    tasks.create_task(self._keep(worker))
        return self._status

    def end(self) -> None:
        """Let every worker drain and end: what waits is served, what comes later is refused."""
        if not self.ending.is_set():
            _logger.info("draining: the workers end what they have begun")
            self._end()

    def _end(self) -> None:
        self.ending.set()
        # Ours alone: each worker empties the queue before it closes its own.
        for listening in self._listening:
            listening.close()
        if self._serving.is_set() and not any(worker.serves for worker in self.workers):
            # One that is starting would die of the signal.
            self._awaited = any(worker.lives for worker in self.workers)
            if not self._awaited:
                _logger.error("no worker is there to serve the connections that wait: they close")
                self._status = 1
        if not self._awaited:
            self._send(signal.SIGTERM)

    def _signalled(self) -> None:
        # Counted apart from a drain by the admin endpoint, which a kubelet's SIGTERM follows.
        if not self._signalled_before:
            self._signalled_before = True
            self.end()
            return
        _logger.warning("asked twice to end: the workers end at once")
        # Their own second one: they log what they cut.
        self._send(signal.SIGTERM)
        asyncio.get_running_loop().call_later(_LAST_SECONDS, self._send, signal.SIGKILL)

    def _ignored(self) -> None:
        _logger.info("SIGHUP is ignored: rules and keys are read again whenever they change")

    def _send(self, number: signal.Signals) -> None:
        for worker in self.workers:
            if worker.process:
                worker.process.send(number)

    async def _keep(self, worker: Worker) -> None:
        """Keep one worker alive until the end."""
        backoff = Backoff()
        clock = asyncio.get_running_loop().time
        while not self.ending.is_set():
            began = clock()
            status = await self._live(worker)
            if not self._serving.is_set() or self.ending.is_set():
                self._conclude(worker, status)
                return
            pause = backoff.after(clock() - began)
            how = describe(status)
            worker.trouble = f"{how} and starts again"
            _logger.error(
                "worker %d %s; it starts again in %g s",
                worker.index,
                how,
                pause,
                extra={"worker": worker.index, "status": status, "pause_s": pause},
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ending.wait(), pause)
            worker.restarts += 1

    async def _live(self, worker: Worker) -> int:
        """Run one life of a worker; return its exit status."""
        worker.lives = True
        try:
            process = await Process.start(worker.index, self._plan)
        except OSError as error:
            worker.lives = False
            _logger.error("worker %d can't be started: %s", worker.index, error)  # noqa: TRY400
            return 1
        worker.process = process
        if not worker.restarts:  # else the trouble is what ended the life before
            worker.trouble = "is starting"
        if self.ending.is_set() and not self._awaited:  # while it was made
            process.send(signal.SIGTERM)
        welcome = asyncio.create_task(self._welcome(worker, process))
        try:
            return await process.wait()
        finally:
            welcome.cancel()
            worker.lives = False
            worker.process = None
            worker.trouble = "has ended"
            self._gone(process.pid)

    async def _welcome(self, worker: Worker, process: Process) -> None:
        await process.ready.wait()
        worker.trouble = None
        self._serving.set()
        _logger.info(
            "worker %d serves", worker.index, extra={"worker": worker.index, "pid": process.pid}
        )
        if self.greet:
            await self.greet(worker)
        if self._awaited:
            process.send(signal.SIGTERM)

    def _conclude(self, worker: Worker, status: int) -> None:
        """Take over the status of a worker that is not started again."""
        if self.ending.is_set():
            # One that had not yet begun to serve dies of the signal that was to let it drain.
            good = status in (0, -signal.SIGTERM)
        else:
            good = False
            _logger.critical(
                "worker %d %s before it could serve, so nothing is served; its messages tell why",
                worker.index,
                describe(status),
                extra={"worker": worker.index, "status": status},
            )
        if not good and not self._status:
            self._status = exit_status(status) or 1
        if not self.ending.is_set():
            self._end()


def describe(status: int) -> str:
    """Return how a process ended, as a phrase."""
    if status >= 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"


def exit_status(status: int) -> int:
    """Return an exit status as shells give it: 128 and the number of the signal."""
    return status if status >= 0 else _SIGNALLED - status


async def _either(*events: asyncio.Event) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
