"""The rules of files: what goes live at a start, and at a start anew while the files are bad."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsman.config.loading import Instance, Loaded, LoadError
from pointsman.proxy.kept_files import KeptFiles
from pointsman.proxy.rules import FileRules, rules_of
from pointsman.sidecar import handover

PROVIDER = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {name: NAME}
spec: {host: NAME.test}
"""
BAD = PROVIDER.replace("spec", "spce")

type Start = Callable[[], FileRules]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The one file of the rules."""
    (tmp_path / "rules").mkdir()
    return tmp_path / "rules" / "a.yaml"


@pytest.fixture
def start(tmp_path: Path, file: Path) -> Start:
    """Make the rules as each worker of one run does."""

    def made() -> FileRules:
        kept = KeptFiles(tmp_path / "copy.json", str(file.parent))
        return FileRules(file.parent, Instance(), kept)

    return made


def test_bad_rules_end_the_first_start(file: Path, start: Start) -> None:
    file.write_text(BAD)
    with pytest.raises(LoadError):
        start().load()


@pytest.mark.parametrize("change", [BAD, "kind: [", "# nothing\n", None])
def test_a_start_that_finds_bad_rules_takes_the_last_good_ones_and_says_so(
    file: Path, start: Start, caplog: pytest.LogCaptureFixture, change: str | None
) -> None:
    file.write_text(PROVIDER.replace("NAME", "good"))
    start().load()
    if change is None:
        file.unlink()
    else:
        file.write_text(change)
    again = start()
    assert again.load().providers == ("good",)
    assert again.faults
    # An error while mitmproxy starts would end it.
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the last good ones are live" in caplog.text


def test_good_rules_are_taken_whatever_was_live_before(file: Path, start: Start) -> None:
    for name in ("old", "new"):
        file.write_text(PROVIDER.replace("NAME", name))
        rules = start()
        assert rules.load().providers == (name,)
        assert rules.faults == ()


def test_what_went_live_by_a_reload_is_the_last_good(file: Path, start: Start) -> None:
    file.write_text(PROVIDER.replace("NAME", "first"))
    rules = start()
    rules.load()
    live: list[tuple[str, ...]] = []
    write = file.write_text
    refused = asyncio.Event()

    async def go_live(loaded: Loaded) -> None:
        live.append(loaded.providers)
        write(BAD)

    async def run() -> None:
        watching = asyncio.create_task(rules.watch(go_live, refused.set))
        write(PROVIDER.replace("NAME", "second"))
        async with asyncio.timeout(20):
            await refused.wait()
        watching.cancel()

    asyncio.run(run())
    assert live == [("second",)]
    assert start().load().providers == ("second",)


def test_the_copy_is_for_its_owner_alone_and_of_one_source(tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    KeptFiles(copy, "here").write({"a.yaml": "apiKey: sk-1"})
    assert copy.stat().st_mode & 0o777 == 0o600
    assert KeptFiles(copy, "here").read() == {"a.yaml": "apiKey: sk-1"}
    assert KeptFiles(copy, "elsewhere").read() is None
    assert list(tmp_path.iterdir()) == [copy]


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_half_a_copy_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "copy.json").write_text(text, encoding="latin-1")
    assert KeptFiles(tmp_path / "copy.json", "here").read() is None


def test_a_copy_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    KeptFiles(tmp_path / "missing" / "copy.json", "here").write({})
    assert "can't be written" in caplog.text


def test_a_supervisor_says_where_the_copy_is(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file.write_text(PROVIDER.replace("NAME", "good"))
    monkeypatch.setenv(handover.KEPT_RULES, str(tmp_path / "copy.json"))
    options = {"backends": None, "confdir": tmp_path, "writes_status": False}
    rules_of(str(file.parent), Instance(), **options).load()  # type: ignore[arg-type]
    file.write_text(BAD)
    again = rules_of(str(file.parent), Instance(), **options)  # type: ignore[arg-type]
    assert again.load().providers == ("good",)


def test_without_a_supervisor_no_copy_is_kept(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(handover.KEPT_RULES, raising=False)
    file.write_text(PROVIDER.replace("NAME", "good"))
    before = set(tmp_path.rglob("*"))
    rules_of(
        str(file.parent), Instance(), backends=None, confdir=tmp_path, writes_status=False
    ).load()
    assert set(tmp_path.rglob("*")) == before
