"""An OTLP/HTTP receiver: prints its port, then each request it gets as a line of JSON."""

import base64
import gzip
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

MESSAGES: dict[str, Any] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
}
IDS = ("traceId", "spanId", "parentSpanId")


def readable(value: Any) -> Any:
    """Turn the base64 of ids, which JSON gives bytes, into the hex that they are written in."""
    if isinstance(value, dict):
        return {
            name: base64.b64decode(held).hex() if name in IDS else readable(held)
            for name, held in value.items()
        }
    return [readable(one) for one in value] if isinstance(value, list) else value


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        coding = self.headers.get("content-encoding")
        if coding == "gzip":
            body = gzip.decompress(body)
        message = MESSAGES[self.path]()
        message.ParseFromString(body)
        received = readable(MessageToDict(message))
        line = json.dumps({"path": self.path, "coding": coding, "body": received})
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Print nothing but what was received."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
sys.stdout.write(f"{server.server_port}\n")
sys.stdout.flush()
server.serve_forever()
