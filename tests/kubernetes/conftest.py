"""What the tests of the cluster share: an API server, and rules as YAML."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.config.conftest import folder, problems, rules
from tests.kubernetes.cluster import DEADLINE, Cluster

__all__ = ["folder", "problems", "rules"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """An API server, and this process's kubeconfig for it."""
    with Cluster(tmp_path) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        yield cluster


async def until(look: Callable[[], object], what: str = "") -> None:
    """Wait until this is true; fail after the deadline."""
    async with asyncio.timeout(DEADLINE):
        while not look():  # noqa: ASYNC110 (what is looked at has no event)
            await asyncio.sleep(0.01)


async def beside[T](running: Awaitable[None], work: Callable[[], Awaitable[T]]) -> T:
    """Do something while something else runs, which must not end by itself."""
    task = asyncio.ensure_future(running)
    doing = asyncio.ensure_future(work())
    try:
        async with asyncio.timeout(3 * DEADLINE):
            await asyncio.wait([task, doing], return_when=asyncio.FIRST_COMPLETED)
        assert doing.done(), task.exception()
        return doing.result()
    finally:
        for one in (task, doing):
            one.cancel()
        await asyncio.gather(task, doing, return_exceptions=True)
