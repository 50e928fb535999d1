"""What is changed about mitmproxy must not change what addons see."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from mitmproxy import exceptions, hooks
from mitmproxy.addonmanager import AddonManager
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook
from mitmproxy.test import taddons, tflow

from pointsman.proxy import tuning


def listener(name: str, seen: list[str], effect: Callable[[], None] = lambda: None) -> object:
    def request(_flow: object) -> None:
        seen.append(name)
        effect()

    return SimpleNamespace(name=name, request=request)


class Options:
    """Options that are off unless they are set."""

    stickycookie: str
    flow_detail: int

    def __getattr__(self, name: str) -> bool:
        return False


def halt() -> None:
    raise exceptions.AddonHalt


def fail() -> None:
    raise RuntimeError("a bug in someone's addon")


def trigger(manager: AddonManager, event: hooks.Hook) -> None:
    asyncio.run(tuning._Dispatch(manager)(event))


def test_listeners_are_called_in_their_order_and_others_are_not() -> None:
    seen: list[str] = []
    with taddons.context() as context:
        context.master.addons.add(
            listener("a", seen), SimpleNamespace(name="deaf"), listener("b", seen)
        )
        trigger(context.master.addons, HttpRequestHook(tflow.tflow()))
    assert seen == ["a", "b"]


def test_an_addon_may_halt_the_chain_and_a_failing_one_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[str] = []
    with taddons.context() as context:
        context.master.addons.add(
            listener("fails", seen, fail), listener("halts", seen, halt), listener("never", seen)
        )
        trigger(context.master.addons, HttpRequestHook(tflow.tflow()))
    assert seen == ["fails", "halts"]
    assert "a bug in someone's addon" in caplog.text


def test_addons_that_come_and_go_are_noticed() -> None:
    seen: list[str] = []
    with taddons.context() as context:
        manager = context.master.addons
        first, second = listener("first", seen), listener("second", seen)
        manager.add(first)
        dispatch = tuning._Dispatch(manager)
        event = HttpRequestHook(tflow.tflow())
        asyncio.run(dispatch(event))
        manager.remove(first)
        manager.add(second)
        asyncio.run(dispatch(event))
    assert seen == ["first", "second"]


def test_a_script_that_is_loaded_anew_is_noticed() -> None:
    seen: list[str] = []
    with taddons.context() as context:
        loader = SimpleNamespace(name="loader", addons=[listener("old", seen)])
        context.master.addons.add(loader)
        dispatch = tuning._Dispatch(context.master.addons)
        event = HttpRequestHook(tflow.tflow())
        asyncio.run(dispatch(event))
        loader.addons = [listener("new", seen)]
        asyncio.run(dispatch(event))
    assert seen == ["old", "new"]


def test_an_addon_stays_when_its_option_is_on() -> None:
    removed: list[str] = []
    addons = {name: name for name in tuning._NEEDED}
    options = Options()
    options.stickycookie = ".*"
    options.flow_detail = 1
    master = SimpleNamespace(
        options=options, addons=SimpleNamespace(get=addons.get, remove=removed.append)
    )
    tuning.remove_idle_addons(master)  # type: ignore[arg-type]
    assert set(tuning._NEEDED) - set(removed) == {"stickycookie", "dumper"}
