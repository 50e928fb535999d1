"""What the injected containers start is there: each command, each flag, each option, each file."""

import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from pointsman import __version__
from pointsman.ca import bundle
from pointsman.cli import app
from pointsman.kubernetes import sidecar
from pointsman.kubernetes.settings import Settings
from pointsman.proxy.options import declare

ROOT = Path(__file__).parents[2]
SETTINGS = Settings.of(
    {
        "image": f"pointsman:{__version__}",
        "workers": 2,
        "proxy_port": 16001,
        "keys_secret": "keys",
        "ca_secret": "ca",
        "include_ports": "80,443,8000-8010",
        "exclude_ports": "8443",
        "include_cidrs": "0.0.0.0/0,::/0",
        "exclude_cidrs": "10.0.0.0/8,fd00::/8",
        "passthrough_hosts": "pinned.example.com",
    }
)
CA, REDIRECT, PROXY = sidecar.containers(SETTINGS, workload="shop", grace=90)


def steps() -> list[list[str]]:
    """Return each call of `pointsman` that the manifest has, without the word itself."""
    shell, option, script = CA["command"]
    assert (shell, option) == ("sh", "-c")
    calls = [shlex.split(step.removeprefix("exec ")) for step in script.split(" && ")]
    calls.append(PROXY["lifecycle"]["preStop"]["exec"]["command"])
    assert all(call[0] == "pointsman" for call in calls)
    return [call[1:] for call in calls] + [PROXY["args"]]


@pytest.mark.parametrize("arguments", steps(), ids=" ".join)
def test_the_command_line_takes_it(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    context = command.make_context(command.name, list(arguments))
    # What the command does not know goes to mitmdump, which is given settings alone.
    left = context.args
    assert left[::2] == ["--set"] * (len(left) // 2)


class Options:
    """Stands for mitmproxy's loader."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def add_option(self, name: str, *_: Any) -> None:
        self.names.append(name)


@pytest.mark.parametrize(
    "name", [value.partition("=")[0] for flag, value in pairwise(PROXY["args"]) if flag == "--set"]
)
def test_the_addon_has_the_option(name: str) -> None:
    options: Any = Options()
    declare(options)
    assert name in options.names


def test_the_redirect_script_takes_its_arguments() -> None:
    script = ROOT / "scripts" / Path(REDIRECT["command"][0]).name
    _, *arguments = REDIRECT["args"]
    done = subprocess.run(
        [script, "print", *arguments, "--backend", "nft"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for expected in ("16001", "1337", "8443", "10.0.0.0/8", "fd00::/8"):
        assert expected in done.stdout


def test_the_trusted_files_are_those_that_the_bundle_has() -> None:
    assert bundle.variables(sidecar.TRUST) == sidecar.TRUST_VARIABLES
