"""Targets whose key files vanish: which they are, and how often that is told."""

import logging
from pathlib import Path

import pytest

from pointsman.config.credentials import Awaited, CredentialError, KeyFile, Literal
from pointsman.config.table import CallConfig, Route, RoutingTable, Rule, Target
from pointsman.errors import KeyMissingError
from pointsman.proxy import keys as keys_module
from pointsman.proxy.keys import Keys, no_key
from pointsman.proxy.router import Router
from pointsman.routing.request import Body, ClientRequest


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.config.credentials._RECHECK", 0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "hidden-path"
    path.write_text("sk-in-a-file-3c90")
    return path


def target(name: str, file: Path | None = None, *, weight: int = 1) -> Target:
    credential = KeyFile(file) if file else Literal("sk-literal")
    config = CallConfig(credential=credential)
    return Target(provider=name, host=f"{name}.test", config=config, weight=weight)


def table(*routes: Route) -> RoutingTable:
    return RoutingTable(exact={route.host: route for route in routes})


def route(name: str | None, *targets: Target, observe: bool = False) -> Route:
    host = f"{name or targets[0].provider}.test"
    return Route(name, host, (Rule("r", f"{name}/r", (), targets, observe=observe),))


def test_a_missing_key_is_told_once_until_it_is_back(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys, keyed = Keys(), target("a", file)
    assert keys.available(keyed)
    file.unlink()
    for _ in range(3):
        assert not keys.available(keyed)
    file.write_text("sk-back")
    assert keys.available(keyed)
    file.unlink()
    assert not keys.available(keyed)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["ERROR", "WARNING", "ERROR"]
    assert str(file) in told[0][1]
    assert told[1][1] == "the key of the provider a is back: it is called again"


def test_another_reason_is_told(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys, keyed = Keys(), target("a", file)
    file.unlink()
    assert not keys.available(keyed)
    file.mkdir()
    assert not keys.available(keyed)
    file.rmdir()
    for written in ("", "one\ntwo", "Bearer sk-x", "k" * 70_000):
        file.write_text(written)
        for _ in range(2):
            assert not keys.available(keyed)
    file.unlink()
    file.symlink_to(file)
    assert not keys.available(keyed)
    wanted = ["No such file", "not a file", "empty", "one line", "Bearer", "64 KiB", "symbolic"]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(wanted)
    assert all(words in text for words, text in zip(wanted, told, strict=True)), told


def test_a_target_without_a_credential_needs_none() -> None:
    assert Keys().available(Target(provider="a", host="a.test"))
    assert Keys().available(Target(provider="a", host="a.test", config=CallConfig()))


def test_after_a_reload_it_is_told_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys, keyed = Keys(), target("a", file)
    with caplog.at_level(logging.ERROR, keys_module.__name__):
        for _ in range(2):
            keys.tell(keyed, CredentialError("gone"))
        keys.forget()
        keys.tell(keyed, CredentialError("gone"))
    assert len(caplog.records) == 2


def test_a_rule_with_no_other_provider_is_a_reason_and_others_a_warning(file: Path) -> None:
    keyed, other = target("a", file), target("b")
    both = table(route("both", keyed, other), route(None, keyed))
    alone = table(route("both", keyed, other), route("alone", keyed))
    by_itself = table(route(None, keyed))
    never = table(route("n", target("b"), target("a", file, weight=0)))
    file.unlink()
    keys = Keys()
    assert keys.look(both) == ((), ("no key for the provider a",))
    found = ("no key for the provider a; the rule r of alone.test has no other",)
    assert keys.look(alone) == (found, ())
    assert keys.look(by_itself) == (("no key for the provider a; a.test has no other",), ())
    assert keys.look(never) == ((), ())
    assert keys.look(table(route("seen", keyed, observe=True))) == ((), ())
    file.write_text("sk-back")
    assert keys.look(alone) == ((), ())


def test_a_key_that_was_never_here_is_a_warning(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be in the environment of another proxy, whose owner wrote the provider."""

    def awaited(name: str) -> Target:
        config = CallConfig(credential=Awaited(lambda: KeyFile(file)))
        return Target(provider=name, host=f"{name}.test", config=config)

    had = target("had", file)
    file.unlink()
    keys = Keys()
    for rules in (route(None, awaited("theirs")), route("r", awaited("theirs"), awaited("theirs"))):
        assert keys.look(table(rules)) == ((), ("no key for the provider theirs",))
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    found = "no key for the providers theirs, had; the rule r of r.test has no other"
    assert keys.look(table(route("r", awaited("theirs"), had))) == ((found,), ())
    file.write_text("sk-here")
    assert keys.look(table(route(None, awaited("theirs")))) == ((), ())


def test_several_are_named_each_once(file: Path) -> None:
    first, second = target("a", file), target("b", file)
    file.unlink()
    (reason,), _ = Keys().look(table(route("both", first, second, first)))
    assert reason == "no key for the providers a, b; the rule r of both.test has no other"
    error = no_key("r", ["a", "b", "a"])
    assert str(error) == "The keys of the providers a, b are missing."
    assert (error.rule, error.provider, error.status, error.code) == ("r", "a", 503, "no_key")


def test_a_route_of_several_names_is_looked_at_once() -> None:
    one = route("one", target("a"))
    found = RoutingTable(exact={"one": one, "one.default": one}, wildcards=((".one", one),))
    assert list(found.routes()) == [one]


# --- as the router has it -------------------------------------------------------------------------

REQUEST = ClientRequest(
    method="POST",
    scheme="http",
    host="both.test",
    port=80,
    path="/v1/chat/completions",
    headers=(),
    body=Body(b"{}", "", limit=100),
    address=("both.test", 80),
)


def test_a_plan_has_only_targets_with_keys(file: Path) -> None:
    router = Router()
    both = route("both", target("a", file), target("b"))
    router.go_live(table(both))
    file.unlink()
    for _ in range(10):
        assert [t.provider for t in router.decide(both, REQUEST).plan.order] == ["b"]
    file.write_text("sk-back")
    found = {t.provider for t in router.decide(both, REQUEST).plan.order}
    assert found == {"a", "b"}


def test_without_any_key_the_provider_is_named(file: Path) -> None:
    router = Router()
    # What has no weight is not called, whether it has a key or not.
    alone = route("both", target("a", file), target("b", weight=0))
    router.go_live(table(alone))
    file.unlink()
    with pytest.raises(KeyMissingError, match="The key of the provider a is missing") as caught:
        router.decide(alone, REQUEST)
    assert str(file) not in str(caught.value)
    assert caught.value.rule == "r"


def test_who_only_observes_needs_no_key(file: Path) -> None:
    router = Router()
    seen = route("both", target("a", file), observe=True)
    router.go_live(table(seen))
    file.unlink()
    assert router.decide(seen, REQUEST).target.provider == "a"
