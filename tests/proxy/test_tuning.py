"""What is changed about mitmproxy must not change what addons see."""

import asyncio
import gc
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from mitmproxy import exceptions, hooks
from mitmproxy.addonmanager import AddonManager
from mitmproxy.addons.modifyheaders import ModifyHeaders
from mitmproxy.addons.save import Save
from mitmproxy.addons.script import ScriptLoader
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook
from mitmproxy.test import taddons, tflow

from pointsman.proxy import tuning

OWN = object()


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
        manager = context.master.addons
        old, new = listener("script", seen), listener("script", seen)
        loader = SimpleNamespace(name="loader", addons=[old])
        manager.add(loader)
        dispatch = tuning._Dispatch(manager)
        event = HttpRequestHook(tflow.tflow())
        asyncio.run(dispatch(event))
        seen.append("loaded anew")
        # As mitmproxy's script loader does.
        manager.remove(old)
        new.request = lambda _flow: seen.append("new")  # type: ignore[attr-defined]
        manager.register(new)
        loader.addons = [new]
        asyncio.run(dispatch(event))
    assert seen == ["script", "loaded anew", "new"]


def test_a_hook_that_waits_is_waited_for_before_the_next_addon() -> None:
    seen: list[str] = []

    async def request(_flow: object) -> None:
        await asyncio.sleep(0)
        seen.append("waited")

    with taddons.context() as context:
        waiting = SimpleNamespace(name="waiting", request=request)
        context.master.addons.add(waiting, listener("next", seen))
        trigger(context.master.addons, HttpRequestHook(tflow.tflow()))
    assert seen == ["waited", "next"]


def test_a_hook_that_is_no_function_costs_the_others_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[str] = []
    with taddons.context() as context:
        context.master.addons.add(
            SimpleNamespace(name="odd", request="no function"), listener("next", seen)
        )
        trigger(context.master.addons, HttpRequestHook(tflow.tflow()))
    assert seen == ["next"]
    assert "not callable" in caplog.text


def own_script(*more: object) -> object:
    return SimpleNamespace(ns=SimpleNamespace(addons=[OWN, *more]))


@pytest.mark.parametrize(
    ("added", "scripts", "seen"),
    [
        ((), [own_script()], False),
        ((), [own_script(), SimpleNamespace(ns=SimpleNamespace())], True),
        ((), [own_script(), SimpleNamespace(ns=None)], True),  # its file may be mended at any time
        ((), [own_script(SimpleNamespace(name="other"))], True),
        ((Save(),), [own_script()], True),
        ((ModifyHeaders(),), [own_script()], True),
        ((SimpleNamespace(name="someones"),), [own_script()], True),
    ],
)
def test_flows_are_seen_by_a_feature_that_is_on_and_by_any_addon_beside_ours(
    added: tuple[object, ...], scripts: list[object], seen: bool
) -> None:
    with taddons.context(ScriptLoader(), *added, loadcore=False) as context:
        context.master.addons.get("scriptloader").addons = scripts
        assert tuning.flows_are_seen(context.master, OWN) is seen


def test_what_is_loaded_is_no_longer_searched_for_garbage() -> None:
    try:
        tuning.spare_what_is_loaded()
        assert gc.get_freeze_count() > 0
        assert len(gc.get_objects()) < gc.get_freeze_count()
    finally:
        gc.unfreeze()


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
