"""A sidecar as a process: `pointsman run --sidecar`, its workers, what it logs and tells."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from pointsman.kubernetes.settings import Settings
from pointsman.kubernetes.sidecar import containers
from tests.e2e.harness import (
    ADDON,
    DEADLINE,
    LOOPBACK,
    SCRIPTS,
    Json,
    Output,
    eventually,
    trusting,
)

_CONTAINER = containers(Settings(image="pointsman"), workload=None, grace=90)[-1]
STARTUP: str = _CONTAINER["startupProbe"]["httpGet"]["path"]
PROGRAM = "from pointsman.__main__ import main; main()"


class Sidecar:
    """`pointsman run --sidecar` in regular mode: a context manager.

    All that it prints must be JSON on standard output. At the end it must drain and exit with 0,
    with no error logged that the test has not named.

    Args:
        confdir: its only writable directory.
        rules: what `--rules` is set to.
        options: what stands on the command line besides.
        env: environment variables; of this process's own it gets PATH alone.
        mode: mitmproxy's.
        prefix: a command that runs the program.
        admin: where its admin endpoint listens.
        scripts: files in `scripts/` that the workers load.
        program: what runs, as Python code.
    """

    def __init__(
        self,
        confdir: Path,
        rules: Path | None,
        *options: str,
        env: Mapping[str, str] | None = None,
        mode: str = "regular",
        port: int = 0,
        prefix: Sequence[str] = (),
        scripts: Sequence[str] = (),
        admin: str = f"{LOOPBACK}:0",
        program: str = PROGRAM,
    ) -> None:
        self.confdir = confdir
        self.port = port
        self.admin = ""
        self._command = [
            *prefix,
            *(sys.executable, "-c", program, "run", "--sidecar"),
            *(("--allow-root",) if os.geteuid() == 0 and not prefix else ()),
            *("--confdir", str(confdir), "--mode", mode, "--port", str(port)),
            *(("--rules", str(rules)) if rules else ()),
            *("--set", f"llm_admin={admin}"),
            *(part for name in scripts for part in ("-s", str(SCRIPTS / name))),
            *options,
        ]
        own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ADDON.parent)}
        self._env = {**own, **(env or {})}
        self._process: subprocess.Popen[str]
        self._expected: list[str] = []
        self.out: Output
        self.err: Output

    def start(self) -> None:
        """Start it, without waiting for anything."""
        self._process = subprocess.Popen(
            self._command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        assert self._process.stderr
        self.out = Output(self._process.stdout)
        self.err = Output(self._process.stderr)

    def __enter__(self) -> Self:
        self.start()
        try:
            listening = self.wait_for("listening")
            self.port = int(listening["addresses"][0].rpartition(":")[2])
            self.admin = listening["admin"]
            self.wait_until_ready()
        except BaseException as error:
            self.kill()
            error.add_note(f"--- the sidecar's output\n{self.out.text()}{self.err.text()}")
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.kill()
            error.add_note(f"--- the sidecar's output\n{self.out.text()}{self.err.text()}")
        elif self._process.returncode is None:
            self.stop()

    # --- its log ----------------------------------------------------------------------------------

    def logged(self, event: str = "", start: int = 0) -> list[Json]:
        """Return the records so far whose event begins so. All lines have to be JSON objects."""
        entries = [json.loads(line) for line in self.out.lines(start)]
        assert all(isinstance(entry, dict) for entry in entries), entries
        return [entry for entry in entries if entry["event"].startswith(event)]

    def wait_for(self, event: str, count: int = 1) -> Json:
        """Wait for a record whose event begins so; return the last of so many."""
        found = self.out.wait(lambda _: self.logged(event)[count - 1 :], f"{count} times {event!r}")
        return found[0]

    def expect_error(self, event: str) -> None:
        """Wait for an error record whose event begins so, and let it pass at the end."""
        self._expected.append(event)
        self.wait_for(event)

    def expect_errors(self, *events: str) -> None:
        """Let errors whose events begin so pass at the end."""
        self._expected += events

    # --- its processes ----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self._process.pid

    def workers(self) -> list[int]:
        """Return the process ids of the workers that live."""
        file = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in file.read_text(encoding="ascii").split()]

    def send(self, number: signal.Signals) -> None:
        """Send the supervisor a signal."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """End it as a kubelet does, and look at what it leaves behind."""
        self.send(signal.SIGTERM)
        self.assert_ended(0)

    def assert_ended(self, code: int) -> None:
        """Wait for its end; assert its exit status, and that it had no unexpected errors."""
        assert self.wait() == code, self.out.text()
        errors = [entry for entry in self.logged() if entry.get("level") in ("error", "critical")]
        unexpected = [
            entry
            for entry in errors
            if not any(entry["event"].startswith(text) for text in self._expected)
        ]
        assert not unexpected, unexpected
        assert not list(self.confdir.glob("run-*"))

    def wait(self) -> int:
        """Wait for its end; return its exit status. It may have printed JSON alone."""
        try:
            code = self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it did not end:\n{self.out.text()}") from None
        self._close()
        assert self.err.text() == ""
        assert self.logged()
        return code

    def kill(self) -> None:
        """Kill the supervisor."""
        self._process.kill()
        self._process.wait(DEADLINE)
        self._close()

    def _close(self) -> None:
        self.out.join()
        self.err.join()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe
            pipe.close()

    # --- what it serves ---------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return LOOPBACK, self.port

    def client(self, **options: Any) -> httpx.Client:
        """Return a client that uses it as its proxy and trusts its authority."""
        trust = trusting(self.confdir / "mitmproxy-ca-cert.pem")
        fixed = {"proxy": f"http://{LOOPBACK}:{self.port}", "verify": trust}
        return httpx.Client(**{**fixed, "trust_env": False, "timeout": DEADLINE, **options})

    def ask(self, path: str, method: str = "GET") -> httpx.Response:
        """Ask the admin endpoint."""
        unix = self.admin.startswith("unix:")
        base = "http://localhost" if unix else f"http://{self.admin}"
        transport = httpx.HTTPTransport(uds=self.admin.removeprefix("unix:")) if unix else None
        with httpx.Client(transport=transport, trust_env=False, timeout=DEADLINE) as client:
            return client.request(method, f"{base}{path}")

    def wait_until_ready(self) -> None:
        """Wait until all workers serve, as the startup probe of a pod does."""

        def ready() -> bool:
            assert self._process.poll() is None, "it has ended"
            return self.ask(STARTUP).status_code == 200

        # The first start in a confdir compiles what the workers import.
        eventually(ready, what="readiness", within=3 * DEADLINE)


def is_alive(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


type StartSidecar = Callable[..., Sidecar]
