"""Copies of requests that the client never sees: sent beside its own, read for usage, logged.

A copy has its own connection and its own exchange. Nothing of it can delay or fail the client's
request; past the bounds below, copies are dropped and the log tells so once.
"""

import asyncio
import logging
import ssl
import string
import time
from functools import lru_cache
from urllib.parse import quote

import certifi
import h11

from pointsman.config.table import TimeLimits, TlsSettings
from pointsman.errors import RequestError
from pointsman.protocols import detect
from pointsman.proxy.answer import Answer
from pointsman.routing.request import text
from pointsman.routing.rewriting import Outgoing
from pointsman.telemetry.exchange import Attempt, Exchange
from pointsman.telemetry.sinks import Sink

logger = logging.getLogger(__name__)

_MOST = 100  # copies under way at once
_WHOLE_SECONDS = 600.0
_READ = 64 * 1024


class Mirrors:
    """The copies under way."""

    def __init__(self) -> None:
        self._under_way: dict[asyncio.Task[None], tuple[Exchange, Sink]] = {}
        self._told = False

    def send(self, outgoing: Outgoing, limits: TimeLimits, exchange: Exchange, emit: Sink) -> None:
        """Begin to send a copy; its exchange is filled and emitted when that has ended.

        Where there are too many already, this one is dropped.
        """
        if len(self._under_way) >= _MOST:
            if not self._told:
                self._told = True
                logger.warning("more than %d mirrored requests at once: some are dropped", _MOST)
            return
        task = asyncio.get_running_loop().create_task(_carry_out(outgoing, limits, exchange))
        self._under_way[task] = exchange, emit
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if under_way := self._under_way.pop(task, None):
            exchange, emit = under_way
            emit(exchange)

    def stop(self, error: RequestError) -> None:
        """Cut what is under way, and emit it now: the log will be closed when the tasks end."""
        for task, (exchange, emit) in tuple(self._under_way.items()):
            del self._under_way[task]
            task.cancel()
            exchange.flag(error.flag)
            exchange.error = error.code
            exchange.ended = time.perf_counter()
            for attempt in exchange.attempts:
                attempt.end(exchange.ended, status=exchange.status, error=error.code)
            emit(exchange)


async def _carry_out(outgoing: Outgoing, limits: TimeLimits, exchange: Exchange) -> None:
    attempt = Attempt(
        exchange.provider or "", outgoing.host, time.perf_counter(), port=outgoing.port
    )
    exchange.attempts.append(attempt)
    error = None
    try:
        async with asyncio.timeout(_WHOLE_SECONDS):
            await _call(outgoing, limits, exchange)
    except TimeoutError:
        error = "upstream_timeout"
        exchange.flag("UT")
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


async def _call(outgoing: Outgoing, limits: TimeLimits, exchange: Exchange) -> None:
    context = _context(outgoing.tls) if outgoing.scheme == "https" else None
    name = (outgoing.tls.sni or outgoing.host) if context else None
    async with asyncio.timeout(limits.connect):
        reader, writer = await asyncio.open_connection(
            *outgoing.address, ssl=context, server_hostname=name
        )
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = list(outgoing.headers)
        if not any(header.lower() == b"host" for header, _ in headers):
            headers.insert(0, (b"host", outgoing.host.encode()))
        # h11 takes nothing but ASCII, and no more of that than stands in a URL.
        path = quote(outgoing.path.encode("utf-8", "surrogateescape"), safe=string.punctuation)
        request = h11.Request(method=outgoing.method, target=path, headers=headers)
        for event in (request, h11.Data(data=outgoing.body), h11.EndOfMessage()):
            writer.write(connection.send(event) or b"")
        await writer.drain()
        await _read_answer(connection, reader, outgoing, exchange)
    finally:
        writer.close()


async def _read_answer(
    connection: h11.Connection,
    reader: asyncio.StreamReader,
    outgoing: Outgoing,
    exchange: Exchange,
) -> None:
    answer: Answer | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ))
        elif isinstance(event, h11.Response):
            exchange.status = event.status_code
            headers = {text(name): text(value) for name, value in event.headers}
            answer = Answer(
                detect(outgoing.method, outgoing.path),
                content_type=headers.get("content-type", ""),
                content_encoding=headers.get("content-encoding", ""),
                filter_usage=False,
            )
        elif isinstance(event, h11.Data) and answer:
            exchange.response_bytes += len(event.data)
            answer.feed(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            if answer:
                answer.close()
                answer.account(exchange, exchange.provider_host, "response")
            return


@lru_cache(maxsize=64)
def _context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca_file or certifi.where())
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
