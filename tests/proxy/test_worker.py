"""The worker's listeners: they accept when they are told to, unless a drain came first."""

import asyncio
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.proxy.worker import Listeners
from tests.e2e.harness import LOOPBACK

type Close = Callable[[asyncio.Server], object]


async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hi")
    writer.close()


async def started(
    sockets: list[socket.socket], close: Close = lambda _: None
) -> tuple[bool, list[asyncio.Server]]:
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
