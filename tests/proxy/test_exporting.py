"""OTLP switched on and off: what the router does meanwhile, and what is left behind."""

import logging
import threading
from collections.abc import Iterator

import pytest
from mitmproxy import exceptions

from pointsman.proxy.exporting import _LOGGERS, _QUOTING, Exporting
from pointsman.proxy.router import Router
from pointsman.telemetry.exchange import Exchange
from tests.e2e.harness import LOOPBACK, closed_port, eventually

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
THREADS = {"OtelBatchSpanRecordProcessor", "metrics by OTLP", "spans' content"}


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Router:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{LOOPBACK}:{closed_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    return Router()


@pytest.fixture
def exporting(router: Router) -> Iterator[Exporting]:
    exporting = Exporting(router)
    yield exporting
    exporting.close()
    eventually(lambda: not running(), what="no thread is left")


def running() -> set[str]:
    return THREADS & {thread.name for thread in threading.enumerate()}


def forget_what_was_told() -> None:
    for name in (*_LOGGERS, *_QUOTING):
        for one in logging.getLogger(name).filters:
            vars(one).update({"_told": float("-inf")} if "_told" in vars(one) else {})


def test_without_being_asked_for_no_content_is_kept(router: Router, exporting: Exporting) -> None:
    exporting.switch(on=True)
    assert router.tracing is not None
    assert router.capture is None
    assert running() == THREADS - {"spans' content"}


def test_content_is_kept_while_it_is_asked_for(
    router: Router, exporting: Exporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CAPTURE, "true")
    exporting.switch(on=True)
    assert router.capture is not None
    assert running() == THREADS
    exporting.switch(on=False)
    assert router.tracing is None
    assert router.capture is None
    eventually(lambda: not running(), what="no thread is left")


def test_it_can_be_switched_on_and_off_at_any_time(router: Router, exporting: Exporting) -> None:
    for _ in range(5):
        exporting.switch(on=True)
        exporting.switch(on=True)
        assert router.tracing is not None
        exporting.switch(on=False)
        exporting.switch(on=False)
        assert router.tracing is None
    eventually(lambda: not running(), what="no thread is left")


@pytest.mark.parametrize("name", ["OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"])
def test_what_the_variables_switch_off_is_not_begun(
    router: Router, exporting: Exporting, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "true" if name.endswith("DISABLED") else "none")
    exporting.switch(on=True)
    assert router.tracing is None
    assert "OtelBatchSpanRecordProcessor" not in running()


def test_a_value_that_can_not_be_used_is_an_options_error(
    router: Router, exporting: Exporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(exceptions.OptionsError, match="max_queue_size"):
        exporting.switch(on=True)
    assert router.tracing is None
    monkeypatch.delenv("OTEL_BSP_MAX_QUEUE_SIZE")
    exporting.switch(on=True)
    assert router.tracing is not None


def test_the_log_hears_of_the_collector_once_a_minute_in_one_short_line(
    exporting: Exporting, caplog: pytest.LogCaptureFixture
) -> None:
    exporting.switch(on=True)
    names = ("trace_exporter", "metric_exporter")
    loggers = [logging.getLogger(f"opentelemetry.exporter.otlp.proto.http.{n}") for n in names]
    forget_what_was_told()
    caplog.clear()
    for number in range(10):
        loggers[number % 2].error("it failed: %s", "two\nlines " * 1000)
    (told,) = (record for record in caplog.records if record.name in {n.name for n in loggers})
    assert told.levelno == logging.WARNING
    assert told.getMessage().startswith("OTLP: it failed: two lines")
    assert len(told.getMessage()) < 400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key: SECRET"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x=SECRETé"),
        ("OTEL_RESOURCE_ATTRIBUTES", "api.key SECRET"),
    ],
)
def test_an_entry_that_can_not_be_read_is_told_once_and_not_quoted(
    exporting: Exporting,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
) -> None:
    exporting.switch(on=True)
    exporting.switch(on=False)
    forget_what_was_told()
    caplog.clear()
    monkeypatch.setenv(name, value)
    exporting.switch(on=True)
    told = [one.getMessage() for one in caplog.records if "nvalid" in one.getMessage()]
    assert len(told) == 1
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize(
    "case",
    [
        ("_HEADERS", "x=SECRET%0d%0ay:z", "reason: InvalidHeader"),
        ("_TRACES_ENDPOINT", f"{LOOPBACK}/SECRET", "reason: MissingSchema"),
        (
            "_TRACES_ENDPOINT",
            f"http://u:SECRET@{LOOPBACK}:{closed_port()}/v1?token=SECRET",
            f"ConnectionError, Connection refused ({LOOPBACK})",
        ),
    ],
    ids=lambda case: case[2],
)
def test_why_a_batch_is_lost_is_told_without_a_credential(
    router: Router,
    exporting: Exporting,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    case: tuple[str, str, str],
) -> None:
    name, value, said = case
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP{name}", value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    exporting.switch(on=True)
    forget_what_was_told()
    router.sinks.emit(Exchange("r", host="h", method="POST", path="/", client=None, started=1.0))
    eventually(lambda: said in caplog.text, what="a line about it")
    assert "SECRET" not in caplog.text
