"""The program's very beginning: a sidecar's end is taken over before anything takes time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import ADDON, DEADLINE

# In the place of the first thing that the command line imports.
_ENDS = "import os, signal, time\nos.kill(os.getpid(), signal.%s)\ntime.sleep(60)\n"


def end_while_importing(folder: Path, name: str, *arguments: str, prefix: tuple[str, ...]) -> int:
    (folder / "typer.py").write_text(_ENDS % name)
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "pointsman", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{folder}:{ADDON.parent}"},
        timeout=DEADLINE,
        check=False,
        capture_output=True,
    )
    assert done.stdout + done.stderr == b""
    return done.returncode


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_sidecar_that_is_told_to_end_while_it_starts_ends(tmp_path: Path, name: str) -> None:
    assert end_while_importing(tmp_path, name, "run", "--sidecar", prefix=()) == 0


@pytest.mark.root
def test_so_does_the_first_process_of_a_container(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("making a process namespace needs root")
    prefix = ("unshare", "--pid", "--fork", "--kill-child", "--")
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no process namespace can be made here: {tried.stderr}")
    assert end_while_importing(tmp_path, "SIGTERM", "run", "--sidecar", prefix=prefix) == 0


def test_other_commands_end_by_the_signal(tmp_path: Path) -> None:
    code = end_while_importing(tmp_path, "SIGTERM", "check", prefix=())
    assert code == -signal.SIGTERM
