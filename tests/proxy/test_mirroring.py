import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from pointsman.config.table import TimeLimits, TlsSettings
from pointsman.errors import StoppedError
from pointsman.proxy.mirroring import Copy, Mirrors
from pointsman.routing.rewriting import Outgoing
from pointsman.telemetry.exchange import Exchange

LOOPBACK = "127.0.0.1"
SHORT = 0.05
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
WORD = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
COUNTED = b'data: {"choices":[],"usage":{"prompt_tokens":7,"total_tokens":7}}\n\n'

type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def outgoing(port: int, *, body: bytes = b"{}", path: str = "/v1/chat/completions") -> Outgoing:
    return Outgoing(
        "POST",
        "http",
        "copy.test",
        80,
        (LOOPBACK, port),
        TlsSettings(),
        path,
        ((b"content-length", b"%d" % len(body)),),
        body,
        model="m",
        stream=True,
        chat=True,
    )


class Log:
    """Takes what is emitted."""

    def __init__(self) -> None:
        self.emitted: asyncio.Queue[Exchange] = asyncio.Queue()

    def copy_of(self, sent: Outgoing, limits: TimeLimits | None = None) -> Copy:
        exchange = Exchange("id", "llm.test", "POST", "/", None, 0.0, rule="r", mirror=True)
        return Copy(sent, limits or TimeLimits(), exchange, self.emitted.put_nowait)

    async def entry(self) -> Exchange:
        async with asyncio.timeout(20):
            return await self.emitted.get()


def sent_to(serve: Serve, limits: TimeLimits, *, path: str = "/v1/chat/completions") -> Exchange:
    """Send one copy to a server that reads the request and goes on as it likes."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        await serve(reader, writer)
        writer.close()

    async def run() -> Exchange:
        log = Log()
        async with await asyncio.start_server(connected, LOOPBACK, 0) as server:
            port = server.sockets[0].getsockname()[1]
            Mirrors().send(log.copy_of(outgoing(port, path=path), limits))
            return await log.entry()

    return asyncio.run(run())


def saying(*parts: bytes, hang: bool = False) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
        await writer.drain()
        if hang:
            await reader.read()  # until the other side leaves

    return serve


class TestTimeLimits:
    @pytest.mark.parametrize(
        "parts",
        [(), (b"HTTP/1.1 100 Continue\r\n\r\n",), (EVENTS,), (EVENTS, b": still thinking\n\n")],
        ids=["nothing", "interim", "head", "comment"],
    )
    def test_an_answer_without_content_in_time_is_given_up(self, parts: tuple[bytes, ...]) -> None:
        copied = sent_to(saying(*parts, hang=True), TimeLimits(first_byte=SHORT))
        assert (copied.error, copied.flags) == ("upstream_timeout", ["UT"])
        assert copied.attempts[0].error == "upstream_timeout"
        assert copied.ended is not None

    def test_a_stream_that_stops_is_given_up_and_what_was_read_counts(self) -> None:
        limits = TimeLimits(first_byte=20, idle=SHORT)
        copied = sent_to(saying(EVENTS, WORD, COUNTED, hang=True), limits)
        assert (copied.error, copied.flags) == ("idle_timeout", ["SI"])
        assert copied.status == 200
        assert copied.usage is not None
        assert (copied.usage.prompt_tokens, copied.usage_source) == (7, "partial")

    def test_without_an_idle_limit_the_first_bytes_limit_is_over_with_the_first_byte(self) -> None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(EVENTS + WORD)
            await writer.drain()
            await asyncio.sleep(1.2)
            writer.write(COUNTED)

        copied = sent_to(serve, TimeLimits(first_byte=1.0))
        assert (copied.error, copied.usage_source) == (None, "response")

    def test_a_connection_that_does_not_stand_in_time_is_given_up(self) -> None:
        async def run() -> Exchange:
            log = Log()
            with socket.create_server((LOOPBACK, 0)) as silent:  # no one answers there
                sent = replace(outgoing(silent.getsockname()[1]), scheme="https")
                Mirrors().send(log.copy_of(sent, TimeLimits(connect=SHORT)))
                return await log.entry()

        copied = asyncio.run(run())
        assert (copied.error, copied.flags) == ("connect_timeout", ["UF"])


class TestAnswers:
    def test_a_chat_endpoint_of_any_path_is_accounted_for(self) -> None:
        copied = sent_to(saying(EVENTS, WORD, COUNTED), TimeLimits(), path="/llama/invocations")
        assert copied.usage is not None
        assert copied.usage.prompt_tokens == 7

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            b"no HTTP\r\n\r\n",
        ],
    )
    def test_what_is_no_answer_ends_the_copy(self, answer: bytes) -> None:
        copied = sent_to(saying(answer, hang=True), TimeLimits())
        assert (copied.status, copied.flags) == (None, ["UF"])
        assert copied.error in {"RemoteProtocolError", "LocalProtocolError"}


class TestBounds:
    """Copies that wait for a server which answers none."""

    def dropped(self, bodies: list[bytes]) -> tuple[dict[str, int], int]:
        """Return what is dropped when these are sent at once, and how many are not."""

        async def run() -> tuple[dict[str, int], int]:
            log, mirrors = Log(), Mirrors()
            with socket.create_server((LOOPBACK, 0)) as silent:
                for body in bodies:
                    mirrors.send(log.copy_of(outgoing(silent.getsockname()[1], body=body)))
                mirrors.stop(StoppedError())
            return mirrors.dropped, log.emitted.qsize()

        return asyncio.run(run())

    def test_a_hundred_are_under_way_at_most(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            assert self.dropped([b"{}"] * 103) == ({"r": 3}, 100)
        (told,) = caplog.messages
        assert "mirrored requests are dropped" in told

    def test_their_bodies_are_64_megabytes_at_most(self) -> None:
        half = bytes(32 * 1024 * 1024)
        assert self.dropped([half, half, b"{}"]) == ({"r": 1}, 2)

    def test_what_has_ended_counts_no_more(self) -> None:
        async def run() -> Mirrors:
            log, mirrors = Log(), Mirrors()
            body = bytes(48 * 1024 * 1024)
            for _ in range(2):
                mirrors.send(log.copy_of(outgoing(1, body=body)))  # no one listens there
                await log.entry()
            return mirrors

        assert asyncio.run(run()).dropped == {}

    def test_each_reason_is_told_once(self, caplog: pytest.LogCaptureFixture) -> None:
        mirrors = Mirrors()
        with caplog.at_level(logging.WARNING):
            for rule, why in (("a", "one"), ("a", "one"), ("b", "two"), (None, "two")):
                mirrors.drop(rule, why)
        assert mirrors.dropped == {"a": 2, "b": 1, "": 1}
        assert [message.rpartition(" ")[2] for message in caplog.messages] == ["one", "two"]
