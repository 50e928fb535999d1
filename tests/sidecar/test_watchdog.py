"""Workers that leave questions unanswered, in a time that passes at once."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, override

import pytest

from pointsman.sidecar.supervisor import Supervisor, Worker
from pointsman.sidecar.watchdog import watch

# How long a question may wait for its answer (`workers._SECONDS`).
PATIENCE = 3.0
NEVER = 1e6


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time is that of what comes next."""

    now = 0.0

    @override
    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Process:
    """What the watchdog sees of one."""

    pid = 1

    def __init__(self, ended: asyncio.Future[float]) -> None:
        self._ended = ended

    def send(self, number: signal.Signals) -> None:
        assert number is signal.SIGKILL
        if not self._ended.done():
            self._ended.set_result(asyncio.get_running_loop().time())


def killed_after(hangs: Callable[[float], bool], within: float = NEVER) -> float | None:
    """Return when a worker is killed that gives no answer while it hangs."""

    async def answers(_: Worker) -> bool:
        loop = asyncio.get_running_loop()
        if not hangs(loop.time()):
            return True
        await asyncio.sleep(PATIENCE)
        return False

    async def run() -> float:
        ended = asyncio.get_running_loop().create_future()
        supervisor = Supervisor(1, lambda _: None)
        (worker,) = supervisor.workers
        process: Any = Process(ended)
        worker.process, worker.trouble = process, None
        watching = asyncio.create_task(watch(supervisor, answers))
        async with asyncio.timeout(within):
            await ended
        watching.cancel()
        return float(ended.result())

    with suppress(TimeoutError), asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(run())
    return None


@pytest.mark.parametrize("since", [100.0, 101.0, 102.5, 104.9])
def test_a_worker_that_hangs_is_killed_after_half_a_minute_and_a_little(since: float) -> None:
    killed = killed_after(lambda now: now >= since)
    assert killed is not None
    assert 25.0 <= killed - since <= 35.0


def test_a_worker_that_answers_now_and_then_lives() -> None:
    assert killed_after(lambda now: now % 25 > 1, within=3600.0) is None


def test_one_that_is_starting_is_not_asked() -> None:
    asked: list[Worker] = []

    async def answers(worker: Worker) -> bool:
        asked.append(worker)
        return False

    async def run() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(100.0):
                await watch(Supervisor(1, lambda _: None), answers)

    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(run())
    assert asked == []
