"""An OTLP receiver as a process, and what it has received."""

import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from tests.e2e.harness import DEADLINE, LOOPBACK, SCRIPTS, Json, Output, eventually


class Receiver:
    """A process that takes OTLP over HTTP and prints what it gets, decoded, a JSON line each.

    It is a context manager.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPTS / "otlp_receiver.py")], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self._output = Output(self._process.stdout)
        self.port = int(self._output.wait(lambda lines: "".join(lines[:1]), "the port"))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{self.port}",
            "OTEL_METRIC_EXPORT_INTERVAL": "300",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_SERVICE_NAME": "shop-llm",
        }

    def received(self, kind: str) -> list[Json]:
        messages = (json.loads(line) for line in self._output.lines(1))
        return [message["body"] for message in messages if message["path"] == f"/v1/{kind}"]

    def spans(self) -> list[Json]:
        return [
            span
            for body in self.received("traces")
            for resource in body["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]

    def wait(self, count: int) -> list[Json]:
        """Wait for this many spans; return them."""
        eventually(lambda: len(self.spans()) >= count, what=f"{count} spans")
        return self.spans()

    def resources(self, kind: str) -> list[Json]:
        """Return the attributes of each message's resource."""
        name = {"traces": "resourceSpans", "metrics": "resourceMetrics"}[kind]
        return [attributes(one["resource"]) for body in self.received(kind) for one in body[name]]

    def codings(self) -> set[str | None]:
        """Return how messages have been compressed."""
        return {json.loads(line)["coding"] for line in self._output.lines(1)}

    def metrics(self) -> dict[str, Json]:
        """Return the last state of each metric."""
        return {
            metric["name"]: metric
            for body in self.received("metrics")
            for resource in body["resourceMetrics"]
            for scope in resource["scopeMetrics"]
            for metric in scope.get("metrics", [])
        }

    def text(self) -> str:
        """Return all that it has received."""
        return self._output.text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)
        self._output.join()
        assert self._process.stdout
        self._process.stdout.close()


def attributes(of: Json) -> dict[str, Any]:
    def value(given: Json) -> Any:
        ((kind, held),) = given.items()
        if kind == "arrayValue":
            return [value(one) for one in held["values"]]
        return int(held) if kind == "intValue" else held

    return {one["key"]: value(one["value"]) for one in of.get("attributes", [])}
