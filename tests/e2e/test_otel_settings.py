"""OpenTelemetry's variables, several workers, and collectors that are away, slow or mad."""

import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import KEYS, StartProxy
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Far,
    Proxy,
    RawServer,
    chat,
    eventually,
    read_head,
    said,
    write_rules,
)
from tests.e2e.otlp import Receiver, attributes
from tests.e2e.sidecar import Sidecar

pytestmark = pytest.mark.e2e

URL = "https://api.openai.com/v1/chat/completions"
ON = ("--set", "llm_otel=true")

type Wanted = tuple[dict[str, str], set[str], str | None]  # variables, what is sent, a warning


@pytest.fixture
def rules(tmp_path: Path, openai: Far) -> Path:
    return write_rules(tmp_path / "rules", openai.manifest())


def ask(proxy: Proxy | Sidecar, count: int = 1) -> None:
    with proxy.client() as client:
        for _ in range(count):
            assert said(client.post(URL, json=chat(model="m")))


def counted(receiver: Receiver) -> float:
    points = receiver.metrics().get("pointsman.requests", {}).get("sum", {}).get("dataPoints", [])
    return float(sum(point["asDouble"] for point in points))


# --- the variables --------------------------------------------------------------------------------


def test_messages_are_compressed_and_named_as_the_variables_say(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, openai: Far
) -> None:
    environment = receiver.environment | {
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=seven,deployment.environment.name=test",
        "POD_NAME": "shop-1",
    }
    proxy = start_proxy(rules, *ON, env=environment)
    ask(proxy)
    proxy.entry()
    receiver.wait(2)
    eventually(lambda: counted(receiver) == 1, what="the metrics")
    assert receiver.codings() == {"gzip"}
    for resource in receiver.resources("traces") + receiver.resources("metrics"):
        assert resource["service.name"] == "shop-llm"
        assert resource["service.instance.id"] == "seven"
        assert resource["deployment.environment.name"] == "test"
        assert resource["k8s.pod.name"] == "shop-1"
        assert re.match(r"\d+\.\d+", resource["service.version"])
    openai.calls(1)


@pytest.mark.parametrize(
    "wanted",
    [
        ({"OTEL_SDK_DISABLED": "true"}, set(), "OTEL_SDK_DISABLED=true: nothing is sent"),
        ({"OTEL_TRACES_EXPORTER": "none"}, {"metrics"}, None),
        ({"OTEL_METRICS_EXPORTER": "none"}, {"traces"}, None),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            {"metrics", "traces"},
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc is not spoken here",
        ),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, {"metrics"}, None),
    ],
    ids=lambda wanted: "-".join(wanted[0]),
)
def test_what_is_sent_is_what_the_variables_say(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, openai: Far, wanted: Wanted
) -> None:
    variables, kinds, warning = wanted
    proxy = start_proxy(rules, *ON, env=receiver.environment | variables)
    ask(proxy, 3)
    proxy.logged(3)
    openai.calls(3)
    proxy.stop()  # what there is has been sent then
    assert {kind for kind in ("metrics", "traces") if receiver.received(kind)} == kinds
    warned = [line for line in proxy.printed.splitlines() if "OTEL_" in line]
    assert len(warned) == (1 if warning else 0)
    assert not warning or warning in warned[0]


def test_a_variable_that_can_not_be_used_is_told_at_the_start(confdir: Path, rules: Path) -> None:
    environment = {**KEYS, "OTEL_BSP_MAX_QUEUE_SIZE": "0"}
    proxy = Proxy(confdir, rules, *ON, env=environment)
    proxy.start()
    assert proxy.wait() == 1
    assert "llm_otel: an OTEL_… variable can't be used (max_queue_size" in proxy.printed


def test_each_worker_is_an_instance_of_its_own(
    tmp_path: Path, receiver: Receiver, rules: Path, openai: Far
) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    environment = {**KEYS, **receiver.environment}
    with Sidecar(folder, rules, *ON, "--workers", "2", env=environment) as sidecar:

        def both() -> bool:
            ask(sidecar)
            found = {each["service.instance.id"] for each in receiver.resources("traces")}
            return len(found) == 2

        eventually(both, what="spans of both workers")
    asked = len(openai.provider.calls)
    openai.calls(asked)
    assert len(receiver.wait(2 * asked)) == 2 * asked
    last: dict[str, float] = {}
    for body in receiver.received("metrics"):
        for resource in body["resourceMetrics"]:
            name = attributes(resource["resource"])["service.instance.id"]
            for metric in resource["scopeMetrics"][0]["metrics"]:
                if metric["name"] == "pointsman.requests":
                    points = metric["sum"]["dataPoints"]
                    last[name] = sum(point["asDouble"] for point in points)
    assert len(last) == 2
    assert sum(last.values()) == asked


# --- collectors -----------------------------------------------------------------------------------


def silent(conn: socket.socket) -> None:
    """Take what comes and never answer."""
    while conn.recv(65536):
        pass


def garbage(conn: socket.socket) -> None:
    """Answer with what is no HTTP."""
    read_head(conn)
    conn.sendall(b"\x00\xff\x01garbage\r\n\r\n" * 100)


def refusing(conn: socket.socket) -> None:
    """Answer with an error that has a long reason."""
    read_head(conn)
    reason = "x" * 5000
    conn.sendall(f"HTTP/1.1 400 {reason}\r\nContent-Length: 0\r\n\r\n".encode())


def busy(conn: socket.socket) -> None:
    """Ask to come again in an hour."""
    read_head(conn)
    conn.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n")


def slow(conn: socket.socket) -> None:
    """Send the head of an answer byte by byte, for ever."""
    try:
        while True:
            conn.sendall(b"H")
            time.sleep(0.2)
    except OSError:
        return


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "collector", [silent, garbage, refusing, busy, slow], ids=lambda each: each.__name__
)
def test_a_mad_collector_touches_no_request(
    start_proxy: StartProxy,
    rules: Path,
    openai: Far,
    collector: Callable[[socket.socket], None],
) -> None:
    with ExitStack() as stack:
        # Whoever serves a collector's connection may see it reset: that is no fault here.
        def serve(conn: socket.socket) -> None:
            try:
                collector(conn)
            except (AssertionError, OSError):
                return

        port = stack.enter_context(RawServer(serve)).port
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{port}",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_BSP_MAX_QUEUE_SIZE": "8",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        }
        proxy = start_proxy(rules, *ON, env=environment)
        ask(proxy, 30)
        openai.calls(30)
        proxy.logged(30)
        status = _status(proxy)
        assert int(status["Threads"]) <= 12, status["Threads"]
        assert int(status["VmRSS"].split()[0]) < 250_000, status["VmRSS"]
        begun = time.monotonic()
        proxy.stop()
        assert time.monotonic() - begun < DEADLINE - 5
        told = [line for line in proxy.printed.splitlines() if "OTLP: " in line]
        assert len(told) <= 2
        assert all(len(line) < 500 for line in told)


def test_an_answer_of_a_collector_is_not_read_to_its_end(
    start_proxy: StartProxy, rules: Path, openai: Far
) -> None:
    """It has none."""
    sent: list[int] = []

    def endless(conn: socket.socket) -> None:
        read_head(conn)
        sent.append(0)
        at = len(sent) - 1
        try:
            conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while sent[at] < 1 << 30:
                sent[at] += conn.send(b"x" * 65536)
        except OSError:
            return

    with RawServer(endless) as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        proxy = start_proxy(rules, *ON, env=environment)
        ask(proxy)
        openai.calls(1)
        proxy.entry()
        eventually(lambda: len(sent) >= 5, what="five messages")
        proxy.stop()
    assert max(sent) < 50_000_000  # what the kernel's buffers hold


def _status(proxy: Proxy) -> dict[str, str]:
    lines = Path(f"/proc/{proxy._process.pid}/status").read_text(encoding="ascii").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
