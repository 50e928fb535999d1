"""What Pointsman answers itself."""

from mitmproxy import http

from pointsman.errors import RequestError
from pointsman.protocols.errors import error_body


def refusal_of(error: RequestError, api: str | None = None) -> http.Response:
    """Return an error as an answer, in the shape of the API that the client called."""
    headers = {"content-type": "application/json", "x-pointsman-error": error.code}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    return http.Response.make(error.status, error_body(error, api), headers)
