"""How the exporters call a collector: what it answers beside its status is not waited for.

The exporters look at no more than the status and one header, but would read the whole body first,
however long it is.
"""

import os
from typing import Any

import requests

_CREDENTIAL_PROVIDER = "OTEL_PYTHON_EXPORTER_OTLP_HTTP"  # …_CREDENTIAL_PROVIDER, for each signal
_MAX_BODY = 64 * 1024  # bytes that are read, so that the connection can be used again


class _Brief(requests.Session):
    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Make a call; of a body that is long, or does not tell how long it is, read nothing."""
        answer = super().request(*args, **{**kwargs, "stream": True})
        length = answer.headers.get("content-length", "")
        if length.isdecimal() and int(length) <= _MAX_BODY:
            answer.content  # noqa: B018 (reads it)
        answer.close()
        return answer


def brief_session() -> requests.Session | None:
    """Return what the exporters are to call with; None: what a variable names."""
    named = any(name.startswith(_CREDENTIAL_PROVIDER) for name in os.environ)
    return None if named else _Brief()
