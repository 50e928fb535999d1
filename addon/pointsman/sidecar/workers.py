"""What the admin endpoint of the supervisor shows: that of all workers, as one."""

import asyncio
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, override
from urllib.parse import urlencode

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from tornado.httpclient import HTTPClientError
from tornado.netutil import Resolver
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from pointsman.admin.source import Readiness
from pointsman.sidecar.process import Plan
from pointsman.sidecar.supervisor import Supervisor, Worker
from pointsman.telemetry import exposition
from pointsman.telemetry.live import Cursor, merge, show_cursor

type Json = dict[str, Any]

_CONNECT_SECONDS = 1.0
_SECONDS = 3.0
# A probe gives up after 2 seconds, and should be told which worker it is that hangs.
_PROBED_SECONDS = 1.5
_ANSWERS = (200, 202, 503)  # as it should, it drains, it is not ready
_LARGEST_ANSWER = 64 * 1024 * 1024


class SilentError(Exception):
    """A worker gave no answer. The message is a phrase that follows its name."""


class Workers:
    """The workers as a source (`admin.source.Source`).

    A worker that hangs costs each question a few seconds, and no more.

    Args:
        supervisor: that of the workers, which are told of a soft drain when they come later.
        plan: what the workers are started with.
        options: those that the workers have not, or have others of, by their names.
    """

    def __init__(
        self, supervisor: Supervisor, plan: Plan, options: Mapping[str, str] | None = None
    ) -> None:
        self._supervisor = supervisor
        supervisor.greet = self._greet
        self._options = options or {}
        self._client = SimpleAsyncHTTPClient(
            force_instance=True,
            resolver=_Sockets(plan),
            max_body_size=_LARGEST_ANSWER,
            max_clients=100,
        )
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Lives(supervisor.workers))
        self._draining = False

    async def readiness(self, *, keys: bool = True) -> Readiness:
        """Ready is who has all workers ready."""
        reasons = ["draining"] if self._draining or self._supervisor.ending.is_set() else []
        warnings: list[str] = []
        under_way = 0
        workers = self._supervisor.workers
        path = "/readyz" if keys else "/readyz?exclude=keys"
        answers = await self._ask_all(path, seconds=_PROBED_SECONDS)
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, SilentError):
                reasons.append(f"worker {worker.index} {answer}")
                continue
            under_way += answer.get("under_way", 0)
            # They have the same rules and the same authority: what one tells, all do.
            reasons += [reason for reason in answer.get("reasons", ()) if reason not in reasons]
            warnings += [each for each in answer.get("warnings", ()) if each not in warnings]
        return Readiness(tuple(reasons), under_way, tuple(warnings))

    async def config(self) -> Json:
        """Return the table of one worker; they have the same rules.

        While a change reaches one after the other, `differingWorkers` has the numbers of those that
        have another table than the one that is shown. What is told of a target's state is what that
        one knows.
        """
        answers = _by_worker(self._supervisor.workers, await self._ask_all("/config"))
        if not answers:
            return {"error": "no worker answers"}
        first = next(iter(answers.values()))
        # A worker's own are its private endpoint's.
        first = {**first, "options": {**first.get("options", {}), **self._options}}
        shown = first.get("fingerprint")
        differing = [
            index for index, answer in answers.items() if answer.get("fingerprint") != shown
        ]
        return {**first, "differingWorkers": differing} if differing else first

    async def metrics(self) -> bytes:
        """Return the sums of all workers, with the counts of those that have died."""
        page = await asyncio.to_thread(exposition.render)
        return page + generate_latest(self._registry)

    async def live(self, after: Cursor | None = None) -> Json:
        """Return the snapshots of all workers as one; those of workers that are silent are not."""
        query = urlencode({"after": show_cursor(after)}) if after else ""
        found = await self._ask_all(f"/api/live?{query}")
        answers = _by_worker(self._supervisor.workers, found).values()
        snapshots = [answer for answer in answers if "cursor" in answer]
        return {**merge(snapshots), "processes_wanted": len(found)}

    async def drain(self, *, soft: bool = False) -> None:
        """Let all of them drain; they end when they have, and the supervisor after them."""
        self._draining = True
        if soft:
            await self._ask_all("/drain?soft=true", "POST")
        else:
            self._supervisor.end()

    async def answers(self, worker: Worker) -> bool:
        """Tell whether a worker answers at all."""
        return not isinstance(await self._ask(worker, "/readyz"), SilentError)

    async def _greet(self, worker: Worker) -> None:
        """Tell a worker that has just begun of the soft drain that it has missed."""
        if self._draining:
            await self._ask(worker, "/drain?soft=true", "POST")

    async def _ask_all(
        self, path: str, method: str = "GET", seconds: float | None = None
    ) -> list[Json | SilentError]:
        """Return the answer of each worker, in their order."""
        return await asyncio.gather(
            *(self._ask(worker, path, method, seconds) for worker in self._supervisor.workers)
        )

    async def _ask(
        self, worker: Worker, path: str, method: str = "GET", seconds: float | None = None
    ) -> Json | SilentError:
        if worker.trouble is not None:
            return SilentError(worker.trouble)
        try:
            answer = await self._client.fetch(
                f"http://worker-{worker.index}{path}",
                method=method,
                body=b"" if method == "POST" else None,
                connect_timeout=_CONNECT_SECONDS,
                request_timeout=_SECONDS if seconds is None else seconds,
                raise_error=False,
            )
            found = msgspec.json.decode(answer.body)
        except (HTTPClientError, OSError, ValueError):
            return SilentError("does not answer")
        if answer.code not in _ANSWERS or not isinstance(found, dict):
            return SilentError(f"answers {answer.code} to {path}")
        return found


def _by_worker(workers: Sequence[Worker], answers: Sequence[Json | SilentError]) -> dict[int, Json]:
    pairs = zip(workers, answers, strict=True)
    return {worker.index: answer for worker, answer in pairs if isinstance(answer, dict)}


class _Sockets(Resolver):
    """Resolves `worker-1` to the socket of the first worker."""

    @override
    def initialize(self, plan: Plan) -> None:
        self._plan = plan

    @override
    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        index = int(host.rpartition("-")[2])
        return [(socket.AF_UNIX, str(self._plan.admin(index)))]


class _Lives(Collector):
    """How the workers fare, which only the supervisor knows."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    @override
    def collect(self) -> Iterator[Metric]:
        serving = GaugeMetricFamily(
            "pointsman_sidecar_worker_up",
            "Whether a worker serves (1) or not (0).",
            labels=["worker"],
        )
        restarts = CounterMetricFamily(
            "pointsman_sidecar_worker_restarts",
            "How often a worker that had died was started again.",
            labels=["worker"],
        )
        for worker in self._workers:
            serving.add_metric([str(worker.index)], float(worker.trouble is None))
            restarts.add_metric([str(worker.index)], worker.restarts)
        yield serving
        yield restarts
