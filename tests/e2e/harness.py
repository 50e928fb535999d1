"""What the end-to-end tests stand on: a real mitmproxy with the addon, real providers, raw sockets.

Every wait is bounded by `DEADLINE`, and every check of a proxy is made on what it printed: the
access log on its standard output, its error records on standard error.
"""

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from pointsman.demo.authority import Authority
from pointsman.demo.provider import Call, Provider
from pointsman.demo.server import ThreadedServer

DEADLINE = 20.0
REPOSITORY = Path(__file__).resolve().parents[2]
ADDON = REPOSITORY / "addon" / "main.py"
SCRIPTS = Path(__file__).resolve().parent / "scripts"
SEED = REPOSITORY / "tests" / "config" / "data" / "seed"
PROGRAMS = Path(sys.executable).parent
LOOPBACK = "127.0.0.1"

type Json = dict[str, Any]

_ENTRY = '{"event":"llm_request",'
_NO_ADMIN = ("--set", "llm_admin=off")
_ADMIN = re.compile(r"admin endpoint at (\S+)")
_LISTENING = re.compile(r"(?i)proxy.* listening at .*:(\d+)\.?\s*$")
# Seen with Python 3.12.1 when mitmproxy ends while a client is connected: asyncio's own callback
# asks the cancelled task of that connection for its exception. Nothing of ours is in it.
_ASYNCIO_AT_SHUTDOWN = re.compile(
    r"ERROR asyncio: Exception in callback StreamReaderProtocol\.connection_made.*?"
    r"asyncio\.exceptions\.CancelledError\n",
    re.DOTALL,
)


def eventually[T](look: Callable[[], T], *, what: str, within: float = DEADLINE) -> T:
    """Return what `look` returns as soon as it is true; fail after the deadline."""
    until = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < until, f"not within {within} s: {what}"
        time.sleep(0.01)
    return found


# --- output of a process --------------------------------------------------------------------------


class Output:
    """The lines of a process's pipe, read by a thread until its end."""

    def __init__(self, pipe: Iterable[str]) -> None:
        self._pipe = pipe
        self._lines: list[str] = []
        self._grown = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._pipe:
            with self._grown:
                self._lines.append(line)
                self._grown.notify_all()
        with self._grown:
            self._ended = True
            self._grown.notify_all()

    def lines(self, start: int = 0) -> list[str]:
        """Return what there is now."""
        with self._grown:
            return self._lines[start:]

    def text(self, start: int = 0) -> str:
        """Return what there is now, as one text."""
        return "".join(self.lines(start))

    def wait[T](self, look: Callable[[list[str]], T], what: str) -> T:
        """Return what `look` finds in the lines; fail after the deadline or at the pipe's end."""
        until = time.monotonic() + DEADLINE
        with self._grown:
            while not (found := look(self._lines)):
                left = until - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"{what}: not in the output:\n{''.join(self._lines)}")
                self._grown.wait(left)
            return found

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Read nothing meanwhile, as who has hung."""
        with self._grown:
            yield

    def join(self) -> None:
        """Wait for the end of the pipe."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()


# --- the proxy ------------------------------------------------------------------------------------


class Proxy:
    """A mitmproxy program with the addon loaded, as a process: a context manager.

    Its options are the defaults but for a port, a folder for certificates, the rules, and
    `llm_admin`, which is off unless the test sets it: many run at once. At its end it must exit
    with 0, and it must have logged no error that the test has not named.

    Args:
        confdir: where mitmproxy's own certificate authority is.
        rules: what `llm_rules` is set to.
        options: what stands on the command line besides.
        env: environment variables; of this process's own it gets PATH alone.
        program: mitmdump or mitmweb.
        scripts: files in `scripts/` that are loaded after the addon.
        mode: mitmproxy's `--mode`, without a port.
        prefix: a command that runs the program, such as `ip netns exec`.
        default_admin: leave `llm_admin` at its default.
    """

    def __init__(
        self,
        confdir: Path,
        rules: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        program: str = "mitmdump",
        scripts: Sequence[str] = (),
        mode: str = "regular",
        host: str = LOOPBACK,
        port: int = 0,
        prefix: Sequence[str] = (),
        default_admin: bool = False,
    ) -> None:
        self.confdir = confdir
        self.rules = rules
        self.host = host
        self.port = port
        self._command = [
            *prefix,
            str(PROGRAMS / program),
            *("-s", str(ADDON)),
            *(
                part
                for name in ("error_records.py", *scripts)
                for part in ("-s", str(SCRIPTS / name))
            ),
            *("--set", f"confdir={confdir}", "--set", f"llm_rules={rules}"),
            *("--mode", mode, "--listen-host", host, "--listen-port", str(port)),
            *options,
            *(() if default_admin or "llm_admin=" in " ".join(options) else _NO_ADMIN),
        ]
        self._env = {"PATH": os.environ["PATH"], "HOME": str(confdir), **(env or {})}
        self._process: subprocess.Popen[str]
        self.out: Output
        self.err: Output
        self._taken = 0
        self._expected: list[str] = []

    def start(self) -> None:
        """Start the process, without waiting for anything."""
        self._process = subprocess.Popen(
            self._command,
            cwd=self.confdir,
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
            self.port = self.out.wait(_listening_port, "a listening proxy")
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._kill()
            error.add_note(f"--- the proxy's output\n{self.out.text()}{self.err.text()}")
            return
        if self._process.returncode is None:
            self.stop()

    @property
    def url(self) -> str:
        """What clients set as their proxy."""
        return f"http://{self.host}:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self.host, self.port

    @property
    def certificate(self) -> Path:
        """The authority that clients have to trust."""
        return self.confdir / "mitmproxy-ca-cert.pem"

    @property
    def printed(self) -> str:
        """All of its output."""
        return self.out.text() + self.err.text()

    def logged(self, count: int = 1) -> list[Json]:
        """Wait for the next entries of the access log; there must be no more of them."""
        self.out.wait(
            lambda lines: len(_entries(lines)) >= self._taken + count,
            f"{count} more entries of the access log",
        )
        return self._take(count)

    def _take(self, count: int) -> list[Json]:
        entries = _entries(self.out.lines())[self._taken :]
        self._taken += len(entries)
        assert len(entries) == count, f"{len(entries)} entries, wanted {count}: {_brief(entries)}"
        return entries

    def forget(self) -> None:
        """Skip the entries that no test has looked at, since it failed."""
        self._taken = len(_entries(self.out.lines()))

    def assert_no_more_entries(self) -> None:
        """Assert that each entry so far has been looked at."""
        self._take(0)

    def entry(self) -> Json:
        """Wait for the one next entry of the access log."""
        return self.logged()[0]

    def says(self, text: str) -> None:
        """Wait for a line on standard output."""
        self.out.wait(lambda lines: any(text in line for line in lines), text)

    def expect_error(self, text: str) -> None:
        """Wait for an error record, and let it pass at the end."""
        self._expected.append(text)
        self.err.wait(lambda lines: any(text in line for line in lines), text)

    def expect_any_error(self) -> None:
        """Let every error record pass at the end."""
        self._expected.append("")

    @property
    def admin(self) -> str:
        """Where the admin endpoint listens, as the log tells."""
        return self.out.wait(_admin_address, "an admin endpoint")

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, without waiting for anything."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """End the process as an operator does, and look at what it leaves behind."""
        self.signal()
        self.ended()

    def ended(self) -> None:
        """Wait for the end of a process that has been told to end, and look at what it leaves."""
        code = self.wait()
        self.assert_no_more_entries()
        assert code == 0, f"exit {code}:\n{self.printed}"
        errors = _ASYNCIO_AT_SHUTDOWN.sub("", self.err.text())
        if self._expected:
            lines = [line for line in errors.splitlines() if line.startswith("ERROR ")]
            lines = [line for line in lines if not any(text in line for text in self._expected)]
            assert not lines, errors
        else:
            assert "Traceback" not in errors, errors
            assert "ERROR" not in errors, errors
            assert "Traceback" not in self.out.text(), self.out.text()

    def wait(self) -> int:
        """Wait until the process ends by itself; return its exit code."""
        try:
            code = self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._kill()
            raise AssertionError(f"it did not end:\n{self.printed}") from None
        self._close()
        return code

    @property
    def memory(self) -> int:
        """How many bytes of memory the process has."""
        return _kibibytes(Path(f"/proc/{self._process.pid}"), "VmRSS") * 1024

    @contextlib.contextmanager
    def grows_less_than(self, size: int) -> Iterator[None]:
        """Assert that the process never has so many bytes more, while this lasts, than before."""
        folder = Path(f"/proc/{self._process.pid}")
        (folder / "clear_refs").write_text("5")  # the peak is now what there is
        before = _kibibytes(folder, "VmRSS")
        yield
        grown = (_kibibytes(folder, "VmHWM") - before) * 1024
        assert grown < size, f"it has grown by {grown} bytes"

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE)
        self._close()

    def _close(self) -> None:
        self.out.join()
        self.err.join()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe
            pipe.close()

    # --- clients ----------------------------------------------------------------------------------

    def client(self, **options: Any) -> httpx.Client:
        """Return a client that uses the proxy and trusts its authority."""
        return httpx.Client(**self._options(options))

    def async_client(self, **options: Any) -> httpx.AsyncClient:
        """Return an asynchronous client, likewise."""
        return httpx.AsyncClient(**self._options(options))

    def _options(self, options: Json) -> Json:
        trust = trusting(self.certificate)
        fixed = {"proxy": self.url, "verify": trust, "trust_env": False, "timeout": DEADLINE}
        return {**fixed, **options}

    def curl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run curl through the proxy."""
        return curl("--proxy", self.url, "--cacert", str(self.certificate), *arguments)

    def tunnel(self, host: str, port: int) -> socket.socket:
        """Open a CONNECT tunnel."""
        opened = connect(self.address)
        opened.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        head = read_head(opened)
        assert b" 200 " in head.partition(b"\r\n")[0] + b" ", head
        return opened


def _kibibytes(process: Path, name: str) -> int:
    status = (process / "status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0])


def _listening_port(lines: list[str]) -> int:
    found = (_LISTENING.search(line) for line in lines)
    return next((int(match[1]) for match in found if match), 0)


def _admin_address(lines: list[str]) -> str:
    found = _ADMIN.search("".join(lines))
    return found[1] if found else ""


def _entries(lines: list[str]) -> list[Json]:
    return [json.loads(line) for line in lines if line.startswith(_ENTRY)]


def _brief(entries: list[Json]) -> list[str]:
    return ["{method} {host}{path} {status} {flags}".format_map(entry) for entry in entries]


def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run curl, quiet but for errors, without a configuration file."""
    command = ["curl", "--disable", "--silent", "--show-error", "--max-time", "20", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE + 5, check=True)


class _PrefersHttp2(ssl.SSLContext):
    """Offers h2 first, as browsers do; httpx names it last, and mitmproxy takes the first."""

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        super().set_alpn_protocols(sorted(alpn_protocols))


def trusting(certificate: Path) -> ssl.SSLContext:
    """Return what a client needs to trust one authority and no other."""
    context = _PrefersHttp2(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate)
    return context


# --- providers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Far:
    """A provider on a socket, and the name of the variable that has its key."""

    provider: Provider
    server: ThreadedServer
    authority: Authority
    variable: str = ""

    @property
    def address(self) -> str:
        """What a manifest has as `spec.address`."""
        return f"{self.server.host}:{self.server.port}"

    def ask(self, body: Json, path: str = "/v1/chat/completions") -> httpx.Response:
        """Call the provider itself, without a proxy."""
        key = self.provider.key or ""
        headers = {"host": self.provider.host, "authorization": f"Bearer {key}"}
        with httpx.Client(verify=trusting(self.authority.certificate), trust_env=False) as client:
            extensions = {"sni_hostname": self.provider.host}
            url = f"{self.server.url}{path}"
            return client.post(url, json=body, headers=headers, extensions=extensions)

    def calls(self, count: int) -> list[Call]:
        """Return the calls since the last look; there must be this many."""
        calls = list(self.provider.calls)
        self.provider.calls.clear()
        assert len(calls) == count, f"{len(calls)} calls, wanted {count}: {calls}"
        return calls

    def call(self) -> Call:
        """Return the one call since the last look."""
        return self.calls(1)[0]

    def manifest(self, **spec: Any) -> Json:
        """Return an LLMProvider that leads here, over TLS, with this authority to trust.

        What is given stands in `spec`; without anything, the default config has the key.
        """
        config = {"apiKey": f"${{{self.variable}}}"} if self.variable else {}
        own = spec or {"configs": {"defaultConfig": {"openAIConfig": config}}}
        found = {"path": "/v1/chat/completions", **self.far_end(), **own}
        return llm_provider(self.provider.name, self.provider.host, **found)

    def far_end(self) -> Json:
        """Return the fields of `spec` that lead here."""
        return {"address": self.address, "tls": {"caFile": str(self.authority.certificate)}}


def llm_provider(name: str, host: str, **spec: Any) -> Json:
    """Return an LLMProvider; a value of None leaves the field out."""
    return _resource("LLMProvider", name, host, spec)


def llm_route(name: str, host: str, *rules: Json, **spec: Any) -> Json:
    """Return an LLMRoute."""
    return _resource("LLMRoute", name, host, {**spec, "rules": list(rules)})


def to(*hosts: str, **rule: Any) -> Json:
    """Return a rule that shares requests evenly among providers."""
    return {**rule, "backendRefs": [{"providerHost": host, "weight": 1} for host in hosts]}


def _resource(kind: str, name: str, host: str, spec: Json) -> Json:
    return {
        "apiVersion": "istio.alibabacloud.com/v1beta1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"host": host, **{key: value for key, value in spec.items() if value is not None}},
    }


def openai_config(**config: Any) -> Json:
    """Return `spec.configs` with one default config."""
    return {"defaultConfig": {"openAIConfig": config}}


def write_rules(folder: Path, *resources: Json, name: str = "rules.yaml") -> Path:
    """Write resources into one file of the folder, made if needed; return the folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(yaml.safe_dump_all(resources, sort_keys=False), encoding="utf-8")
    return folder


def seed(name: str, far: Far | None = None) -> Json:
    """Return a manifest of the documentation; a provider's leads to `far`."""
    resource: Json = yaml.safe_load((SEED / f"{name}.yaml").read_text(encoding="utf-8"))
    if far:
        resource["spec"].update(far.far_end())
    return resource


# --- requests and answers -------------------------------------------------------------------------


def chat(said: str = "Hello there", **fields: Any) -> Json:
    """Return the body of a chat request."""
    return {**fields, "messages": [{"role": "user", "content": said}]}


def said(answer: httpx.Response) -> str:
    """Return the text of a chat answer."""
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def sse(body: bytes) -> list[Json]:
    """Return the JSON events of a stream that must end with [DONE]."""
    events = [event.removeprefix(b"data: ") for event in body.strip().split(b"\n\n")]
    assert events.pop() == b"[DONE]"
    return [json.loads(event) for event in events]


def assert_refused(answer: httpx.Response, status: int, code: str) -> None:
    """Assert that Pointsman itself answered, in the shape of OpenAI's errors."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-pointsman-error"] == code, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")


def assert_entry(entry: Json, **wanted: object) -> None:
    """Assert these fields of an entry of the access log."""
    found = {name: entry[name] for name in wanted}
    assert found == wanted, f"found {found}, wanted {wanted}"


# --- raw sockets ----------------------------------------------------------------------------------


def connect(address: tuple[str, int]) -> socket.socket:
    """Open a connection whose every wait is bounded."""
    return socket.create_connection(address, timeout=DEADLINE)


def read_head(conn: socket.socket) -> bytes:
    """Read to the blank line, byte by byte, so that nothing of what follows is taken."""
    return read_until(conn, b"\r\n\r\n")


def read_until(conn: socket.socket, end: bytes) -> bytes:
    """Read up to and with these bytes."""
    data = bytearray()
    while not data.endswith(end):
        byte = conn.recv(1)
        assert byte, f"closed after {bytes(data)!r}"
        data += byte
    return bytes(data)


def read_exactly(conn: socket.socket, size: int) -> bytes:
    """Read that many bytes."""
    data = bytearray()
    while len(data) < size:
        chunk = conn.recv(min(65536, size - len(data)))
        assert chunk, f"closed after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


def read_all(conn: socket.socket) -> bytes:
    """Read to the end."""
    return b"".join(iter(lambda: conn.recv(65536), b""))


def head_lines(head: bytes) -> list[str]:
    """Return the lines of a head: the first line, then the headers as they were sent."""
    return head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")


class RawServer:
    """A server whose far end of each connection is a function: a context manager.

    What the function raises is raised again at the end.
    """

    def __init__(
        self,
        serve: Callable[[socket.socket], None],
        *,
        tls: ssl.SSLContext | None = None,
        host: str = LOOPBACK,
        port: int = 0,
    ) -> None:
        self._serve = serve
        self._tls = tls
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self.port: int = self._listener.getsockname()[1]
        self._stopping = False
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def address(self) -> str:
        """What a manifest has as `spec.address`."""
        return f"{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(DEADLINE)
        if error is None and self._failures:
            raise self._failures[0]

    def _accept(self) -> None:
        while not self._stopping:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._connected, args=(conn,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _connected(self, plain: socket.socket) -> None:
        with plain:
            plain.settimeout(DEADLINE)
            try:
                if self._tls is None:
                    self._serve(plain)
                else:
                    with self._tls.wrap_socket(plain, server_side=True) as secured:
                        self._serve(secured)
            except BaseException as failure:  # noqa: BLE001 (raised again in the test's thread)
                self._failures.append(failure)


def server_context(authority: Authority, *names: str) -> ssl.SSLContext:
    """Return what a TLS server with these names needs."""
    certificate = authority.issue(*names)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.chain, certificate.key)
    return context


def closed_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
