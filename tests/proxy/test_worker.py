"""The worker's listeners: they accept when they are told to, unless a drain came first."""

import asyncio
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.proxy.worker import Listener, Listeners
from tests.e2e.harness import LOOPBACK

type Close = Callable[[Listener], object]


async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hi")
    writer.close()


async def started(
    sockets: list[socket.socket], close: Close = lambda _: None
) -> tuple[bool, list[Listener]]:
    listeners = Listeners(sockets)
    mode = SimpleNamespace(transport_protocol="tcp", full_spec="regular")
    instance: Any = SimpleNamespace(mode=mode, handle_stream=serve)
    servers = await listeners.listen(instance)
    close(servers[0])
    return await listeners.start(), servers


def test_what_waited_is_accepted_at_the_start() -> None:
    async def run() -> bytes:
        listening = socket.create_server((LOOPBACK, 0))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        accepting, servers = await started([listening])
        assert accepting
        said = await reader.read()
        writer.close()
        servers[0].close()
        return said

    assert asyncio.run(run()) == b"hi"


@pytest.mark.parametrize(
    "close",
    [
        pytest.param(lambda server: server.close(), id="before"),
        # The loop calls it as soon as `start` lets go.
        pytest.param(lambda server: asyncio.get_running_loop().call_soon(server.close), id="while"),
    ],
)
def test_a_drain_that_comes_first_is_no_fault(close: Close) -> None:
    async def run() -> bool:
        with (
            socket.create_server((LOOPBACK, 0)) as first,
            socket.create_server((LOOPBACK, 0)) as two,
        ):
            accepting, servers = await started([first, two], close)
            for server in servers:
                server.close()
            return accepting

    assert asyncio.run(run()) is False


def test_what_waits_at_the_end_is_served_and_what_comes_later_is_refused() -> None:
    async def run() -> list[bytes]:
        listening = socket.create_server((LOOPBACK, 0))
        address = listening.getsockname()
        accepting, (server,) = await started([listening])
        assert accepting
        # More than the loop accepts at a time, and it has not run since.
        clients = [socket.create_connection(address) for _ in range(50)]
        server.close()
        assert server.sockets == ()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        opened = [await asyncio.open_connection(sock=client) for client in clients]
        said = [await reader.read() for reader, _ in opened]
        for _, writer in opened:
            writer.close()
        return said

    assert asyncio.run(run()) == [b"hi"] * 50


def test_what_waits_for_one_that_has_not_begun_is_not_served() -> None:
    """Its rules may not be live."""

    async def run() -> None:
        listening = socket.create_server((LOOPBACK, 0))
        mode = SimpleNamespace(transport_protocol="tcp", full_spec="regular")
        instance: Any = SimpleNamespace(mode=mode, handle_stream=serve)
        (server,) = await Listeners([listening]).listen(instance)
        client = socket.create_connection(listening.getsockname())
        server.close()
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)

    asyncio.run(run())
