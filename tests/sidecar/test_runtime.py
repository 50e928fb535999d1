"""The files of one run."""

import importlib.util
import os
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.sidecar import runtime


@pytest.fixture
def confdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c")


def test_a_run_has_a_private_folder_and_leaves_nothing(confdir: Path) -> None:
    with runtime.folder(confdir) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "1.sock").touch()
    assert list(confdir.iterdir()) == []


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_has_stays(confdir: Path) -> None:
    left = confdir / "run-left"
    left.mkdir()
    (left / "file").touch()
    with runtime.folder(confdir) as first, runtime.folder(confdir) as second:
        assert sorted(confdir.iterdir()) == sorted([first, second])


def test_a_run_that_begins_at_the_same_moment_takes_nothing_away(
    confdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins where the first one has made its folder and not locked it yet."""
    mkdtemp = tempfile.mkdtemp

    def begin() -> None:
        with runtime.folder(confdir):
            pass

    other = threading.Thread(target=begin)

    def made(**how: Any) -> str:
        folder: str = mkdtemp(**how)
        if threading.current_thread() is not other:
            other.start()
            other.join(0.2)  # it waits; if it did not, it would be done by now
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", made)
    with runtime.folder(confdir) as folder:
        other.join()
        assert folder.is_dir()


def test_a_confdir_that_cannot_be_written_is_told_with_the_mend(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(OSError, match="emptyDir volume") as refused, runtime.folder(missing):
        pass
    assert str(refused.value.strerror).startswith(f"{missing} can't be written")


def test_a_confdir_too_deep_for_sockets_is_told(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(OSError, match="name a shorter one"), runtime.folder(deep):
        pass
    assert list(deep.iterdir()) == []


def test_modules_are_compiled_into_the_confdir_unless_they_are_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = tmp_path / "compiled"
    monkeypatch.setattr(importlib.util, "cache_from_source", lambda *_, **__: str(compiled))
    assert runtime.bytecode(tmp_path) == {
        "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode"),
        "PYTHONDONTWRITEBYTECODE": None,
    }
    nearly_full = SimpleNamespace(f_bavail=1000, f_frsize=4096)
    with monkeypatch.context() as small:
        small.setattr(os, "statvfs", lambda _: nearly_full)
        # What is there is used, and nothing is added: Python would leave half a module.
        assert runtime.bytecode(tmp_path) == {
            "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
    os.mknod(compiled)
    assert runtime.bytecode(tmp_path) == {}
