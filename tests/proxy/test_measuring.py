"""Measuring: what metrics read of a router, and that they are in no one's way."""

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pointsman.config.backends import Address, Backend, Endpoints
from pointsman.config.loading import Instance, Loaded
from pointsman.config.table import (
    CallConfig,
    MirrorTarget,
    Route,
    RoutingTable,
    Rule,
    Target,
)
from pointsman.errors import RequestError
from pointsman.proxy.measuring import Measuring, read, read_rules
from pointsman.proxy.router import Router
from pointsman.proxy.rules import FileRules
from pointsman.routing.planning import endpoints
from pointsman.telemetry.exposition import DIRECTORY, render
from pointsman.telemetry.naming import RuleName
from pointsman.telemetry.reading import TargetReading

A = Target("a", "a.test", weight=3)
B = Target("b", "B.test", weight=1, config=CallConfig(model="m", model_mapping={"x*": "y"}))
SPARE = Target("spare", "spare.test", priority=1)
COPY = Target("copy", "copy.test", config=CallConfig(model="n"))
SPLIT = Rule("split", "ns/r/split", (), (A, B, SPARE), mirror=MirrorTarget(COPY, 10))
ROUTE = Route("r", "llm.test", (SPLIT,))
OWN = Route(None, "a.test", (Rule("default", "provider/a.test", (), (A,)),))
TABLE = RoutingTable({"llm.test": ROUTE, "llm.default": ROUTE, "a.test": OWN}, ((".w", ROUTE),))


class Request:
    """A request under way."""

    def __init__(self, *, streaming: bool) -> None:
        self.streaming = streaming

    def abandon(self, error: RequestError | None = None) -> None:
        """Nothing is left open here."""


@pytest.fixture
def router() -> Router:
    router = Router()
    router.go_live(TABLE)
    return router


def test_shares_are_those_of_the_first_priority(router: Router) -> None:
    split = TargetReading("r", "split", "", host="llm.test")
    assert read(router).targets == (
        replace(split, provider="a", weight=3, share=0.75),
        replace(split, provider="b", weight=1, share=0.25),
        replace(split, provider="spare", priority=1, share=0.0),
        TargetReading("a.test", "default", "a", weight=3, host="a.test"),
    )


def test_states_are_those_of_the_moment(router: Router) -> None:
    router.health.failed(A, time.monotonic(), 60.0)
    states = {target.provider: target.state for target in read(router).targets}
    assert states == {"a": "ejected", "b": "healthy", "spare": "healthy"}


def pool(*addresses: Address) -> Target:
    endpoints = Endpoints(Backend("v1", "InferencePool", "ns", "vllm"))
    endpoints.replace(addresses)
    return Target("vllm", "vllm.ns.inferencepool.cluster.local", endpoints=endpoints)


def test_a_backend_is_in_the_best_state_of_its_endpoints(router: Router) -> None:
    vllm = pool(("10.0.0.1", 80), ("10.0.0.2", 80))
    rule = Rule("all", "ns/r/all", (), (vllm,))
    router.go_live(RoutingTable({"llm.test": Route("r", "llm.test", (rule,))}))

    def looked() -> tuple[str, int | None, int]:
        (found,) = read(router).targets
        return found.state, found.endpoints, found.ejected_endpoints

    assert looked() == ("healthy", 2, 0)
    first, second = endpoints(vllm)
    router.health.failed(first, time.monotonic(), 60.0)
    assert looked() == ("healthy", 2, 1)
    router.health.failed(second, time.monotonic(), 60.0)
    assert looked() == ("ejected", 2, 2)
    assert vllm.endpoints
    vllm.endpoints.replace(())
    assert looked() == ("ejected", 0, 0)


def test_what_is_under_way_is_counted(router: Router) -> None:
    first, second = Request(streaming=False), Request(streaming=True)
    router.opened("one", first)
    router.opened("two", second)
    assert (read(router).requests, read(router).streams) == (2, 1)
    router.closed("two", second)
    assert (read(router).requests, read(router).streams) == (1, 0)


def test_copies_that_were_not_sent_are_read(router: Router) -> None:
    assert read(router).mirrors_dropped == {}
    for _ in range(3):
        router.mirrors.drop("split", "they are too many")
    assert read(router).mirrors_dropped == {"split": 3}


def test_the_rules_names_are_read(router: Router) -> None:
    rules = read_rules(router.table)
    assert rules.rules == {
        RuleName("r", "llm.test", "split"),
        RuleName("a.test", "a.test", "default"),
    }
    assert rules.providers == {
        "a.test": "a",
        "b.test": "b",
        "spare.test": "spare",
        "copy.test": "copy",
    }
    assert rules.models == {"m", "y", "n"}


def test_switched_on_it_shows_the_rules_that_are_live(router: Router) -> None:
    measuring = Measuring(router)
    measuring.switch(on=True)
    measuring.switch(on=True)
    try:
        assert render().count(b"pointsman_target_share{") == 4
        assert b'pointsman_reloads_total{result="loaded"} 1.0' in render()
    finally:
        measuring.switch(on=False)
    assert render() == b""


def test_switched_off_it_takes_no_part(router: Router) -> None:
    measuring = Measuring(router)
    measuring.rules_live()
    measuring.rules_refused()
    measuring.running()
    measuring.close()
    assert render() == b""


def test_files_that_can_not_be_made_cost_the_metrics_and_no_more(
    router: Router,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(tmp_path))

    monkeypatch.setattr("pointsman.proxy.measuring.Metrics", broken)
    measuring = Measuring(router)
    measuring.switch(on=True)
    assert "there are no metrics" in caplog.text
    measuring.rules_live()


def test_a_fault_of_the_metrics_does_not_keep_rules_from_going_live(
    router: Router, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measuring = Measuring(router)
    measuring.switch(on=True)
    try:
        monkeypatch.setattr("pointsman.proxy.measuring.read_rules", lambda _: 1 / 0)
        measuring.rules_live()
    finally:
        measuring.close()
    assert "the metrics do not know of the rules" in caplog.text


def test_where_others_render_it_is_brought_up_to_date_now_and_then(
    router: Router, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pointsman.proxy.measuring._EVERY_SECONDS", 0.001)
    measuring, looks = Measuring(router), list[bool]()
    seen = asyncio.Event()

    def look(_: Router) -> None:
        looks.append(True)
        if len(looks) > 3:
            seen.set()
        raise ValueError("broken")

    async def run() -> None:
        monkeypatch.setenv(DIRECTORY, "/nowhere")
        measuring.running()
        async with asyncio.timeout(20):
            await seen.wait()
        monkeypatch.delenv(DIRECTORY)
        measuring.close()

    measuring.switch(on=True)
    monkeypatch.setattr("pointsman.proxy.measuring.read", look)
    asyncio.run(run())
    told = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [r.getMessage() for r in told] == ["the metrics could not be brought up to date"]


def test_a_refused_reload_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: [")
    refused = asyncio.Event()

    async def never(_: Loaded) -> None:
        raise AssertionError

    async def run() -> None:
        watching = asyncio.create_task(FileRules(tmp_path, Instance()).watch(never, refused.set))
        async with asyncio.timeout(20):
            await refused.wait()
        watching.cancel()

    asyncio.run(run())
