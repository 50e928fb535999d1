"""What Pointsman costs, beside bare mitmdump and beside no proxy at all.

One provider and one client, both in this process, and three ways between them:
  direct     no proxy
  bare       mitmdump in reverse mode, as anyone would start it
  pointsman  mitmdump with the addon: a route with two targets, a model and a key put in, the access
             log on standard output, which is a file
Everything is plain HTTP/1.1 with keep-alive on loopback, so that the proxies' own work is what
shows. The machine may be busy with other things: the ways take turns within each round, what is
compared is the ratio (or difference) within one round, and the median of the rounds is told.

CPU is the proxy process's own (user and system), so the cost of the client and the provider does
not count; the requests/s do depend on it, and on the machine: they are told for information.

With `--telemetry` it compares Pointsman as it is by default (metrics, and what the page shows kept
at hand) with Pointsman without these; with `--otel` also with traces and metrics sent by OTLP to a
receiver in this process. The access log is written in each. Every round starts processes of its
own: two of the same kind may differ by some percent for as long as they live.

With `--memory` one Pointsman, as it is by default, carries 100,000 exchanges over ever new
connections; what its resident memory has grown by since the first thousands is told.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import IO, Self

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
MITMDUMP = Path(sys.executable).with_name("mitmdump")

# What is to be reached.
CPU_RATIO = 0.85
FIRST_TOKEN_MS = 3.0
LARGE_PROMPT_MS = 20.0
TELEMETRY_RATIO = 1.10
GROWTH_MIB = 10 * 1000 * 1000 / 1024**2

MANY = 16  # connections
WARM_UP = 200  # requests
FIRST_REQUESTS = 4  # of each connection, before anything is measured
CHUNKS, CHUNK_SECONDS = 20, 0.005
LARGE_PROMPT, LARGE_PROMPTS = 4_000_000, 15
EXCHANGES, EXCHANGES_BEFORE, EXCHANGES_A_STEP = 100_000, 5_000, 1_000
START_SECONDS = 30  # for a proxy to listen
STEP_SECONDS = 120  # for one measurement
TELEMETRY = ("without", "default", "OTLP")  # what is compared: no telemetry, the default, more
TURNS = 8  # of each way within a round: the machine is never the same for long
KEY = "key-of-the-rules"
LLM_HOST = "llm.example"
# Open, as it is by default, and on a port of its own.
ADMIN = ("--set", "llm_admin=127.0.0.1:0")

# Two well-known hosts at one local address: a list price is looked up as it would be.
RULES = """\
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {{name: openai}}
spec:
  host: api.openai.com
  scheme: http
  address: 127.0.0.1:{port}
  path: /v1/chat/completions
  configs: {{defaultConfig: {{openAIConfig: {{model: gpt-4o-mini, apiKey: {key}}}}}}}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMProvider
metadata: {{name: deepseek}}
spec:
  host: api.deepseek.com
  scheme: http
  address: 127.0.0.1:{port}
  path: /chat/completions
  configs: {{defaultConfig: {{openAIConfig: {{model: deepseek-chat, apiKey: {key}}}}}}}
---
apiVersion: istio.alibabacloud.com/v1beta1
kind: LLMRoute
metadata: {{name: bench}}
spec:
  host: {host}
  rules:
  - name: subscribers
    matches: [{{headers: {{user-type: {{exact: subscriber}}}}}}]
    backendRefs: [{{providerHost: api.openai.com}}]
  - name: everyone
    backendRefs:
    - {{providerHost: api.openai.com, weight: 50}}
    - {{providerHost: api.deepseek.com, weight: 50}}
"""


class BenchError(Exception):
    """Something did not run as it has to: there is nothing to compare."""


# --- the provider ---------------------------------------------------------------------------------


def chat_answer() -> bytes:
    """Return a chat completion of 1 kB with its head."""
    answer = {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "All signals are green. " * 29},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 90, "completion_tokens": 180, "total_tokens": 270},
    }
    body = json.dumps(answer).encode()
    head = (
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nserver: bench\r\n"
        f"x-request-id: req-bench\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def event(delta: dict[str, object], **more: object) -> bytes:
    """Return one event of a chat stream, as a chunk of the chunked encoding."""
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    data = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-4o-mini",
        "choices": [] if more else [choice],
        **more,
    }
    return chunk(b"data: " + json.dumps(data).encode() + b"\n\n")


def chunk(data: bytes) -> bytes:
    """Frame data for the chunked encoding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


CHAT_ANSWER = chat_answer()
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nserver: bench\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
TOKEN = event({"content": " signal"})
USAGE = event({}, usage={"prompt_tokens": 90, "completion_tokens": CHUNKS, "total_tokens": 110})
STREAM_END = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Provider:
    """Answers at once, a stream at a steady pace; counts what came with the rules' key."""

    def __init__(self) -> None:
        self.port = 0
        self.with_key = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The other side may go at any time; at the end of the run all do.
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(content_length(head))
                self.with_key += KEY.encode() in head
                if b'"stream":true' in body:
                    await self._stream(writer, usage=b"include_usage" in body)
                else:
                    writer.write(CHAT_ANSWER)
        writer.close()

    async def _stream(self, writer: asyncio.StreamWriter, *, usage: bool) -> None:
        writer.write(STREAM_HEAD + TOKEN)
        for _ in range(CHUNKS - 1):
            await asyncio.sleep(CHUNK_SECONDS)
            writer.write(TOKEN)
        writer.write((USAGE if usage else b"") + STREAM_END)


class Receiver:
    """Takes what is sent by OTLP over HTTP, and counts it."""

    def __init__(self) -> None:
        self.port = 0
        self.posts = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(content_length(head))
                self.posts += 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()


# --- the client -----------------------------------------------------------------------------------

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def content_length(head: bytes) -> int:
    """Return the length that a head tells of its body."""
    found = _LENGTH.search(head)
    return int(found[1]) if found else 0


def chat_request(prompt: str, *, stream: bool = False) -> bytes:
    """Return a chat request, head and body."""
    content = {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "You set the points, so that each train goes its way."},
            {"role": "user", "content": prompt},
        ],
        "temperature": 0.2,
        "stream": stream,
    }
    body = json.dumps(content, separators=(",", ":")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {LLM_HOST}\r\naccept: application/json\r\n"
        "authorization: Bearer key-of-the-client\r\ncontent-type: application/json\r\n"
        f"user-agent: bench\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


REQUEST = chat_request("Which way to platform four? " * 11)
STREAM_REQUEST = chat_request("Which way to platform four? " * 11, stream=True)


class Client:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def connected(cls, port: int) -> AsyncIterator[Self]:
        """Connect; close at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def ask(self, request: bytes = REQUEST) -> None:
        """Send a request and read its answer."""
        self._writer.write(request)
        head = await self._head()
        await self._reader.readexactly(content_length(head))

    async def stream(self) -> float:
        """Send a request that is answered by a stream; return the seconds to its first event."""
        started = time.perf_counter()
        self._writer.write(STREAM_REQUEST)
        await self._head()
        await self._reader.readuntil(b"data: ")
        first = time.perf_counter() - started
        await self._reader.readuntil(b"\r\n0\r\n\r\n")
        return first

    async def _head(self) -> bytes:
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            line = head.partition(b"\r\n")[0].decode(errors="replace")
            raise BenchError(f"an answer begins with {line!r} instead of 200")
        return head


async def load(
    port: int, *, connections: int, requests: int, cpu: Callable[[], float] = lambda: 0.0
) -> tuple[float, float]:
    """Send this many requests over these connections in all.

    Return the seconds it took, and how much further `cpu` got meanwhile: opening the connections,
    the proxy's own upstream too, is not part of either.
    """
    left = iter(range(requests))

    async def work(client: Client) -> None:
        for _ in left:
            await client.ask()

    async with asyncio.timeout(STEP_SECONDS), AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client.connected(port)) for _ in range(connections)
        ]
        for client in clients:
            for _ in range(FIRST_REQUESTS):
                await client.ask()
        used, started = cpu(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(work(client))
        return time.perf_counter() - started, cpu() - used


async def first_tokens(port: int, *, streams: int) -> float:
    """Return the median seconds to the first event of streams one after the other."""
    async with asyncio.timeout(STEP_SECONDS), Client.connected(port) as client:
        await client.stream()  # opens the provider's connection
        return median([await client.stream() for _ in range(streams)])


# --- the proxies ----------------------------------------------------------------------------------


@dataclass
class Proxy:
    """A running mitmdump."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    output: Path

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used, user and system."""
        # The kernel's clock of a process, as clock_getcpuclockid(3) gives it.
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def peak_mib(self) -> float:
        """Return the most memory that it has had resident."""
        return self._memory_mib("VmHWM")

    def resident_mib(self) -> float:
        """Return the memory that it has resident now."""
        return self._memory_mib("VmRSS")

    def _memory_mib(self, name: str) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition(f"{name}:")[2].split()[0]) / 1024

    def log(self) -> Iterator[dict[str, object]]:
        """Yield the access log's entries."""
        with self.output.open(encoding="utf-8", errors="replace") as lines:
            yield from (json.loads(line) for line in lines if line.startswith('{"event"'))


@contextmanager
def mitmdump(
    name: str, folder: Path, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[Proxy]:
    """Start mitmdump in a directory of its own, wait until it listens; end it at the end.

    `env` are variables that it gets besides.
    """
    home = folder / name
    home.mkdir()
    output = home / "output"
    port = free_port()
    listen = ["--listen-host", "127.0.0.1", "-p", str(port), "--set", f"confdir={home}"]
    with output.open("wb") as written:
        process = start([str(MITMDUMP), *listen, *options], home, written, env or {})
        try:
            wait_for_port(port, process)
            yield Proxy(name, port, process, output)
        except Exception:
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)  # what failed may be that it is just ending
                said = output.read_text(encoding="utf-8", errors="replace")[-6000:]
                print(f"--- {name} has ended; what it said last:\n{said}", file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start(
    command: list[str], home: Path, output: IO[bytes], env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process whose output goes to a file."""
    return subprocess.Popen(
        command,
        cwd=home,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def free_port() -> int:
    """Return a port that no one listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when something listens.

    Raises:
        BenchError: the process ended, or time is up.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise BenchError("a proxy does not listen")


@contextmanager
def proxies(folder: Path, provider_port: int) -> Iterator[tuple[Proxy, Proxy, Proxy]]:
    """Start bare mitmdump, the same with streaming, and Pointsman."""
    to_provider = ("--mode", f"reverse:http://127.0.0.1:{provider_port}")
    addon = with_addon(folder, provider_port)
    with (
        mitmdump("bare", folder, *to_provider) as bare,
        mitmdump("streaming", folder, *to_provider, "--set", "stream_large_bodies=1") as streaming,
        mitmdump("pointsman", folder, *addon, *ADMIN) as pointsman,
    ):
        yield bare, streaming, pointsman


def with_addon(folder: Path, provider_port: int) -> tuple[str, ...]:
    """Return the options of a mitmdump with Pointsman."""
    rules = folder / "rules.yaml"
    rules.write_text(RULES.format(port=provider_port, key=KEY, host=LLM_HOST), encoding="utf-8")
    addon = ("-s", str(ROOT / "addon/main.py"), "--set", f"llm_rules={rules}")
    return ("--mode", f"reverse:http://{LLM_HOST}", *addon)


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Sample:
    """What one round saw of one way. CPU is None where there is no proxy."""

    cpu_ms: dict[int, float | None] = field(default_factory=dict)  # a request, by connections
    rate: dict[int, float] = field(default_factory=dict)  # requests/s, by connections
    first_token_ms: float = 0.0


@dataclass
class Way:
    """One way to the provider. `streams` is the proxy that streams go by, if it is another."""

    port: int
    proxy: Proxy | None = None
    stream_port: int | None = None
    samples: list[Sample] = field(default_factory=list)

    async def measure(self, *, requests: int, streams: int) -> None:
        """Take one sample."""
        sample = Sample()
        for connections in (MANY, 1):
            cpu = self.proxy.cpu if self.proxy else lambda: 0.0
            took, used = await load(self.port, connections=connections, requests=requests, cpu=cpu)
            sample.cpu_ms[connections] = used / requests * 1000 if self.proxy else None
            sample.rate[connections] = requests / took
        port = self.stream_port or self.port
        sample.first_token_ms = await first_tokens(port, streams=streams) * 1000
        self.samples.append(sample)


@dataclass
class Figure:
    """One line of the result; `target` is the most that `compared` may be."""

    name: str
    unit: str
    direct: float | None = None
    bare: float | None = None
    pointsman: float | None = None
    comparison: str = ""
    compared: float | None = None
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None or self.compared is None:
            return None
        return self.compared <= self.target


async def run(*, rounds: int, requests: int, streams: int) -> list[Figure]:
    """Measure everything."""
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as folder:
        async with Provider().serving() as provider:
            with proxies(Path(folder), provider.port) as (bare, streaming, pointsman):
                ways = [
                    Way(provider.port),
                    Way(bare.port, bare, streaming.port),
                    Way(pointsman.port, pointsman),
                ]
                for way in ways:
                    await load(way.port, connections=MANY, requests=WARM_UP)
                if provider.with_key != WARM_UP + MANY * FIRST_REQUESTS:
                    raise BenchError("Pointsman did not put the key of the rules into each request")
                for turn in range(rounds):
                    print(f"bench: round {turn + 1} of {rounds}", file=sys.stderr)
                    # Whoever comes first would always meet the same noise.
                    for way in (*ways[turn % 3 :], *ways[: turn % 3]):
                        await way.measure(requests=requests, streams=streams)
                peaks = bare.peak_mib(), pointsman.peak_mib()
                await large_prompts(pointsman.port)
                overheads = list(pointsman.log())
    return [
        *compare(*ways),
        Figure("peak memory", "MiB", bare=peaks[0], pointsman=peaks[1]),
        overhead("own code", (e for e in overheads if not e["stream"]), large=False),
        overhead("own code, 4 MB prompt", overheads, large=True, target=LARGE_PROMPT_MS),
    ]


async def run_telemetry(*, rounds: int, requests: int, otel: bool) -> list[Figure]:
    """Measure Pointsman without and with its telemetry, and with OTLP too if that is asked for."""
    ways = {name: Way(0) for name in TELEMETRY[: 3 if otel else 2]}
    peaks: dict[str, list[float]] = {name: [] for name in ways}
    async with Provider().serving() as provider, Receiver().serving() as receiver:
        for turn in range(rounds):
            print(f"bench: round {turn + 1} of {rounds}", file=sys.stderr)
            with (
                tempfile.TemporaryDirectory(prefix="pointsman-bench-") as folder,
                ExitStack() as stack,
            ):
                proxies = {
                    name: stack.enter_context(
                        with_telemetry(name, Path(folder), provider, receiver)
                    )
                    for name in ways
                }
                for proxy in proxies.values():
                    await load(proxy.port, connections=MANY, requests=WARM_UP)
                for step in range(TURNS):
                    for name in (*list(ways)[step % len(ways) :], *list(ways)[: step % len(ways)]):
                        ways[name].samples.append(
                            await cpu_sample(proxies[name], requests=max(requests // TURNS, 1))
                        )
                for name, proxy in proxies.items():
                    peaks[name].append(proxy.peak_mib())
        if otel and not receiver.posts:
            raise BenchError("nothing has come by OTLP")
    base, *others = ways
    figures = []
    for name in others:
        for connections in (MANY, 1):
            figure = cpu_figure(
                ways[base],
                ways[name],
                connections,
                comparison=f"/ {base}",
                target=TELEMETRY_RATIO if name == TELEMETRY[1] else None,
            )
            figures.append(replace(figure, name=f"{name}: {figure.name}"))
        memory = median(peaks[base]), median(peaks[name])
        figures.append(Figure(f"{name}: peak memory", "MiB", bare=memory[0], pointsman=memory[1]))
    return figures


async def run_memory() -> list[Figure]:
    """Let one Pointsman carry many exchanges, and see how it grows."""
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as folder:
        async with Provider().serving() as provider:
            addon = with_addon(Path(folder), provider.port)
            with mitmdump("pointsman", Path(folder), *addon, *ADMIN) as proxy:

                async def carry(exchanges: int) -> float:
                    for _ in range(exchanges // EXCHANGES_A_STEP):
                        requests = EXCHANGES_A_STEP - MANY * FIRST_REQUESTS
                        await load(proxy.port, connections=MANY, requests=requests)
                    return proxy.resident_mib()

                before = await carry(EXCHANGES_BEFORE)
                after = await carry(EXCHANGES)
                logged = sum(1 for _ in proxy.log())
    if logged != EXCHANGES_BEFORE + EXCHANGES:
        raise BenchError(f"{logged:,} exchanges are in the log")
    grown = after - before
    figure = Figure("resident memory", "MiB", bare=before, pointsman=after, target=GROWTH_MIB)
    return [replace(figure, compared=grown, comparison="more")]


def with_telemetry(
    name: str, folder: Path, provider: Provider, receiver: Receiver
) -> AbstractContextManager[Proxy]:
    """Start Pointsman with one of the kinds of `TELEMETRY`."""
    more = {
        "without": ("--set", "llm_metrics=false", "--set", "llm_admin=off"),
        "default": ADMIN,
        "OTLP": (*ADMIN, "--set", "llm_otel=true"),
    }
    options = (*with_addon(folder, provider.port), *more[name])
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}"}
    return mitmdump(name, folder, *options, env=env)


async def cpu_sample(proxy: Proxy, *, requests: int) -> Sample:
    """Measure a proxy's CPU alone."""
    sample = Sample()
    for connections in (MANY, 1):
        _, used = await load(proxy.port, connections=connections, requests=requests, cpu=proxy.cpu)
        sample.cpu_ms[connections] = used / requests * 1000
    return sample


async def large_prompts(port: int) -> None:
    """Send prompts of 4 MB, one after the other."""
    request = chat_request("A long way to platform four. " * (LARGE_PROMPT // 29))
    async with asyncio.timeout(STEP_SECONDS), Client.connected(port) as client:
        for _ in range(LARGE_PROMPTS):
            await client.ask(request)


def compare(direct: Way, bare: Way, pointsman: Way) -> Iterator[Figure]:
    """Yield what is compared within each round."""
    for connections in (MANY, 1):
        yield cpu_figure(bare, pointsman, connections, comparison="/ bare", target=CPU_RATIO)
    first = [[sample.first_token_ms for sample in way.samples] for way in (direct, bare, pointsman)]
    yield Figure(
        "time to first token",
        "ms",
        direct=median(first[0]),
        bare=median(first[1]),
        pointsman=median(first[2]),
        comparison="- direct",
        compared=median(ours - none for none, _, ours in zip(*first, strict=True)),
        target=FIRST_TOKEN_MS,
    )
    for connections in (MANY, 1):
        rates = [
            [sample.rate[connections] for sample in way.samples]
            for way in (direct, bare, pointsman)
        ]
        yield Figure(
            f"requests/s, {connections} conn.",
            "",
            direct=median(rates[0]),
            bare=median(rates[1]),
            pointsman=median(rates[2]),
            comparison="/ bare",
            compared=median(ours / theirs for _, theirs, ours in zip(*rates, strict=True)),
        )


def cpu_figure(
    base: Way, other: Way, connections: int, *, comparison: str, target: float | None
) -> Figure:
    """Return the CPU for a request of two ways, compared within each round."""
    cpu = [
        [
            sample.cpu_ms[connections] or 0.0
            for sample in way.samples
            if connections in sample.cpu_ms
        ]
        for way in (base, other)
    ]
    return Figure(
        f"CPU/request, {connections} conn.",
        "ms",
        bare=median(cpu[0]),
        pointsman=median(cpu[1]),
        comparison=comparison,
        compared=median(ours / theirs for theirs, ours in zip(*cpu, strict=True)),
        target=target,
    )


def overhead(
    name: str, entries: Iterable[dict[str, object]], *, large: bool, target: float | None = None
) -> Figure:
    """Return the median of the access log's `overhead_ms`, of large or of small requests."""
    values = [
        float(str(entry["overhead_ms"]))
        for entry in entries
        if (int(str(entry["request_bytes"])) > LARGE_PROMPT / 2) is large
    ]
    if not values:
        raise BenchError("the access log has no line about these requests")
    ours = median(values)
    compared = None if target is None else ours
    return Figure(name, "ms", pointsman=ours, compared=compared, target=target)


# --- telling --------------------------------------------------------------------------------------


def table(figures: list[Figure], title: str, columns: tuple[str, str, str]) -> Table:
    """Return the result as a person wants to read it."""
    result = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    result.add_column("", no_wrap=True)
    for name in (*columns, "compared", "to reach"):
        result.add_column(name, justify="right", no_wrap=True)
    verdicts = {True: "[green]met[/]", False: "[red]not met[/]"}
    for figure in figures:
        values = (figure.direct, figure.bare, figure.pointsman)
        met = figure.met
        result.add_row(
            f"{figure.name} [dim]{figure.unit}[/]",
            *("" if value is None else number(value) for value in values),
            "" if figure.compared is None else f"{figure.compared:.2f} {figure.comparison}",
            "" if met is None else f"≤ {figure.target:g} {verdicts[met]}",
        )
    return result


def number(value: float) -> str:
    """Return a figure with the digits that mean something."""
    return f"{value:.0f}" if value >= 50 else f"{value:.2f}"


def at_least_one(text: str) -> int:
    """Return a count that is no less than one."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main() -> int:
    """Run as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Pointsman against bare mitmdump and no proxy: medians over interleaved"
        " rounds. Exit code 2: something did not run.",
    )
    count = at_least_one
    parser.add_argument("--rounds", type=count, default=6, help="default: %(default)s")
    parser.add_argument(
        "--requests",
        type=count,
        default=800,
        help="per round, way and number of connections; default: %(default)s",
    )
    parser.add_argument(
        "--streams", type=count, default=8, help="per round and way; default: %(default)s"
    )
    parser.add_argument(
        "--telemetry",
        action="store_true",
        help="compare Pointsman with and without its metrics and what its page shows",
    )
    parser.add_argument(
        "--otel", action="store_true", help="the same, and with traces and metrics sent by OTLP"
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help=f"carry {EXCHANGES:,} exchanges and tell what the process has grown by (minutes)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    if sys.platform != "linux":
        parser.error("a process's CPU and memory are read as Linux tells them")
    # Ended from outside, the proxies have to go too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    title = f"medians of {options.rounds} rounds, {options.requests} requests each"
    columns = ("direct", "bare", "pointsman")
    if options.memory:
        title, columns = f"one process, {EXCHANGES:,} exchanges", ("", "before", "after")
        measuring = run_memory()
    elif options.telemetry or options.otel:
        columns = ("", "without", "with")
        measuring = run_telemetry(
            rounds=options.rounds, requests=options.requests, otel=options.otel
        )
    else:
        measuring = run(rounds=options.rounds, requests=options.requests, streams=options.streams)
    try:
        figures = asyncio.run(measuring)
    except (BenchError, OSError, TimeoutError, EOFError, ExceptionGroup) as error:
        print(f"scripts/bench: {told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        rounded = [{**asdict(figure), "met": figure.met} for figure in figures]
        print(json.dumps({"rounds": options.rounds, "figures": rounded}, indent=2))
    else:
        Console().print(table(figures, title, columns))
    return int(options.check and any(figure.met is False for figure in figures))


def told(error: BaseException) -> str:
    """Return what is the matter: the first of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
