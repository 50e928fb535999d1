"""What OpenTelemetry's environment variables say that its SDK does not look at for us."""

from collections.abc import Mapping
from dataclasses import dataclass

_CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
# What other instrumentations take for yes, and for no. Events are not sent here, spans are.
_ON_SPANS = frozenset({"true", "1", "span_only", "span_and_event"})
_NOT_ON_SPANS = frozenset({"", "false", "0", "no_content", "event_only"})
_PROTOCOL = "http/protobuf"
_DEFAULT_INTERVAL = 60.0
_LEAST_INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class Settings:
    """What is to be sent. `interval` is between two looks at the metrics, in seconds."""

    traces: bool
    metrics: bool
    content: bool
    interval: float
    warnings: tuple[str, ...] = ()


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the variables; those that can't be followed are warned of."""
    given = {name: value.strip() for name, value in environment.items()}
    warnings: list[str] = []
    if given.get("OTEL_SDK_DISABLED", "").lower() == "true":
        told = "llm_otel is on, but OTEL_SDK_DISABLED=true: nothing is sent"
        return Settings(
            traces=False, metrics=False, content=False, interval=_DEFAULT_INTERVAL, warnings=(told,)
        )
    traces = _exported("TRACES", given, warnings)
    metrics = _exported("METRICS", given, warnings)
    if given.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").lower() == "delta":
        warnings.append(
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta is not followed: the metrics"
            " are cumulative; a collector's cumulativetodelta processor makes deltas of them"
        )
    return Settings(
        traces=traces,
        metrics=metrics,
        content=traces and _content(given, warnings),
        interval=_interval(given, warnings),
        warnings=tuple(warnings),
    )


def _exported(signal: str, given: Mapping[str, str], warnings: list[str]) -> bool:
    name = f"OTEL_{signal}_EXPORTER"
    wanted = {one.strip().lower() for one in given.get(name, "").split(",")} - {""}
    if wanted == {"none"}:
        return False
    if unknown := sorted(wanted - {"otlp"}):
        warnings.append(
            f"{name}={','.join(unknown)} is not known here: it is sent by OTLP; to send none of it,"
            " set it to none"
        )
    for protocol in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if value := given.get(protocol):
            if value.lower() != _PROTOCOL:
                told = (
                    f"{protocol}={value} is not spoken here: it is sent by {_PROTOCOL}, for which"
                    " collectors listen on port 4318"
                )
                warnings.extend([told] if told not in warnings else [])
            break
    return True


def _content(given: Mapping[str, str], warnings: list[str]) -> bool:
    wanted = given.get(_CAPTURE, "").lower()
    if wanted not in _ON_SPANS | _NOT_ON_SPANS:
        warnings.append(
            f"{_CAPTURE}={wanted} is not known: no prompt and no answer is sent; true puts them on"
            " spans"
        )
    return wanted in _ON_SPANS


def _interval(given: Mapping[str, str], warnings: list[str]) -> float:
    name = "OTEL_METRIC_EXPORT_INTERVAL"
    try:
        interval = int(given.get(name) or _DEFAULT_INTERVAL * 1000) / 1000
    except ValueError:
        warnings.append(f"{name}={given[name]} is no number of milliseconds: 60000 is taken")
        return _DEFAULT_INTERVAL
    return max(interval, _LEAST_INTERVAL)
