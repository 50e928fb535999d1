"""Key files that change, vanish and come back while the proxy runs."""

import asyncio
import os
import time
from pathlib import Path

import httpx
import pytest

from pointsman.demo.provider import Call, Reply
from tests.e2e.conftest import StartFar, StartProxy
from tests.e2e.harness import (
    DEADLINE,
    Far,
    Json,
    Proxy,
    assert_entry,
    assert_refused,
    chat,
    eventually,
    llm_route,
    openai_config,
    said,
    to,
    write_rules,
)

pytestmark = pytest.mark.e2e

OLD, NEW = "sk-rotated-old-5d21c09b", "sk-rotated-new-77f0a4e1"
ADMIN = ("--set", "llm_admin=127.0.0.1:0")


class Stage:
    """A proxy whose providers have their keys in files."""

    def __init__(self, proxy: Proxy, keys: Path, first: Far, second: Far) -> None:
        self.proxy = proxy
        self.keys = keys
        self.first = first
        self.second = second
        self._asked = 0

    def ask(self, host: str = "first.example") -> httpx.Response:
        self._asked += 1
        with self.proxy.client() as client:
            return client.post(f"http://{host}/v1/chat/completions", json=chat())

    def entries(self) -> list[Json]:
        """Return the entries of all requests since the last look."""
        asked, self._asked = self._asked, 0
        return self.proxy.logged(asked)

    def ready(self) -> tuple[int, Json]:
        found = httpx.get(f"http://{self.proxy.admin}/readyz", trust_env=False, timeout=DEADLINE)
        return found.status_code, found.json()

    def errors(self) -> int:
        """Count the error records about missing keys."""
        return self.proxy.err.text().count("is not called until its key is back")


@pytest.fixture
def stage(start_proxy: StartProxy, start_far: StartFar, tmp_path: Path) -> Stage:
    keys = tmp_path / "secret keys"
    keys.mkdir()
    first, second = start_far("first", "first.example"), start_far("second", "second.example")
    for far in (first, second):
        (keys / far.provider.name).write_text(f"sk-{far.provider.name}-4c1e77d0\n")

    def provider(far: Far) -> Json:
        source = {"file": str(keys / far.provider.name)}
        return far.manifest(configs=openai_config(apiKeyFrom=source, model="m"))

    def priorities(*hosts: str, **rule: Json | int) -> Json:
        rule_ = to(*hosts, **rule)
        for priority, ref in enumerate(rule_["backendRefs"]):
            ref["priority"] = priority
        return rule_

    both = ("first.example", "second.example")
    rules = write_rules(
        tmp_path / "rules",
        provider(first),
        provider(second),
        llm_route("failover", "failover.test", priorities(*both)),
        llm_route("once", "once.test", priorities(*both, retry={"attempts": 1})),
        llm_route("seen", "seen.test", {**to("first.example"), "mode": "observe"}),
        llm_route(
            "copied",
            "copied.test",
            to("second.example", name="only", mirror={"providerHost": "first.example"}),
        ),
    )
    return Stage(start_proxy(rules, *ADMIN), keys, first, second)


@pytest.mark.parametrize("how", ["removed", "emptied", "unreadable"])
def test_a_provider_without_its_key_is_not_called_and_named_without_its_path(
    stage: Stage, how: str
) -> None:
    assert said(stage.ask())
    file = stage.keys / "first"
    kept = file.read_text()
    if how == "removed":
        file.unlink()
    elif how == "emptied":
        file.write_text("")
    else:
        file.unlink()
        file.mkdir()
    eventually(lambda: stage.ask().status_code == 503, what="a missing key")
    refused = stage.ask()
    assert_refused(refused, 503, "no_key")
    assert refused.json()["error"]["message"] == "The key of the provider first is missing."
    assert "secret" not in refused.text
    stage.proxy.expect_error("the provider first is not called until its key is back")
    assert str(file) in stage.proxy.err.text()
    assert stage.errors() == 1, "told once, not for each request"

    if how == "unreadable":
        file.rmdir()
    file.write_text(kept)
    eventually(lambda: stage.ask().status_code == 200, what="the key is back")
    stage.proxy.says("the key of the provider first is back")
    entries = stage.entries()
    missing = [entry for entry in entries if entry["status"] == 503]
    assert len(missing) >= 2
    for entry in missing:
        assert_entry(entry, flags=["UH"], error="no_key", provider="first", attempts=[])
    assert str(stage.keys) not in "".join(map(str, entries))


@pytest.mark.parametrize("host", ["failover.test", "once.test"])
def test_the_next_priority_is_called_in_its_place(stage: Stage, host: str) -> None:
    """Even where the rule allows no second attempt: it is no attempt."""
    (stage.keys / "first").unlink()
    eventually(lambda: stage.ask().status_code == 503, what="a missing key")
    stage.proxy.expect_error("the provider first is not called")
    stage.entries()
    answer = stage.ask(host)
    assert said(answer).startswith("This is second")
    (entry,) = stage.entries()
    assert [attempt["provider"] for attempt in entry["attempts"]] == ["second"]
    assert_entry(entry, status=200, flags=[], provider="second")


def test_readiness_tells_what_is_left(stage: Stage) -> None:
    well = {"ready": True, "reasons": [], "warnings": [], "under_way": 0}
    assert stage.ready() == (200, well)
    (stage.keys / "second").unlink()
    eventually(lambda: stage.ready()[1]["reasons"], what="not ready")
    assert stage.ready() == (
        503,
        {
            "ready": False,
            # The other rules have the first provider in its place.
            "reasons": [
                "no key for the provider second; the rule only of copied.test has no other"
            ],
            "warnings": [],
            "under_way": 0,
        },
    )
    stage.proxy.expect_error("the provider second is not called until its key is back")
    assert stage.errors() == 1
    (stage.keys / "second").write_text("sk-again-99ab71c2")
    eventually(lambda: stage.ready() == (200, well), what="ready again")


def test_a_change_of_the_rules_waits_for_no_key(stage: Stage, tmp_path: Path) -> None:
    """Who routes around a provider whose key is gone, or whose mount comes a little later."""
    (stage.keys / "first").unlink()
    late, second = (
        openai_config(apiKeyFrom={"file": str(stage.keys / name)}, model="m")
        for name in ("late", "second")
    )
    write_rules(
        tmp_path / "rules",
        stage.first.manifest(configs=late),
        stage.second.manifest(configs=second),
        llm_route("other", "other.test", to("second.example")),
    )
    stage.proxy.says("2 providers, 1 route")
    stage.proxy.says(f"the key file {stage.keys / 'late'} can't be read")
    assert said(stage.ask("other.test")).startswith("This is second")
    assert_refused(stage.ask(), 503, "no_key")
    stage.proxy.expect_error("the provider first is not called until its key is back")
    (stage.keys / "late").write_text("sk-late-5510c7aa")
    eventually(lambda: stage.ask().status_code == 200, what="the key that comes late")
    stage.entries()


def test_a_key_that_others_stand_in_for_is_a_warning(stage: Stage) -> None:
    (stage.keys / "first").unlink()
    eventually(lambda: stage.ready()[1]["warnings"], what="a warning")
    status, told = stage.ready()
    assert (status, told["ready"], told["reasons"]) == (200, True, [])
    assert told["warnings"] == ["no key for the provider first"]
    stage.proxy.expect_error("the provider first is not called until its key is back")


def test_a_rule_that_only_observes_needs_no_key(stage: Stage) -> None:
    (stage.keys / "first").unlink()
    eventually(lambda: stage.ask().status_code == 503, what="a missing key")
    stage.proxy.expect_error("the provider first is not called")
    stage.entries()
    stage.ask("seen.test")
    (entry,) = stage.entries()
    assert entry["error"] != "no_key"
    assert "OB" in entry["flags"]


def test_a_copy_without_a_key_is_left_out(stage: Stage) -> None:
    (stage.keys / "first").unlink()
    eventually(lambda: stage.ask().status_code == 503, what="a missing key")
    stage.proxy.expect_error("the provider first is not called")
    stage.entries()
    for _ in range(3):
        assert said(stage.ask("copied.test")).startswith("This is second")
    assert {entry["provider"] for entry in stage.entries()} == {"second"}
    assert stage.errors() == 1


def test_a_key_that_vanishes_between_two_attempts_is_passed_over(stage: Stage) -> None:
    """The plan was made with both; the second has no key when its turn comes."""
    file = stage.keys / "second"

    def remove(call: Call) -> Reply:
        file.unlink(missing_ok=True)
        time.sleep(1.5)  # longer than a key's file is trusted
        return Reply.json({"error": {"message": "busy"}}, 503)

    stage.first.provider.script = remove
    answer = stage.ask("failover.test")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "busy"
    stage.proxy.expect_error("the provider second is not called until its key is back")
    (entry,) = stage.entries()
    assert [attempt["status"] for attempt in entry["attempts"]] == [503]


def test_a_rotated_key_is_used_within_two_seconds(
    start_proxy: StartProxy, start_far: StartFar, tmp_path: Path
) -> None:
    """As Kubernetes mounts a secret: `key` → `..data/key`, and `..data` is swapped."""
    far = start_far("rotated", "rotated.example")
    mount = tmp_path / "mount"
    mount.mkdir()

    def publish(name: str, key: str) -> None:
        (mount / name).mkdir()
        (mount / name / "key").write_text(key)
        (mount / "..tmp").symlink_to(name)
        (mount / "..tmp").replace(mount / "..data")

    publish("..1", OLD)
    (mount / "key").symlink_to("..data/key")
    config = openai_config(apiKeyFrom={"file": str(mount / "key")}, model="m")
    proxy = start_proxy(write_rules(tmp_path / "rules", far.manifest(configs=config)))
    rotated: list[float] = []

    async def ask_all_the_time() -> int:
        async with proxy.async_client() as client:
            asked = 0
            while not rotated or time.monotonic() < rotated[0] + 3.5:
                answer = await client.post(
                    "http://rotated.example/v1/chat/completions", json=chat()
                )
                assert answer.status_code == 200
                asked += 1
                if asked == 20:
                    publish("..2", NEW)
                    rotated.append(time.monotonic())
                await asyncio.sleep(0.02)
            return asked

    asked = asyncio.run(ask_all_the_time())
    calls = far.calls(asked)
    used = [(call.at - rotated[0], call.header("authorization")) for call in calls]
    assert {key for at, key in used if at < 0} == {f"Bearer {OLD}"}
    late = {key for at, key in used if at > 2}
    assert late == {f"Bearer {NEW}"}
    proxy.logged(asked)


@pytest.mark.parametrize("times", ["kept", "new"])
def test_a_key_that_is_written_over_in_place_is_used(
    start_proxy: StartProxy, start_far: StartFar, tmp_path: Path, times: str
) -> None:
    """Of the same length, and with its old time of change: a copy that keeps the times."""
    far = start_far("rotated", "rotated.example")
    file = tmp_path / "key"
    file.write_text(OLD)
    before = file.stat()
    config = openai_config(apiKeyFrom={"file": str(file)}, model="m")
    proxy = start_proxy(write_rules(tmp_path / "rules", far.manifest(configs=config)))

    def key() -> str | None:
        with proxy.client() as client:
            assert said(client.post("http://rotated.example/v1/chat/completions", json=chat()))
        proxy.entry()
        return far.call().header("authorization")

    assert key() == f"Bearer {OLD}"
    assert len(OLD) == len(NEW)
    with file.open("r+") as opened:
        opened.write(NEW)
    if times == "kept":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    eventually(lambda: key() == f"Bearer {NEW}", what="the new key")
