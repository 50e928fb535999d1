"""The live part of the page: framing, what is computed for whom, and its bounds."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from pointsman.admin import feed as module
from pointsman.admin.feed import MOST_VIEWERS, Feed
from pointsman.admin.server import Server, serve
from pointsman.admin.source import Readiness
from pointsman.telemetry.exchange import Exchange
from pointsman.telemetry.live import Live

LIMIT = 20.0


class Told:
    """A source that counts how often it is asked."""

    def __init__(self) -> None:
        self.kept = Live()
        self.reasons: tuple[str, ...] = ()
        self.looks = 0
        self.whole_looks = 0
        self.fault: Exception | None = None

    def happen(self, request_id: str, **fields: Any) -> None:
        shown = {"route": "r", "rule": "all", "provider": "p", "status": 200, **fields}
        self.kept.record(Exchange(request_id, "h", "POST", "/", None, started=0.0, **shown))

    async def readiness(self, *, keys: bool = True) -> Readiness:
        return Readiness(self.reasons, warnings=("a warning",))

    async def config(self) -> dict[str, Any]:
        return {}

    async def metrics(self) -> bytes:
        return b""

    async def live(self, after: Mapping[str, int] | None = None) -> dict[str, Any]:
        self.looks += 1
        self.whole_looks += after is None
        if self.fault:
            raise self.fault
        return self.kept.snapshot(after)

    async def drain(self, *, soft: bool = False) -> None:
        raise NotImplementedError


type Event = tuple[str, dict[str, Any]]
type Play = Callable[[Server, httpx.AsyncClient], Awaitable[None]]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.1)


def served(told: Told, play: Play) -> None:
    async def run() -> None:
        running = serve(told, "127.0.0.1:0")
        try:
            async with httpx.AsyncClient(
                base_url=f"http://{running.address}", trust_env=False, timeout=LIMIT
            ) as client:
                await play(running, client)
        finally:
            await running.close()

    asyncio.run(asyncio.wait_for(run(), LIMIT))


@asynccontextmanager
async def looking(client: httpx.AsyncClient, **more: Any) -> AsyncIterator[AsyncIterator[Event]]:
    """Open the line; yield its events."""
    async with client.stream("GET", "/api/events", **more) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        yield events(answer)


async def events(answer: httpx.Response) -> AsyncIterator[Event]:
    """Read them as browsers do: U+2028 ends no line, though it does for Python."""
    left = b""
    async for chunk in answer.aiter_bytes():
        *whole, left = (left + chunk).split(b"\n\n")
        for event in whole:
            lines = [line.partition(b": ") for line in re.split(rb"\r\n|\n|\r", event)]
            if lines != [(b"retry", b": ", b"2000")]:
                (first, _, name), (second, _, data) = lines
                assert (first, second) == (b"event", b"data")
                yield name.decode(), json.loads(data)


async def until(seen: AsyncIterator[Event], name: str) -> dict[str, Any]:
    """Return the next event of this name."""
    async for event, data in seen:
        if event == name:
            return data
    raise AssertionError(f"no {name}")


def test_the_whole_comes_first_then_what_changes_then_beats() -> None:
    told = Told()
    told.happen("old")

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        async with looking(client) as seen:
            name, state = await anext(seen)
            assert name == "state"
            assert [one["request_id"] for one in state["exchanges"]] == ["old"]
            assert state["readiness"] == {"ready": True, "reasons": [], "warnings": ["a warning"]}
            told.happen("new")
            changed = await until(seen, "change")
            assert [one["request_id"] for one in changed["exchanges"]] == ["new"]
            assert changed["totals"]["requests"] == 2
            assert "targets" not in changed
            told.reasons = ("draining",)
            assert (await until(seen, "change"))["readiness"]["reasons"] == ["draining"]
            assert await until(seen, "beat") == {}

    served(told, play)


def test_a_line_end_of_a_client_ends_no_event() -> None:
    told = Told()
    hostile = "a\n\nevent: state\rdata: {}\u2028</script>"
    told.happen("r", request_model=hostile)

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        async with looking(client) as seen:
            state = await until(seen, "state")
            assert state["exchanges"][0]["request_model"] == hostile

    served(told, play)


def test_rows_that_vanish_bring_the_whole_with_what_was_seen() -> None:
    told = Told()
    told.happen("old")

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        async with looking(client) as seen:
            await until(seen, "state")
            told.kept = Live()  # another process in the place of the first
            told.happen("new", rule="other")
            state = await until(seen, "state")
            assert [one["request_id"] for one in state["exchanges"]] == ["new", "old"]
            assert state["totals"]["requests"] == 1

    served(told, play)


def test_one_computation_serves_all_and_none_is_made_for_no_one() -> None:
    told = Told()

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        assert told.looks == 0
        async with looking(client) as first:
            await until(first, "state")
            async with looking(client) as second, looking(client) as third:
                assert (await until(second, "state"))["exchanges"] == []
                await until(third, "state")
                told.happen("new")
                for each in (first, second, third):
                    changed = await until(each, "change")
                    assert [one["request_id"] for one in changed["exchanges"]] == ["new"]
                assert told.whole_looks == 1
        await quiet(told)

    served(told, play)


async def quiet(told: Told) -> None:
    """Wait until no one is looking any more."""
    looks = -1
    while looks != told.looks:
        looks = told.looks
        await asyncio.sleep(0.1)


def test_there_is_a_bound_on_viewers_and_a_place_when_one_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_VIEWERS", 2)

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        async with looking(client) as first:
            await until(first, "state")
            async with looking(client) as second:
                await until(second, "state")
                refused = await client.get("/api/events")
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "10"
        async with asyncio.timeout(LIMIT):
            while not await free(client):
                pass

    served(Told(), play)
    assert MOST_VIEWERS == 20


async def free(client: httpx.AsyncClient) -> bool:
    async with client.stream("GET", "/api/events") as answer:
        return answer.status_code == 200


def test_who_does_not_read_is_cut_off() -> None:
    told = Told()

    async def play(running: Server, client: httpx.AsyncClient) -> None:
        host, _, port = running.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        request = f"GET /api/events HTTP/1.1\r\nHost: {running.address}\r\n\r\n"
        writer.write(request.encode())
        await reader.readuntil(b"\r\n\r\n")
        async with looking(client) as other:
            await until(other, "state")
            # The kernel takes in some megabytes before anyone has to wait.
            while not reader.at_eof() and running._feed.viewers > 1:
                for _ in range(200):
                    told.happen("r", path_text="x")
                changed = await until(other, "change")
                assert changed["exchanges"]
            assert running._feed.viewers == 1
        writer.close()

    class Verbose(Told):
        def happen(self, request_id: str, **fields: Any) -> None:
            fields.pop("path_text", None)
            super().happen(request_id, error="e" * 250, client_model="m" * 250, **fields)

    told = Verbose()
    served(told, play)


def test_a_source_that_fails_is_told_once_and_ends_no_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Told()

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        async with looking(client) as seen:
            await until(seen, "state")
            told.fault = KeyError("sk-secret")
            while await until(seen, "beat") != {"failing": True}:
                pass
            assert await until(seen, "beat") == {"failing": True}
            told.fault = None
            told.happen("new")
            assert (await until(seen, "change"))["exchanges"]

    with caplog.at_level(logging.ERROR):
        served(told, play)
    assert [record.getMessage() for record in caplog.records] == [
        "the page is not brought up to date: KeyError"
    ]


def test_an_exchange_that_can_not_be_encoded_ends_no_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Told()

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        async with looking(client) as seen:
            await until(seen, "state")
            kept = told.kept
            told.kept = Live()
            told.happen("bad", error="\udc80")
            while await until(seen, "beat") != {"failing": True}:
                pass
            told.kept = kept
            told.happen("new")
            assert [one["request_id"] for one in (await until(seen, "change"))["exchanges"]] == [
                "new"
            ]

    with caplog.at_level(logging.ERROR):
        served(told, play)
    assert [record.getMessage() for record in caplog.records] == [
        "the page is not brought up to date: UnicodeEncodeError"
    ]


def test_a_server_that_stops_ends_the_lines() -> None:
    async def play(running: Server, client: httpx.AsyncClient) -> None:
        async with looking(client) as seen:
            await until(seen, "state")
            running.stop()
            assert [name async for name, _ in seen if name != "beat"] == []

    served(Told(), play)


def test_a_loop_that_ends_finds_nothing_to_complain_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a process does that does not wait for its viewers."""

    async def run() -> None:
        running = serve(Told(), "127.0.0.1:0")
        host, _, port = running.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /api/events HTTP/1.1\r\nHost: {running.address}\r\n\r\n".encode())
        await reader.readuntil(b"event: state")
        running.stop()
        writer.transport.abort()

    with caplog.at_level(logging.WARNING):
        asyncio.run(asyncio.wait_for(run(), LIMIT))
    assert caplog.records == []


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}]
)
def test_another_site_takes_no_place(headers: dict[str, str]) -> None:
    told = Told()

    async def play(_: Server, client: httpx.AsyncClient) -> None:
        assert (await client.get("/api/events", headers=headers)).status_code == 403
        assert (
            await client.get("/api/events", headers={"host": "evil.example"})
        ).status_code == 403
        assert (await client.head("/api/events")).status_code == 405
        assert (await client.post("/api/events")).status_code == 405

    served(told, play)
    assert told.looks == 0


def test_a_viewer_who_comes_later_has_the_state_at_once() -> None:
    async def run() -> None:
        told = Told()
        feed = Feed(told)
        first = feed.join(lambda: None)
        assert first is not None
        frames = first.frames()
        assert await anext(frames) == b"retry: 2000\n\n"
        assert (await anext(frames)).startswith(b"event: state\ndata: {")
        second = feed.join(lambda: None)
        assert second is not None
        later = second.frames()
        await anext(later)
        assert (await anext(later)).startswith(b"event: state\ndata: {")
        feed.stop()
        assert [frame async for frame in later] == []

    asyncio.run(asyncio.wait_for(run(), LIMIT))
