"""The demo's parts: what it reads, writes and starts."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pointsman import locations
from pointsman.demo.openai_answers import Answer, chat_events
from pointsman.demo.play_clients import Answer as ClientAnswer
from pointsman.demo.play_processes import Journal, Process, StageError
from pointsman.demo.play_rules import RuleSet, RulesFolder
from pointsman.demo.play_scenes import StreamReader, parse
from pointsman.demo.play_show import Shares, Show, Taken, mask

STREAM = b"".join(
    event.encode() for event in chat_events(Answer("1", 0, "m", "a b", 3), include_usage=True)
)


# --- where things are -------------------------------------------------------------------------


def test_the_script_and_the_examples_are_found() -> None:
    assert locations.addon_script().name == "main.py"
    assert (locations.example_rules("traffic-split") / "LLMRoute.yaml").is_file()


def test_an_installed_package_has_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "pointsman"
    (package / "script").mkdir(parents=True)
    (package / "script" / "main.py").touch()
    (package / "default_rules" / "examples" / "one").mkdir(parents=True)
    (tmp_path / "main.py").touch()  # someone else's
    monkeypatch.setattr(locations, "_PACKAGE", package)
    assert locations.addon_script() == package / "script" / "main.py"
    assert locations.example_rules("one") == package / "default_rules" / "examples" / "one"


def test_an_unknown_example_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-example"):
        locations.example_rules("no-such-example")


# --- rules ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> RulesFolder:
    return RulesFolder(tmp_path / "rules", locations.example_rules, {"address": "127.0.0.1:1"})


def manifests(folder: RulesFolder) -> list[dict[str, object]]:
    files = sorted(folder.path.iterdir())
    return [m for file in files for m in yaml.safe_load_all(file.read_text(encoding="utf-8"))]


def test_only_providers_are_patched_and_nothing_else_in_them(folder: RulesFolder) -> None:
    folder.put(RuleSet("subscriber"))
    source = locations.example_rules("subscriber")
    expected = [yaml.safe_load(file.read_text()) for file in sorted(source.iterdir())]
    for manifest in expected:
        if manifest["kind"] == "LLMProvider":
            manifest["spec"]["address"] = "127.0.0.1:1"
    assert manifests(folder) == expected


def test_one_rule_set_takes_the_place_of_another(folder: RulesFolder) -> None:
    assert folder.put(RuleSet("traffic-split")).counts == ("2", "1")
    written = folder.put(RuleSet("traffic-split", provider="dashscope.aliyuncs.com"))
    assert written.manifests == ("LLMProvider dashscope-qwen",)
    assert [manifest["kind"] for manifest in manifests(folder)] == ["LLMProvider"]


def test_a_missing_example_is_told(folder: RulesFolder) -> None:
    with pytest.raises(StageError, match="no-such-example"):
        folder.put(RuleSet("no-such-example"))


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, len(STREAM)])
def test_a_stream_is_read_in_any_split(size: int) -> None:
    reader = StreamReader()
    words = [w for i in range(0, len(STREAM), size) for w in reader.feed(STREAM[i : i + size])]
    assert words == ["a", " b"]
    assert (reader.model, reader.ended) == ("m", True)
    assert reader.usage is not None
    assert reader.usage["total_tokens"] == 5


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error": {}}'])
def test_an_answer_that_is_no_chat_is_shown_as_it_is(body: bytes) -> None:
    said = parse(ClientAnswer(502, "application/json", body, 0.1))
    assert (said.model, said.text) == (None, body.decode())


def test_a_key_is_shown_by_its_end() -> None:
    assert mask("sk-dashscope-1234") == "...1234"
    assert mask("") == "none"


def test_shares_add_up_tokens_and_take_the_median_of_times() -> None:
    shares = Shares(["east", "west"])
    for duration in (1.0, 9.0, 2.0):
        shares.add("east", Taken("u", "m", "key", 200, 3, 10, 0.5, duration, 0.1))
    (taken,) = shares.sums()
    assert (taken.times, taken.prompt_tokens, taken.completion_tokens) == (3, 9, 30)
    assert (taken.cost_usd, taken.duration_ms) == (1.5, 2.0)
    assert shares.bars().plain == "     east  ━━━ 3\n     west   0"


def test_what_follows_a_stream_that_broke_off_begins_a_line() -> None:
    output = io.StringIO()
    show = Show(Console(file=output, width=20, highlight=False))
    show.word("half")
    show.line("one two three four five", indent=3, label=" x")
    assert output.getvalue() == "     “half\n x one two three\n   four five\n"


# --- processes --------------------------------------------------------------------------------


def python(code: str) -> Process:
    return Process("it", [sys.executable, "-uc", code], env=os.environ)


def test_a_line_is_waited_for() -> None:
    with python("print('no'); print('port 7'); input()") as process:
        port = process.wait_for(
            lambda line: line.partition("port ")[2] or None, timeout=10, what="port"
        )
        assert port == "7"
        assert process.running
    assert not process.running


def test_an_early_end_is_told_with_the_last_lines() -> None:
    with (
        python("print('out of luck'); raise SystemExit(3)") as process,
        pytest.raises(StageError, match=r"it ended with status 3, without port.*\n  out of luck"),
    ):
        process.wait_for(lambda line: None, timeout=10, what="port")


def test_silence_is_told() -> None:
    with (
        python("input()") as process,
        pytest.raises(StageError, match=r"it: no port within 0.1 s"),
    ):
        process.wait_for(lambda line: None, timeout=0.1, what="port")


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="can't be started: No such file"):
        Process("it", [str(tmp_path / "it")], env={})


def test_a_process_that_does_not_want_to_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.demo.play_processes.STOP_SECONDS", 0.2)
    code = "import signal; signal.signal(15, signal.SIG_IGN); print('up'); signal.pause()"
    with python(code) as process:
        process.wait_for(lambda line: line or None, timeout=10, what="start")
    assert not process.running


def test_a_journal_gives_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "log"
    journal = Journal(path)
    with path.open("a") as file:
        file.write(json.dumps({"a": 1}) + '\n{"b"')
        file.flush()
        assert journal.next(timeout=1) == {"a": 1}
        assert journal.next(timeout=0.01) is None
        file.write(": 2}\n")
    assert journal.next(timeout=1) == {"b": 2}
    journal.close()
