"""Rules that change under way, and rules that can't be used."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from pointsman.demo.provider import Reply
from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import (
    DEADLINE,
    Far,
    Json,
    Proxy,
    assert_entry,
    chat,
    eventually,
    openai_config,
    said,
    write_rules,
)

pytestmark = pytest.mark.e2e

HOST = "http://api.openai.com"
PROMPTLY = 2.0

type Change = Callable[[Path, Json], None]


def manifest(openai: Far, model: str) -> Json:
    return openai.manifest(configs=openai_config(model=model, apiKey="${OPENAI_API_KEY}"))


def write(rules: Path, resource: Json) -> None:
    write_rules(rules, resource)


def rename(rules: Path, resource: Json) -> None:
    """Replace the file by another, as editors and configuration management do."""
    beside = write_rules(rules.parent / "new", resource)
    (beside / "rules.yaml").replace(rules / "rules.yaml")


def add_and_remove(rules: Path, resource: Json) -> None:
    """The same host may stand only once, so that both steps have to be seen."""
    write_rules(rules, resource, name="other.yaml")
    (rules / "rules.yaml").unlink()


def swap(rules: Path, resource: Json) -> None:
    """Swap the symlink `..data`, as the kubelet does for a mounted ConfigMap."""
    version = f"..version_{len(list(rules.iterdir()))}"
    write_rules(rules / version, resource)
    (rules / "..data_tmp").symlink_to(version)
    (rules / "..data_tmp").replace(rules / "..data")
    if not (rules / "rules.yaml").is_symlink():
        (rules / "rules.yaml").symlink_to("..data/rules.yaml")


def model_now(proxy: Proxy) -> str:
    """Ask which model is called, and take the log's entry of it."""
    with proxy.client() as client:
        text = said(client.post(HOST, json=chat()))
    proxy.entry()
    return text.split()[4].rstrip(".")


@pytest.mark.parametrize(
    ("prepare", "change"),
    [(write, write), (write, rename), (write, add_and_remove), (swap, swap)],
    ids=["write", "rename", "another-file", "configmap"],
)
def test_changed_rules_are_live_within_two_seconds(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, prepare: Change, change: Change
) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    prepare(rules, manifest(openai, "old"))
    proxy = start_proxy(rules)
    assert model_now(proxy) == "old"
    change(rules, manifest(openai, "new"))
    eventually(lambda: model_now(proxy) == "new", what="the new rules", within=PROMPTLY)
    if change is not add_and_remove:
        change(rules, manifest(openai, "newer"))
        eventually(lambda: model_now(proxy) == "newer", what="the next ones", within=PROMPTLY)


def test_a_rules_folder_that_is_replaced_is_read_again(
    start_proxy: StartProxy, openai: Far, tmp_path: Path
) -> None:
    """The path stays and its folder is another one, as with a release's symlink."""
    for name in ("old", "new"):
        write_rules(tmp_path / name, manifest(openai, name))
    (tmp_path / "rules").symlink_to("old")
    proxy = start_proxy(tmp_path / "rules")
    assert model_now(proxy) == "old"
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").replace(tmp_path / "rules")
    eventually(lambda: model_now(proxy) == "new", what="the new rules", within=PROMPTLY + 1)


def test_a_bad_reload_keeps_the_last_good_rules_and_says_where_it_is_bad(
    start_proxy: StartProxy, openai: Far, tmp_path: Path
) -> None:
    rules = write_rules(tmp_path / "rules", manifest(openai, "old"))
    proxy = start_proxy(rules)
    good = (rules / "rules.yaml").read_text(encoding="utf-8")
    bad = good.replace("path:", "paht:")
    (rules / "rules.yaml").write_text(bad, encoding="utf-8")

    line = bad[: bad.index("paht:")].count("\n") + 1
    place = f"{rules / 'rules.yaml'}:{line}: LLMProvider/openai: spec.paht"
    proxy.says(place)
    proxy.expect_error("the rules were not reloaded, the last good ones stay")
    assert 'did you mean "path"' in proxy.printed
    assert model_now(proxy) == "old"

    (rules / "rules.yaml").write_text(good.replace("old", "new"), encoding="utf-8")
    eventually(lambda: model_now(proxy) == "new", what="the mended rules", within=PROMPTLY)


def test_rules_that_vanish_stay_live(start_proxy: StartProxy, openai: Far, tmp_path: Path) -> None:
    rules = write_rules(tmp_path / "rules", manifest(openai, "old"))
    proxy = start_proxy(rules)
    rules.rename(tmp_path / "away")
    proxy.expect_error("the rules were not reloaded, the last good ones stay")
    assert model_now(proxy) == "old"
    write_rules(tmp_path / "away", manifest(openai, "new"))
    (tmp_path / "away").rename(rules)
    eventually(lambda: model_now(proxy) == "new", what="the new rules", within=PROMPTLY + 1)


def unlink(rules: Path) -> None:
    (rules / "rules.yaml").unlink()


def replace_by_an_empty_one(rules: Path) -> None:
    rules.rename(rules.with_name("away"))
    rules.mkdir()


def comment_all_out(rules: Path) -> None:
    (rules / "rules.yaml").write_text("# nothing\n", encoding="utf-8")


@pytest.mark.parametrize("empty", [unlink, replace_by_an_empty_one, comment_all_out])
def test_a_folder_without_any_rules_is_a_bad_change(
    start_proxy: StartProxy, openai: Far, tmp_path: Path, empty: Callable[[Path], None]
) -> None:
    """With no rules, requests would reach the provider unrouted, with the client's own key."""
    rules = write_rules(tmp_path / "rules", manifest(openai, "old"))
    proxy = start_proxy(rules, "--set", "llm_admin=127.0.0.1:0")
    empty(rules)
    proxy.expect_error("the rules were not reloaded, the last good ones stay")
    proxy.expect_error("no LLMProvider or LLMRoute is left in it")
    assert model_now(proxy) == "old"
    ready = httpx.get(f"http://{proxy.admin}/readyz", trust_env=False).json()
    assert ready["warnings"] == ["a change of the rules was refused: see /config"]
    write_rules(rules, manifest(openai, "new"))
    eventually(lambda: model_now(proxy) == "new", what="the new rules", within=PROMPTLY + 1)


def test_a_start_with_an_empty_folder_is_told(start_proxy: StartProxy, tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    proxy = start_proxy(tmp_path / "rules", "--set", "llm_admin=127.0.0.1:0")
    ready = httpx.get(f"http://{proxy.admin}/readyz", trust_env=False).json()
    assert ready["ready"]
    assert ready["warnings"] == ["no rules: nothing is routed"]


def test_a_request_under_way_ends_on_the_rules_it_began_with(
    start_proxy: StartProxy, openai: Far, tmp_path: Path
) -> None:
    proxy = start_proxy(write_rules(tmp_path / "rules", manifest(openai, "old")))
    go_on = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b": wait\n\n"
        for _ in range(int(DEADLINE * 100)):
            if go_on.is_set():
                break
            yield b": wait\n\n"
        yield b"data: [DONE]\n\n"

    headers = [("content-type", "text/event-stream")]
    openai.provider.replies.append(Reply(headers=headers, body=pieces(), chunk_delay=0.01))
    with (
        proxy.client() as client,
        client.stream("POST", HOST, json=chat(stream=True)) as answer,
    ):
        stream = answer.iter_raw()
        next(stream)
        write_rules(tmp_path / "rules", manifest(openai, "new"))
        eventually(lambda: model_now(proxy) == "new", what="the new rules")
        go_on.set()
        assert b"".join(stream).endswith(b"data: [DONE]\n\n")
    assert_entry(proxy.entry(), request_model="old", status=200, flags=[])


def test_a_key_file_that_changes_is_read_again(
    start_proxy: StartProxy, openai: Far, tmp_path: Path
) -> None:
    """The rules stay as they are; a mounted secret is rotated by its own symlinks."""
    key = tmp_path / "key"
    key.write_text("sk-outdated\n", encoding="utf-8")
    config = openai_config(model="m", apiKeyFrom={"file": str(key)})
    proxy = start_proxy(write_rules(tmp_path / "rules", openai.manifest(configs=config)))
    with proxy.client() as client:

        def status() -> int:
            answer = client.post(HOST, json=chat())
            assert proxy.entry()["status"] == answer.status_code
            return answer.status_code

        assert status() == 401
        key.write_text(f"{KEYS['OPENAI_API_KEY']}\n", encoding="utf-8")
        eventually(lambda: status() == 200, what="the new key", within=PROMPTLY)


def test_a_start_with_bad_rules_fails_and_lists_every_error(
    confdir: Path, openai: Far, tmp_path: Path
) -> None:
    first, second = manifest(openai, "m"), openai.manifest(path="no-slash")
    del first["spec"]["host"]
    rules = write_rules(tmp_path / "rules", first, second)
    proxy = Proxy(confdir, rules, env=KEYS)
    proxy.start()
    assert proxy.wait() == 1
    assert "spec.host" in proxy.printed
    assert f"{rules / 'rules.yaml'}:" in proxy.printed
    assert "spec.path" in proxy.printed
    assert "Traceback" not in proxy.printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "llm_body_limit=much"), "llm_body_limit"),
        (("--set", "llm_access_log=/nowhere/at/all"), "llm_access_log"),
        (("--set", "llm_labels=novalue"), "llm_labels"),
        (("--set", "llm_observe=maybe"), "llm_observe"),
        (("--set", "llm_observe=true", "--set", "llm_observe=false"), "llm_observe"),
    ],
)
def test_a_start_with_a_bad_option_fails_and_names_it(
    confdir: Path, openai: Far, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    rules = write_rules(tmp_path / "rules", manifest(openai, "m"))
    proxy = Proxy(confdir, rules, *options, env=KEYS)
    proxy.start()
    assert proxy.wait() == 1
    assert message in proxy.printed
    assert "Traceback" not in proxy.printed


def test_a_start_without_rules_fails(confdir: Path) -> None:
    proxy = Proxy(confdir, confdir / "nowhere")
    proxy.start()
    assert proxy.wait() == 1
    assert f"{confdir / 'nowhere'}: it can't be read" in proxy.printed


def test_a_missing_key_is_an_error_at_the_start(confdir: Path, openai: Far, tmp_path: Path) -> None:
    rules = write_rules(tmp_path / "rules", manifest(openai, "m"))
    proxy = Proxy(confdir, rules, env={"DASHSCOPE_API_KEY": "x"})
    proxy.start()
    assert proxy.wait() == 1
    assert "the environment variable OPENAI_API_KEY is not set" in proxy.printed
