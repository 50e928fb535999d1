"""The Dockerfile, as far as it can be tried without a container engine.

Its steps are read, not run by an engine: what is copied exists and reaches the builder, what is
built of exactly that is complete, and what is installed is pinned.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pointsman import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass(frozen=True)
class Step:
    """An instruction: `name`, its flags (`--from=build`) and the rest."""

    name: str
    flags: dict[str, str]
    words: list[str]
    text: str


def stages() -> list[list[Step]]:
    """Return the steps of each stage; those before the first FROM stand alone."""
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    found: list[list[Step]] = [[]]
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip():
            continue
        name, _, rest = line.partition(" ")
        words = shlex.split(rest) if name in {"COPY", "LABEL", "ENV"} else rest.split()
        flags = (
            dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
            if name == "COPY"
            else {}
        )
        step = Step(name, flags, [word for word in words if not word.startswith("--")], rest)
        if name == "FROM":
            found.append([])
        found[-1].append(step)
    return found


BEFORE, BUILD, FINAL = stages()


def copied(stage: list[Step]) -> list[str]:
    """Return what a stage copies from the checkout."""
    return [
        source
        for step in stage
        if step.name == "COPY" and "from" not in step.flags
        for source in step.words[:-1]
    ]


def ignored(path: str) -> bool:
    """Tell whether .dockerignore keeps a path from the builder: the last line that fits decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        prefixes = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        if line.removeprefix("!").startswith("**/"):
            prefixes = parts
        if any(fnmatch(prefix, pattern) for prefix in prefixes):
            kept = line.startswith("!")
    return not kept


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    sources = copied(BUILD) + copied(FINAL)
    assert {"addon", "rules", "pyproject.toml", "scripts/redirect"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
        for path in (ROOT / source).rglob("*.py"):
            assert not ignored(str(path.relative_to(ROOT))), path


@pytest.mark.parametrize(
    "path",
    [".git/config", "deploy/kubernetes/keys.env", "tests/test_cli.py", ".venv/bin/python"],
)
def test_nothing_else_reaches_the_builder(path: str) -> None:
    assert ignored(path)
    assert ignored("addon/pointsman/__pycache__/errors.cpython-312.pyc")


def test_what_is_copied_between_stages_is_made_there() -> None:
    (step,) = [step for step in FINAL if step.flags.get("from")]
    assert step.flags["from"] == BUILD[0].words[-1]
    made = f"-m venv --without-pip {step.words[0]} "
    assert any(made in each.text for each in BUILD)


def test_the_base_is_the_same_pinned_one_in_both_stages() -> None:
    (argument,) = BEFORE
    name, _, image = argument.text.partition("=")
    assert re.fullmatch(r"python:3\.12-slim-[a-z]+", image)
    assert [stage[0].words[0] for stage in (BUILD, FINAL)] == [f"${{{name}}}"] * 2
    assert PROJECT["requires-python"] == ">=3.12"


def test_it_runs_as_the_proxys_user() -> None:
    last = {step.name: step.text for step in FINAL}
    assert last["USER"] == "1337:1337"
    assert last["ENTRYPOINT"] == '["pointsman"]'
    environment = [word for step in FINAL if step.name == "ENV" for word in step.words]
    assert "PYTHONOPTIMIZE=1" in environment
    assert "PATH=/opt/pointsman/venv/bin:$PATH" in environment


def test_it_has_what_the_redirection_needs() -> None:
    (install,) = [step.text for step in FINAL if "apt-get install" in step.text]
    assert {"iptables", "nftables"} <= set(install.split())
    assert "rm -rf /var/lib/apt/lists/*" in install


def test_the_version_is_the_projects() -> None:
    assert PROJECT["version"] == __version__
    labels = [word for step in FINAL if step.name == "LABEL" for word in step.words]
    assert f"org.opencontainers.image.version={__version__}" in labels
    comment = (ROOT / "deploy" / "Dockerfile").read_text()
    assert f"-t pointsman:{__version__} ." in comment


def test_whatever_pip_installs_is_pinned_by_its_hash() -> None:
    installs = [
        part
        for step in BUILD
        if step.name == "RUN"
        for part in step.text.split("&&")
        if re.search(r"pip .*\binstall\b", part)
    ]
    assert len(installs) == 3
    for part in installs:
        assert "--no-deps" in part
        assert "--require-hashes" in part or part.split()[-1] == "dist/*.whl"


def test_what_builds_the_wheel_comes_from_the_lock(tmp_path: Path) -> None:
    (command,) = [
        step.text.split("&&")[0]
        for step in BUILD
        if step.name == "RUN" and "build.txt" in step.text
    ]
    shutil.copytree(ROOT / "scripts" / "requirements", tmp_path / "scripts" / "requirements")
    subprocess.run(["sh", "-eu", "-c", command], cwd=tmp_path, check=True)
    text = (tmp_path / "build.txt").read_text()
    names = set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    needed = [Requirement(each) for each in requires("hatchling") or []]
    assert names == {"hatchling"} | {
        each.name for each in needed if each.marker is None or each.marker.evaluate()
    }
    for block in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in block
        assert not block.rstrip().endswith("\\")


def test_the_wheel_of_what_is_copied_is_complete(tmp_path: Path) -> None:
    context, installed = tmp_path / "context", tmp_path / "installed"
    for source in copied(BUILD):
        kept = shutil.ignore_patterns("__pycache__")
        target = context / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=kept)
        else:
            shutil.copy(ROOT / source, target)
    (step,) = [step.text for step in BUILD if "pip wheel" in step.text]
    command = step.split("&&")[0].replace("python ", f"{shlex.quote(sys.executable)} -I ", 1)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    subprocess.run(
        ["sh", "-eu", "-c", command], cwd=context, env=environment, check=True, capture_output=True
    )
    (wheel,) = (context / "dist").iterdir()
    assert wheel.name == f"pointsman-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)

    # Run as in the image, from a folder where nothing of the checkout is.
    program = "from pointsman.cli import main; main()"
    modules = "import pointsman; print(pointsman.__file__)"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "PYTHONOPTIMIZE": "1"}

    def run(code: str, *arguments: str, text: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env=environment,
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(modules).strip() == str(installed / "pointsman" / "__init__.py")
    assert "inject" in run(program, "--help")
    pod = "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, image: a}]}\n"
    assert f"image: pointsman:{__version__}" in run(program, "inject", text=pod)
    assert "valid" in run(program, "check", str(installed / "pointsman" / "default_rules"))
