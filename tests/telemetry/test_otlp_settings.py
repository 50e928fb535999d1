"""OpenTelemetry's environment variables: what is followed, and what is warned of."""

import pytest

from pointsman.telemetry.otlp_settings import read_settings

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


def test_without_any_all_but_content_is_sent_each_minute() -> None:
    found = read_settings({})
    assert (found.traces, found.metrics, found.content) == (True, True, False)
    assert found.interval == 60
    assert not found.warnings


@pytest.mark.parametrize("value", ["true", "TRUE", "1", "span_only", "SPAN_AND_EVENT", " true "])
def test_content_is_asked_for(value: str) -> None:
    assert read_settings({CAPTURE: value}).content


@pytest.mark.parametrize("value", ["", "false", "0", "NO_CONTENT", "event_only"])
def test_content_is_not_asked_for(value: str) -> None:
    found = read_settings({CAPTURE: value})
    assert not found.content
    assert not found.warnings


def test_what_is_not_known_asks_for_no_content() -> None:
    found = read_settings({CAPTURE: "yes please"})
    assert not found.content
    (warning,) = found.warnings
    assert CAPTURE in warning


def test_content_is_of_no_use_without_traces() -> None:
    assert not read_settings({CAPTURE: "true", "OTEL_TRACES_EXPORTER": "none"}).content


def test_each_signal_can_be_switched_off() -> None:
    found = read_settings({"OTEL_TRACES_EXPORTER": "none"})
    assert (found.traces, found.metrics) == (False, True)
    found = read_settings({"OTEL_METRICS_EXPORTER": " None "})
    assert (found.traces, found.metrics) == (True, False)
    assert not found.warnings


def test_the_sdk_can_be_switched_off() -> None:
    found = read_settings({"OTEL_SDK_DISABLED": "True", CAPTURE: "true"})
    assert (found.traces, found.metrics, found.content) == (False, False, False)
    (warning,) = found.warnings
    assert "OTEL_SDK_DISABLED" in warning


def test_another_exporter_is_warned_of() -> None:
    found = read_settings({"OTEL_TRACES_EXPORTER": "otlp,console"})
    assert found.traces
    (warning,) = found.warnings
    assert "OTEL_TRACES_EXPORTER=console" in warning


def test_another_protocol_is_warned_of_once() -> None:
    (warning,) = read_settings({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}).warnings
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=grpc" in warning
    assert "4318" in warning
    found = read_settings(
        {
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "none",
        }
    )
    assert not found.warnings


def test_deltas_are_warned_of() -> None:
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    assert len(read_settings({name: "delta"}).warnings) == 1
    assert not read_settings({name: "cumulative"}).warnings


@pytest.mark.parametrize(("value", "seconds"), [("1500", 1.5), ("0", 0.1), ("", 60.0)])
def test_the_interval(value: str, seconds: float) -> None:
    assert read_settings({"OTEL_METRIC_EXPORT_INTERVAL": value}).interval == seconds


def test_an_interval_that_is_no_number_is_warned_of() -> None:
    found = read_settings({"OTEL_METRIC_EXPORT_INTERVAL": "1m"})
    assert found.interval == 60
    assert len(found.warnings) == 1
