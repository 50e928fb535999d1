"""Copies of requests that the client never sees: sent beside its own, read for usage, logged.

A copy has its own connection and its own exchange. Nothing of it can delay or fail the client's
request. They do not go through mitmproxy's layers, where one would count as a client's request, and
so not through an upstream proxy either. What can't be sent is dropped: it is counted, and the log
tells once of each reason.
"""

import asyncio
import logging
import string
import time
from dataclasses import dataclass
from urllib.parse import quote

import h11

from pointsman.config.table import TimeLimits
from pointsman.errors import (
    ConnectTimeoutError,
    IdleTimeoutError,
    RequestError,
    UpstreamTimeoutError,
)
from pointsman.proxy.answer import Answer
from pointsman.proxy.trust import Trust, ssl_context
from pointsman.routing.request import text
from pointsman.routing.rewriting import Outgoing
from pointsman.telemetry.exchange import Attempt, Exchange, UsageSource
from pointsman.telemetry.sinks import Sink

logger = logging.getLogger(__name__)

# Of copies under way at once.
_MOST = 100
_MOST_BYTES = 64 * 1024 * 1024
_WHOLE_SECONDS = 600.0
_READ = 64 * 1024


@dataclass(frozen=True, slots=True)
class Copy:
    """A request to be sent, and the record that is filled meanwhile and emitted at the end."""

    outgoing: Outgoing
    limits: TimeLimits
    exchange: Exchange
    emit: Sink


class Mirrors:
    """The copies under way.

    Attributes:
        trust: whom their connections trust.
        dropped: how many could not be sent, by the name of the rule.
    """

    def __init__(self) -> None:
        self.trust = Trust()
        self.dropped: dict[str, int] = {}
        self._under_way: dict[asyncio.Task[None], Copy] = {}
        self._told: set[str] = set()

    def send(self, copy: Copy) -> bool:
        """Begin to send a copy, unless there are too many already; tell whether it was begun."""
        size = sum(len(one.outgoing.body) for one in (*self._under_way.values(), copy))
        if len(self._under_way) >= _MOST or size > _MOST_BYTES:
            bounds = f"{_MOST} copies or {_MOST_BYTES >> 20} MB"
            self.drop(copy.exchange.rule, f"more than {bounds} would be under way")
            return False
        task = asyncio.get_running_loop().create_task(_carry_out(copy, self.trust))
        self._under_way[task] = copy
        task.add_done_callback(self._ended)
        return True

    def drop(self, rule: str | None, why: str) -> None:
        """Count a copy that is not sent."""
        self.dropped[rule or ""] = self.dropped.get(rule or "", 0) + 1
        if why not in self._told:
            self._told.add(why)
            logger.warning("some mirrored requests are dropped: %s", why)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if copy := self._under_way.pop(task, None):
            copy.emit(copy.exchange)

    def stop(self, error: RequestError) -> None:
        """Cut what is under way, and emit it now: the log will be closed when the tasks end."""
        for task, copy in tuple(self._under_way.items()):
            exchange = copy.exchange
            del self._under_way[task]
            task.cancel()
            exchange.flag(error.flag)
            exchange.error = error.code
            exchange.ended = time.perf_counter()
            for attempt in exchange.attempts:
                attempt.end(exchange.ended, status=exchange.status, error=error.code)
            copy.emit(exchange)


async def _carry_out(copy: Copy, trust: Trust) -> None:
    exchange, outgoing = copy.exchange, copy.outgoing
    attempt = Attempt(
        exchange.provider or "", outgoing.host, time.perf_counter(), port=outgoing.port
    )
    exchange.attempts.append(attempt)
    error = None
    try:
        async with asyncio.timeout(_WHOLE_SECONDS):
            await _call(copy, trust)
    except RequestError as failure:
        error = failure.code
        exchange.flag(failure.flag)
    except TimeoutError:
        error = UpstreamTimeoutError.code
        exchange.flag(UpstreamTimeoutError.flag)
    except (OSError, ValueError, h11.ProtocolError) as failure:
        # The others' words may quote the request or the answer.
        error = str(failure) if isinstance(failure, OSError) else type(failure).__name__
        exchange.flag("UF")
    except asyncio.CancelledError:
        error = "stopped"
        raise
    finally:
        now = time.perf_counter()
        exchange.error = exchange.error or error
        attempt.end(now, status=exchange.status, error=error)
        exchange.ended = now


async def _call(copy: Copy, trust: Trust) -> None:
    reader, writer = await _connect(copy, trust)
    try:
        connection = h11.Connection(h11.CLIENT)
        for event in _request(copy.outgoing):
            writer.write(connection.send(event) or b"")
        await writer.drain()
        await _read_answer(connection, reader, copy)
    finally:
        writer.close()


async def _connect(copy: Copy, trust: Trust) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    outgoing, context, name = copy.outgoing, None, None
    if outgoing.scheme == "https":
        name = outgoing.tls.sni or outgoing.host
        context = ssl_context(outgoing.tls, trust, name)
    try:
        async with asyncio.timeout(copy.limits.connect):
            return await asyncio.open_connection(
                *outgoing.address, ssl=context, server_hostname=name
            )
    except TimeoutError:
        raise ConnectTimeoutError from None


def _request(outgoing: Outgoing) -> tuple[h11.Event, ...]:
    headers = list(outgoing.headers)
    if not any(header.lower() == b"host" for header, _ in headers):
        headers.insert(0, (b"host", outgoing.host.encode()))
    # h11 takes nothing but ASCII, and no more of that than stands in a URL.
    path = quote(outgoing.path.encode("utf-8", "surrogateescape"), safe=string.punctuation)
    head = h11.Request(method=outgoing.method, target=path, headers=headers)
    return head, h11.Data(data=outgoing.body), h11.EndOfMessage()


async def _read_answer(
    connection: h11.Connection, reader: asyncio.StreamReader, copy: Copy
) -> None:
    now, idle = asyncio.get_running_loop().time, copy.limits.idle
    reading = _Reading(copy)
    try:
        async with asyncio.timeout(copy.limits.first_byte) as limit:
            while not reading.complete:
                event = connection.next_event()
                if event is not h11.NEED_DATA:
                    reading.take(event)
                    continue
                if reading.begun:
                    limit.reschedule(None if idle is None else now() + idle)
                connection.receive_data(await reader.read(_READ))
    except TimeoutError:
        raise (IdleTimeoutError if reading.begun else UpstreamTimeoutError) from None
    finally:
        reading.account()


class _Reading:
    """The answer to a copy, so far."""

    def __init__(self, copy: Copy) -> None:
        self.complete = False
        self._outgoing = copy.outgoing
        self._exchange = copy.exchange
        self._answer: Answer | None = None

    @property
    def begun(self) -> bool:
        """Whether a client would have been given something of it."""
        return self._answer is not None and not self._answer.opening

    def take(self, event: object) -> None:
        """Take in one event of h11's."""
        if isinstance(event, h11.Response):
            self._exchange.status = event.status_code
            headers = {text(name): text(value) for name, value in event.headers}
            self._answer = Answer(
                self._outgoing.api,
                content_type=headers.get("content-type", ""),
                content_encoding=headers.get("content-encoding", ""),
                filter_usage=False,
            )
        elif isinstance(event, h11.Data) and self._answer is not None:
            self._exchange.response_bytes += len(event.data)
            self._answer.feed(bytes(event.data))
        elif not isinstance(event, h11.InformationalResponse):
            self.complete = True  # its end, or what is no HTTP any more
            if self._answer is not None:
                self._answer.close()

    def account(self) -> None:
        """Write down what was read."""
        if self._answer is not None:
            source: UsageSource = "response" if self.complete else "partial"
            self._answer.account(self._exchange, self._exchange.provider_host, source)
