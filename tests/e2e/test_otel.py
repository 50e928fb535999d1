"""OTLP against a receiver process: spans, metrics, propagation, and a receiver that is away."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import StartProxy
from tests.e2e.harness import (
    DEADLINE,
    LOOPBACK,
    Far,
    Proxy,
    assert_entry,
    chat,
    closed_port,
    eventually,
    llm_provider,
    llm_route,
    openai_config,
    said,
    sse,
    write_rules,
)
from tests.e2e.otlp import Receiver, attributes

pytestmark = pytest.mark.e2e

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def rules(tmp_path: Path, openai: Far) -> Path:
    dead = llm_provider(
        "dead",
        "dead.example",
        address=f"{LOOPBACK}:{closed_port()}",
        scheme="http",
        configs=openai_config(model="m"),
    )
    refs = [
        {"providerHost": "dead.example"},
        {"providerHost": "api.openai.com", "priority": 1},
    ]
    front = llm_route("front", "front", {"name": "first", "backendRefs": refs})
    return write_rules(tmp_path / "rules", openai.manifest(), dead, front)


def start(start_proxy: StartProxy, rules: Path, environment: dict[str, str]) -> Proxy:
    return start_proxy(rules, "--set", "llm_otel=true", env=environment)


def test_an_exchange_is_a_span_with_a_child_for_each_attempt(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, openai: Far
) -> None:
    proxy = start(start_proxy, rules, receiver.environment)
    with proxy.client(headers={"traceparent": PARENT, "tracestate": "vendor=1"}) as client:
        assert sse(
            client.post(
                "http://front/", json=chat("a secret prompt", model="m", stream=True)
            ).content
        )
    (call,) = openai.calls(1)
    entry = proxy.entry()
    spans = {span["name"]: span for span in receiver.wait(3)}
    whole = spans["chat m"]
    assert whole["traceId"] == TRACE
    assert whole["parentSpanId"] == "b7ad6b7169203331"
    assert whole["kind"] == "SPAN_KIND_CLIENT"
    found = attributes(whole)
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.provider.name"] == "openai"
    assert found["gen_ai.usage.input_tokens"] == entry["request_prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == entry["request_completion_tokens"]
    assert found["gen_ai.response.finish_reasons"] == ["stop"]
    assert found["pointsman.route"] == "front"
    assert found["pointsman.rule"] == "first"
    assert found["http.response.status_code"] == 200
    lasted = (int(whole["endTimeUnixNano"]) - int(whole["startTimeUnixNano"])) / 1e6
    assert lasted == pytest.approx(entry["duration_ms"], abs=5)

    failed, served = spans["attempt dead"], spans["attempt openai"]
    for attempt in (failed, served):
        assert attempt["parentSpanId"] == whole["spanId"]
        assert attempt["traceId"] == TRACE
    assert failed["status"]["code"] == "STATUS_CODE_ERROR"
    assert attributes(served)["http.response.status_code"] == 200
    assert call.header("traceparent") == f"00-{TRACE}-{served['spanId']}-01"
    assert call.header("tracestate") == "vendor=1"
    assert "secret prompt" not in receiver.text()


def test_a_client_without_a_trace_gets_none_sent_on_its_behalf(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, openai: Far
) -> None:
    proxy = start(start_proxy, rules, receiver.environment)
    with proxy.client() as client:
        assert said(client.post("http://api.openai.com/", json=chat(model="m")))
    (call,) = openai.calls(1)
    assert "traceparent" not in {name.lower() for name, _ in call.headers}
    receiver.wait(2)
    proxy.entry()


def test_a_refused_request_is_a_span_too(
    start_proxy: StartProxy, receiver: Receiver, rules: Path
) -> None:
    proxy = start(start_proxy, rules, receiver.environment)
    with proxy.client() as client:
        assert client.post("http://api.openai.com/", content=b"{").status_code == 400
    assert_entry(proxy.entry(), status=400)
    (span,) = receiver.wait(1)
    assert attributes(span)["error.type"] == "bad_request"


def test_metrics_are_those_of_the_log(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, openai: Far
) -> None:
    proxy = start(start_proxy, rules, receiver.environment)
    with proxy.client() as client:
        for number in range(5):
            asked = chat(model="m", stream=number % 2 == 0)
            assert client.post("http://api.openai.com/", json=asked).status_code == 200
    openai.calls(5)
    entries = proxy.logged(5)

    def complete() -> bool:
        counted = receiver.metrics().get("pointsman.requests", {}).get("sum", {})
        return bool(sum(point["asDouble"] for point in counted.get("dataPoints", [])) == 5)

    eventually(complete, what="five requests counted")
    metrics = receiver.metrics()
    points = metrics["gen_ai.client.token.usage"]["histogram"]["dataPoints"]
    by_type = {attributes(point)["gen_ai.token.type"]: point for point in points}
    assert by_type["input"]["sum"] == sum(e["request_prompt_tokens"] for e in entries)
    assert by_type["output"]["sum"] == sum(e["request_completion_tokens"] for e in entries)
    duration = metrics["gen_ai.client.operation.duration"]
    assert duration["unit"] == "s"
    (point,) = duration["histogram"]["dataPoints"]
    assert int(point["count"]) == sum(map(int, point["bucketCounts"])) == 5
    assert len(point["bucketCounts"]) == len(point["explicitBounds"]) + 1
    assert point["sum"] * 1000 == pytest.approx(sum(e["duration_ms"] for e in entries), rel=0.01)
    assert attributes(point)["gen_ai.provider.name"] == "openai"
    resource = receiver.received("metrics")[0]["resourceMetrics"][0]["resource"]
    assert attributes(resource)["service.name"] == "shop-llm"


def test_a_receiver_that_is_away_or_silent_touches_no_request(
    start_proxy: StartProxy, rules: Path, openai: Far
) -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        for port in (closed_port(), silent.getsockname()[1]):
            environment = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{port}",
                "OTEL_METRIC_EXPORT_INTERVAL": "100",
                "OTEL_BSP_SCHEDULE_DELAY": "100",
                "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            }
            proxy = start(start_proxy, rules, environment)
            with proxy.client() as client:
                for _ in range(10):
                    assert said(client.post("http://api.openai.com/", json=chat(model="m")))
            openai.calls(10)
            proxy.logged(10)
            proxy.stop()


def test_what_is_left_is_sent_at_the_end(
    start_proxy: StartProxy, receiver: Receiver, rules: Path, openai: Far
) -> None:
    environment = receiver.environment | {
        "OTEL_METRIC_EXPORT_INTERVAL": "60000",
        "OTEL_BSP_SCHEDULE_DELAY": "60000",
    }
    proxy = start(start_proxy, rules, environment)
    with proxy.client() as client:
        assert said(client.post("http://api.openai.com/", json=chat(model="m")))
    openai.calls(1)
    proxy.entry()
    proxy.stop()
    assert len(receiver.wait(2)) == 2
    eventually(lambda: "pointsman.requests" in receiver.metrics(), what="the last metrics")


def test_without_its_packages_the_option_says_what_to_install(tmp_path: Path, rules: Path) -> None:
    hidden = tmp_path / "hidden" / "opentelemetry"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden', name='opentelemetry')\n")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("mitmdump")),
            *("-s", str(root / "addon" / "main.py"), "--set", "llm_otel=true"),
            *("--set", f"llm_rules={rules}", "--set", "llm_admin=off"),
            *("--set", f"confdir={tmp_path}", "-p", "0"),
        ],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(hidden.parent),
            "OPENAI_API_KEY": "any",
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install opentelemetry-sdk" in done.stdout + done.stderr
