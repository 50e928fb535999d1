"""Log records as JSON, one object a line, beside the lines of the access log.

`event`, `timestamp`, `level`, `logger`; `exception` with the traceback; and what `extra` has.
"""

import logging
from collections.abc import MutableMapping
from typing import Any

import structlog


def json_formatter() -> logging.Formatter:
    """Return a formatter for any handler of the standard library's logging."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.format_exc_info,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _join_address,
            structlog.processors.JSONRenderer(),
        ],
    )


def _join_address(_: Any, __: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write mitmproxy's `client`, a tuple, as the access log does."""
    client = entry.get("client")
    if isinstance(client, tuple) and client:
        entry["client"] = ":".join(str(part) for part in client[:2])
    return entry
