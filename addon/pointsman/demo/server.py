"""Providers on a socket: HTTP/1.1 and HTTP/2, plain or TLS, in this process.

Hypercorn speaks the protocols, one `TCPServer` for each connection. The listening socket and the
connections are ours and not `hypercorn.asyncio.serve`'s, which tells nobody the port it got and
waits at its end for every client to go away; this one cuts them off.
"""

import asyncio
import logging
import ssl
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGISendCallable,
    HTTPScope,
    LifespanState,
    Scope,
)

from pointsman.demo.authority import ServerCertificate
from pointsman.demo.openai_answers import RequestError, dump
from pointsman.demo.provider import DropConnectionError, Provider

KEEP_ALIVE_SECONDS = 60


class Listener:
    """A listening socket and what is connected to it. `serve` makes one."""

    def __init__(self, providers: Sequence[Provider]) -> None:
        self._providers = list(providers)
        self._config = Config()
        self._config.errorlog = logging.getLogger("pointsman.demo")
        self._config.keep_alive_timeout = KEEP_ALIVE_SECONDS
        self._config.h11_pass_raw_headers = True  # a call shows names as they were on the wire
        self._context = WorkerContext(None)
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server: asyncio.Server

    async def open(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Start to listen."""
        self._server = await asyncio.start_server(self._connected, host, port, ssl=tls)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Stop listening, cut off every client and wait until nothing of it is left."""
        self._server.close()
        await self._context.terminated.set()
        for writer in self._connections.values():
            writer.transport.abort()
        if self._connections:
            await asyncio.wait(self._connections)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            if scope["type"] != "http":
                return
            try:
                await self._provide(scope, receive, send)
            except DropConnectionError:
                writer.transport.abort()

        await TCPServer(
            ASGIWrapper(app),
            asyncio.get_running_loop(),
            self._config,
            self._context,
            LifespanState(),
            reader,
            writer,
        )

    async def _provide(
        self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        provider = self._provider(scope)
        if provider is not None:
            await provider(scope, receive, send)
            return
        body = dump(RequestError(421, "No provider has this host here.").body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 421, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _provider(self, scope: HTTPScope) -> Provider | None:
        """Choose by `Host` or `:authority`, without its port; the only provider answers to all."""
        if len(self._providers) == 1:
            return self._providers[0]
        authority = next((v for n, v in scope["headers"] if n.lower() == b"host"), b"")
        host = authority.decode("latin-1").rsplit(":", 1)[0].lower()
        return next((p for p in self._providers if p.host.lower() == host), None)


async def serve(
    providers: Sequence[Provider],
    *,
    tls: ServerCertificate | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    alpn: Sequence[str] = ("h2", "http/1.1"),
) -> Listener:
    """Serve providers on one socket of this event loop.

    Several providers are told apart by the host that a request names. Port 0 takes a free one.
    Without `tls` the listener speaks plain HTTP/1.1, and HTTP/2 to those who begin with it.

    Raises:
        OSError: the address is taken, or a certificate file can't be read.
    """
    context = None
    if tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls.chain, tls.key)
        context.set_alpn_protocols(list(alpn))
    listener = Listener(providers)
    await listener.open(host, port, context)
    return listener


class ThreadedServer:
    """`serve` in a thread with an event loop of its own, for callers that have none.

    A context manager; `port` is known inside it.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        tls: ServerCertificate | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        alpn: Sequence[str] = ("h2", "http/1.1"),
    ) -> None:
        self._providers = providers
        self._tls = tls
        self._alpn = alpn
        self.host = host
        self.port = port
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._started: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="demo-providers", daemon=True
        )

    @property
    def url(self) -> str:
        """The listener's own address; providers that share it need their host named."""
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._started.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving and wait until nothing of it is left; harmless a second time."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            listener = await serve(
                self._providers, tls=self._tls, host=self.host, port=self.port, alpn=self._alpn
            )
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            self._started.set_exception(error)
            return
        self._started.set_result(listener.port)
        try:
            await self._stop.wait()
        finally:
            await listener.close()
