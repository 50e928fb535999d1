"""`scripts/sidecar`: what it runs, in a checkout and beside an installed package."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "sidecar"
# Tells what it was called with, as the real one's own lines are JSON.
SHOWS_ARGUMENTS = '#!/bin/sh\nprintf \'{"event":"%s"}\\n\' "$*"\n'


def program(path: Path, text: str = SHOWS_ARGUMENTS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    place = tmp_path / "scripts" / "sidecar"
    place.parent.mkdir()
    shutil.copy(SCRIPT, place)
    return place


def run(script: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit status and the event of the one line that is printed."""
    path = f"{script.parents[1] / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        [script, *arguments], env={"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return done.returncode, json.loads(line)["event"]


def test_a_checkout_runs_its_own_environment_as_it_is(script: Path) -> None:
    program(script.parent / "bootstrap", "#!/bin/sh\nexit 1\n")
    program(script.parents[1] / ".venv" / "bin" / "pointsman")
    assert run(script, "--workers", "2") == (0, "run --sidecar --workers 2")


def test_a_checkout_without_an_environment_makes_it_in_silence(script: Path) -> None:
    made = script.parents[1] / ".venv" / "bin" / "pointsman"
    source = script.parents[1] / "made"
    program(source)
    program(
        script.parent / "bootstrap",
        f"#!/bin/sh\necho building\nmkdir -p {made.parent}\ncp {source} {made}\n",
    )
    assert run(script) == (0, "run --sidecar")


def test_an_environment_that_cannot_be_made_is_told_in_json(script: Path) -> None:
    program(
        script.parent / "bootstrap",
        '#!/bin/sh\necho "needs \\"Python 3.12\\""\nprintf \'a\\\\b\\tc\\n\' >&2\nexit 1\n',
    )
    status, event = run(script)
    assert status == 1
    assert event == "needs 'Python 3.12' a/b c"


def test_elsewhere_the_installed_package_runs(script: Path) -> None:
    program(script.parents[1] / "bin" / "pointsman")
    assert run(script, "--rules", "a b") == (0, "run --sidecar --rules a b")
