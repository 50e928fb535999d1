"""Ends workers that live but do nothing: a worker that hangs is as good as dead, and stays away."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable

from pointsman.sidecar.supervisor import Supervisor, Worker

_logger = logging.getLogger(__name__)

# Counted in questions, not in seconds: when all of a container is frozen for a while, at most one
# goes without an answer.
_EVERY_SECONDS = 5.0
_MISSES = 6


async def watch(supervisor: Supervisor, answers: Callable[[Worker], Awaitable[bool]]) -> None:
    """Kill each worker that serves but has left unanswered the last questions; never returns.

    The supervisor starts it again, as any that died. One that is starting has no one to answer yet.
    """
    await asyncio.gather(*(_watch(worker, answers) for worker in supervisor.workers))


async def _watch(worker: Worker, answers: Callable[[Worker], Awaitable[bool]]) -> None:
    process, missed = None, 0
    while True:
        if worker.trouble is not None or worker.process is not process:
            process, missed = worker.process, 0
            await asyncio.sleep(_EVERY_SECONDS)
            continue
        # To wait for an answer takes none of the time between two questions.
        answered, _ = await asyncio.gather(answers(worker), asyncio.sleep(_EVERY_SECONDS))
        if answered:
            missed = 0
            continue
        missed += 1
        if missed >= _MISSES and process is not None and worker.process is process:
            _logger.error(
                "worker %d hangs: it has not answered %d times; killing it",
                worker.index,
                missed,
                extra={"worker": worker.index, "pid": process.pid},
            )
            process.send(signal.SIGKILL)
