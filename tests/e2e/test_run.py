"""`pointsman run`: what it prints for a person, and what for a machine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.e2e.conftest import KEYS
from tests.e2e.harness import ADDON, DEADLINE, LOOPBACK, Far, Output, chat, said, write_rules
from tests.e2e.sidecar import PROGRAM

pytestmark = pytest.mark.e2e


class Run:
    """A process, for one `with`; it must end well."""

    def __init__(self, confdir: Path, *arguments: str) -> None:
        own = ("--set", f"confdir={confdir}", "-p", "0", "--set", "llm_admin=off")
        env = {**KEYS, "PATH": os.environ["PATH"], "PYTHONPATH": str(ADDON.parent)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "run", *own, *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        assert self._process.stderr
        self.out, self.err = Output(self._process.stdout), Output(self._process.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(DEADLINE)
        for output, pipe in ((self.out, self._process.stdout), (self.err, self._process.stderr)):
            output.join()
            assert pipe
            pipe.close()
        assert self._process.returncode == 0, self.err.text()


def test_standard_error_tells_that_it_has_started_and_standard_output_has_json_alone(
    confdir: Path, tmp_path: Path, openai: Far
) -> None:
    rules = write_rules(tmp_path / "rules", openai.manifest())
    with Run(confdir, "--rules", str(rules), "--set", f"listen_host={LOOPBACK}") as proxy:
        told = "pointsman: HTTP(S) proxy listening at "
        at = proxy.err.wait(lambda lines: [each for each in lines if each.startswith(told)], told)
        port = at[0].strip().rstrip(".").rpartition(":")[2]
        assert f"pointsman: rules live from {rules}: 1 provider, 0 routes\n" in proxy.err.lines()
        with httpx.Client(proxy=f"http://{LOOPBACK}:{port}", trust_env=False) as client:
            assert said(client.post("http://api.openai.com", json=chat(model="m")))
        proxy.out.wait(lambda lines: lines, "a line of the access log")
    (line,) = proxy.out.lines()
    assert json.loads(line)["event"] == "llm_request"
    assert all(line.startswith("pointsman: ") for line in proxy.err.lines())
    openai.call()
