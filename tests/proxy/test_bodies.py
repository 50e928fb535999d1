"""What the bodies of all requests hold together."""

import asyncio
from collections.abc import Callable

import pytest

from pointsman.proxy import bodies as module
from pointsman.proxy.bodies import Bodies, share_of_memory

MIB = 1024 * 1024


def test_it_is_bounded_and_what_is_given_back_can_be_taken_again() -> None:
    bodies = Bodies()
    bodies.most = 100
    assert bodies.take(60)
    assert bodies.take(40)
    assert not bodies.take(1)
    bodies.give_back(40)
    assert bodies.take(30)


def test_a_first_one_always_has_room() -> None:
    bodies = Bodies()
    bodies.most = 100
    assert bodies.take(1000)
    assert not bodies.take(1)


def test_the_processes_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "allowed_memory", lambda: 600 * MIB)
    assert share_of_memory() == 100 * MIB
    assert share_of_memory(4) == 25 * MIB


def trimming(monkeypatch: pytest.MonkeyPatch, work: Callable[[Bodies], None]) -> int:
    """Return how often memory was given back to the system."""
    trimmed = list[int]()
    monkeypatch.setattr(module, "_TRIM_SECONDS", 0.01)
    monkeypatch.setattr(module, "_malloc_trim", lambda: trimmed.append)

    async def run() -> None:
        work(Bodies())
        await asyncio.sleep(0.1)

    asyncio.run(run())
    return len(trimmed)


def test_what_many_have_freed_is_given_to_the_system_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(bodies: Bodies) -> None:
        for _ in range(20):
            bodies.take(MIB)
        for _ in range(20):
            bodies.give_back(MIB)

    assert trimming(monkeypatch, work) == 1


def test_small_ones_are_left_to_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(bodies: Bodies) -> None:
        bodies.take(MIB)
        bodies.give_back(MIB)

    assert trimming(monkeypatch, work) == 0
