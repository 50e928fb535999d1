"""Many workers, seen as one: the supervisor's source in front of real admin endpoints."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from pointsman.admin.server import serve
from pointsman.admin.source import Readiness
from pointsman.sidecar import workers as module
from pointsman.sidecar.process import Plan
from pointsman.sidecar.supervisor import Supervisor, describe, exit_status
from pointsman.sidecar.workers import Workers
from pointsman.telemetry.exchange import Exchange
from pointsman.telemetry.live import Live
from pointsman.telemetry.reading import Reading, TargetReading

LIMIT = 20.0


class One:
    """What one worker would tell."""

    def __init__(
        self,
        *reasons: str,
        under_way: int = 0,
        table: str = "a",
        warnings: tuple[str, ...] = (),
        no_key: str | None = None,
    ) -> None:
        self.found = Readiness(reasons, under_way, warnings)
        self.no_key = no_key
        self.table = table
        self.drains: list[bool] = []
        self.options: dict[str, str] = {}
        self.hangs = False
        self.kept = Live()
        self.now = Reading()

    async def readiness(self, *, keys: bool = True) -> Readiness:
        if self.hangs:
            await asyncio.sleep(LIMIT)
        if self.no_key is None:
            return self.found
        if keys:
            return replace(self.found, reasons=(*self.found.reasons, self.no_key))
        return replace(self.found, warnings=(*self.found.warnings, self.no_key))

    async def config(self) -> dict[str, Any]:
        return {"fingerprint": self.table, "liveSince": id(self), "options": self.options}

    async def metrics(self) -> bytes:
        return b""

    async def live(self, after: Mapping[str, int] | None = None) -> dict[str, Any]:
        return self.kept.snapshot(after, self.now)

    async def drain(self, *, soft: bool = False) -> None:
        self.drains.append(soft)


type Play = Callable[[Workers, Supervisor], Awaitable[None]]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


def play(
    folder: Path, ones: Sequence[One], action: Play, options: Mapping[str, str] | None = None
) -> None:
    async def run() -> None:
        unused: Any = None
        plan = Plan(arguments=(), listening=(), env={}, folder=folder, output=unused)
        supervisor = Supervisor(len(ones), lambda _: None)
        async with AsyncExitStack() as stack:
            for worker, one in zip(supervisor.workers, ones, strict=True):
                server = serve(one, f"unix:{plan.admin(worker.index)}")
                stack.push_async_callback(server.close)
                worker.trouble = None
            await action(Workers(supervisor, plan, options), supervisor)

    asyncio.run(asyncio.wait_for(run(), LIMIT))


def test_all_are_ready_when_each_is(folder: Path) -> None:
    async def action(workers: Workers, _: Supervisor) -> None:
        assert await workers.readiness() == Readiness((), under_way=5)

    play(folder, [One(under_way=2), One(under_way=3)], action)


def test_each_is_asked_without_its_keys(folder: Path) -> None:
    async def action(workers: Workers, _: Supervisor) -> None:
        assert (await workers.readiness()).reasons == ("no key",)
        assert await workers.readiness(keys=False) == Readiness(warnings=("no key",))

    play(folder, [One(no_key="no key"), One()], action)


def test_what_all_tell_is_told_once(folder: Path) -> None:
    async def action(workers: Workers, _: Supervisor) -> None:
        found = await workers.readiness()
        assert found.reasons == ("a key is missing", "draining")
        assert found.warnings == ("a change was refused",)

    refused = ("a change was refused",)
    ones = [
        One("a key is missing", warnings=refused),
        One("a key is missing", "draining", warnings=refused),
    ]
    play(folder, ones, action)


def test_a_worker_that_does_not_serve_is_told_with_the_reason(folder: Path) -> None:
    async def action(workers: Workers, supervisor: Supervisor) -> None:
        supervisor.workers[1].trouble = "is starting"
        assert await workers.readiness() == Readiness(("worker 2 is starting",), under_way=2)
        assert (await workers.config())["fingerprint"] == "a"

    play(folder, [One(under_way=2), One(under_way=9)], action)


def test_a_worker_that_hangs_costs_a_bounded_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PROBED_SECONDS", 0.2)
    hanging = One()
    hanging.hangs = True

    async def action(workers: Workers, _: Supervisor) -> None:
        assert (await workers.readiness()).reasons == ("worker 1 does not answer",)

    play(folder, [hanging], action)


def test_a_socket_that_no_one_listens_on_is_no_answer(folder: Path) -> None:
    async def action(workers: Workers, supervisor: Supervisor) -> None:
        supervisor.workers = Supervisor(2, lambda _: None).workers
        for worker in supervisor.workers:
            worker.trouble = None
        assert (await workers.readiness()).reasons == ("worker 2 does not answer",)

    play(folder, [One()], action)


def test_workers_with_another_table_are_named(folder: Path) -> None:
    async def action(workers: Workers, _: Supervisor) -> None:
        found = await workers.config()
        assert (found["fingerprint"], found["differingWorkers"]) == ("a", [2])

    play(folder, [One(), One(table="b"), One()], action)


def test_the_options_that_are_shown_are_those_in_effect(folder: Path) -> None:
    async def action(workers: Workers, _: Supervisor) -> None:
        assert (await workers.config())["options"] == {"llm_admin": ":15020", "llm_keys": "keys"}

    one = One()
    one.options = {"llm_admin": "unix:1.sock", "llm_keys": "keys"}
    play(folder, [one], action, {"llm_admin": ":15020"})


def test_without_a_worker_there_is_no_table_and_nothing_live(folder: Path) -> None:
    async def action(workers: Workers, _: Supervisor) -> None:
        assert "error" in await workers.config()
        seen = await workers.live()
        assert (seen["processes"], seen["exchanges"], seen["cursor"]) == (0, [], {})

    play(folder, [], action)


def test_what_happened_at_each_is_shown_as_one(folder: Path) -> None:
    ones = [One(), One()]
    for number, one in enumerate(ones):
        one.kept.record(Exchange(str(number), "h", "POST", "/", None, started=0.0, provider="p"))
        state: Literal["healthy", "ejected"] = "ejected" if number else "healthy"
        one.now = Reading(1, number, (TargetReading("r", "all", "p", state=state),))

    async def action(workers: Workers, supervisor: Supervisor) -> None:
        seen = await workers.live()
        assert (seen["processes"], seen["processes_wanted"]) == (2, 2)
        assert seen["totals"]["requests"] == 2
        assert (seen["requests_open"], seen["streams_open"]) == (2, 1)
        assert [target["state"] for target in seen["targets"]] == ["ejected"]
        assert {one["request_id"] for one in seen["exchanges"]} == {"0", "1"}
        ones[1].kept.record(Exchange("new", "h", "POST", "/", None, started=0.0))
        later = await workers.live(seen["cursor"])
        assert [one["request_id"] for one in later["exchanges"]] == ["new"]
        assert later["totals"]["requests"] == 3
        supervisor.workers[0].trouble = "is starting"
        left = await workers.live(later["cursor"])
        assert (left["processes"], left["processes_wanted"]) == (1, 2)

    play(folder, ones, action)


def test_a_soft_drain_reaches_all_and_a_hard_one_ends_them(folder: Path) -> None:
    ones = [One(), One()]

    async def action(workers: Workers, supervisor: Supervisor) -> None:
        await workers.drain(soft=True)
        assert [one.drains for one in ones] == [[True], [True]]
        assert not supervisor.ending.is_set()
        assert (await workers.readiness()).reasons == ("draining",)
        await workers.drain()
        assert supervisor.ending.is_set()

    play(folder, ones, action)


def test_the_metrics_tell_how_the_workers_fare(folder: Path) -> None:
    async def action(workers: Workers, supervisor: Supervisor) -> None:
        supervisor.workers[1].trouble = "is starting"
        supervisor.workers[1].restarts = 3
        page = (await workers.metrics()).decode()
        assert 'pointsman_sidecar_worker_up{worker="1"} 1.0' in page
        assert 'pointsman_sidecar_worker_up{worker="2"} 0.0' in page
        assert 'pointsman_sidecar_worker_restarts_total{worker="2"} 3.0' in page

    play(folder, [One(), One()], action)


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [
        (0, "ended with status 0", 0),
        (1, "ended with status 1", 1),
        (-9, "was killed by SIGKILL", 137),
        (-77, "was killed by signal 77", 205),
    ],
)
def test_an_end_is_described_as_people_and_shells_do(status: int, said: str, code: int) -> None:
    assert describe(status) == said
    assert exit_status(status) == code
